"""Files by build ID from a debuginfod server: Debian's real one, and one of ours that misbehaves."""

from __future__ import annotations

import http.server
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.stacks_only import bundled_stacks_only
from tests.e2e.guests import tasks, unpacked_sysroot
from tests.needs import need
from vmcore2core.errors import UsageError
from vmcore2core.process.debuginfod import Debuginfod, Kind, debuginfod

ID = bytes.fromhex("00112233445566778899aabbccddeeff00112233")


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as ``answers`` says by path; else 404."""

    answers: dict[str, bytes] = {}  # noqa: RUF012
    seen: list[tuple[str, dict[str, str]]] = []  # noqa: RUF012
    pause = 0.0

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        if self.path not in self.answers:
            self.send_error(404)
            return
        body = self.answers[self.path]
        self.send_response(200)
        self.end_headers()
        for at in range(0, len(body), 1000):
            self.wfile.write(body[at : at + 1000])
            time.sleep(self.pause)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.answers, Server.seen, Server.pause = {}, [], 0.0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_a_file_is_asked_for_once_and_kept_where_the_client_keeps_it(server: str, tmp_path: Path) -> None:
    Server.answers[f"/buildid/{ID.hex()}/executable"] = b"\x7fELF program"
    for _ in range(2):
        found = Debuginfod((server,), tmp_path / "cache").find(ID, Kind.EXECUTABLE)
        assert found == tmp_path / "cache" / ID.hex() / "executable"
        assert found.read_bytes() == b"\x7fELF program"
    assert [path for path, _ in Server.seen] == [f"/buildid/{ID.hex()}/executable"]
    # Nothing but the build ID, and who asks, leaves.
    _, headers = Server.seen[0]
    assert headers.keys() <= {"Host", "User-Agent", "Accept-Encoding", "Connection"}
    assert headers["User-Agent"].startswith("vmcore2core/")


def test_what_no_server_has_is_asked_for_once(server: str, tmp_path: Path) -> None:
    client = Debuginfod((server, server + "/more"), tmp_path / "cache")
    assert client.find(ID, Kind.DEBUGINFO) is None
    assert client.find(ID, Kind.DEBUGINFO) is None
    assert len(Server.seen) == 2
    assert client.notices == []
    assert not list((tmp_path / "cache").glob("*"))


def test_an_empty_file_in_the_cache_is_the_clients_note_of_a_miss(server: str, tmp_path: Path) -> None:
    Server.answers[f"/buildid/{ID.hex()}/debuginfo"] = b"there now"
    kept = tmp_path / ID.hex() / "debuginfo"
    kept.parent.mkdir()
    kept.touch()
    assert Debuginfod((server,), tmp_path).find(ID, Kind.DEBUGINFO) is None
    assert Server.seen == []
    os.utime(kept, (0, 0))
    assert Debuginfod((server,), tmp_path).find(ID, Kind.DEBUGINFO) == kept
    assert kept.read_bytes() == b"there now"


@pytest.mark.parametrize(
    ("bound", "sentence"), [({"maxsize": 5000}, "more than 5000 bytes"), ({"maxtime": 0.2}, "takes more than 0 s")]
)
def test_size_and_time_of_a_file_are_bounded(server: str, tmp_path: Path, bound: dict[str, int], sentence: str) -> None:
    Server.answers[f"/buildid/{ID.hex()}/executable"] = bytes(20000)
    Server.pause = 0.05
    client = Debuginfod((server,), tmp_path / "cache", **bound)  # type: ignore[arg-type]
    assert client.find(ID, Kind.EXECUTABLE) is None
    (notice,) = client.notices
    assert sentence in notice
    assert not list((tmp_path / "cache").rglob("*.*"))
    assert client.find(b"\1" * 20, Kind.EXECUTABLE) is None
    assert len(Server.seen) == 1  # it is not asked any more


def test_a_server_that_does_not_answer_is_said_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    client = Debuginfod((url,), tmp_path)
    for number in range(3):
        assert client.find(bytes([number]) * 20, Kind.EXECUTABLE) is None
    (notice,) = client.notices
    assert notice == f"debuginfod server {url} is not asked any more: [Errno 111] Connection refused"
    client = Debuginfod((url.replace("//", "//user:secret@"),), tmp_path)
    assert client.find(ID, Kind.EXECUTABLE) is None
    assert "secret" not in client.notices[0]


def test_the_clients_variables_are_ours(tmp_path: Path) -> None:
    urls = {"DEBUGINFOD_URLS": " https://a.example/ http://b.example:8002 ", "HOME": str(tmp_path)}
    found = debuginfod(urls)
    assert found.urls == ("https://a.example", "http://b.example:8002")
    assert found.cache == tmp_path / ".cache/debuginfod_client"
    assert debuginfod({**urls, "XDG_CACHE_HOME": "/xdg"}).cache == Path("/xdg/debuginfod_client")
    assert debuginfod({**urls, "DEBUGINFOD_CACHE_PATH": "/c"}).cache == Path("/c")
    (tmp_path / ".debuginfod_client_cache").mkdir()
    assert debuginfod(urls).cache == tmp_path / ".debuginfod_client_cache"
    bounds = {"DEBUGINFOD_TIMEOUT": "7", "DEBUGINFOD_MAXTIME": "8", "DEBUGINFOD_MAXSIZE": "9"}
    found = debuginfod({**urls, **bounds})
    assert (found.timeout, found.maxtime, found.maxsize) == (7, 8, 9)
    for value in ("", "ftp://a.example", "file:///etc"):
        with pytest.raises(UsageError, match=r"\$DEBUGINFOD_URLS"):
            debuginfod({"DEBUGINFOD_URLS": value})


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Debian's debuginfod over the guest's files: its URL, and the folder."""
    program = need("debuginfod")
    files = unpacked_sysroot(tmp_path_factory.mktemp("files"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-F", str(files), "-p", str(port), "-d", ":memory:", "-t", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEBUGINFOD")}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            shown = subprocess.run(
                ["readelf", "-n", files / "lib/libc.so.6"], capture_output=True, text=True, check=True
            )
            (build_id,) = re.findall(r"Build ID: (\w+)", shown.stdout)
            deadline = time.monotonic() + 60
            while not _answers(f"{url}/buildid/{build_id}/executable"):
                assert time.monotonic() < deadline, "debuginfod has not indexed its files"
                time.sleep(0.2)
            yield url, files
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=10) as answer:
            return bool(answer.read(4) == b"\x7fELF")
    except URLError:
        return False


def test_stacks_are_whole_with_debians_server(
    real: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = real
    dump = bundled_stacks_only("debian-6.1-amd64", tmp_path)
    monkeypatch.setenv("DEBUGINFOD_URLS", url)
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
    options = ("bt", dump, "--comm", "lab-dynamic", "--debug-directory", "/nonexistent")
    assert tasks(*options).returncode == 3  # no server is asked unless it is said
    assert not (tmp_path / "cache").exists()
    result = tasks(*options, "--debuginfod")
    assert (result.returncode, result.stderr) == (0, "")
    assert " level_c+0x" in result.stdout
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert set(kept) <= {"executable", "debuginfo"}
    assert len(kept) >= 3
    # What is in the cache needs no server any more.
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://127.0.0.1:1")
    again = tasks(*options, "--debuginfod")
    assert again.stdout == result.stdout

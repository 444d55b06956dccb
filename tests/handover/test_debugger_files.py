"""The code that runs inside gdb and lldb, run without them: where it looks for files, and which it takes.

Tests handover/debugger_download.py.
"""

from __future__ import annotations

import grp
import http.server
import os
import pwd
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.e2e.guests import FIXTURES
from vmcore2core.handover.debugger_download import download, is_ours
from vmcore2core.handover.debugger_files import (
    Found,
    Places,
    Wanted,
    below,
    facts_of,
    missing,
    taken_by_path,
    version_of,
)

PROGRAM = FIXTURES / "sysroot/bin/lab-dynamic"
BUILD_ID = "8727f96cdf9d6e8eda964dd86cb03cde126c398a"
WANTED = Wanted("/bin/app", BUILD_ID, None, 0x5555_5555_5000, 0x1000, None, None, program=True)


@pytest.mark.parametrize(
    "name", ["sysroot/bin/lab-dynamic", "sysroot-i386/bin/lab-dynamic", "sysroot-s390x/bin/lab-dynamic"]
)
def test_facts_are_those_of_readelf(name: str) -> None:
    shown = subprocess.run(
        ["eu-readelf", "-n", "-l", FIXTURES / name], capture_output=True, text=True, check=True
    ).stdout
    facts = facts_of(FIXTURES / name)
    assert facts is not None
    assert f"Build ID: {facts.build_id}" in shown
    lines = [line.split() for line in shown.splitlines() if line.split()[:1] == ["LOAD"] and " R E " in line]
    assert facts.text == [(int(row[1], 16), int(row[2], 16), int(row[4], 16)) for row in lines]


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(10), b"#!/bin/sh\n", b"\x7fELF\x02\x01" + b"\xff" * 200]
)
def test_what_is_no_elf_file_has_no_facts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert facts_of(tmp_path / "file") is None
    assert facts_of(tmp_path) is None
    assert facts_of(tmp_path / "nothing") is None


def put(folder: Path, name: str) -> Path:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(PROGRAM, target))


TREE = f".build-id/{BUILD_ID[:2]}/{BUILD_ID[2:]}"


def test_places_are_tried_in_their_order(tmp_path: Path) -> None:
    here = WANTED._replace(here="sysroot/bin/app")
    environ = {"VMCORE2CORE_SYSROOT": f"{tmp_path}/one:{tmp_path}/two"}
    places = Places(tmp_path / "cores", [f"{tmp_path}/debug", ""], environ)
    assert places.find(here) is None
    for name in (
        f"debug/{TREE}",
        f"two/usr/lib/debug/{TREE}",
        f"two/usr/lib/{TREE}",
        f"two/{TREE}",
        "two/bin/app",
        "one/bin/app",
        "cores/sysroot/bin/app",
    ):
        path = put(tmp_path, name)
        found = places.find(here)
        assert found is not None
        assert found.path == path
    assert found is not None
    assert found.bias == 0x5555_5555_4000


def test_nothing_but_the_same_build_is_the_one(tmp_path: Path) -> None:
    path = put(tmp_path, "bin/app")
    places = Places(tmp_path, [], {"VMCORE2CORE_SYSROOT": str(tmp_path)})
    assert places.find(WANTED) is not None
    assert places.find(WANTED._replace(build_id="00" * 20)) is None
    assert places.find(WANTED._replace(build_id=None)) is None
    assert places.find(WANTED._replace(offset=0x100000)) is None
    assert places.find(WANTED._replace(offset=0x100000, bias=0x1234000)) == Found(path, 0x1234000, partial=False)
    # What came out of the same memory needs none, if it has none.
    assert places.find(WANTED._replace(build_id=None, here="bin/app")) is None


def test_where_no_build_id_is_known_path_size_and_time_tell(tmp_path: Path) -> None:
    path = put(tmp_path, "bin/app")
    os.utime(path, (0, 1_700_000_000))
    places = Places(tmp_path, [], {"VMCORE2CORE_SYSROOT": str(tmp_path)})
    plain = WANTED._replace(build_id=None, size=path.stat().st_size, mtime=1_700_000_000)
    assert places.find(plain) == Found(path, 0x5555_5555_4000, partial=False, by_path=True)
    for other in (
        {"size": 5},
        {"mtime": 1_700_000_001},
        {"size": None},
        {"mtime": None},
        {"path": "/bin/other"},
        {"offset": 0x100000},
        {"build_id": "00" * 20},
    ):
        assert places.find(plain._replace(**other)) is None, other
    beside = plain._replace(path="/bin/other", mtime=1, here="bin/app")
    assert places.find(beside) == Found(path, 0x5555_5555_4000, partial=False, by_path=True)
    assert places.find(beside._replace(size=5)) is None
    assert missing([plain]).endswith(f"/bin/app (build ID not known; {plain.size} bytes of 2023-11-14 22:13:20 UTC)")
    assert taken_by_path(["/bin/a b", "/c"]).endswith(": /bin/a%20b, /c")


def test_without_a_variable_this_machines_own_files_are_looked_at(tmp_path: Path) -> None:
    path = put(tmp_path, "app")
    assert Places(tmp_path, [], {}).find(WANTED._replace(path=str(path))) is not None
    assert Places(tmp_path, [], {"VMCORE2CORE_SYSROOT": ""}).find(WANTED._replace(path=str(path))) is None


def test_links_begin_at_the_folder_and_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/bin").symlink_to("/usr/bin")
    (tmp_path / "root/usr/bin/up").symlink_to("../../../../secret")
    (tmp_path / "root/loop").symlink_to("loop")
    root = tmp_path / "root"
    assert below(root, "/bin/app") == root / "usr/bin/app"
    assert below(root, "/bin/up") == root / "secret"
    assert below(root, "/../../x") == root / "x"
    assert below(root, "/loop") == root / "loop"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    put(tmp_path, f"served/buildid/{BUILD_ID}/executable")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.fixture
def shared_umask() -> Iterator[None]:
    """Ordinary users' on many systems: what they make can be written by their group."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("shared_umask")
def test_servers_of_debuginfod_are_asked_once(server: str, tmp_path: Path) -> None:
    environ = {"DEBUGINFOD_URLS": f"file:///x http://127.0.0.1:1 {server}/", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ask = partial(download, environ=environ)
    found = Places(tmp_path, [], {"VMCORE2CORE_SYSROOT": ""}, ask).find(WANTED)
    assert found is not None
    assert found.path == tmp_path / f"cache/debuginfod_client/{BUILD_ID}/executable"
    assert download(BUILD_ID, {**environ, "DEBUGINFOD_URLS": "http://127.0.0.1:1"}) == found.path
    assert download(BUILD_ID, {}) is None
    assert download("00" * 20, environ) is None
    assert list((tmp_path / "cache/debuginfod_client" / ("00" * 20)).iterdir()) == []


def set_group(monkeypatch: pytest.MonkeyPatch, name: str, *members: str) -> None:
    """Have every file be of one group, and the user be "me"."""
    monkeypatch.setattr(grp, "getgrgid", lambda _number: SimpleNamespace(gr_name=name, gr_mem=list(members)))
    monkeypatch.setattr(pwd, "getpwuid", lambda _number: SimpleNamespace(pw_name="me"))


@pytest.mark.parametrize(
    ("group", "members", "good"),
    [("me", (), True), ("me", ("me",), True), ("me", ("me", "you"), False), ("staff", (), False)],
)
def test_a_group_of_one_user_is_nobody_else(
    group: str, members: tuple[str, ...], good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian gives each user a group of that name, and many have a umask of 002."""
    kept = put(tmp_path, f"{BUILD_ID}/executable")
    kept.chmod(0o664)
    kept.parent.chmod(0o775)
    set_group(monkeypatch, group, *members)
    assert (download(BUILD_ID, {"DEBUGINFOD_URLS": "x", "DEBUGINFOD_CACHE_PATH": str(tmp_path)}) == kept) == good
    kept.parent.chmod(0o777)
    assert not is_ours(kept)


def test_what_others_could_have_put_into_the_cache_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_group(monkeypatch, "staff")
    cache = tmp_path / "cache"
    kept = put(cache, f"{BUILD_ID}/executable")
    environ = {"DEBUGINFOD_URLS": "http://127.0.0.1:1", "DEBUGINFOD_CACHE_PATH": str(cache)}
    cache.chmod(0o700)  # as debuginfod-find makes them
    kept.parent.chmod(0o700)
    kept.chmod(0o400)
    assert download(BUILD_ID, environ) == kept
    for path, mode in ((kept, 0o664), (kept, 0o646), (kept.parent, 0o777), (cache, 0o770)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert download(BUILD_ID, environ) is None, path
        path.chmod(before)
    assert download(BUILD_ID, environ) == kept
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(tmp_path / "elsewhere")
    assert download(BUILD_ID, environ) is None
    kept.unlink()
    os.mkfifo(kept, 0o600)
    assert download(BUILD_ID, environ) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_in_the_cache_is_not_taken(tmp_path: Path) -> None:
    kept = put(tmp_path, f"{BUILD_ID}/executable")
    assert is_ours(kept)
    os.chown(kept, 12345, 12345)
    assert not is_ours(kept)
    os.chown(kept, 0, 0)
    os.chown(kept.parent, 12345, 12345)
    assert not is_ours(kept)


def test_nothing_is_downloaded_to_where_others_can_write(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / BUILD_ID
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert download(BUILD_ID, {"DEBUGINFOD_URLS": server, "DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache")}) is None
    assert list(folder.iterdir()) == []


def test_a_build_id_that_is_in_a_section_alone_is_found(tmp_path: Path) -> None:
    """As in Go's programs: here the program headers of notes are of no type."""
    content = bytearray(PROGRAM.read_bytes())
    phoff, phentsize, phnum = struct.unpack_from("<Q", content, 32)[0], *struct.unpack_from("<HH", content, 54)
    for at in range(phoff, phoff + phentsize * phnum, phentsize):
        if struct.unpack_from("<I", content, at)[0] == 4:  # PT_NOTE
            struct.pack_into("<I", content, at, 0)
    (tmp_path / "file").write_bytes(content)
    facts = facts_of(tmp_path / "file")
    assert facts is not None
    assert facts.build_id == BUILD_ID


def test_the_line_about_lost_files_has_no_control_characters() -> None:
    line = missing([WANTED._replace(path="/a\nb\x1b[2J"), WANTED._replace(path="/usr/lib/a:b", build_id=None)])
    assert line.isprintable()
    assert line.endswith(f"/a%0Ab%1B%5B2J (build ID {BUILD_ID}), /usr/lib/a:b (build ID not known)")


@pytest.mark.parametrize(
    ("text", "number"),
    [("lldb version 19.1.7", 19), ("Debian lldb version 22.1.8\n  clang", 22), ("lldb-1500.0.22", 0), ("", 0)],
)
def test_the_version_of_lldb_is_its_first_number(text: str, number: int) -> None:
    assert version_of(text) == number

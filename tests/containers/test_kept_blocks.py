"""Blocks of a dump read by URL are kept, and a second run requests only the blocks that are missing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.builders.web import Server, serving
from tests.e2e.guests import FIXTURES, convert
from vmcore2core.containers import kept_blocks, remote
from vmcore2core.containers.remote import RemoteFile, Url
from vmcore2core.convert import write_process
from vmcore2core.corefile import copying, writer
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import DumpError
from vmcore2core.session import OpenOptions, Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
BLOCK = 64 << 10


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmcore2core" / "blocks"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.content = random.Random(1).randbytes(40 * BLOCK + 77)
        yield state


def part(server: Server, *, at: int = 5 * BLOCK, size: int = 100, query: str = "", cache: bool = True) -> int:
    """Read a part of the file; return how many requests that took."""
    before = server.gets
    file = RemoteFile(Url(server.url + query), cache=cache)
    try:
        assert file.read(at, size) == server.content[at : at + size]
    finally:
        file.close()
    return server.gets - before


def kept(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


def test_a_second_run_asks_for_nothing_and_the_first_for_little_often(
    tmp_path: Path, server: Server, cache: Path
) -> None:
    server.content = DUMP.read_bytes()
    assert convert(server.url, "--pid", "86", "-o", tmp_path / "first").returncode == 0
    assert server.gets <= 20
    assert server.sent <= len(server.content) + 1
    first = server.gets
    again = convert(server.url, "--pid", "86", "-o", tmp_path / "second")
    assert (again.returncode, again.stderr) == (0, "")
    assert server.gets == first
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    (file,) = kept(cache)
    assert (file.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)


def cores(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("core.*")}


def test_two_workers_write_what_one_writes(tmp_path: Path, server: Server, cache: Path) -> None:
    """With an empty cache, with a full one, and with none."""
    server.content = DUMP.read_bytes()
    assert convert(DUMP, "--all", "-j", "1", "-o", tmp_path / "local").returncode == 0
    for name, more in (("none", ["--no-cache"]), ("empty", []), ("full", [])):
        before = server.sent
        result = convert(server.url, "--all", "-j", "2", "-o", tmp_path / name, *more)
        assert (result.returncode, result.stderr) == (0, "")
        assert cores(tmp_path / name) == cores(tmp_path / "local") != {}
        assert (server.sent == before) == (name == "full")
        assert bool(kept(cache)) == (name != "none")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("caching", [True, False])
def test_two_copiers_of_a_core_write_what_one_writes(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, *, caching: bool
) -> None:
    monkeypatch.setattr(writer, "TOGETHER_MIN", 0)
    monkeypatch.setattr(copying, "PIECE_SIZE", 1 << 20)
    together = []

    def copy_with(*given: Any) -> copying.Copied | None:
        together.append(copying.copy_with(*given))
        return together[-1]

    monkeypatch.setattr(writer, "copy_with", copy_with)
    server.content = DUMP.read_bytes()
    written = set()
    for count in (2, 1):
        with Session([Url(server.url)], OpenOptions(cache=caching)) as session:
            options = CoreOptions(copiers=session.copiers(CoreOptions(copiers=count)))
            leader = session.processes.find(86)
            write_process(session, leader, tmp_path / f"{count}", options, session.capture(leader, options))
        written.add((tmp_path / f"{count}").read_bytes())
    assert len(written) == 1
    assert [copied is not None for copied in together] == [True]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("caching", [True, False])
def test_a_forked_process_has_its_own_connection(server: Server, *, caching: bool) -> None:
    """The parent's goes on; in both, another version of the file is still noticed."""
    file = RemoteFile(Url(server.url), cache=caching)
    assert file.read(0, 9) == server.content[:9]
    for at in (5 * BLOCK, 9 * BLOCK):
        assert in_child(partial(file.read, at, 100)) == server.content[at : at + 100]
        assert file.read(at + 2 * BLOCK, 100) == server.content[at + 2 * BLOCK :][:100]
    server.content = bytes(len(server.content))
    told = f"{server.url} has changed while it was read: its server has another version of it now"
    assert in_child(lambda: file.read(20 * BLOCK, 100)) == told.encode()
    with pytest.raises(DumpError, match="has changed while it was read"):
        file.read(20 * BLOCK, 100)
    file.close()


def in_child(do: Callable[[], bytes]) -> bytes:
    """Return what a forked process returns, or the sentence of its error."""
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(into, do())
        except DumpError as error:
            os.write(into, str(error).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as answer:
        found = answer.read()
    assert os.waitpid(pid, 0)[1] == 0
    return found


def test_without_the_cache_nothing_is_kept_and_nothing_taken(tmp_path: Path, server: Server, cache: Path) -> None:
    server.content = DUMP.read_bytes()
    assert convert(server.url, "--pid", "86", "-o", tmp_path / "core", "--no-cache").returncode == 0
    assert not kept(cache)
    part(server)
    assert kept(cache)
    assert part(server, cache=False) > 0


def test_another_version_is_another_dump(server: Server, cache: Path) -> None:
    assert part(server) == 2  # the first asks for the last byte
    assert part(server) == 0
    server.content = bytes(BLOCK) + server.content[BLOCK:]
    assert part(server, at=0) == 2
    assert part(server) == 1 + 1
    assert len(kept(cache)) == 2


OLD, NEW = formatdate(1_700_000_000, usegmt=True), formatdate(4_000_000_000, usegmt=True)


@pytest.mark.parametrize(
    ("versions", "requests"),
    [
        ({"ETag": '"a"'}, 0),
        ({"Last-Modified": OLD}, 0),
        ({"ETag": 'W/"a"', "Last-Modified": OLD}, 0),
        ({"ETag": 'W/"a"'}, 2),
        ({"Last-Modified": NEW}, 2),
        ({"Last-Modified": "yesterday"}, 2),
        ({"X-None": "1"}, 2),
    ],
)
def test_only_what_the_server_names_for_certain_is_kept(
    server: Server, cache: Path, versions: dict[str, str], requests: int
) -> None:
    server.versions, server.minds = versions, False
    assert part(server) == 2
    assert part(server) == requests
    assert bool(kept(cache)) == (requests == 0)


def test_a_new_signature_is_the_same_dump_and_another_query_is_not(server: Server, cache: Path) -> None:
    aws = "&X-Amz-Credential=AKIASECRET&X-Amz-Signature={0}&X-Amz-Expires=60"
    azure = "&sv=2024&se={0}&sig={0}&sp=r"
    for form in (aws, azure, "&Expires={0}&Signature={0}&Key-Pair-Id=K", "&token={0}"):
        part(server, query="?name=a" + form.format("hunter22"))
        assert part(server, query="?name=a" + form.format("SIGNATURE")) == 0
    (file,) = kept(cache)
    assert part(server, query="?name=b") == 2
    assert len(kept(cache)) == 2
    for secret in (b"hunter22", b"SIGNATURE", b"AKIASECRET"):
        assert secret not in bytes(file)
        assert secret not in file.read_bytes()


def test_user_and_password_do_not_matter_and_are_not_kept(server: Server, cache: Path) -> None:
    plain = server.url
    server.url = plain.replace("//", "//alice:hunter22@")
    part(server)
    server.url = plain
    assert part(server) == 0
    assert b"hunter22" not in kept(cache)[0].read_bytes()


@pytest.mark.parametrize("at", [5 * BLOCK + 50, 41 * BLOCK + 5 * 16 + 3])
def test_a_block_or_a_hash_that_was_damaged_is_asked_for_again(server: Server, cache: Path, at: int) -> None:
    part(server)
    (file,) = kept(cache)
    with file.open("r+b") as content:
        content.seek(at)
        byte = content.read(1)
        content.seek(at)
        content.write(bytes([byte[0] ^ 1]))
    assert part(server) == 2
    assert part(server) == 0


def test_a_block_in_the_place_of_another_is_not_believed(server: Server, cache: Path) -> None:
    """Even with its hash."""
    part(server)
    (file,) = kept(cache)
    with file.open("r+b") as content:
        for start, size in ((0, BLOCK), (41 * BLOCK, 16)):
            content.seek(start + 5 * size)
            raw = content.read(size)
            content.seek(start + 6 * size)
            content.write(raw)
    assert part(server, at=6 * BLOCK) == 2


def test_zeros_take_no_space(server: Server, cache: Path) -> None:
    server.content = bytes(40 * BLOCK)
    part(server, at=0, size=40 * BLOCK)
    assert part(server, at=0, size=40 * BLOCK) == 0
    assert kept(cache)[0].stat().st_blocks * 512 <= BLOCK


def test_a_folder_that_others_can_write_to_keeps_nothing(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    for _ in range(2):
        assert part(server) == 2
    assert not kept(cache)
    assert "others can write to it" in caplog.text


@pytest.mark.parametrize("planted", ["link", "fifo", "writable"])
def test_a_planted_file_is_not_believed(
    server: Server, cache: Path, planted: str, caplog: pytest.LogCaptureFixture
) -> None:
    part(server)
    (file,) = kept(cache)
    if planted == "writable":
        file.chmod(0o666)
    else:
        file.rename(cache / "other")
        if planted == "link":
            file.symlink_to(cache / "other")
        else:
            os.mkfifo(file)
    for _ in range(2):
        assert part(server) == 2
    assert "is not used" in caplog.text


def test_the_space_is_bounded(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_blocks, "KEPT_MAX", 10 * BLOCK)
    monkeypatch.setattr(kept_blocks, "CHECK_BYTES", 1)
    monkeypatch.setattr(remote, "BLOCKS_AT_ONCE_MAX", 4)
    part(server, at=0, size=40 * BLOCK)
    (file,) = kept(cache)
    assert 8 * BLOCK < file.stat().st_blocks * 512 < 16 * BLOCK
    assert part(server, at=0) == 0
    server.minds = False
    for number in range(3):
        server.versions = {"ETag": f'"{number}"'}
        part(server, at=0, size=40 * BLOCK)
    assert len(kept(cache)) <= 2
    assert file not in kept(cache)


def test_a_full_disk_is_no_error(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_blocks, "FREE_MIN", 1 << 60)
    for _ in range(2):
        assert part(server) == 2
    assert all(file.stat().st_blocks == 0 for file in kept(cache))


def test_a_file_system_without_holes_keeps_nothing(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_blocks, "CHECK_BYTES", 0)
    for _ in range(2):
        assert part(server) == 2
    assert not kept(cache)


def test_a_read_that_is_larger_than_the_memory_for_blocks_asks_for_each_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CACHE_BYTES_BESIDE", 8 * BLOCK)
    monkeypatch.setattr(remote, "BLOCKS_AT_ONCE_MAX", 4)
    monkeypatch.setattr("vmcore2core.containers.blockfile.CACHE_BYTES", 8 * BLOCK)
    part(server, at=0, size=len(server.content), cache=False)
    assert server.sent == len(server.content) + 1


def test_two_runs_at_once_keep_what_both_read(server: Server, cache: Path) -> None:
    first, second = (RemoteFile(Url(server.url)) for _ in range(2))
    for at in (0, 20 * BLOCK):
        for file in (first, second):
            at += BLOCK
            assert file.read(at, 10) == server.content[at : at + 10]
    first.close()
    second.close()
    assert [part(server, at=at * BLOCK) for at in (1, 2, 21, 22)] == [0, 0, 0, 0]
    assert len(kept(cache)) == 1


def test_a_user_without_a_cache_reads_all_the_same(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "relative")
    for _ in range(2):
        assert part(server) == 2

"""A dump that comes through a pipe is kept once, and then read as any other file."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.sample_files import FLAT, kdump
from tests.builders.samples import PAGES
from tests.containers.contract import read
from tests.e2e.guests import FIXTURES
from vmcore2core.containers import cache as module
from vmcore2core.containers import open_container, piped
from vmcore2core.containers.base import DumpContainer
from vmcore2core.errors import DumpError, UnknownFormat, UsageError

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmcore2core" / "received"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def sent(path: Path, content: bytes) -> DumpContainer:
    """Open a FIFO while somebody writes to it."""
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    try:
        return open_container([path])
    finally:
        writer.join(10)


@pytest.fixture
def stdin_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pipe in the place of standard input; gives its writing end."""
    reader, writer = os.pipe()
    monkeypatch.setattr(piped, "STDIN_FD", reader)
    yield writer
    os.close(reader)


@pytest.mark.parametrize("content", [kdump("zlib"), FLAT, gzip.compress(FLAT)], ids=["kdump", "flattened", "gzip"])
def test_a_fifo_is_read_once_and_kept(fifo: Path, cache: Path, content: bytes) -> None:
    with sent(fifo, content) as container:
        assert (container.paths, container.warnings) == ((fifo,), [])
        assert read(container, 1, 3)[1] == [PAGES[1], PAGES[3]]
    (kept,) = cache.iterdir()
    assert kept.name == hashlib.sha256(content).hexdigest()
    assert kept.read_bytes() == content
    with open_container([kept]) as again:
        assert read(again, 1, 3)[1] == [PAGES[1], PAGES[3]]


@pytest.mark.usefixtures("cache")
def test_a_sender_that_dies_leaves_a_dump_that_is_cut_off(fifo: Path) -> None:
    with sent(fifo, FLAT[: len(FLAT) - 4000]) as container:
        assert any("cut off" in warning for warning in container.warnings)


@pytest.mark.usefixtures("cache")
def test_a_sender_that_sends_nothing_is_named(fifo: Path) -> None:
    with pytest.raises(UnknownFormat, match=f"{fifo} is empty"):
        sent(fifo, b"")


@pytest.mark.usefixtures("cache")
def test_standard_input_is_a_dash(stdin_pipe: int, caplog: pytest.LogCaptureFixture) -> None:
    os.write(stdin_pipe, kdump("zlib")[:40000])
    os.close(stdin_pipe)
    with open_container([Path("-")]) as container:
        assert container.paths == (Path("standard input"),)
        assert container.files[0].strong_identity() is None
        assert read(container, 1)[1] == [PAGES[1]]
    assert "standard input is kept as" in caplog.text


def test_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcore2core.containers.piped.os.isatty", lambda _fd: True)
    with pytest.raises(UsageError, match="standard input is a terminal, expected a dump"):
        open_container([Path("-")])


def test_no_room_leaves_nothing(fifo: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 40, 0])
    monkeypatch.setattr(module, "free_bytes", lambda _folder: next(free))
    monkeypatch.setattr(module, "RESERVE", 1 << 14)
    with pytest.raises(DumpError, match=r"fifo is a pipe, which has to be kept.* 0 bytes free: send it to a file"):
        sent(fifo, kdump("raw"))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("how", ["pipe", "file"])
def test_the_command_takes_a_dump_from_standard_input(tmp_path: Path, cache: Path, how: str) -> None:
    """A pipe is kept; a file that is redirected is read where it is."""
    core = tmp_path / "core"
    command = [sys.executable, "-m", "vmcore2core", "-", "--pid", "1", "-o", str(core)]
    with DUMP.open("rb") as file:
        if how == "file":
            result = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
        else:
            raw = subprocess.run(command, input=file.read(), capture_output=True, check=False)
            result = subprocess.CompletedProcess(command, raw.returncode, raw.stdout.decode(), raw.stderr.decode())
    assert (result.returncode, result.stdout[:4]) == (0, str(core)[:4]), result.stderr
    assert core.stat().st_size
    assert cache.exists() == (how == "pipe")
    assert ("standard input is kept as" in result.stderr) == (how == "pipe")

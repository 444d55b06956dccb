"""The core appears whole or not at all, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from tests.builders.faults import Faults
from tests.corefile.snapshots import PAGE, loads, snapshot, vma, write
from tests.e2e.guests import FIXTURES
from vmcore2core.corefile import atomic
from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.folders import opened_folder

BASE = 0x7F00_0000_0000
PROCESS = snapshot(vma(BASE, BASE + 64 * PAGE), vma(BASE + 100 * PAGE, BASE + 110 * PAGE, path=b"/x", pgoff=0))
PAGES = {BASE + i * PAGE: bytes([i]) * PAGE for i in (1, 2, 5, 9, 33, 100, 109)}
DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
OLD = b"what was there before"


def remove_partial(folder: Path) -> None:
    with opened_folder(folder) as directory:
        atomic.remove_partial(directory)


def contents(core: Path) -> bytes:
    return core.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The core as it is when nothing fails."""
    core = tmp_path_factory.mktemp("whole") / "core"
    write(PROCESS, core, PAGES)
    return core.read_bytes()


FAULTS = [
    pytest.param(OSError(errno.ENOSPC, "No space left on device"), False, id="ENOSPC"),
    pytest.param(OSError(errno.EIO, "Input/output error"), False, id="EIO"),
    pytest.param(KeyboardInterrupt(), False, id="interrupt before"),
    pytest.param(KeyboardInterrupt(), True, id="interrupt after"),
    pytest.param(MemoryError(), True, id="MemoryError"),
]


@pytest.fixture(params=["without a name", "with another name"])
def manner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a file is while it is written: the second is what there is without /proc."""
    if request.param != "without a name":
        monkeypatch.setattr(atomic, "_NAMELESS", Path("/nowhere"))
    return str(request.param)


@pytest.mark.usefixtures("manner")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("error", "after"), FAULTS)
def test_a_fault_at_any_call_leaves_what_was_there_or_a_whole_core(
    error: BaseException, after: bool, force: bool, whole: bytes, tmp_path: Path
) -> None:
    before_fds = len(list(Path("/proc/self/fd").iterdir()))
    failures = at = 0
    while True:
        at += 1
        assert at < 200
        folder = tmp_path / f"{at}"
        folder.mkdir()
        core = folder / "core"
        if force:
            core.write_bytes(OLD)
        raised: BaseException | None = None
        with Faults(error, at, after=after) as faults:
            try:
                write(PROCESS, core, PAGES, force=force, verify=False)
            except OutputError as caught:
                raised = caught
            except (KeyboardInterrupt, MemoryError) as caught:
                raised = caught
        where = (at, faults.calls[-3:])
        there = sorted(path.name for path in folder.iterdir())
        assert there in (["core"], []), where
        if there:
            assert contents(core) in ((OLD, whole) if force else (whole,)), where
        else:
            assert not force, where
            assert raised is not None, where
        if raised is None:
            assert contents(core) == whole, where
        elif isinstance(error, OSError):
            assert isinstance(raised, OutputError), where
            assert str(core) in str(raised)
        else:
            assert type(raised) is type(error), where
        failures += raised is not None
        if len(faults.calls) < at:
            break
    assert failures >= 10
    assert len(list(Path("/proc/self/fd").iterdir())) <= before_fds


def test_short_writes_are_continued(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    sizes = iter(range(1, 1 << 30))

    def short(fd: int, data: memoryview, offset: int) -> int:
        return real(fd, bytes(data)[: next(sizes) * 7 % 1000 + 1], offset)

    monkeypatch.setattr(os, "pwrite", short)
    write(PROCESS, tmp_path / "core", PAGES)
    assert (tmp_path / "core").read_bytes() == whole


def test_signals_that_end_nothing_do_not_show(whole: bytes, tmp_path: Path) -> None:
    signals = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: signals.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(10):
            write(PROCESS, tmp_path / f"{number}", PAGES)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert signals
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {whole}


def test_an_error_of_the_page_stream_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        def batches(self, ranges: Any) -> Iterator[Any]:
            raise OutputError("planted")
            yield

    from vmcore2core.corefile.writer import Output, write_core

    with pytest.raises(OutputError, match="planted"):
        write_core(PROCESS, Broken(), Output(tmp_path / "core"))
    assert not list(tmp_path.iterdir())


def test_it_is_written_beside_its_place_without_a_name_or_under_a_hidden_one(manner: str, tmp_path: Path) -> None:
    with atomic_file(tmp_path / "core") as fd:
        names = [path.name for path in tmp_path.iterdir()]
        assert len(names) == (manner != "without a name")
        assert all(name.startswith(".core.") and name.endswith(".part") for name in names)
        assert os.fstat(fd).st_dev == tmp_path.stat().st_dev
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["core"]


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_file_system_on_which_each_file_has_a_name(
    error: int, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.open, []

    def no_nameless(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            refused.append(path)
            raise OSError(error, os.strerror(error))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", no_nameless)
    write(PROCESS, tmp_path / "core", PAGES)
    assert refused
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [whole]


STOPPED = """
import os, signal, sys
from pathlib import Path
from vmcore2core.corefile import atomic
from vmcore2core.corefile.sink import FileSink

def stop():
    print("here", flush=True)
    signal.pause()

def written(self, data, offset):
    write(self, data, offset)
    if offset:
        stop()

where, named, *arguments = sys.argv[1:]
if named == "with another name":
    atomic._NAMELESS = Path("/nowhere")
if where == "writing":
    write, FileSink.write = FileSink.write, written
else:
    os.replace = lambda *names, **directories: stop()
sys.argv[1:] = arguments
from vmcore2core.__main__ import vmcore2core
vmcore2core()
"""
"""The command, stopped for good behind the first pages of a core, or before the old one is replaced."""


def killed(core: Path, *options: str, where: str = "writing", manner: str = "without a name") -> list[int]:
    """Kill the command in the midst of its work, and return the sizes of the files that it had open to write."""
    command = [sys.executable, "-c", STOPPED, where, manner, str(DUMP), "--pid", "86", "-o", str(core), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        files = [path for path in Path(f"/proc/{process.pid}/fd").iterdir() if path.is_file()]
        sizes = [path.stat().st_size for path in files if path.readlink().is_relative_to(core.parent)]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    return sizes


@pytest.mark.parametrize("force", [False, True])
def test_a_killed_run_leaves_what_was_there(manner: str, force: bool, tmp_path: Path) -> None:
    core = tmp_path / "core"
    if force:
        core.write_bytes(OLD)
    (size,) = killed(core, *["--force"] * force, manner=manner)
    assert size > PAGE, "it was killed before anything was written"
    left = [path for path in tmp_path.iterdir() if path != core]
    assert len(left) == (manner != "without a name")
    assert (core.read_bytes() == OLD) if force else not core.exists()
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["core"] * force


def test_a_run_that_is_killed_as_it_replaces_a_core_leaves_both_whole(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(OLD)
    killed(core, "--force", where="replacing")
    assert core.read_bytes() == OLD
    (new,) = (path for path in tmp_path.iterdir() if path != core)
    with new.open("rb") as file:
        end = max(segment["p_offset"] + segment["p_filesz"] for segment in ELFFile(file).iter_segments())
    assert new.stat().st_size == end > PAGE
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [core]


@pytest.mark.usefixtures("manner")
def test_a_core_is_for_its_owner_alone_whatever_umask_or_old_file_say(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(OLD)
    core.chmod(0o666)
    umask = os.umask(0)
    try:
        write(PROCESS, core, force=True)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(core.stat().st_mode) == 0o600


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(OLD)
    with pytest.raises(OutputExists, match="--force"):
        write(PROCESS, core)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [OLD]
    write(PROCESS, core, force=True)
    assert loads(core)


@pytest.mark.usefixtures("manner")
def test_a_file_that_comes_in_between_is_kept_without_force(tmp_path: Path) -> None:
    core = tmp_path / "core"
    with pytest.raises(OutputExists), atomic_file(core):
        core.write_bytes(OLD)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [OLD]


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without them, or a security module that keeps a file without a name from getting one."""

    def no_link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)


@pytest.mark.usefixtures("manner", "no_hard_links")
@pytest.mark.parametrize("force", [False, True])
def test_a_file_system_without_hard_links(force: bool, whole: bytes, tmp_path: Path) -> None:
    write(PROCESS, tmp_path / "core", PAGES, force=force)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [whole]


@pytest.mark.usefixtures("no_hard_links")
def test_a_file_that_has_to_be_copied_keeps_its_holes(tmp_path: Path) -> None:
    core, size = tmp_path / "core", 1 << 40
    with atomic_file(core) as fd:
        os.ftruncate(fd, size)
        for at in (0, size // 2 + 1):
            os.pwrite(fd, b"data", at)
    assert core.stat().st_size == size
    with core.open("rb") as file:
        assert [os.pread(file.fileno(), 6, at) for at in (0, size // 2)] == [b"data\0\0", b"\0data\0"]


@pytest.mark.usefixtures("manner", "no_hard_links")
def test_a_file_that_comes_in_between_is_kept_without_hard_links(tmp_path: Path) -> None:
    core = tmp_path / "core"
    with pytest.raises(OutputExists), atomic_file(core):
        core.write_bytes(OLD)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [OLD]


@pytest.mark.parametrize(
    "kind", ["same", "symlink to it", "hard link", "dump is a symlink to it", "/proc/self/fd", "dump is /proc/self/fd"]
)
def test_the_dump_itself_is_never_replaced(kind: str, tmp_path: Path) -> None:
    dump, core = tmp_path / "dump", tmp_path / "core"
    dump.write_bytes(OLD)
    given = dump
    if kind == "same":
        core = tmp_path / "." / "dump"
    elif kind == "symlink to it":
        core.symlink_to("dump")
    elif kind == "hard link":
        core.hardlink_to(dump)
    elif kind == "dump is a symlink to it":
        given = tmp_path / "link"
        given.symlink_to("dump")
        core = dump
    names = sorted(tmp_path.iterdir())
    with dump.open("rb") as file:
        opened = Path(f"/proc/self/fd/{file.fileno()}")
        core, given = (opened, given) if kind == "/proc/self/fd" else (core, given)
        core, given = (dump, opened) if kind == "dump is /proc/self/fd" else (core, given)
        with pytest.raises(OutputError, match="dump"):
            write(PROCESS, core, force=True, inputs=(given,))
    assert dump.read_bytes() == OLD
    assert sorted(tmp_path.iterdir()) == names


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(OLD)
    core = tmp_path / "core"
    core.symlink_to("precious")
    with pytest.raises(OutputExists):
        write(PROCESS, core)
    write(PROCESS, core, force=True)
    assert not core.is_symlink()
    assert (tmp_path / "precious").read_bytes() == OLD


def test_a_dangling_symbolic_link_is_something_that_exists(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.symlink_to("nowhere")
    with pytest.raises(OutputExists):
        write(PROCESS, core)
    assert core.is_symlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "link to a device"])
def test_what_is_no_file_is_refused_even_with_force(kind: str, force: bool, tmp_path: Path) -> None:
    core = tmp_path / "core"
    if kind == "directory":
        core.mkdir()
    elif kind == "fifo":
        os.mkfifo(core)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(core))
    elif kind == "device":
        core = Path("/dev/null")
    else:
        core.symlink_to("/dev/null")
    before = core.lstat()
    with pytest.raises(OutputError) as caught:
        write(PROCESS, core, force=force)
    assert not isinstance(caught.value, OutputExists)
    assert core.lstat().st_ino == before.st_ino
    assert len(list(tmp_path.iterdir())) == (kind != "device")


@pytest.mark.parametrize("name", ["missing/core", "file/core", "n" * 300])
def test_a_place_that_cannot_be_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write(PROCESS, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_may_not_be_written_to() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.raises(OutputError, match="Permission denied"):
                write(PROCESS, folder / "core")
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
        assert not list(folder.iterdir())
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name", ["n" * 255, "é" * 127, "名" * 85, "\udcff" * 255], ids=["ascii", "2", "3", "not UTF-8"]
)
def test_a_name_as_long_as_names_may_be(name: str, tmp_path: Path) -> None:
    write(PROCESS, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]

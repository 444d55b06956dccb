"""``vmcore-tasks dump``: a debugger shows the same stacks for the small core as for the whole one.

Tests tasks/minicore.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.cores import Core
from tests.e2e.debuggers import gdb
from tests.e2e.guests import FIXTURES, convert, rows, tasks, unpacked_sysroot

FOLDER = FIXTURES / "debian-6.1-amd64"
DUMP = FOLDER / "vmcore"
PIDS = json.loads((FOLDER / "truth/pids.json").read_text())
SMALL = 512 << 10
PROGRAMS = ("lab-static", "lab-dynamic")


@pytest.fixture(scope="module")
def sysroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_sysroot(tmp_path_factory.mktemp("files"))


def backtraces(core: Path, sysroot: Path, program: str) -> dict[str, list[str]]:
    """Return gdb's frames, arguments included, by thread."""
    shown = gdb(core, "thread apply all bt", program=sysroot / "bin" / program, sysroot=sysroot)
    parts = re.split(r"^Thread \d+ \(.*LWP (\d+)\)*:?.*$", shown, flags=re.MULTILINE)
    return {tid: re.findall(r"^#.*$", part, re.MULTILINE) for tid, part in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_gdb_shows_the_stacks_that_the_whole_core_has(program: str, sysroot: Path, tmp_path: Path) -> None:
    pid, small, whole = str(PIDS[program]), tmp_path / "small", tmp_path / "whole"
    result = tasks("dump", DUMP, "--pid", pid, "-o", small)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(rf"{small}: complete, 6 threads, \d+ pages\n", result.stdout)
    assert convert(DUMP, "--pid", pid, "-o", whole).returncode == 0
    assert small.stat().st_blocks * 512 < SMALL < whole.stat().st_blocks * 512
    assert small.stat().st_mode & 0o777 == 0o600
    ours, theirs = (backtraces(core, sysroot, program) for core in (small, whole))
    assert len(theirs) == 6
    assert all(len(frames) > 1 for frames in theirs.values())
    assert ours == theirs


def test_one_thread_has_its_registers_and_stack_and_no_other_s(sysroot: Path, tmp_path: Path) -> None:
    truth = [line.split("\t") for line in (FOLDER / "truth/lab-static.tasks").read_text().splitlines()]
    (tid,) = (tid for tid, comm, *_ in truth if comm == "t-nested")
    all_of_it, one = tmp_path / "all", tmp_path / "one"
    assert tasks("dump", DUMP, "--pid", tid, "-o", all_of_it).returncode == 0
    result = tasks("dump", DUMP, "--tid", tid, "-o", one, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    core = rows(result.stdout)
    assert [thread["tid"] for thread in core["threads"]] == [int(tid)]
    assert f"--tid {tid}: 5 other threads of the process left out, as was asked" in core["notices"]
    assert backtraces(one, sysroot, "lab-static") == {tid: backtraces(all_of_it, sysroot, "lab-static")[tid]}
    # Another thread's stack is in the core of all alone.
    (other,) = (int(number) for number, comm, *_ in truth if comm == "t-cond")
    pointer = Core(all_of_it).registers[other]["rsp"]
    assert Core(all_of_it).read(pointer, 8) is not None
    assert Core(one).read(pointer, 8) is None


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ((), 2, "no process is named: expected --pid PID or --tid TID"),
        (("--tid", "2"), 1, "is a kernel thread: it has no user memory"),
        (("--pid", "4194304"), 1, "no task has PID 4194304 in this dump"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(
    options: tuple[str, ...], status: int, said: str, tmp_path: Path
) -> None:
    result = tasks("dump", DUMP, *options, "-o", tmp_path / "core")
    assert (result.returncode, result.stdout) == (status, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "core").exists()


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_text("mine")
    assert tasks("dump", DUMP, "--pid", "1", "-o", core).returncode == 1
    assert core.read_text() == "mine"
    assert tasks("dump", DUMP, "--pid", "1", "-o", core, "--force").returncode == 0
    assert core.read_bytes().startswith(b"\x7fELF")

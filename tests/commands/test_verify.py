"""``vmcore2core verify`` of several cores and of directories: a line each, and the worst one's exit status.

Tests handover/cores.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corefile.snapshots import snapshot, vma, write
from tests.e2e.guests import FIXTURES, convert
from vmcore2core.errors import DumpError
from vmcore2core.handover.cores import cores_of
from vmcore2core.process.model import ThreadLeftOut

DUMP = FIXTURES / "debian-6.1-amd64/vmcore"
GOOD, LACKING, OTHER = "core.app.1", "core.app.2", "core.app.3"
LEFT_OUT = (ThreadLeftOut(100, b"app", "it was running on CPU 0, whose registers the dump does not have"),)


@pytest.fixture
def cores(tmp_path: Path) -> Path:
    """A directory with a good core, one that lacks a thread, and another good one; and an index."""
    folder = tmp_path / "cores"
    folder.mkdir()
    mapping = vma(0x1000, 0x2000)
    write(snapshot(mapping), folder / GOOD)
    write(snapshot(mapping, threads=(), threads_left_out=LEFT_OUT), folder / LACKING)
    write(snapshot(mapping), folder / OTHER)
    (folder / f"{GOOD}.gdb").write_text("core-file core.app.1\n")
    processes = [{"core": {"file": name}} for name in (GOOD, LACKING, OTHER)]
    (folder / "index.json").write_text(json.dumps({"processes": processes}))
    return folder


def test_of_a_directory_each_core_has_a_line(cores: Path) -> None:
    result = convert("verify", cores)
    assert (result.returncode, result.stderr) == (3, "")
    assert result.stdout.splitlines() == [
        f"{cores / GOOD}: good, 1 thread",
        f"{cores / LACKING}: incomplete, 0 threads: thread 100 is left out: {LEFT_OUT[0].reason}",
        f"{cores / OTHER}: good, 1 thread",
    ]


def test_several_cores_are_looked_at_in_their_order(cores: Path) -> None:
    """A line each; with -v, all that there is to say."""
    result = convert("verify", cores / OTHER, cores / GOOD)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{cores / OTHER}: good, 1 thread\n{cores / GOOD}: good, 1 thread\n"
    result = convert("verify", cores / LACKING, cores / GOOD, "-v")
    assert result.returncode == 3
    assert result.stdout.splitlines() == [
        f"missing: thread 100 is left out: {LEFT_OUT[0].reason}",
        f"{cores / LACKING}: incomplete, 0 threads",
        f"{cores / GOOD}: good, 1 thread",
    ]


def test_the_worst_core_tells_the_exit_status_and_stops_no_other(cores: Path) -> None:
    (cores / GOOD).write_bytes(b"no core")
    (cores / OTHER).unlink()
    result = convert("verify", cores)
    assert (result.returncode, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"{cores / GOOD}: wrong: is not an ELF core that can be read: Magic number does not match"
    assert lines[1].startswith(f"{cores / LACKING}: incomplete")
    assert lines[2] == f"{cores / OTHER}: wrong: cannot be read: No such file or directory"  # which the index has
    document = json.loads(convert("verify", cores, "--json").stdout)
    assert [bool(core["wrong"]) for core in document["cores"]] == [True, False, True]


def test_against_a_dump_each_is_compared_with_its_own_process(tmp_path: Path) -> None:
    good, other = tmp_path / "core.init.1", tmp_path / "core.app.2"
    assert convert(DUMP, "--pid", "1", "-o", good).returncode == 0
    write(snapshot(vma(0x1000, 0x2000)), other)
    result = convert("verify", tmp_path, "--against", DUMP)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.splitlines() == [
        f"{other}: wrong, 1 thread: no task has PID 100 in this dump",
        f"{good}: good, 1 thread, 542 pages equal to the dump's",
    ]
    result = convert("verify", tmp_path, "--against", tmp_path / "none")
    assert (result.returncode, result.stdout.count(str(other))) == (1, 0)
    assert result.stderr == f"vmcore2core verify: {tmp_path / 'none'} cannot be read: No such file or directory\n"


def test_cores_are_known_by_their_names(tmp_path: Path) -> None:
    cores = [
        "core",
        "core.12",
        "core.a b.12.zst",
        "core.app.0.0f3a.12.17000000.zst",
        "app.core",
        "core.x.gdb.7",
    ]
    others = ["core.app.12.gdb", "core.app.12.lldb", "core.c", ".core.app.12.0123456789abcdef.part", "vmcore"]
    for name in cores + others:
        (tmp_path / name).touch()
    (tmp_path / "core.13").mkdir()
    assert [path.name for path in cores_of(tmp_path)] == sorted(cores)


@pytest.mark.parametrize(
    "index", ["[", "[" * 100_000, "{}", '{"processes": [{"core": {"file": "../x"}}]}', '{"processes": [{"core": 1}]}']
)
def test_a_broken_index_is_one_sentence(index: str, tmp_path: Path) -> None:
    (tmp_path / "core.1").touch()
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(DumpError, match="is not an index that vmcore2core wrote"):
        cores_of(tmp_path)


def test_a_directory_without_cores_is_said(tmp_path: Path) -> None:
    (tmp_path / "core.c").touch()
    result = convert("verify", tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        f"vmcore2core verify: {tmp_path} has no core, expected files with names such as core.COMM.PID\n"
    )

"""The messages of start scripts about frames without call frame information."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmcore2core.handover.debugger_files import Loaded
from vmcore2core.handover.debugger_frames import Caller, LastFrame, in_lldb, notices
from vmcore2core.unwind.frames import Found


def caller(path: str, found: Found) -> Caller:
    return Caller(path, 0x1000, 0x2000, (("rip", 0x3000), ("rsp", 0x2010)), found.value)


THERE = Path("/sysroot/usr/bin/there")


def nowhere_else(file: Path, pcs: set[int]) -> set[int]:
    """Tell that a complete file has call frame information of all that runs its code."""
    assert (file, pcs) == (THERE, {0x1000 - 0x400})
    return set()


def test_each_way_has_its_line_and_names_the_files() -> None:
    taken = [
        caller("/usr/bin/b", Found.CODE),
        caller("/usr/bin/a", Found.CODE),
        caller("/usr/bin/a", Found.FRAME_POINTER),
        caller("", Found.STACK_POINTER),
        caller("/usr/bin/c", Found.BACK_CHAIN),
    ]
    by_code, by_chain, by_pointers = notices(taken, [], "gdb")
    none = "vmcore2core: no call frame information for"
    assert by_code == f"{none} /usr/bin/a, /usr/bin/b: frames come from the instructions"
    assert by_chain == f"{none} /usr/bin/c: frames come from the back chain"
    assert by_pointers == (
        f"{none} code of no file, /usr/bin/a: frames come from frame pointers, and some may be missing"
    )
    assert notices([], [], "gdb") == []


def test_threads_whose_frames_gdb_guesses_are_named() -> None:
    ends = [LastFrame("/usr/lib/x.so", 0x7F0000001234, tid) for tid in range(100, 110)]
    (line,) = notices([], ends, "gdb")
    assert line.startswith(
        "vmcore2core: no call frame information for /usr/lib/x.so: gdb guesses the frames of thread "
    )
    assert "the frames of thread 100 from 0x7f0000001234 on, 101 from 0x7f0000001234 on" in line
    assert line.endswith("107 from 0x7f0000001234 on and 2 more")


def test_a_name_with_control_characters_is_quoted() -> None:
    (line,) = notices([caller("/tmp/a\n\x1b[31mb", Found.CODE)], [], "gdb")
    assert line.isprintable()


def test_an_outermost_frame_is_in_no_line() -> None:
    assert (
        notices([Caller("/usr/lib/x.so", 0x1000, 0x2000, (("rip", 0), ("rsp", 0x2008)), "instructions")], [], "gdb")
        == []
    )


def test_lldb_says_the_same_of_the_files_that_it_gets_callers_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("/usr/bin/a", "/usr/lib/x.so", "", "/usr/bin/there")
    callers = [tuple(caller(path, Found.CODE)) for path in paths]
    asked = []

    def copied(file: Path, folder: Path, callers: dict[int, dict[int, dict[str, int]]]) -> Path:
        asked.append((file, callers))
        assert folder.is_dir()
        return folder / "copy" if file.name == "a" else file

    def load(adapt: Callable[[str, Path, int], Path]) -> Loaded:
        assert adapt("/usr/bin/a", tmp_path / "a", 0x400).name == "copy"
        assert adapt("/usr/lib/x.so", tmp_path / "x.so", 0x500) == tmp_path / "x.so"
        return Loaded({"/usr/bin/a", "/usr/lib/x.so", "/usr/lib/other.so"}, {"/usr/bin/there": (THERE, 0x400)})

    in_lldb(load, copied, nowhere_else, callers, [("/usr/lib/other.so", 0x7F00, 12)])
    registers = {0x2000: {"rip": 0x3000, "rsp": 0x2010}}
    assert asked == [(tmp_path / "a", {0x1000 - 0x400: registers}), (tmp_path / "x.so", {0x1000 - 0x500: registers})]
    none = "vmcore2core: no call frame information for"
    assert capsys.readouterr().out.splitlines() == [
        f"{none} /usr/bin/a: frames come from the instructions",
        f"{none} /usr/lib/other.so: lldb guesses the frames of thread 12 from 0x7f00 on",
        f"{none} code of no file, /usr/lib/x.so: lldb guesses frames there, and some may be missing",
    ]
    there = [tuple(caller("/usr/bin/there", Found.CODE))]
    whole = Loaded(set(), {"/usr/bin/there": (THERE, 0x400)})
    in_lldb(lambda _adapt: whole, copied, nowhere_else, there, [])
    assert capsys.readouterr().out == ""
    in_lldb(lambda _adapt: whole, copied, lambda _file, pcs: pcs, there, [])
    assert capsys.readouterr().out == f"{none} /usr/bin/there: lldb guesses frames there, and some may be missing\n"

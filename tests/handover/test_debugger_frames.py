"""What gdb's start scripts say of frames that come without call frame information."""

from __future__ import annotations

import pytest

from vmcore2core.handover.debugger_frames import Caller, LastFrame, in_lldb, notices
from vmcore2core.unwind.frames import Found


def caller(path: str, found: Found) -> Caller:
    return Caller(path, 0x1000, 0x2000, (("rip", 0x3000), ("rsp", 0x2010)), found.value)


def test_each_way_has_its_line_and_names_the_files() -> None:
    taken = [
        caller("/usr/bin/b", Found.CODE),
        caller("/usr/bin/a", Found.CODE),
        caller("/usr/bin/a", Found.FRAME_POINTER),
        caller("", Found.STACK_POINTER),
    ]
    by_code, by_pointers = notices(taken, [])
    none = "vmcore2core: no call frame information for"
    assert by_code == f"{none} /usr/bin/a, /usr/bin/b: frames come from the instructions"
    assert by_pointers == (
        f"{none} code of no file, /usr/bin/a: frames come from frame pointers, and some may be missing"
    )
    assert notices([], []) == []


def test_threads_whose_frames_gdb_guesses_are_named() -> None:
    ends = [LastFrame("/usr/lib/x.so", 0x7F0000001234, tid) for tid in range(100, 110)]
    (line,) = notices([], ends)
    assert line.startswith(
        "vmcore2core: no call frame information for /usr/lib/x.so: gdb guesses the frames of thread "
    )
    assert "the frames of thread 100 from 0x7f0000001234 on, 101 from 0x7f0000001234 on" in line
    assert line.endswith("107 from 0x7f0000001234 on and 2 more")


def test_a_name_with_control_characters_is_quoted() -> None:
    (line,) = notices([caller("/tmp/a\n\x1b[31mb", Found.CODE)], [])
    assert line.isprintable()


def test_lldb_says_once_which_files_frames_it_guesses(capsys: pytest.CaptureFixture[str]) -> None:
    in_lldb({"/usr/bin/a", "/usr/lib/x.so", "/usr/lib/other.so"}, ["/usr/lib/x.so", "", "/usr/bin/a", "/usr/bin/there"])
    assert capsys.readouterr().out == (
        "vmcore2core: no call frame information for code of no file, /usr/bin/a, /usr/lib/x.so: "
        "lldb guesses frames there, and some may be missing\n"
    )
    in_lldb({"/usr/lib/other.so"}, ["/usr/bin/there"])
    assert capsys.readouterr().out == ""

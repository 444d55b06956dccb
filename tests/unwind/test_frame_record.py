"""Where the frame record lies anywhere in a frame, as on arm64, it does not tell the caller's stack pointer."""

from __future__ import annotations

import struct

from tests.arch.arm64.test_unwind import BLR_X1, FP, LR, SP, spec
from tests.arch.riscv64.test_unwind import LEAF, MIDDLE, OUTER, STACK, Space
from vmcore2core.unwind.cfi_rules import CfaRule, Offset, Row, Undefined
from vmcore2core.unwind.frames import Backtrace, Found
from vmcore2core.unwind.unwinder import Unwinder

BARE = OUTER + 0x100
RECORD = {STACK + 32: STACK + 0x80, STACK + 40: MIDDLE + 4}
"""The innermost function's, which has no call frame information; its caller's record is at STACK + 0x80."""
CALLER = {STACK + 0x80: 0, STACK + 0x88: OUTER + 4}


def backtrace(middle: Row | None, words: dict[int, int]) -> Backtrace:
    rows = {OUTER: Row(CfaRule(SP, 0), {LR: Undefined()}, LR, signal_frame=False)}
    space = Space(rows | ({MIDDLE: middle} if middle is not None else {}), words)
    for place in (MIDDLE, OUTER):
        space.code[place] = struct.pack("<I", BLR_X1)
    return Unwinder(spec(), space).backtrace({"pc": BARE, "sp": STACK, "x29": STACK + 32})


def test_the_stack_pointer_is_not_known_behind_a_frame_record() -> None:
    found = backtrace(None, RECORD | CALLER)
    assert [(frame.pc, frame.found) for frame in found.frames[1:]] == [
        (MIDDLE + 4, Found.FRAME_POINTER),
        (OUTER + 4, Found.FRAME_POINTER),
    ]
    assert [SP in frame.registers for frame in found.frames] == [True, False, False]
    assert found.frames[1].sp == STACK + 48  # it is not below that


def test_call_frame_information_that_says_where_the_record_is_tells_it() -> None:
    """As of a function that has its record at the bottom of 64 bytes: CFA is sp + 64, x29 at CFA - 64."""
    row = Row(
        CfaRule(SP, 64), {FP: Offset(-64, is_value=False), LR: Offset(-56, is_value=False)}, LR, signal_frame=False
    )
    found = backtrace(row, RECORD | CALLER)
    assert [(frame.pc, frame.found) for frame in found.frames[2:]] == [(OUTER + 4, Found.CFI)]
    assert found.frames[2].registers[SP] == STACK + 0x80 + 64
    assert found.complete
    assert found.end.endswith("; frame pointers led to 1 frame, and may have passed over callers")


def test_call_frame_information_without_a_record_tells_nothing_then() -> None:
    row = Row(CfaRule(SP, 16), {LR: Offset(-8, is_value=False)}, LR, signal_frame=False)
    found = backtrace(row, RECORD | CALLER)
    assert [(frame.pc, frame.found) for frame in found.frames[2:]] == [(OUTER + 4, Found.FRAME_POINTER)]


def test_no_signal_context_is_read_where_the_stack_pointer_is_not_known() -> None:
    space = Space({}, {STACK + 32: STACK + 0x80, STACK + 40: LEAF})
    space.code[LEAF] = struct.pack("<2I", 0xD280_1168, 0xD400_0001)  # mov x8, #139; svc #0
    space.code[STACK + 48 + 128 + 176] = bytes(35 * 8)
    found = Unwinder(spec(), space).backtrace({"pc": BARE, "sp": STACK, "x29": STACK + 32})
    assert [frame.pc for frame in found.frames] == [BARE, LEAF]
    assert "the signal's context" in found.end

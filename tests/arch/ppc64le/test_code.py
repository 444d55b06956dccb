"""Frames that POWER instructions tell, against the call frame information of a real library."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arch.shared import share_told_by_code
from tests.conftest import unpack
from tests.e2e.guests import FIXTURES
from tests.unwind.test_by_code import call_frames, in_memory, reader
from vmcore2core.arch.ppc64le.code import FP, LR, R0, SP, frames_by_code
from vmcore2core.arch.ppc64le.unwind import ends_with_call
from vmcore2core.arch.spec import CodeFrame

PLACE = 0x1000
# As powerpc64le-linux-gnu-as has them.
MFLR, MTLR, STORE_LR, LOAD_LR = 0x7C0802A6, 0x7C0803A6, 0xF8010010, 0xE8010010  # by r0; 16(r1)
MAKE, UNDO = 0xF821FFC1, 0x38210040  # stdu r1, -64(r1); addi r1, r1, 64
SAVE_31, LOAD_31 = 0xFBE1FFF8, 0xEBE1FFF8  # std, ld r31, -8(r1)
SET_31, FROM_31 = 0x7C3F0B78, 0x383F0040  # mr r31, r1; addi r1, r31, 64
STDUX, CHANGE_30, FMR_30 = 0x7C21496A, 0x7C7E1B78, 0xFFC1102A  # stdux r1, r1, r9; mr r30, r3; fadd f30, f1, f2
BL, BLR, BCTR, TRAP, BEQ_8, B_8, BEQLR = (
    *(0x48000009, 0x4E800020, 0x4E800420, 0x7FE00008, 0x41820008, 0x48000008),
    0x4D820020,
)
CMPD, CMPDI, LWSYNC, LWARX, NOP = 0x7C232000, 0x2C230000, 0x7C2004AC, 0x7D40F828, 0x60000000
ALIGN, ADD_R1 = 0x782106E4, 0x7C214A14  # clrrdi r1, r1, 4; add r1, r1, r9


def told(*words: int, at: int = 0, start: int | None = None, exact: bool = False) -> list[CodeFrame]:
    code = struct.pack(f"<{len(words)}I", *words)
    return list(frames_by_code(in_memory(code), PLACE + 4 * at, start, exact))


END = (UNDO, LOAD_LR, LOAD_31, MTLR, BLR)


@pytest.mark.parametrize(
    ("words", "size", "base"),
    [
        (END, 64, SP),
        ((CMPD, CMPDI, LWSYNC, LWARX, NOP, *END), 64, SP),
        ((BEQ_8, TRAP, *END), 64, SP),
        ((B_8, TRAP, *END), 64, SP),
        ((BL, NOP, *END), 64, SP),
        ((FROM_31, *END[1:]), 64, FP),
        ((STDUX, FROM_31, *END[1:]), 64, FP),
        ((STDUX, *END), None, None),
        ((ALIGN, *END), None, None),
        ((ADD_R1, *END), None, None),
        ((BLR,), None, None),  # the call has changed the link register
        ((BCTR, *END), None, None),  # a table of a switch
        ((MFLR, STORE_LR, MAKE, *END), None, None),  # another function, behind a call that does not return
        ((TRAP, *END), None, None),
        ((0x48000000,), None, None),  # b .: it loops for ever
    ],
)
def test_the_way_to_a_return_tells_the_frame(words: tuple[int, ...], size: int | None, base: int | None) -> None:
    made = told(*words)
    assert [(one.size, one.base) for one in made] == ([] if size is None else [(size, base)])
    for one in made:
        assert one.saved[LR] == one.size + 16
        assert one.base == FP or one.saved[FP] == one.size - 8


def test_registers_saved_on_the_way_are_the_callers() -> None:
    """From the first instruction, from between, and from behind what saves them."""
    words = (MFLR, STORE_LR, SAVE_31, MAKE, SET_31, *END)
    for at in (0, 4, 5, 6, 9):
        (made,) = told(*words, at=at, exact=True)
        inside = 3 < at < 6
        assert made.size == (64 if inside else 0), at
        assert made.saved.get(LR) == (None if at in (0, 9) else made.size + 16), at
        assert made.saved.get(FP) == (56 if inside else -8 if at == 6 else None), at
        assert LR not in made.changed


def test_a_conditional_return_is_one() -> None:
    assert [one.size for one in told(BEQLR, TRAP, exact=True)] == [0]
    assert [one.size for one in told(BEQLR, MFLR, STORE_LR, MAKE, UNDO, LOAD_LR, MTLR, BLR, exact=True)] == [0, 0]


def test_a_register_that_the_way_changes_is_not_the_callers() -> None:
    (made,) = told(CHANGE_30, *END)
    assert made.changed - {R0} == {30}
    (made,) = told(FMR_30, *END)
    assert made.changed - {R0} == frozenset()


def test_from_the_functions_first_instruction_the_frame_is_what_it_made() -> None:
    """Behind a call that does not return, nothing undoes it."""
    words = (MFLR, SAVE_31, STORE_LR, MAKE, SET_31, BL, MFLR, STORE_LR, BLR)
    assert told(*words, at=6) == []
    (made,) = told(*words, at=6, start=PLACE)
    assert (made.size, made.base) == (64, SP)
    assert (made.saved[LR], made.saved[FP]) == (80, 56)
    (made,) = told(MFLR, SAVE_31, STORE_LR, MAKE, SET_31, STDUX, BL, TRAP, at=7, start=PLACE)
    assert (made.size, made.base) == (64, FP)
    assert told(MAKE, BL, TRAP, at=2, start=PLACE) == []


@pytest.fixture(scope="module")
def libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(FIXTURES / "sysroot-ppc64el/lib/libc.so.6.zst", tmp_path_factory.mktemp("lib") / "libc.so.6")


def test_calls_of_a_real_library_have_the_frames_of_its_call_frame_information(libc: Path) -> None:
    """Debian's libc: its frames are those that the compiler wrote down, or are not told."""
    assert share_told_by_code(libc, "r1", SP, itertools.islice(calls(libc), 0, None, 160), frames_by_code) > 0.75


def calls(path: Path) -> Iterator[int]:
    """Yield where each call comes back to."""
    read = reader(path)
    for start, end in itertools.pairwise(sorted(call_frames(path, register="r1", size=0))):
        for at in range(start, end, 4):
            if ends_with_call(read(at, 4) or b""):
                yield at + 4

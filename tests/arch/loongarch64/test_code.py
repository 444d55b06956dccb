"""Frames that LoongArch instructions tell; the words are put together by the manual's formats."""

from __future__ import annotations

import struct

import pytest

from tests.unwind.test_by_code import in_memory
from vmcore2core.arch.loongarch64.code import FP, RA, SP, frames_by_code
from vmcore2core.arch.spec import CodeFrame

PLACE = 0x1000
S0, A0, T0, T3, T8, R21 = 23, 4, 12, 15, 20, 21


def imm12(opcode: int, rd: int, rj: int, number: int) -> int:
    """2RI12-type: opcode of 10 bits, si12, rj, rd."""
    return opcode << 22 | (number & 0xFFF) << 10 | rj << 5 | rd


def imm16(opcode: int, rj: int, rd: int, number: int) -> int:
    """2RI16-type: opcode of 6 bits, offs16 in instructions, rj, rd."""
    return opcode << 26 | (number >> 2 & 0xFFFF) << 10 | rj << 5 | rd


def addi(rd: int, rj: int, number: int) -> int:
    return imm12(0x00B, rd, rj, number)


def ld(rd: int, rj: int, number: int) -> int:
    return imm12(0x0A3, rd, rj, number)


def st(rd: int, rj: int, number: int) -> int:
    return imm12(0x0A7, rd, rj, number)


def move(rd: int, rj: int) -> int:
    return 0x00150000 | rj << 5 | rd


RET, BREAK, BL = imm16(0x13, RA, 0, 0), 0x002A0000, 0x15 << 26 | 2 << 10
MAKE, SAVE_RA, SAVE_S0, LOAD_RA, LOAD_S0, UNDO = (
    *(addi(SP, SP, -32), st(RA, SP, 24), st(S0, SP, 8)),
    *(ld(RA, SP, 24), ld(S0, SP, 8), addi(SP, SP, 32)),
)
B_8, BEQZ_8, BEQ_8 = 0x14 << 26 | 2 << 10, 0x10 << 26 | 2 << 10 | A0 << 5, imm16(0x16, A0, T0, 8)
BACK_16 = 0x14 << 26 | (-4 & 0xFFFF) << 10 | 0x3FF
LDPTR_RA, STPTR_RA = 0x26 << 24 | 6 << 10 | SP << 5 | RA, 0x27 << 24 | 6 << 10 | SP << 5 | RA
SUB_SP = 0x00118000 | T0 << 10 | SP << 5 | SP  # sub.d sp, sp, t0


def told(*words: int, at: int = 0, start: int | None = None, exact: bool = False) -> list[CodeFrame]:
    code = struct.pack(f"<{len(words)}I", *words)
    return list(frames_by_code(in_memory(code), PLACE + 4 * at, start, exact))


def test_the_words_are_those_of_known_programs() -> None:
    """As the kernel's and the linker's: ret; move fp, sp; addi.d sp, sp, -16; st.d ra, sp, 8."""
    assert (RET, move(FP, SP)) == (0x4C000020, 0x00150076)
    assert (addi(SP, SP, -16), st(RA, SP, 8)) == (0x02FFC063, 0x29C02061)


@pytest.mark.parametrize(
    ("words", "size", "base"),
    [
        ((LOAD_RA, LOAD_S0, UNDO, RET), 32, SP),
        ((LDPTR_RA, UNDO, RET), 32, SP),
        ((LOAD_RA, UNDO, imm16(0x13, T8, 0, 0)), 32, SP),  # a far tail call
        ((LOAD_RA, UNDO, imm16(0x13, T3, 13, 0)), 32, SP),  # the procedure linkage table
        ((BL, LOAD_RA, UNDO, RET), 32, SP),
        ((BEQZ_8, BREAK, LOAD_RA, UNDO, RET), 32, SP),
        ((BEQ_8, BREAK, LOAD_RA, UNDO, RET), 32, SP),
        ((B_8, BREAK, LOAD_RA, UNDO, RET), 32, SP),
        ((SUB_SP, addi(SP, FP, -32), LOAD_RA, UNDO, RET), 0, FP),
        ((LOAD_RA, 0x04 << 26 | 1 << 10 | SP << 5 | SP, RET), 0x10000, SP),  # addu16i.d sp, sp, 1
        ((SUB_SP, LOAD_RA, UNDO, RET), None, None),
        ((RET,), None, None),  # the call has changed ra
        ((MAKE, SAVE_RA, LOAD_RA, UNDO, RET), None, None),  # another function, behind a call that does not return
        ((MAKE, STPTR_RA, LOAD_RA, UNDO, RET), None, None),
        ((imm16(0x13, T0, 0, 0), LOAD_RA, UNDO, RET), None, None),  # jr t0: a table of a switch
        ((BREAK, LOAD_RA, UNDO, RET), None, None),
        ((BREAK, BREAK, BREAK, BREAK, BACK_16), None, None),
    ],
)
def test_the_way_to_a_return_tells_the_frame(words: tuple[int, ...], size: int | None, base: int | None) -> None:
    made = told(*words)
    assert [(one.size, one.base) for one in made] == ([] if size is None else [(size, base)])


def test_a_branch_leads_backwards() -> None:
    assert [one.size for one in told(LOAD_RA, UNDO, RET, BREAK, BACK_16 + (1 << 10), at=4)] == []
    assert [one.size for one in told(LOAD_RA, UNDO, RET, BREAK, BACK_16, at=4)] == [32]


def test_registers_saved_on_the_way_are_the_callers() -> None:
    words = (MAKE, SAVE_RA, SAVE_S0, move(S0, A0), LOAD_S0, LOAD_RA, UNDO, RET)
    for at in range(len(words)):
        (made,) = told(*words, at=at, exact=True)
        slots = ({RA: 24} if 1 < at < 6 else {}) | ({S0: 8} if 2 < at < 5 else {})
        assert made.size == (32 if 0 < at < 7 else 0), at
        assert made.saved == slots, at
        assert made.changed == frozenset(), at


def test_a_register_that_the_way_changes_is_not_the_callers() -> None:
    end = (LOAD_RA, UNDO, RET)
    for word, changed in (
        (move(S0, A0), {S0}),
        (0x01010000 | S0, frozenset[int]()),  # fadd.d fs7, fa0, fa0
        (imm12(0x0AE, S0, SP, 8), frozenset()),  # fld.d
        (0x0114B800 | S0, {S0}),  # movfr2gr.d
        (0x38720000 | S0, frozenset()),  # dbar
        (0x381C0000 | S0, frozenset()),  # stx.d
        (0x380C0000 | S0, {S0}),  # ldx.d
    ):
        (made,) = told(word, *end)
        assert made.changed == changed, hex(word)


def test_from_the_functions_first_instruction_the_frame_is_what_it_made() -> None:
    """Behind a call that does not return, nothing undoes it."""
    words = (MAKE, SAVE_RA, SAVE_S0, BL, BREAK)
    assert told(*words, at=4) == []
    (made,) = told(*words, at=4, start=PLACE)
    assert (made.size, made.saved, made.base) == (32, {RA: 24, S0: 8}, SP)
    assert told(MAKE, BL, BREAK, at=2, start=PLACE) == []

"""Frames that RISC-V instructions tell, against the call frame information of a real library."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arch.shared import share_told_by_code
from tests.conftest import unpack
from tests.e2e.guests import FIXTURES
from tests.unwind.test_by_code import call_frames, in_memory, reader
from vmcore2core.arch.riscv64.code import FP, RA, SP, Insn, decoded, decompressed, frames_by_code
from vmcore2core.arch.riscv64.unwind import ends_with_call
from vmcore2core.arch.spec import CodeFrame

PLACE = 0x1000
S1 = 9
RET, NOP, EBREAK, CALL = "8280", "0100", "0290", "8297"  # c.jr ra; c.nop; c.ebreak; c.jalr a5
MAKE, SAVE_RA, SAVE_S0, SAVE_S1 = "0111", "06ec", "22e8", "26e4"  # c.addi sp, -32; c.sdsp ra, 24; s0, 16; s1, 8
LOAD_RA, LOAD_S0, LOAD_S1, UNDO = "e260", "4264", "a264", "0561"  # c.ldsp ra, 24; ...; c.addi16sp sp, 32
SET_S0, FROM_S0 = "0010", "130104fe"  # c.addi4spn s0, sp, 32; addi sp, s0, -32
CHANGE_S1, LOSE_SP = "aa84", "33015100"  # c.mv s1, a0; add sp, sp, t0


@pytest.mark.parametrize(
    ("code", "insn"),
    [
        # As riscv64-linux-gnu-as has them.
        ("fe010113", Insn("addi", SP, SP, -32)),
        ("00113c23", Insn("sd", RA, SP, 24)),
        ("01813083", Insn("ld", RA, SP, 24)),
        ("fe943423", Insn("sd", S1, FP, -24)),
        ("00912623", Insn("sw", S1, SP, 12)),
        ("00008067", Insn("jump by", RA)),
        ("00030067", Insn("jump by", 6)),  # tail
        ("000e0367", Insn("jump by", 6)),  # jalr t1, 0(t3), as in the procedure linkage table
        ("00078067", Insn("jump by", 15)),
        ("00b50463", Insn("branch", number=8)),
        ("feb578e3", Insn("branch", number=-16)),
        ("0010006f", Insn("jump", number=2048)),
        ("008002ef", Insn("end", number=8)),  # jal t0: a millicode routine
        ("000780e7", Insn("call")),
        ("00510133", Insn("writes", SP)),
        ("02b574d3", Insn("")),  # fadd.d fs1, fa0, fa1
        ("e20504d3", Insn("writes", S1)),  # fmv.x.d s1, fa0
        ("00813487", Insn("")),  # fld fs1, 8(sp)
        ("00913427", Insn("")),  # fsd fs1, 8(sp)
        ("00a5b4af", Insn("writes", S1)),  # amoadd.d s1, a0, (a1)
        ("00100073", Insn("end")),
        ("c0001073", Insn("end")),
        ("0ff0000f", Insn("")),  # fence
        ("7139", Insn("addi", SP, SP, -64)),
        ("617d", Insn("addi", SP, SP, 496)),
        ("14fd", Insn("addi", S1, S1, -1)),
        ("0800", Insn("addi", FP, SP, 16)),
        ("1fe4", Insn("addi", S1, SP, 1020)),
        ("0000", Insn("end")),
        ("60e2", Insn("ld", RA, SP, 24)),
        ("747e", Insn("ld", FP, SP, 504)),
        ("ec06", Insn("sd", RA, SP, 24)),
        ("ffa2", Insn("sd", FP, SP, 504)),
        ("dfa6", Insn("sw", S1, SP, 252)),
        ("7c64", Insn("ld", S1, FP, 248)),
        ("fc64", Insn("sd", S1, FP, 248)),
        ("dc64", Insn("sw", S1, FP, 124)),
        ("5c64", Insn("writes", S1)),  # c.lw
        ("8082", Insn("jump by", RA)),
        ("8782", Insn("jump by", 15)),
        ("9782", Insn("call", 15)),
        ("84aa", Insn("addi", S1, 10)),  # c.mv
        ("8122", Insn("addi", SP, FP)),
        ("94aa", Insn("writes", S1)),  # c.add
        ("448d", Insn("writes", S1)),  # c.li
        ("6485", Insn("writes", S1)),  # c.lui
        ("8c89", Insn("writes", S1)),  # c.sub
        ("a009", Insn("jump", number=2)),
        ("b009", Insn("jump", number=-2046)),
        ("cd7d", Insn("branch", number=254)),
        ("f101", Insn("branch", number=-256)),
        ("9002", Insn("end")),
        ("24a2", Insn("")),  # c.fldsp
        ("a404", Insn("")),  # c.fsd
        ("048e", Insn("writes", S1)),  # c.slli
    ],
)
def test_instructions_are_read_as_the_assembler_wrote_them(code: str, insn: Insn) -> None:
    assert (decoded if len(code) == 8 else decompressed)(int(code, 16)) == insn


def told(*code: str, at: int = 0, start: int | None = None, exact: bool = False) -> list[CodeFrame]:
    """Return what is told at the instruction of a number."""
    data = bytes.fromhex("".join(code))
    place = PLACE + sum(len(one) // 2 for one in code[:at])
    return list(frames_by_code(in_memory(data), place, start, exact))


@pytest.mark.parametrize(
    ("code", "size", "base"),
    [
        ((LOAD_RA, LOAD_S0, UNDO, RET), 32, SP),
        ((FROM_S0, LOAD_RA, LOAD_S0, UNDO, RET), 0, FP),
        ((LOSE_SP, FROM_S0, LOAD_RA, LOAD_S0, UNDO, RET), 0, FP),
        ((LOSE_SP, LOAD_RA, LOAD_S0, UNDO, RET), None, None),
        ((CALL, LOAD_RA, UNDO, RET), 32, SP),
        (("11c1", EBREAK, LOAD_RA, UNDO, RET), 32, SP),  # c.beqz a0, 4
        ((RET,), None, None),  # the call has changed ra
        ((MAKE, SAVE_RA, LOAD_RA, UNDO, RET), None, None),  # another function, behind a call that does not return
        (("8287", LOAD_RA, UNDO, RET), None, None),  # c.jr a5: a table of a switch
        ((EBREAK,), None, None),
        (("01a0",), None, None),  # c.j .: it loops for ever
    ],
)
def test_the_way_to_a_return_tells_the_frame(code: tuple[str, ...], size: int | None, base: int | None) -> None:
    made = told(*code)
    assert [(one.size, one.base) for one in made] == ([] if size is None else [(size, base)])


def test_registers_saved_on_the_way_are_the_callers() -> None:
    """From the first instruction, from between, and from behind what saves them."""
    code = (MAKE, SAVE_RA, SAVE_S1, CHANGE_S1, LOAD_S1, LOAD_RA, UNDO, RET)
    for at in range(len(code)):
        (made,) = told(*code, at=at, exact=True)
        slots = ({RA: 24} if 1 < at < 6 else {}) | ({S1: 8} if 2 < at < 5 else {})
        assert made.size == (32 if 0 < at < 7 else 0), at
        assert made.saved == slots, at
        assert made.changed == frozenset(), at


def test_from_the_functions_first_instruction_the_frame_is_what_it_made() -> None:
    """Behind a call that does not return, nothing undoes it."""
    code = (MAKE, SAVE_RA, SAVE_S0, SET_S0, LOSE_SP, CALL, EBREAK)
    assert told(*code, at=6) == []
    (made,) = told(*code, at=6, start=PLACE)
    assert (made.size, made.saved, made.base) == (0, {RA: -8, FP: -16}, FP)
    assert told(MAKE, CALL, EBREAK, at=2, start=PLACE) == []


@pytest.fixture(scope="module")
def libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(FIXTURES / "sysroot-riscv64/lib/libc.so.6.zst", tmp_path_factory.mktemp("lib") / "libc.so.6")


def test_calls_of_a_real_library_have_the_frames_of_its_call_frame_information(libc: Path) -> None:
    """Debian's libc: its frames are those that the compiler wrote down, or are not told."""
    assert share_told_by_code(libc, "sp", SP, itertools.islice(calls(libc), 0, None, 40), frames_by_code) > 0.75


def calls(path: Path) -> Iterator[int]:
    """Yield where each call comes back to, in functions that have call frame information."""
    read = reader(path)
    for start, end in itertools.pairwise(sorted(call_frames(path, register="sp", size=0))):
        at = start
        while at < end and (half := read(at, 2)):
            size = 4 if half[0] & 3 == 3 else 2
            if ends_with_call(read(at, size) or b""):
                yield at + size
            at += size

"""The effects of RISC-V instructions on the stack and on the registers that calls preserve; see ``arch.ways``.

Compressed instructions are read as the instruction that each stands for. Only what moves the stack pointer and these
registers is told apart; any other instruction that writes a register changes it.

References: the RISC-V unprivileged specification, "RV32I", "RV64I", "C", "RV32/64G Instruction Set Listings"; psABI
1.0, "Register Convention".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.arch.ways import LOST, Convention, Read, Way, frames, plus
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.formats._cabi import signed

RA, SP, FP = (fmt.DWARF_REGS.index(name) for name in ("ra", "sp", "s0"))
CONVENTION = Convention(SP, FP, (FP, 9, *range(18, 28), RA), RA)
TAIL = 6  # t1: "tail" jumps by it; the procedure linkage table leaves there the address from which it came


class Insn(NamedTuple):
    """One instruction.

    Attributes:
        op: what it does: "addi", "ld" and "sd" as the assembler's; "sw" stores less than a register, at the same
            place; "writes" a register; "jump", "branch", "call", "jump by" a register, "end" of a way; else "".
        register: which it writes or stores, or jumps by.
        base: the register that ``number`` is added to.
        number: in bytes; of a jump, from its own address.
    """

    op: str
    register: int = 0
    base: int = 0
    number: int = 0


def frames_by_code(read: Read, pc: int, start: int | None, exact: bool) -> Iterator[CodeFrame]:
    """A ``FramesByCode``."""
    return frames(CONVENTION, partial(_following, read), pc, start, exact=exact)


def _following(read: Read, way: Way) -> Iterator[Way | CodeFrame]:
    """A ``Following``."""
    half = int.from_bytes(read(way.at, 2) or b"", "little")
    whole = half & 3 == 3
    after = way.to(way.at + (4 if whole else 2))
    insn = decoded(int.from_bytes(read(way.at, 4) or b"", "little")) if whole else decompressed(half)
    if insn.op == "jump by":
        frame = way.at_return() if insn.register in (RA, TAIL) else None
        if frame is not None:
            yield frame
    elif insn.op == "call":
        yield after.having(RA, LOST)
    elif insn.op != "end" and not (insn.op == "sd" and insn.register == RA and way.value(RA) == LOST):
        # An instruction that stores a lost return address begins another function.
        if insn.op in ("jump", "branch"):
            yield way.to(way.at + insn.number)
        if insn.op != "jump":
            yield _done(insn, after)


def _done(insn: Insn, way: Way) -> Way:
    """Return the way after an instruction that continues to the next."""
    at = way.address(insn.base, insn.number)
    if insn.op == "addi":
        return way.having(insn.register, plus(way.value(insn.base), insn.number))
    if insn.op == "ld":
        return way.having(insn.register, way.load(at))
    if insn.op in ("sd", "sw"):
        return way.store(at, way.value(insn.register) if insn.op == "sd" else LOST)
    return way.having(insn.register, LOST) if insn.op == "writes" else way


def decoded(word: int) -> Insn:
    """Return an instruction of 32 bits."""
    opcode, rd, funct3, rs1, rs2 = word & 0x7F, word >> 7 & 31, word >> 12 & 7, word >> 15 & 31, word >> 20 & 31
    if opcode == fmt.OP_BRANCH:
        return Insn("branch", number=signed(_bits(word, (8, 4, 1), (25, 6, 5), (7, 1, 11), (31, 1, 12)), 13))
    if opcode == fmt.OP_JAL:
        number = signed(_bits(word, (21, 10, 1), (20, 1, 11), (12, 8, 12), (31, 1, 20)), 21)
        return Insn({0: "jump", RA: "call"}.get(rd, "end"), number=number)
    if opcode == fmt.OP_JALR:
        # The procedure linkage table writes t1.
        return Insn("call") if rd == RA else Insn("jump by", TAIL if rd == TAIL else rs1)
    if opcode == fmt.OP_STORE:
        return Insn(
            "sd" if funct3 == fmt.FUNCT3_DOUBLE else "sw", rs2, rs1, signed(_bits(word, (7, 5, 0), (25, 7, 5)), 12)
        )
    if opcode == fmt.OP_LOAD and funct3 == fmt.FUNCT3_DOUBLE:
        return Insn("ld", rd, rs1, signed(word >> 20, 12))
    if opcode == fmt.OP_IMM and funct3 == 0:
        return Insn("addi", rd, rs1, signed(word >> 20, 12))
    if word in (fmt.EBREAK, fmt.UNIMP):
        return Insn("end")
    no_general = opcode in fmt.OPS_WITHOUT_RD or (opcode == fmt.OP_FP and word >> 27 not in fmt.FP_TO_GENERAL)
    return Insn("") if no_general else Insn("writes", rd)


def decompressed(half: int) -> Insn:
    """Return the 32-bit equivalent of an instruction of 16 bits."""
    quadrant, funct3 = half & 3, half >> 13
    return (_quadrant_0, _quadrant_1, _quadrant_2)[quadrant](half, funct3)


def _quadrant_0(half: int, funct3: int) -> Insn:
    register, base = 8 + (half >> 2 & 7), 8 + (half >> 7 & 7)
    if funct3 == 0:  # c.addi4spn; the instruction of zeros is none
        number = _bits(half, (6, 1, 2), (5, 1, 3), (11, 2, 4), (7, 4, 6))
        return Insn("addi", register, SP, number) if number else Insn("end")
    if funct3 in (3, 7):
        return Insn("ld" if funct3 == 3 else "sd", register, base, _bits(half, (10, 3, 3), (5, 2, 6)))
    if funct3 == 6:
        return Insn("sw", register, base, _bits(half, (6, 1, 2), (10, 3, 3), (5, 1, 6)))
    return Insn("writes", register) if funct3 in (2, 4) else Insn("")


def _quadrant_1(half: int, funct3: int) -> Insn:
    register = half >> 7 & 31
    if funct3 == 0:
        return Insn("addi", register, register, signed(_bits(half, (2, 5, 0), (12, 1, 5)), 6))
    if funct3 == 3 and register == SP:
        number = _bits(half, (6, 1, 4), (2, 1, 5), (5, 1, 6), (3, 2, 7), (12, 1, 9))
        return Insn("addi", SP, SP, signed(number, 10))
    if funct3 == 5:
        number = _bits(half, (3, 3, 1), (11, 1, 4), (2, 1, 5), (7, 1, 6), (6, 1, 7), (9, 2, 8), (8, 1, 10), (12, 1, 11))
        return Insn("jump", number=signed(number, 12))
    if funct3 in (6, 7):
        return Insn("branch", number=signed(_bits(half, (3, 2, 1), (10, 2, 3), (2, 1, 5), (5, 2, 6), (12, 1, 8)), 9))
    return Insn("writes", 8 + (register & 7) if funct3 == 4 else register)


def _quadrant_2(half: int, funct3: int) -> Insn:
    register, source, upper = half >> 7 & 31, half >> 2 & 31, half >> 12 & 1
    if funct3 == 3:
        return Insn("ld", register, SP, _bits(half, (5, 2, 3), (12, 1, 5), (2, 3, 6)))
    if funct3 == 7:
        return Insn("sd", source, SP, _bits(half, (10, 3, 3), (7, 3, 6)))
    if funct3 == 6:
        return Insn("sw", source, SP, _bits(half, (9, 4, 2), (7, 2, 6)))
    if funct3 == 4 and not source:
        return Insn(("call" if register else "end") if upper else "jump by", register)
    if funct3 == 4 and not upper:
        return Insn("addi", register, source)
    return Insn("writes", register) if funct3 in (0, 2, 4) else Insn("")


def _bits(word: int, *fields: tuple[int, int, int]) -> int:
    """Return the number from several fields, each given by lowest bit, width, and lowest bit in the number."""
    return sum((word >> low & ((1 << width) - 1)) << to for low, width, to in fields)

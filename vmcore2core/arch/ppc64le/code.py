"""The effects of POWER instructions on the stack and on the registers that calls preserve; see ``arch.ways``.

Only what moves these is told apart. Of any other instruction, each general register that it names counts as written,
but for the stack pointer, which is only read so.

References: Power ISA 3.1, books I 2.4, 3.3; ELFv2 ABI 1.5, 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.arch.ways import LOST, Convention, Read, Value, Way, frames, plus
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.formats._cabi import signed

SP, FP, LR = (fmt.DWARF_REGS.index(name) for name in ("r1", "r31", "link"))
R0 = 0  # by which the return address comes and goes
RED_ZONE, SAVE_AREA = 288, 32
CONVENTION = Convention(SP, FP, (R0, *range(14, 32), LR), LR, RED_ZONE, SAVE_AREA)


def frames_by_code(read: Read, pc: int, start: int | None, exact: bool) -> Iterator[CodeFrame]:
    """A ``FramesByCode``."""
    return frames(CONVENTION, partial(_following, read), pc, start, exact=exact)


def _following(read: Read, way: Way) -> Iterator[Way | CodeFrame]:
    """A ``Following``."""
    word = int.from_bytes(read(way.at, 4) or b"", "little")
    op, after = word >> 26, way.to(way.at + 4)
    if op == fmt.OP_BRANCH_REG and word & fmt.BCLR_MASK == fmt.BCLR:
        frame = way.at_return()
        if frame is not None:
            yield frame
        if word != fmt.BLR:
            yield after
    elif op == fmt.OP_BRANCH_REG and word >> 1 & 0x3FF in fmt.BRANCH_REG_XO:
        if word & fmt.LK:
            yield after.having(LR, LOST)
    elif op in (fmt.OP_BRANCH, fmt.OP_BRANCH_CONDITIONAL):
        yield from _branch(word, way, after)
    elif op not in (0, fmt.OP_PREFIX) and word != fmt.TRAP:
        yield from _done(word, after)


def _branch(word: int, way: Way, after: Way) -> Iterator[Way]:
    conditional = word >> 26 == fmt.OP_BRANCH_CONDITIONAL
    if word & fmt.LK:  # a call, or to the next instruction for its address
        yield after.having(LR, LOST)
        return
    yield way.to(way.at + signed(word & (0xFFFC if conditional else 0x3FFFFFC), 16 if conditional else 26))
    if conditional:
        yield after


def _done(word: int, way: Way) -> Iterator[Way]:
    """Yield the way after an instruction that continues to the next."""
    op, rt, ra, rb = word >> 26, word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    if op in (fmt.OP_LD, fmt.OP_STD) and word & 3 <= fmt.DS_UPDATES:
        yield from _access(way, word)
    elif word & fmt.MOVE_SPR_MASK == fmt.MFLR:
        # An instruction that takes a lost return address begins another function, behind a call that never returns.
        yield from () if way.value(LR) == LOST else (way.having(rt, way.value(LR)),)
    elif word & fmt.MOVE_SPR_MASK == fmt.MTLR:
        yield way.having(LR, way.value(rt))
    elif op == fmt.OP_ADDI or (op == fmt.OP_ADDIS and ra == SP):
        number = signed(word & 0xFFFF, 16) << (16 if op == fmt.OP_ADDIS else 0)
        value: Value = LOST if ra == R0 else plus(way.value(ra), number)  # 0 is the number 0 there
        yield way.having(rt, value)
    elif word & fmt.OR_MASK == fmt.OR and rt == rb:
        yield way.having(ra, way.value(rt))
    elif op in fmt.OPS_WITHOUT_TARGET or word == fmt.SC:
        yield way
    else:
        for register in (rt, ra, rb) if op == fmt.OP_EXTENDED else (rt, ra):
            way = way if register == SP and not _writes_stack_pointer(word) else way.having(register, LOST)
        yield way


def _writes_stack_pointer(word: int) -> bool:
    op, rt, ra = word >> 26, word >> 21 & 31, word >> 16 & 31
    if op == fmt.OP_EXTENDED:
        return rt == SP and word >> 1 & 0x3FF in fmt.EXTENDED_TO_R1
    return (ra if op in fmt.OPS_TO_RA else rt) == SP


def _access(way: Way, word: int) -> Iterator[Way]:
    """Yield the way after ld, ldu, std or stdu."""
    register, base, number = word >> 21 & 31, word >> 16 & 31, signed(word & 0xFFFC, 16)
    at, loads = way.address(base, number), word >> 26 == fmt.OP_LD
    value = way.load(at) if loads else way.value(register)
    if word & fmt.DS_UPDATES:
        way = way.having(base, plus(way.value(base), number))
    yield way.having(register, value) if loads else way.store(at, value)

"""The effects of LoongArch instructions on the stack and on the registers that calls preserve; see ``arch.ways``.

Only what moves these is told apart; any other instruction that may write a register changes it.

References: LoongArch Reference Manual, volume 1, 2.2 and appendix B; lapcs.adoc, "Register Convention".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.arch.ways import LOST, Convention, Read, Way, frames, plus
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.formats._cabi import signed

RA, SP, FP = (fmt.DWARF_REGS.index(name) for name in ("ra", "sp", "fp"))
CONVENTION = Convention(SP, FP, (FP, *range(23, 32), RA), RA)
TAIL = tuple(fmt.DWARF_REGS.index(name) for name in ("t3", "t8"))
"""The registers by which the procedure linkage table and far tail calls jump."""


def frames_by_code(read: Read, pc: int, start: int | None, exact: bool) -> Iterator[CodeFrame]:
    """A ``FramesByCode``."""
    return frames(CONVENTION, partial(_following, read), pc, start, exact=exact)


def _following(read: Read, way: Way) -> Iterator[Way | CodeFrame]:
    """A ``Following``."""
    word = int.from_bytes(read(way.at, 4) or b"", "little")
    op, rj, rd, after = word >> 26, word >> 5 & 31, word & 31, way.to(way.at + 4)
    if op == fmt.OP_BL or (op == fmt.OP_JIRL and rd == RA):
        yield after.having(RA, LOST)
    elif op == fmt.OP_JIRL:
        frame = way.at_return() if rj == RA or rj in TAIL else None
        if frame is not None:
            yield frame
    elif op == fmt.OP_B:
        yield way.to(way.at + 4 * signed(word >> 10 & 0xFFFF | (word & 0x3FF) << 16, 26))
    elif op in fmt.OPS_BRANCH_16:
        yield after
        yield way.to(way.at + 4 * signed(word >> 10 & 0xFFFF, 16))
    elif op in fmt.OPS_BRANCH_21:
        yield after
        yield way.to(way.at + 4 * signed(word >> 10 & 0xFFFF | rd << 16, 21))
    elif word and word & fmt.BREAK_MASK != fmt.BREAK:
        yield from _done(word, after)


def _done(word: int, way: Way) -> Iterator[Way]:
    """Yield the way after an instruction that continues to the next."""
    op10, op8, op6, rj, rd = word >> 22, word >> 24, word >> 26, word >> 5 & 31, word & 31
    number = signed(word >> 10 & 0xFFF, 12)
    if op8 in (fmt.OP_LDPTR_D, fmt.OP_STPTR_D):
        number = 4 * signed(word >> 10 & 0x3FFF, 14)
    at = way.address(rj, number)
    if op10 == fmt.OP_LD_D or op8 == fmt.OP_LDPTR_D:
        yield way.having(rd, way.load(at))
    elif op10 == fmt.OP_ST_D or op8 == fmt.OP_STPTR_D:
        # An instruction that stores a lost return address begins another function, behind a call that never returns.
        if rd != RA or way.value(RA) != LOST:
            yield way.store(at, way.value(rd))
    elif op10 == fmt.OP_ADDI_D:
        yield way.having(rd, plus(way.value(rj), number))
    elif op6 == fmt.OP_ADDU16I_D:
        yield way.having(rd, plus(way.value(rj), signed(word >> 10 & 0xFFFF, 16) << 16))
    elif word & fmt.OR_ZERO_MASK == fmt.OR_ZERO:
        yield way.having(rd, way.value(rj))
    else:
        yield way if _writes_nothing(word) else way.having(rd, LOST)


def _writes_nothing(word: int) -> bool:
    """Tell whether an instruction writes no general register."""
    return (
        word >> 24 in fmt.OPS_WITHOUT_RD_8
        or word >> 22 in fmt.OPS_WITHOUT_RD
        or word >> 20 in fmt.OPS_WITHOUT_RD_12
        or word & fmt.DBAR_MASK == fmt.DBAR
    )

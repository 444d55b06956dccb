"""The effects of A64 instructions on the stack and on the registers that calls preserve; see ``arch.ways``.

Only what moves these is told apart. Of any other instruction, each register that it may write counts as written.

References: the Arm Architecture Reference Manual (DDI 0487), C4.1 "A64 instruction set encoding"; AAPCS64, 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.arch.ways import LOST, Convention, Read, Value, Way, frames, plus
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats._cabi import signed

SP, FP, LR = (fmt.DWARF_REGS.index(name) for name in ("sp", "x29", "x30"))
CONVENTION = Convention(SP, FP, tuple(range(19, 31)), LR)
ZR = 31  # number 31 where it does not mean the stack pointer
BEFORE_CALL = 64


def frames_by_code(read: Read, pc: int, start: int | None, exact: bool) -> Iterator[CodeFrame]:
    """A ``FramesByCode``."""
    yield from frames(CONVENTION, partial(_following, read), pc, start, exact=exact)
    before = b"" if exact else read(pc - BEFORE_CALL, BEFORE_CALL) or b""
    if any(code in before for code in fmt.NO_CALLER):
        yield CodeFrame(0, {}, frozenset(), outermost=True)


def _following(read: Read, way: Way) -> Iterator[Way | CodeFrame]:
    """A ``Following``."""
    code = read(way.at, 4)
    word = 0 if code is None else int.from_bytes(code, "little")
    after = way.to(way.at + 4)
    if word >> fmt.OP_BRANCH_SHIFT & 7 == fmt.OP_BRANCH:
        yield from _branch(word, way, after)
    elif word & fmt.OP_LOAD_STORE_MASK == fmt.OP_LOAD_STORE:
        yield from _load_store(word, after)
    elif word >> 16:  # else it is udf
        yield _processing(word, after)


def _branch(word: int, way: Way, after: Way) -> Iterator[Way | CodeFrame]:
    """Yield what follows a branch, a system instruction or an exception."""
    if _is_any(word, fmt.RETURNS):
        # Functions may be entered through x16 and x17: such a jump is a tail call, by the procedure linkage table too.
        frame = way.at_return()
        if frame is not None:
            yield frame
    elif word & fmt.B_MASK == fmt.B:
        yield way.to(way.at + 4 * _signed(word, 0, 26))
    elif _is_any(word, fmt.CALLS):
        yield after.having(LR, LOST)
    elif word in fmt.SIGN_RETURN_ADDRESS:
        yield from () if way.value(LR) == LOST else (after,)  # else another function begins here
    elif word & fmt.SYSTEM_MASK == fmt.SYSTEM:
        yield _written(after, word & 31) if word & fmt.SYSTEM_READS else after
    elif word & fmt.SVC_MASK == fmt.SVC:
        yield after
    else:
        for (value, mask), width in fmt.CONDITIONAL.items():
            if word & mask == value:
                yield after
                yield way.to(way.at + 4 * _signed(word, 5, width))


def _processing(word: int, after: Way) -> Way:
    """Return the way after an instruction that computes."""
    rd = word & 31
    if word & fmt.ADD_IMMEDIATE_MASK == fmt.ADD_IMMEDIATE:
        number = (word >> 10 & 0xFFF) << (12 if word & fmt.ADD_SHIFTED else 0)
        return after.having(rd, plus(after.value(word >> 5 & 31), -number if word & fmt.ADD_SUBTRACTS else number))
    if _is_any(word, fmt.WRITE_SP):
        return after.having(rd, LOST)
    if word & fmt.SIGN_MASK == fmt.SIGN:
        return after
    if word & fmt.VECTOR_MASK == fmt.VECTOR and not _is_any(word, fmt.VECTOR_TO_GENERAL):
        return after
    return _written(after, rd)


class _Access(NamedTuple):
    """A load or a store at a base register and a displacement.

    Attributes:
        loads: whether it is a load.
        whole: whether it is of whole registers.
        registers: the general ones, and how far from the address each lies.
        base: the base register.
        displacement: in bytes.
        mode: when the base changes.
    """

    loads: bool
    whole: bool
    registers: tuple[tuple[int, int], ...]
    base: int
    displacement: int
    mode: int


AFTER, NEVER, BEFORE = 1, 2, 3  # 0 is as NEVER


def _access(word: int) -> _Access | None:
    """Return the effect of a load or a store; None for another instruction."""
    rt, rn, simd = word & 31, word >> 5 & 31, bool(word & fmt.SIMD)
    registers: tuple[tuple[int, int], ...] = ()
    if word & fmt.PAIR_MASK == fmt.PAIR:
        size = 4 << (word >> 30) if simd else 8 if word >> 31 else 4
        registers = () if simd else ((rt, 0), (word >> 10 & 31, size))
        displacement = size * _signed(word, 15, 7)
        return _Access(bool(word & fmt.PAIR_LOADS), word >> 30 == 2, registers, rn, displacement, word >> 23 & 3)
    if word & fmt.SINGLE_MASK != fmt.SINGLE or word & fmt.SINGLE_BY_REGISTER_MASK == fmt.SINGLE_BY_REGISTER:
        return None
    scaled = bool(word & fmt.SINGLE_SCALED)
    displacement = (word >> 10 & 0xFFF) << (word >> 30) if scaled else _signed(word, 12, 9)
    if not simd and word & fmt.PREFETCH_MASK != fmt.PREFETCH:
        registers = ((rt, 0),)
    mode = NEVER if scaled else word >> 10 & 3
    return _Access(bool(word & fmt.SINGLE_LOADS), word >> 30 == 3, registers, rn, displacement, mode)


def _load_store(word: int, after: Way) -> Iterator[Way]:
    """Yield the way after a load or a store."""
    access = _access(word)
    if access is None:
        yield _other_load_store(word, after)
    elif access.loads or after.value(LR) != LOST or LR not in (register for register, _ in access.registers):
        yield _accessed(access, after)


def _accessed(access: _Access, way: Way) -> Way:
    address = way.address(access.base, 0 if access.mode == AFTER else access.displacement)
    places = [None if address is None else address.plus(offset) for _, offset in access.registers]
    # A load is before the stack pointer leaves its place behind; a store is after it has made the place.
    loaded = [way.load(at) if access.whole else LOST for at in places]
    stored = [way.value(register) if access.whole and register != ZR else LOST for register, _ in access.registers]
    if access.mode in (AFTER, BEFORE):
        way = way.having(access.base, plus(way.value(access.base), access.displacement))
    for index, (register, _) in enumerate(access.registers):
        way = _written(way, register, loaded[index]) if access.loads else way.store(places[index], stored[index])
    return way


def _other_load_store(word: int, after: Way) -> Way:
    rt, rn = word & 31, word >> 5 & 31
    if word & fmt.SIMD:
        structure = word & fmt.STRUCTURE_MASK == fmt.STRUCTURE_WRITES_BACK
        return after.having(rn, LOST) if structure else after
    if word & fmt.SINGLE_MASK == fmt.SINGLE or word & fmt.LITERAL_MASK == fmt.LITERAL:
        return _written(after, rt)
    for register in (rt, rn, word >> 10 & 31, word >> 16 & 31):
        after = _written(after, register)
    return after


def _is_any(word: int, instructions: Iterable[tuple[int, int]]) -> bool:
    return any(word & mask == value for value, mask in instructions)


def _written(way: Way, register: int, value: Value = LOST) -> Way:
    return way if register == ZR else way.having(register, value)


def _signed(word: int, low: int, width: int) -> int:
    return signed(word >> low & ((1 << width) - 1), width)

"""Find from a function's instructions where it has put its caller's registers, up to some place in it.

A function makes its frame once (``daddiu $sp, $sp, -N``) and saves there each register that it will change. We follow
all ways from its beginning, or from that instruction, to the place, and take what holds on all of them. A way ends
where it returns or changes the stack pointer otherwise, so a function that cannot reach the place tells nothing.
Kernel functions, and most programs for MIPS, have no call frame information.

References: arch/mips/kernel/process.c: get_frame_info(), which stops at the first jump; the MIPS64 manual, volume II.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.formats import mips64 as fmt
from vmcore2core.formats._cabi import signed
from vmcore2core.interfaces import ByteOrder

BEFORE, BEHIND = 32 << 10, 8 << 10
"""Bytes of code to read around a place: the kernel's largest functions have about 20 KiB."""
STEPS_MAX = 100_000

TRACKED = (*fmt.STATIC, fmt.GP, fmt.RA)
INTACT, CHANGED, ZERO = -1, -2, -3
"""The state of a register that is not saved in the frame; code without a caller sets $ra to 0."""

Places = tuple[int, ...]
"""For each of ``TRACKED``, which ends with $ra: the offset where it is saved, or one of the states above."""


@dataclass(frozen=True, slots=True)
class State:
    """The state at a place: bytes of the frame so far, and the state of each register."""

    size: int
    places: Places

    def changed(self, *registers: int) -> State:
        """Return the state with these changed, unless they are saved."""
        return State(
            self.size,
            tuple(
                CHANGED if place == INTACT and register in registers else place
                for place, register in zip(self.places, TRACKED, strict=True)
            ),
        )

    def saved(self, stores: tuple[tuple[int, int], ...]) -> State:
        """Return the state after stores; a register's first store has the caller's value."""
        offsets = dict(stores)
        return State(
            self.size,
            tuple(
                offsets.get(register, place) if place == INTACT else place
                for place, register in zip(self.places, TRACKED, strict=True)
            ),
        )

    def merged(self, other: State) -> State:
        """Return the state that two ways to a place have in common."""
        if self.size != other.size:
            return State(self.size, (CHANGED,) * len(TRACKED))
        return State(self.size, tuple(a if a == b else CHANGED for a, b in zip(self.places, other.places, strict=True)))


BEGIN = State(0, (INTACT,) * len(TRACKED))


@lru_cache(maxsize=512)
def frame_at_call(code: bytes, base: int, at: int, byte_order: ByteOrder, width: int = 8) -> CodeFrame | None:
    """Return the frame of the function that makes a call, from where it makes the frame.

    Args:
        code: instructions around it.
        base: address of the first.
        at: offset of the call.
        byte_order: of the code.
        width: bytes of a register on the stack.

    Returns:
        None if no function in ``code`` makes a frame, saves its return address, and reaches the call.
    """
    words = _words(code, byte_order)
    makes = _makes_frame(words)
    before = makes[makes < at // 4]
    if not len(before):
        return None
    start = int(before[-1])
    state = _Flow(words, base, start, width).at_call(at // 4)
    found = None if state is None else _frame(state, width)
    return found if found is not None and fmt.RA in found.saved else None


@lru_cache(maxsize=512)
def frame_at(code: bytes, base: int, at: int, byte_order: ByteOrder, width: int, *, exact: bool) -> CodeFrame | None:
    """Return the frame of the function that begins with ``code``, at a place in it.

    Args:
        code: the function's instructions, from its beginning.
        base: address of the first.
        at: offset of the next instruction, or of a call.
        byte_order: of the code.
        width: bytes of a register on the stack.
        exact: whether ``at`` is the next instruction; else it is a call whose delay slot is done.

    Returns:
        None if no way leads there.
    """
    flow = _Flow(_words(code, byte_order), base, 0, width)
    state = flow.at_instruction(at // 4) if exact else flow.at_call(at // 4)
    return None if state is None else _frame(state, width)


Words = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]


def _makes_frame(words: Words) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    """Return the indices of the instructions that make a frame."""
    masked = words & np.uint32(fmt.MAKE_FRAME_MASK)
    return np.flatnonzero(np.isin(masked, np.array(fmt.MAKE_FRAME, np.uint32)))


def _words(code: bytes, byte_order: ByteOrder) -> Words:
    return np.frombuffer(code[: len(code) & ~3], "<u4" if byte_order == "little" else ">u4").astype(np.uint32)


def _frame(state: State, width: int) -> CodeFrame | None:
    """Return a state as a frame; None if it saves something above the frame."""
    by_register = dict(zip(TRACKED, state.places, strict=True))
    saved = {register: place for register, place in by_register.items() if place >= 0}
    if any(offset + width > state.size for offset in saved.values()):
        return None
    changed = frozenset(register for register, place in by_register.items() if place == CHANGED)
    return CodeFrame(state.size, saved, changed, outermost=state.places[-1] == ZERO)


class _Flow:
    """The ways from one instruction on, as indices of instructions.

    A function makes its frame in one place; the next such place belongs to another function.
    """

    def __init__(self, words: Words, base: int, start: int, width: int) -> None:
        makes = _makes_frame(words[start:])
        others = makes[1:] if len(makes) else makes
        end = start + int(others[0]) if len(others) else len(words)
        self.words: list[int] = words[:end].tolist()
        self.base, self.start, self.width = base, start, width
        self.states: dict[int, State] = {}
        self.work: list[int] = []

    def at_call(self, call: int) -> State | None:
        """Return the state when a call is made and its delay slot is done; None if no way leads there."""
        state = self.at_instruction(call)
        return None if state is None else self._done(call + 1, state)

    def at_instruction(self, at: int) -> State | None:
        """Return the state before an instruction; None if no way leads there."""
        self._reach(self.start, BEGIN)
        for _ in range(STEPS_MAX):
            if not self.work:
                return self.states.get(at)
            here = self.work.pop()
            self._step(here, self.states[here])
        return None

    def _reach(self, at: int, state: State | None) -> None:
        """Note that a way leads to an instruction."""
        if state is None or not self.start <= at < len(self.words):
            return
        if at == self.start and state.size:  # a call that does not return, followed by another function's tail call
            return
        before = self.states.get(at)
        if before is not None:
            state = before.merged(state)
        if state != before:
            self.states[at] = state
            self.work.append(at)

    def _done(self, at: int, state: State) -> State | None:
        """Return the state after an instruction; None if the frame is gone."""
        if at >= len(self.words):
            return None
        word = self.words[at]
        if word & fmt.MAKE_FRAME_MASK in fmt.MAKE_FRAME and state.size == 0:
            return State(0x10000 - (word & 0xFFFF), state.places)
        stored = saves(word, self.width) if state.size else ()
        if stored:
            return state.saved(stored)
        changed = written(word)
        if fmt.RA in changed and _makes_zero(word):
            return State(state.size, (*state.places[:-1], ZERO))
        if fmt.SP in changed and state.places[-1] != ZERO:  # where nothing was called from does not matter
            return None
        return state.changed(*changed)

    def _step(self, at: int, state: State) -> None:
        word = self.words[at]
        op = word >> 26
        if is_call(word):
            after = self._done(at + 1, state)
            # The call overwrites $ra: the return address was saved before, or is lost.
            self._reach(at + 2, None if after is None else after.changed(fmt.RA))
        elif op == fmt.OP_J:
            target = ((self.base + 4 * at) & ~0xFFF_FFFF | (word & 0x3FF_FFFF) << 2) - self.base
            self._reach(target // 4, self._done(at + 1, state))
        elif op == fmt.OP_SPECIAL and word & 0x3F == fmt.FUNCT_JR:
            if word >> 21 & 31 != fmt.RA:
                self._jump_table(self._done(at + 1, state))
        elif op in fmt.BRANCHES or (op == fmt.OP_REGIMM and word >> 16 & 31 in fmt.REGIMM_BRANCHES):
            likely = op in fmt.LIKELY or (op == fmt.OP_REGIMM and word >> 16 & 31 in fmt.REGIMM_LIKELY)
            taken = self._done(at + 1, state)
            self._reach(at + 1 + signed(word & 0xFFFF, 16), taken)
            if not _always(word):
                self._reach(at + 2, state if likely else taken)
        else:
            self._reach(at + 1, self._done(at, state))

    def _jump_table(self, state: State | None) -> None:
        """Follow a jump through a table: it may lead to any instruction to which no other leads."""
        for at in range(self.start, len(self.words) - 2):
            if _ends_way(self.words[at]):
                self._reach(at + 2, state)


def _makes_zero(word: int) -> bool:
    """Tell whether an instruction moves $0 to a register: or, addu, daddu."""
    return word >> 16 == 0 and word & 0x7FF in (0x25, 0x21, 0x2D)


def _always(word: int) -> bool:
    """Tell whether a branch is always taken: beq of a register with itself."""
    return word >> 26 == 0x04 and word >> 21 & 31 == word >> 16 & 31


def _ends_way(word: int) -> bool:
    """Tell whether an instruction and its delay slot are the last of a way."""
    op = word >> 26
    return op == fmt.OP_J or (op == fmt.OP_SPECIAL and word & 0x3F == fmt.FUNCT_JR) or _always(word)


def is_call(word: int) -> bool:
    """Tell whether an instruction puts a return address into $ra: jal, jalr, or a branch that links."""
    op = word >> 26
    if op == fmt.OP_SPECIAL:
        return word & 0x3F == fmt.FUNCT_JALR and word >> 11 & 31 == fmt.RA
    return op == fmt.OP_JAL or (op == fmt.OP_REGIMM and word >> 16 & 31 in fmt.REGIMM_LINKS)


def saves(word: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return (register, offset from the stack pointer) for each register that is stored: sd, sw, Loongson's gssq.

    Args:
        word: the instruction.
        width: bytes of a register; a narrower store saves no register.
    """
    op, base, rt = word >> 26, word >> 21 & 31, word >> 16 & 31
    if base != fmt.SP:
        return ()
    if op == (fmt.OP_SD if width == 8 else fmt.OP_SW) and signed(word & 0xFFFF, 16) >= 0:
        return ((rt, signed(word & 0xFFFF, 16)),)
    if op == fmt.OP_SWC2 and width == 8 and word >> 5 & 1 and not word >> 15 & 1 and not word >> 14 & 1:
        offset = (word >> 6 & 0xFF) << 4
        return ((rt, offset), (word & 31, offset + 8))
    return ()


def written(word: int) -> tuple[int, ...]:
    """Return the general registers that an instruction may write: all that it names if the instruction is not known."""
    op, rs, rt, rd = word >> 26, word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    if op == fmt.OP_SPECIAL:
        return () if word & 0x3F in _SPECIAL_NONE else (rd,)
    if op == fmt.OP_REGIMM:
        return ()
    if op in _WRITE_RT:
        return (rt,)
    if op in _WRITE_NONE:
        return ()
    if op in (0x10, 0x11, 0x12):  # coprocessors: mfc, dmfc, cfc, mfhc; di, ei; rdpgpr
        return (rt,) if rs in (0, 1, 2, 3, 0x0B) else (rd,) if rs == 0x0A else ()
    if op == 0x1F and word & 0x3F in _SPECIAL3_RT:
        return (rt,)
    if op == 0x1F and word & 0x3F in (0x20, 0x24):  # bshfl, dbshfl
        return (rd,)
    if op == 0x32:  # gslq
        return rt, word & 31
    return rs, rt, rd


_SPECIAL_NONE = frozenset({0x08, 0x0C, 0x0D, 0x0F, *range(0x30, 0x37)})
"""jr, syscall, break, sync, traps."""
_WRITE_RT = frozenset({*range(0x09, 0x10), 0x19, 0x1A, 0x1B, *range(0x20, 0x28), 0x30, 0x34, 0x36, 0x37, 0x38, 0x3C})
"""Arithmetic with constants, loads, and sc and scd, which write whether they stored."""
_WRITE_NONE = frozenset({*range(0x02, 0x08), 0x13, *range(0x14, 0x18), *range(0x28, 0x30), 0x31, 0x33, 0x35})
_WRITE_NONE |= {0x39, 0x3A, 0x3D, 0x3E, 0x3F}
"""Jumps, branches, stores, prefetches, loads of floating-point registers."""
_SPECIAL3_RT = frozenset({*range(0x08), 0x3B, *range(0x26, 0x28), *range(0x36, 0x38), *range(0x28, 0x30)})
"""ext and ins of each kind, rdhwr; sc and ll, loads of release 6 and EVA."""

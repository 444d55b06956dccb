"""What a kernel function did to its caller's registers before it made a call: read out of its instructions.

A function makes its frame once (``daddiu $sp, $sp, -N``) and saves there each register that it will change. From that
instruction, all ways through the function are followed to the call; what holds on each of them is known. A way that
returns, or changes the stack pointer again, is another function's or past the end, and ends there. So nothing is taken
from a function that cannot reach the call.

References: arch/mips/kernel/process.c: get_frame_info(), which stops at the first jump; the MIPS64 manual, volume II.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vmcore2core.arch.mips64_unwind import is_call
from vmcore2core.formats import mips64 as fmt

BEFORE, BEHIND = 32 << 10, 8 << 10
"""Bytes of code around a call that are looked at: the largest functions have some 20 KiB."""
FRAMES_TRIED = 4
STEPS_MAX = 100_000

TRACKED = (*fmt.STATIC, fmt.RA)
INTACT, CHANGED = -1, -2
"""What became of a register, if it is not saved at an offset in the frame."""

State = tuple[int, ...]
"""For each of ``TRACKED``: the offset where it is saved, ``INTACT`` or ``CHANGED``."""


@dataclass(frozen=True, slots=True)
class CallFrame:
    """The frame of a function at one of its calls.

    Attributes:
        size: bytes; the caller's stack pointer is that far above.
        saved: register number -> offset where the caller's value is.
        changed: registers whose value in the caller is not known.
    """

    size: int
    saved: dict[int, int]
    changed: frozenset[int]


@lru_cache(maxsize=512)
def frame_at_call(code: bytes, base: int, at: int, byte_order: str) -> CallFrame | None:
    """Return the frame of the function that makes a call.

    Args:
        code: instructions around it.
        base: address of the first.
        at: offset of the call.
        byte_order: of the code.

    Returns:
        None where no function in ``code`` is seen to make a frame, save its return address, and reach the call.
    """
    words = np.frombuffer(code, "<u4" if byte_order == "little" else ">u4")
    makes = np.flatnonzero(words[: at // 4] & np.uint32(fmt.MAKE_FRAME_MASK) == np.uint32(fmt.MAKE_FRAME))
    for start in makes[::-1][:FRAMES_TRIED].tolist():
        state = _Flow(words.tolist(), base, start, at // 4).run()
        offset = state[-1] if state is not None else CHANGED
        if state is None or offset < 0:
            continue
        size = 0x10000 - (int(words[start]) & 0xFFFF)
        saved = {register: where for register, where in zip(TRACKED, state, strict=True) if where >= 0}
        if all(where + 8 <= size for where in saved.values()):
            return CallFrame(size, saved, frozenset(r for r, s in zip(TRACKED, state, strict=True) if s == CHANGED))
    return None


class _Flow:
    """The ways from one instruction that makes a frame to a call, all indices of instructions."""

    def __init__(self, words: list[int], base: int, start: int, call: int) -> None:
        self.words, self.base, self.start, self.call = words, base, start, call
        self.states: dict[int, State] = {}
        self.work: list[int] = []

    def run(self) -> State | None:
        """Return what holds when the call is made, its delay slot done; None where no way leads there."""
        self._reach(self.start + 1, (INTACT,) * len(TRACKED))
        for _ in range(STEPS_MAX):
            if not self.work:
                break
            at = self.work.pop()
            self._step(at, self.states[at])
        else:
            return None
        state = self.states.get(self.call)
        return None if state is None else self._done(self.call + 1, state)

    def _reach(self, at: int, state: State | None) -> None:
        """Note that a way leads to an instruction."""
        if state is None or not self.start < at < len(self.words):
            return
        before = self.states.get(at)
        if before is not None:
            state = tuple(b if a == b else CHANGED for a, b in zip(before, state, strict=True))
        if state != before:
            self.states[at] = state
            self.work.append(at)

    def _done(self, at: int, state: State) -> State | None:
        """Return what holds after an instruction; None where the frame is gone."""
        if at >= len(self.words):
            return None
        word = self.words[at]
        stored = saves(word)
        if stored:
            kept = list(state)
            for register, offset in stored:
                if register in TRACKED and kept[TRACKED.index(register)] == INTACT:
                    kept[TRACKED.index(register)] = offset
            return tuple(kept)
        changed = written(word)
        if fmt.SP in changed:
            return None
        return tuple(
            CHANGED if s == INTACT and register in changed else s for s, register in zip(state, TRACKED, strict=True)
        )

    def _step(self, at: int, state: State) -> None:
        word = self.words[at]
        op = word >> 26
        if is_call(word):
            after = self._done(at + 1, state)
            # The return address is in $ra then: saved before, or lost.
            self._reach(at + 2, None if after is None else _changed(after, fmt.RA))
        elif op == fmt.OP_J:
            target = ((self.base + 4 * at) & ~0xFFF_FFFF | (word & 0x3FF_FFFF) << 2) - self.base
            self._reach(target // 4, self._done(at + 1, state))
        elif op == fmt.OP_SPECIAL and word & 0x3F == fmt.FUNCT_JR:
            if word >> 21 & 31 != fmt.RA:
                self._jump_table(self._done(at + 1, state))
        elif op in fmt.BRANCHES or (op == fmt.OP_REGIMM and word >> 16 & 31 in fmt.REGIMM_BRANCHES):
            likely = op in fmt.LIKELY or (op == fmt.OP_REGIMM and word >> 16 & 31 in fmt.REGIMM_LIKELY)
            taken = self._done(at + 1, state)
            self._reach(at + 1 + _signed16(word), taken)
            if not _always(word):
                self._reach(at + 2, state if likely else taken)
        else:
            self._reach(at + 1, self._done(at, state))

    def _jump_table(self, state: State | None) -> None:
        """Follow a jump through a table: to what no other instruction leads on to, as it may be any of that."""
        for at in range(self.start + 1, len(self.words) - 2):
            if _ends_way(self.words[at]):
                self._reach(at + 2, state)


def _changed(state: State, register: int) -> State:
    return tuple(CHANGED if s == INTACT and r == register else s for s, r in zip(state, TRACKED, strict=True))


def _signed16(word: int) -> int:
    return (word & 0xFFFF ^ 0x8000) - 0x8000


def _always(word: int) -> bool:
    """Tell whether a branch is always taken: beq of a register with itself."""
    return word >> 26 == 0x04 and word >> 21 & 31 == word >> 16 & 31


def _ends_way(word: int) -> bool:
    """Tell whether nothing follows an instruction and its delay slot."""
    op = word >> 26
    return op == fmt.OP_J or (op == fmt.OP_SPECIAL and word & 0x3F == fmt.FUNCT_JR) or _always(word)


def saves(word: int) -> tuple[tuple[int, int], ...]:
    """Return (register, offset from the stack pointer) of what an instruction stores there: sd, Loongson's gssq."""
    op, base, rt = word >> 26, word >> 21 & 31, word >> 16 & 31
    if base != fmt.SP:
        return ()
    if op == fmt.OP_SD and _signed16(word) >= 0:
        return ((rt, _signed16(word)),)
    if op == fmt.OP_SWC2 and word >> 5 & 1 and not word >> 15 & 1 and not word >> 14 & 1:
        offset = (word >> 6 & 0xFF) << 4
        return ((rt, offset), (word & 31, offset + 8))
    return ()


def written(word: int) -> tuple[int, ...]:
    """Return the general registers that an instruction may write; of what is not known, all that it names."""
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
"""Arithmetic with constants, loads, and sc, scd, which write whether they stored."""
_WRITE_NONE = frozenset({*range(0x02, 0x08), 0x13, *range(0x14, 0x18), *range(0x28, 0x30), 0x31, 0x33, 0x35})
_WRITE_NONE |= {0x39, 0x3A, 0x3D, 0x3E, 0x3F}
"""Jumps, branches, stores, prefetches, loads of floating-point registers."""
_SPECIAL3_RT = frozenset({*range(0x08), 0x3B, *range(0x26, 0x28), *range(0x36, 0x38), *range(0x28, 0x30)})
"""ext and ins of each kind, rdhwr; sc and ll, loads of release 6 and EVA."""

"""Find a function's frame from its instructions if there is no call frame information.

Each way from a place in a function to a return removes everything that the function has on the stack: what it loads and
adds to the stack pointer is the frame. So the function's beginning need not be known. If it is known, each way from
there to the place makes the frame. A way tells nothing if it leads to unknown code or to a jump by a register, or runs
past a call that never returns into the next function. The caller therefore compares the results of all ways.

Each machine's ``code`` module says what its instructions do to a ``Way``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vmcore2core.arch.spec import CodeFrame

Read = Callable[[int, int], bytes | None]

STEPS_MAX = 2048
"""Largest number of instructions of all ways from one place."""
RETURNS_MAX = 4
SLOTS_MAX = 64
"""Largest number of places on the stack that a way stores to."""
STACK_ALIGN = 16
WORD = 8


class Convention(NamedTuple):
    """A machine's calling convention, by DWARF numbers of registers.

    Attributes:
        stack_pointer: a multiple of ``STACK_ALIGN`` at each call.
        frame_pointer: what functions keep their stack pointer in, if they do.
        tracked: what a function leaves as it was, among them the frame pointer, and the link register.
        link_register: has the return address when a function is entered; None if a call pushes it.
        red_zone: bytes below the stack pointer that nothing else writes.
        save_area: bytes at the end of the caller's frame where a function may save registers.
    """

    stack_pointer: int
    frame_pointer: int
    tracked: tuple[int, ...]
    link_register: int | None = None
    red_zone: int = 0
    save_area: int = 0


@dataclass(frozen=True, slots=True)
class Sum:
    """The value that a register has at the way's first instruction, and a number."""

    register: int
    number: int = 0

    def plus(self, number: int) -> Sum:
        """Return the sum with another number."""
        return Sum(self.register, self.number + number)


@dataclass(frozen=True, slots=True)
class InSlot:
    """The value that lies on the stack at an address."""

    at: Sum


@dataclass(frozen=True, slots=True)
class Lost:
    """The value is not known."""


Value = Sum | InSlot | Lost
LOST = Lost()


@dataclass(frozen=True, slots=True)
class Way:
    """The state at an instruction on one way.

    Attributes:
        convention: of the machine.
        at: address of the instruction.
        stack: the stack pointer.
        values: of the tracked registers.
        stored: what was stored on the stack on this way, by address, and is not below the stack pointer.
    """

    convention: Convention
    at: int
    stack: Value
    values: tuple[Value, ...]
    stored: Mapping[Sum, Value] = field(default_factory=dict)

    def merged(self, other: Way) -> Way:
        """Return the state that two ways to an instruction share; if stack pointers differ, it has the first one's."""
        if other.stack != self.stack:
            return self
        values = tuple(a if a == b else LOST for a, b in zip(self.values, other.values, strict=True))
        if self.stored == other.stored:
            return Way(self.convention, self.at, self.stack, values, self.stored)
        both = {at: (self.load(at), other.load(at)) for at in self.stored.keys() | other.stored.keys()}
        known = {at: mine if mine == theirs else LOST for at, (mine, theirs) in both.items()}
        stored = {at: value for at, value in known.items() if value != self._unchanged(at)}
        return Way(self.convention, self.at, self.stack, values, stored)

    def to(self, at: int) -> Way:
        """Return the way at another instruction."""
        return Way(self.convention, at, self.stack, self.values, self.stored)

    def value(self, register: int) -> Value:
        """Return a register's value."""
        if register == self.convention.stack_pointer:
            return self.stack
        tracked = self.convention.tracked
        return self.values[tracked.index(register)] if register in tracked else LOST

    def having(self, register: int, value: Value) -> Way:
        """Return the way with another value in a register; unchanged if that register is not tracked."""
        if register == self.convention.stack_pointer:
            return self._moved(value)
        if register not in self.convention.tracked:
            return self
        index = self.convention.tracked.index(register)
        values = (*self.values[:index], value, *self.values[index + 1 :])
        return Way(self.convention, self.at, self.stack, values, self.stored)

    def _moved(self, value: Value) -> Way:
        """Return the way with another stack pointer; values stored below it and its red zone are gone."""
        kept = self.stored
        if isinstance(value, Sum):
            lowest = value.number - self.convention.red_zone
            kept = {at: v for at, v in kept.items() if at.register == value.register and at.number >= lowest}
        return replace(self, stack=value, stored=kept)

    def address(self, register: int, displacement: int) -> Sum | None:
        """Return the stack address in a register, or None if it is not known to hold one."""
        value = self.value(register)
        known = (self.convention.stack_pointer, self.convention.frame_pointer)
        return value.plus(displacement) if isinstance(value, Sum) and value.register in known else None

    def load(self, at: Sum | None) -> Value:
        """Return a value from the stack; below the first instruction's stack pointer, only stored values are known."""
        return LOST if at is None else self.stored.get(at) or self._unchanged(at)

    def _unchanged(self, at: Sum) -> Value:
        below = at.register == self.convention.stack_pointer and at.number < -self.convention.red_zone
        return LOST if below else InSlot(at)

    def store(self, at: Sum | None, value: Value) -> Way:
        """Return the way after a store; a store to an unknown address is taken as one outside the stack."""
        if at is None or self.load(at) == value:
            return self
        stored = {**self.stored, at: value}
        if value == self._unchanged(at):
            del stored[at]
        return Way(self.convention, self.at, self.stack, self.values, stored)

    def push(self, value: Value) -> Way:
        """Return the way after a push."""
        below = self.having(self.convention.stack_pointer, plus(self.stack, -WORD))
        return below.store(below.address(self.convention.stack_pointer, 0), value)

    def pop(self, register: int) -> Way:
        """Return the way after a pop."""
        stack = self.convention.stack_pointer
        popped = self.having(register, self.load(self.address(stack, 0)))
        return popped if register == stack else popped.having(stack, plus(self.stack, WORD))

    def at_return(self) -> CodeFrame | None:
        """Return the frame if the function returns here; None if it does not return to its caller."""
        way, link = self, self.convention.link_register
        if link is None:
            here = self.address(self.convention.stack_pointer, 0)
            if here is None or self.load(here) != InSlot(here):
                return None
            way = self.having(self.convention.stack_pointer, plus(self.stack, WORD))
        top = way.stack
        if not isinstance(top, Sum) or way.address(self.convention.stack_pointer, 0) is None:
            return None
        saved: dict[int, int] = {}
        changed = set()
        for register, value in zip(way.convention.tracked, way.values, strict=True):
            if isinstance(value, InSlot) and value.at.register == top.register:
                saved[register] = value.at.number
            elif value != Sum(register):
                changed.add(register)
        return self._frame(top.register, top.number, saved, frozenset(changed))

    def at_place(self) -> CodeFrame | None:
        """Return the frame of the function at whose first instruction the way began."""
        stack, frame = self.convention.stack_pointer, self.convention.frame_pointer
        for base in (stack, frame):
            here = self.value(base)
            if isinstance(here, Sum) and here.register == stack:
                break
        else:
            return None
        slots = {
            place: value
            for place, value in self.stored.items()
            if place.register == stack and place.number < self.convention.save_area
        }
        saved = {v.register: at.number - here.number for at, v in slots.items() if isinstance(v, Sum) and not v.number}
        saved = {register: offset for register, offset in saved.items() if register in self.convention.tracked}
        changed = frozenset(r for r in self.convention.tracked if r not in saved and self.value(r) != Sum(r))
        return self._frame(base, -here.number + (WORD if self.convention.link_register is None else 0), saved, changed)

    def _frame(self, base: int, size: int, saved: dict[int, int], changed: frozenset[int]) -> CodeFrame | None:
        end = size + self.convention.save_area
        if self.convention.link_register in changed or any(offset + WORD > end for offset in saved.values()):
            return None
        return CodeFrame(size, saved, changed, base=base)


def plus(value: Value, number: int) -> Value:
    """Return a value and a number, if the value is a sum."""
    return value.plus(number) if isinstance(value, Sum) else LOST


Following = Callable[[Way], Iterator[Way | CodeFrame]]
"""Yields the ways after an instruction, or the frame if it returns; nothing if they are not known."""


def frames(
    convention: Convention, following: Following, pc: int, start: int | None, *, exact: bool
) -> Iterator[CodeFrame]:
    """Yield the frame of the function at an address, once for each way that tells it.

    Args:
        convention: of the machine.
        following: what its instructions do.
        pc: the place.
        start: the function's first instruction, or None if it is not known.
        exact: whether the function was interrupted at ``pc``; otherwise ``pc`` is a return address.
    """
    told = frames_to_returns(convention, following, pc, exact=exact)
    yield from told
    if not told and start is not None:
        yield from frames_from_start(convention, following, pc, start, exact=exact)


def frames_to_returns(convention: Convention, following: Following, pc: int, *, exact: bool) -> list[CodeFrame]:
    """Return the frame for each return that is reached from a place."""
    way = _first(convention, pc)
    if not exact and convention.link_register is not None:
        way = way.having(convention.link_register, LOST)
    _, returned = _walk(way, following, RETURNS_MAX)
    return [one for one in returned if exact or _aligned(convention, one)]


def frames_from_start(
    convention: Convention, following: Following, pc: int, start: int, *, exact: bool
) -> Iterator[CodeFrame]:
    """Yield the frame that all ways from the function's first instruction to a place make, if they make one."""
    link = convention.link_register
    states, _ = _walk(_first(convention, start), following, STEPS_MAX)
    frame = states[pc].at_place() if pc in states else None
    if frame is not None and (exact or (_aligned(convention, frame) and (link is None or link in frame.saved))):
        yield frame


def _aligned(convention: Convention, frame: CodeFrame) -> bool:
    """Tell whether the stack pointer is aligned, as at a call; otherwise the way has left the function."""
    return frame.base != convention.stack_pointer or not frame.size % STACK_ALIGN


def _first(convention: Convention, at: int) -> Way:
    return Way(convention, at, Sum(convention.stack_pointer), tuple(Sum(one) for one in convention.tracked))


def _walk(way: Way, following: Following, returns: int) -> tuple[dict[int, Way], list[CodeFrame]]:
    """Follow all ways from one, up to a number of returns.

    Returns:
        What holds at each instruction, none if there are too many; and the frame at each return.
    """
    states, returned = {way.at: way}, dict[int, CodeFrame]()
    todo = deque([way.at])
    for _ in range(STEPS_MAX):
        if not todo or len(returned) == returns:
            return states, list(returned.values())
        here = todo.popleft()
        for found in following(states[here]):
            if isinstance(found, CodeFrame):
                returned[here] = found
                continue
            before = states.get(found.at)
            state = found if before is None else before.merged(found)
            if len(state.stored) > SLOTS_MAX:
                return {}, list(returned.values())
            if state != before:
                states[found.at] = state
                todo.append(found.at)
    return {}, list(returned.values())

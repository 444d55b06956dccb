"""Find frames of x86-64 functions from their instructions if there is no call frame information.

Each way from a place in a function to a return removes everything that the function has on the stack: what it pops and
adds to the stack pointer is the frame. So the function's beginning need not be known. A way tells nothing if it leads
to unknown code or to a jump by a register, or runs past a call that never returns into the next function. The caller
therefore compares the results of all ways.

References: Intel SDM, volume 2; psABI x86-64 1.0, section 3.2.1. capstone decodes the instructions.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.formats.x86_64 import DWARF_REGS

Read = Callable[[int, int], bytes | None]

STEPS_MAX = 1024
"""Largest number of instructions of all ways from one place."""
RETURNS_MAX = 4
LENGTH_MAX = 15  # of an instruction, in bytes
PIECE = 128
STACK_ALIGN = 16
ENDS = ("hlt", "ud2", "int3")
JUMPS = ("j", "loop")
PAGE = 4096
NO_CALLER = b"\x31\xed"
"""xor %ebp,%ebp: psABI, "Initial Stack and Register State"; _start and glibc's clone() and clone3() have it."""
BEFORE_CALL = 40
WORD = 8
SP, FP = DWARF_REGS.index("rsp"), DWARF_REGS.index("rbp")
PRESERVED = tuple(DWARF_REGS.index(name) for name in ("rbx", "rbp", "r12", "r13", "r14", "r15"))


@dataclass(frozen=True, slots=True)
class Intact:
    """The register still has the value that it had at the place."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The value is not known."""


@dataclass(frozen=True, slots=True)
class InSlot:
    """The value is on the stack, at this offset from the base."""

    offset: int


Value = Intact | Lost | InSlot
INTACT, LOST = Intact(), Lost()


@dataclass(frozen=True, slots=True)
class Way:
    """The state at an instruction on one way.

    Attributes:
        at: address of the instruction.
        base: the register whose value at the place offsets count from: SP, or FP after SP was restored from it.
        offset: of the stack pointer.
        values: the registers of ``PRESERVED``.
        pushed: offset and value of words pushed on the way that are still there.
    """

    at: int
    base: int = SP
    offset: int = 0
    values: tuple[Value, ...] = (INTACT,) * len(PRESERVED)
    pushed: tuple[tuple[int, Value], ...] = ()

    def value(self, register: int) -> Value:
        """Return a register's value."""
        return self.values[PRESERVED.index(register)] if register in PRESERVED else LOST

    def having(self, register: int, value: Value) -> Way:
        """Return the way with another value in a register; unchanged if that register is not tracked."""
        if register not in PRESERVED:
            return self
        at = PRESERVED.index(register)
        return replace(self, values=(*self.values[:at], value, *self.values[at + 1 :]))

    def moved(self, offset: int) -> Way:
        """Return the way with another stack pointer; pushed words below it are gone."""
        return replace(self, offset=offset, pushed=tuple(slot for slot in self.pushed if slot[0] >= offset))

    def slot(self, offset: int) -> Value:
        """Return a value on the stack; below the stack pointer at the place, only pushed words are known."""
        for place, value in self.pushed:
            if place == offset:
                return value
        return LOST if self.base == SP and offset < 0 else InSlot(offset)

    def push(self, value: Value) -> Way:
        """Return the way after a push."""
        below = replace(self, offset=self.offset - WORD)
        return replace(below, pushed=(*below.pushed, (below.offset, value)))

    def pop(self, register: int) -> Way:
        """Return the way after a pop."""
        return self.having(register, self.slot(self.offset)).moved(self.offset + WORD)

    def by_frame_pointer(self, displacement: int) -> Way | None:
        """Return the way with the stack pointer set from the frame pointer, if that has not changed."""
        if self.value(FP) != INTACT:
            return None
        values = tuple(LOST if isinstance(value, InSlot) else value for value in self.values)
        kept = self if self.base == FP else replace(self, base=FP, values=values, pushed=())
        return kept.moved(displacement)

    def frame(self) -> CodeFrame | None:
        """Return the frame; the next word on the stack is the return address."""
        if not isinstance(self.slot(self.offset), InSlot):
            return None
        pairs = tuple(zip(PRESERVED, self.values, strict=True))
        return CodeFrame(
            size=self.offset + WORD,
            saved={register: value.offset for register, value in pairs if isinstance(value, InSlot)},
            changed=frozenset(register for register, value in pairs if value == LOST),
            base=self.base,
        )


def frames_by_code(read: Read, pc: int, start: int | None, exact: bool) -> Iterator[CodeFrame]:  # noqa: ARG001 - as others
    """A ``FramesByCode``; it yields nothing if capstone is not installed."""
    code = _Code(read)
    todo, seen, returns = deque([Way(pc)]), {pc}, 0
    for _ in range(STEPS_MAX):
        if not todo or returns == RETURNS_MAX:
            break
        way = todo.popleft()
        insn = code.instruction(way.at)
        for following in () if insn is None else _following(way, insn):
            if isinstance(following, CodeFrame):
                # At a call, the stack pointer is a multiple of 16; otherwise the way has left the function.
                fits = exact or following.base == FP or not following.size % STACK_ALIGN
                returns += fits
                yield from (following,) * fits
            elif following.at not in seen:
                seen.add(following.at)
                todo.append(following)
    if not exact and NO_CALLER in (read(pc - BEFORE_CALL, BEFORE_CALL) or b""):
        yield CodeFrame(0, {}, frozenset(), outermost=True)


@dataclass(frozen=True, slots=True)
class Insn:
    """One instruction in capstone's words: ``mnemonic`` without prefixes, and the operands."""

    after: int
    mnemonic: str
    operands: tuple[str, ...]


class _Code:
    """Instructions by their address."""

    def __init__(self, read: Read) -> None:
        self._read, self._known = read, dict[int, Insn]()

    def instruction(self, at: int) -> Insn | None:
        """Return an instruction, or None if it is not known."""
        if at not in self._known:
            here = PAGE - at % PAGE
            size = min(here, PIECE) if here > LENGTH_MAX else LENGTH_MAX
            self._decode(at, self._read(at, size) or self._read(at, min(here, size)) or b"")
        return self._known.get(at)

    def _decode(self, at: int, code: bytes) -> None:
        for address, size, mnemonic, operands in (
            () if _disassembler() is None else _disassembler().disasm_lite(code, at)
        ):
            self._known[address] = Insn(address + size, mnemonic.split()[-1], tuple(operands.split(", ")))


@cache
def _disassembler() -> Any:  # noqa: ANN401 - capstone has no types
    """Return capstone's decoder for x86-64, or None if capstone is not installed."""
    try:
        from capstone import CS_ARCH_X86, CS_MODE_64, Cs
    except ImportError:
        return None
    return Cs(CS_ARCH_X86, CS_MODE_64)


def _following(way: Way, insn: Insn) -> Iterator[Way | CodeFrame]:
    """Yield the ways after an instruction, or the frame if it returns; nothing if they are not known."""
    first = insn.operands[0]
    if insn.mnemonic in ENDS:
        return
    if insn.mnemonic.startswith("ret") or (insn.mnemonic == "jmp" and "[rip " in first):
        # Such a jump goes to another function through the procedure linkage table; that one returns for this one.
        frame = way.frame()
        if frame is not None:
            yield frame
    elif insn.mnemonic.startswith(JUMPS):
        if insn.mnemonic != "jmp":
            yield replace(way, at=insn.after)
        target = _number(first)
        if target is not None:
            yield replace(way, at=target)
    else:
        done = way if insn.mnemonic == "call" else _done(way, insn.mnemonic, insn.operands)
        if done is not None:
            yield replace(done, at=insn.after)


def _done(way: Way, mnemonic: str, operands: tuple[str, ...]) -> Way | None:
    """Return the state after an instruction that continues to the next, or None if the stack pointer is lost."""
    register = _NUMBERS.get(operands[0], -1)
    if mnemonic == "push":
        return way.push(_value(way, operands[0]))
    if mnemonic == "pop":
        return None if register == SP else way.pop(register)
    if mnemonic in ("pushfq", "popfq"):
        return way.push(LOST) if mnemonic == "pushfq" else way.moved(way.offset + WORD)
    if mnemonic == "leave":
        restored = way.by_frame_pointer(0)
        return None if restored is None else restored.pop(FP)
    if mnemonic in ("cmp", "test"):
        return way
    if register == SP:
        return _to_stack_pointer(way, mnemonic, operands[-1])
    return way.having(register, _value(way, operands[-1]) if mnemonic == "mov" else LOST)


def _to_stack_pointer(way: Way, mnemonic: str, source: str) -> Way | None:
    number = _number(source)
    if mnemonic in ("add", "sub") and number is not None:
        return way.moved(way.offset + (number if mnemonic == "add" else -number))
    if mnemonic == "mov" and source == "rbp":
        return way.by_frame_pointer(0)
    if mnemonic == "lea":
        base, displacement = _address(source)
        if base == SP:
            return way.moved(way.offset + displacement)
        if base == FP:
            return way.by_frame_pointer(displacement)
    return None


def _value(way: Way, operand: str) -> Value:
    """Return the value of an operand, if it may be one of the caller's registers."""
    if operand in DWARF_REGS:
        return way.value(DWARF_REGS.index(operand))
    base, displacement = _address(operand) if operand.startswith("qword ptr [") else (None, 0)
    if base == SP:
        return way.slot(way.offset + displacement)
    if base == FP == way.base and way.value(FP) == INTACT:
        return way.slot(displacement)
    return LOST


def _number(operand: str) -> int | None:
    """Return an immediate operand as a signed number; None for any other operand."""
    try:
        value = int(operand, 0)
    except ValueError:
        return None
    return value - (1 << 64) if value >> 63 else value


def _address(operand: str) -> tuple[int | None, int]:
    """Return register and displacement of a memory operand without an index."""
    match = _MEMORY.fullmatch(operand)
    if match is None:
        return None, 0
    displacement = int(match[3], 0) if match[3] else 0
    return DWARF_REGS.index(match[1]), -displacement if match[2] == "-" else displacement


def _parts(name: str) -> tuple[str, ...]:
    """Return the names of a register and its parts."""
    if name[1:].isdigit():
        return (name, *(name + suffix for suffix in "dwb"))
    short = name[1:]
    return name, "e" + short, short, *((short[0] + "l", short[0] + "h") if short[1] == "x" else (short + "l",))


_NUMBERS = {part: i for i, name in enumerate(DWARF_REGS) if name != "rip" for part in _parts(name)}
_MEMORY = re.compile(r"(?:qword ptr )?\[(r[a-z0-9]+)(?: ([+-]) (0x[0-9a-f]+|[0-9]+))?\]")

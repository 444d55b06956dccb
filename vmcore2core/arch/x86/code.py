"""What x86-64 instructions do to the stack and to the registers that calls preserve; see ``arch.ways``.

References: Intel SDM, volume 2; psABI x86-64 1.0, section 3.2.1. capstone decodes the instructions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.arch.ways import LOST, WORD, Convention, Read, Sum, Value, Way, frames, plus
from vmcore2core.formats.x86_64 import DWARF_REGS

LENGTH_MAX = 15  # of an instruction, in bytes
PIECE = 128
ENDS = ("hlt", "ud2", "int3")
JUMPS = ("j", "loop")
PAGE = 4096
NO_CALLER = b"\x31\xed"
"""xor %ebp,%ebp: psABI, "Initial Stack and Register State"; _start and glibc's clone() and clone3() have it."""
BEFORE_CALL = 40
SP, FP = DWARF_REGS.index("rsp"), DWARF_REGS.index("rbp")
CONVENTION = Convention(SP, FP, tuple(DWARF_REGS.index(name) for name in ("rbx", "rbp", "r12", "r13", "r14", "r15")))


def frames_by_code(read: Read, pc: int, start: int | None, exact: bool) -> Iterator[CodeFrame]:
    """A ``FramesByCode``; it yields nothing if capstone is not installed."""
    code = _Code(read)

    def following(way: Way) -> Iterator[Way | CodeFrame]:
        insn = code.instruction(way.at)
        return iter(()) if insn is None else _following(way, insn)

    yield from frames(CONVENTION, following, pc, start, exact=exact)
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
        frame = way.at_return()
        if frame is not None:
            yield frame
    elif insn.mnemonic.startswith(JUMPS):
        if insn.mnemonic != "jmp":
            yield way.to(insn.after)
        target = _number(first)
        if target is not None:
            yield way.to(target)
    else:
        done = way if insn.mnemonic == "call" else _done(way, insn.mnemonic, insn.operands)
        yield done.to(insn.after)


def _done(way: Way, mnemonic: str, operands: tuple[str, ...]) -> Way:
    """Return the state after an instruction that continues to the next."""
    target, source = operands[0], operands[-1]
    register = _NUMBERS.get(target, -1)
    if mnemonic == "push":
        return way.push(_value(way, target))
    if mnemonic == "pop":
        return way.pop(register)
    if mnemonic in ("pushfq", "popfq"):
        return way.push(LOST) if mnemonic == "pushfq" else way.having(SP, plus(way.stack, WORD))
    if mnemonic == "leave":
        return way.having(SP, way.value(FP)).pop(FP)
    if mnemonic in ("cmp", "test"):
        return way
    if mnemonic == "mov":
        stored = way.store(_address(way, target), _value(way, source))
        return stored.having(register, _value(way, source))
    number = _number(source)
    if target not in DWARF_REGS:  # but a part of one
        return way.having(register, LOST)
    if mnemonic in ("add", "sub") and number is not None:
        return way.having(register, plus(way.value(register), number if mnemonic == "add" else -number))
    if mnemonic == "lea":
        return way.having(register, _address(way, source) or LOST)
    return way.having(register, LOST)


def _value(way: Way, operand: str) -> Value:
    """Return the value of an operand, if it may be one of the caller's registers."""
    if operand in DWARF_REGS:
        return way.value(DWARF_REGS.index(operand))
    return way.load(_address(way, operand)) if operand.startswith("qword ptr [") else LOST


def _number(operand: str) -> int | None:
    """Return an immediate operand as a signed number; None for any other operand."""
    try:
        value = int(operand, 0)
    except ValueError:
        return None
    return value - (1 << 64) if value >> 63 == 1 else value


def _address(way: Way, operand: str) -> Sum | None:
    """Return where a memory operand without an index is on the stack."""
    match = _MEMORY.fullmatch(operand)
    if match is None or match[1] not in DWARF_REGS:
        return None
    displacement = int(match[3], 0) if match[3] else 0
    return way.address(DWARF_REGS.index(match[1]), -displacement if match[2] == "-" else displacement)


def _parts(name: str) -> tuple[str, ...]:
    """Return the names of a register and its parts."""
    if name[1:].isdigit():
        return (name, *(name + suffix for suffix in "dwb"))
    short = name[1:]
    return name, "e" + short, short, *((short[0] + "l", short[0] + "h") if short[1] == "x" else (short + "l",))


_NUMBERS = {part: i for i, name in enumerate(DWARF_REGS) if name != "rip" for part in _parts(name)}
_MEMORY = re.compile(r"(?:qword ptr )?\[(r[a-z0-9]+)(?: ([+-]) (0x[0-9a-f]+|[0-9]+))?\]")

"""From one frame of a user stack to the next.

Per frame, the first that works: call frame information; the signal trampoline and the context that the kernel left
for it; the function's instructions, on machines whose programs lack call frame information; in the innermost function
or one that a signal interrupted, the return address that the stack pointer points to; the frame pointer, or the back
chain. A register that none of them recovers is not known from there on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np

from vmcore2core.arch.spec import CodeFrame, SignalTrampoline, UnwindSpec
from vmcore2core.errors import CorruptStructure
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cfi import CfaRule, Expression, Fde, InRegister, Offset, Row, Rule, SameValue, Undefined
from vmcore2core.unwind.cursor import Read
from vmcore2core.unwind.expression import evaluate
from vmcore2core.unwind.image import Image
from vmcore2core.unwind.symbols import Origin

LIMIT = 256
CODE_PLACES_MAX = 1024
"""Places of one process whose instructions are followed, where there is no call frame information."""


class Found(Enum):
    """How a frame was found."""

    REGISTERS = "registers"
    """The thread's own registers."""
    CFI = "CFI"
    SIGNAL_CFI = "signal frame, CFI"
    """What a signal interrupted, by the call frame information of the trampoline."""
    SIGNAL = "signal frame"
    """What a signal interrupted, by ucontext.uc_mcontext on the stack."""
    STACK_POINTER = "return address at the stack pointer"
    FRAME_POINTER = "frame pointer"
    BACK_CHAIN = "back chain"
    CODE = "instructions"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        pc: program counter: of the next instruction to run when control comes back to this frame.
        sp: stack pointer.
        found: how it was found.
        exact: whether ``pc`` is where it was interrupted, not a return address (which may belong to the next function).
        trampoline: whether it is the return from a signal handler.
        registers: those that are known, by DWARF number.
        cfi_origin: where the call frame information was that it was found by, or None where there was none.
    """

    pc: int
    sp: int
    found: Found
    exact: bool
    trampoline: bool
    registers: Mapping[int, int]
    cfi_origin: Origin | None = None

    @property
    def lookup_pc(self) -> int:
        """An address that is certainly within the function."""
        return self.pc if self.exact or self.trampoline else max(self.pc - 1, 0)


@dataclass(frozen=True, slots=True)
class Backtrace:
    """The frames of one thread, innermost first.

    Attributes:
        complete: whether the last one is the outermost.
        end: why there are no more, as one sentence.
    """

    frames: tuple[Frame, ...]
    complete: bool
    end: str


class Space(Protocol):
    """A process, as unwinding sees it."""

    order: ByteOrder

    @property
    def read(self) -> Read:
        """User memory."""
        ...

    def instructions(self, address: int, size: int) -> bytes | None:
        """Return instructions: of memory, else of the file that is mapped."""
        ...

    def executable(self, address: int) -> bool:
        """Tell whether code can be at an address."""
        ...

    def generated(self, address: int) -> bool:
        """Tell whether code at an address is of no file: a program has made it as it ran (JIT)."""
        ...

    def same_mapping(self, first: int, second: int) -> bool:
        """Tell whether two addresses are in one mapping."""
        ...

    def image(self, address: int) -> Image | None:
        """Return the ELF image that an address belongs to."""
        ...


@dataclass(frozen=True, slots=True)
class _End:
    complete: bool
    why: str


class Unwinder:
    """Backtraces of one process's threads."""

    def __init__(self, spec: UnwindSpec, space: Space) -> None:
        self.spec, self.space = spec, space
        self.mask = (1 << 8 * spec.word) - 1
        self._told_by_code: dict[tuple[int, bool], tuple[CodeFrame, ...]] = {}

    def backtrace(self, registers: Mapping[str, int], limit: int = LIMIT) -> Backtrace:
        """Return the frames of a thread.

        Args:
            registers: the known ones by native name.
            limit: most frames to return.
        """
        numbered = {i: registers[name] & self.mask for i, name in enumerate(self.spec.registers) if name in registers}
        first = self._frame(numbered, Found.REGISTERS, exact=True)
        if isinstance(first, _End):
            return Backtrace((), first.complete, first.why)
        frames = [first]
        seen = {(first.pc, first.sp)}
        while True:
            following = self._caller(frames[-1])
            if isinstance(following, _End):
                return Backtrace(tuple(frames), following.complete, following.why)
            if (following.pc, following.sp) in seen:
                return Backtrace(tuple(frames), complete=False, end=f"the stack comes back to {following.sp:#x}")
            if len(frames) >= limit:
                return Backtrace(tuple(frames), complete=False, end=f"there are more than {limit} frames")
            seen.add((following.pc, following.sp))
            frames.append(following)

    def _frame(self, registers: dict[int, int], found: Found, *, exact: bool) -> Frame | _End:
        pc, sp = registers.get(self.spec.return_address), registers.get(self.spec.stack_pointer)
        if pc is None or sp is None:
            return _End(False, f"the {'program counter' if pc is None else 'stack pointer'} is not known")
        return Frame(pc, sp, found, exact, self._trampoline(pc) is not None, registers)

    def _caller(self, frame: Frame) -> Frame | _End:
        """Return the frame that called this one."""
        why: list[str] = []
        by_cfi = self._by_cfi(frame, why)
        if by_cfi is not None:
            return by_cfi
        trampoline = self._trampoline(frame.pc)
        if trampoline is not None:
            return self._by_context(frame, trampoline, why)
        return (
            self._by_code(frame)
            or self._by_stack_pointer(frame)
            or (self._by_frame_pointer if self.spec.back_chain is None else self._by_back_chain)(frame, why)
            or _End(complete=False, why="; ".join(why))
        )

    # Call frame information.

    def _by_cfi(self, frame: Frame, why: list[str]) -> Frame | _End | None:
        image = self.space.image(frame.lookup_pc)
        if image is None:
            code = self.space.executable(frame.lookup_pc)
            what = "a mapping without ELF headers that are known" if code else "no executable mapping"
            why.append(f"{frame.pc:#x} is in {what}")
            return None
        if image.ends_stack(frame.lookup_pc):
            return _End(
                complete=True, why=f"Go's table of functions says that {frame.pc:#x} has no caller on this stack"
            )
        try:
            fde = image.fde(frame.lookup_pc)
            if fde is None:
                problem = f" ({image.cfi_problem})" if image.cfi_problem else ""
                why.append(f"no call frame information covers {frame.pc:#x}{problem}")
                return None
            if frame.trampoline and not fde.cie.signal_frame:  # of the function in front of the trampoline
                return None
            origin = image.cfi_origin
            found = self._apply(frame, fde, image.eh_frame.row(fde, frame.lookup_pc), why)
        except CorruptStructure as error:
            why.append(f"the call frame information of {frame.pc:#x} is broken: {error}")
            return None
        return replace(found, cfi_origin=origin) if isinstance(found, Frame) else found

    def _apply(self, frame: Frame, fde: Fde, row: Row, why: list[str]) -> Frame | _End | None:
        cfa = self._cfa(frame, row)
        if cfa is None:
            why.append(f"the frame of {frame.pc:#x} depends on what is not known")
            return None
        spec, column = self.spec, row.return_address
        if isinstance(row.rules.get(column), Undefined):
            return _End(complete=True, why=f"the call frame information of {fde.start:#x} says that it has no caller")
        registers: dict[int, int] = {}
        for number in range(len(spec.registers)):
            value = self._recover(frame, number, row.rules.get(number), cfa)
            if value is not None:
                registers[number] = value & self.mask
        if column != spec.return_address:
            if column == spec.link_register and column not in row.rules:
                # Only where no call has changed it yet; a signal's context is on the stack.
                value = frame.registers.get(column) if frame.exact and not row.signal_frame else None
            else:
                value = self._recover(frame, column, row.rules.get(column), cfa)
            registers |= {spec.return_address: self._stripped(value & self.mask)} if value is not None else {}
        if spec.return_address not in registers:
            why.append(f"the return address of {frame.pc:#x} is not known")
            return None
        found = Found.SIGNAL_CFI if row.signal_frame else Found.CFI
        # glibc's vfork() on x86 takes its return address off the stack, which it shares with the child.
        return self._checked(frame, registers, found, in_register=isinstance(row.rules.get(column), InRegister))

    def _cfa(self, frame: Frame, row: Row) -> int | None:
        if isinstance(row.cfa, CfaRule):
            base = frame.registers.get(row.cfa.register)
            return (base + row.cfa.offset) & self.mask if base is not None else None
        return self._evaluate(frame, row.cfa, None)

    def _evaluate(self, frame: Frame, expression: Expression, first: int | None) -> int | None:
        return evaluate(
            expression.code,
            expression.address,
            frame.registers,
            self.space.read,
            self.space.order,
            self.spec.word,
            first,
        )

    def _recover(self, frame: Frame, number: int, rule: Rule | None, cfa: int) -> int | None:
        """Return a register's value in the caller, or None where it is not known."""
        if rule is None:
            if number == self.spec.stack_pointer:
                return cfa - self.spec.cfa_offset
            return frame.registers.get(number) if number in self.spec.preserved else None
        if isinstance(rule, SameValue):
            return frame.registers.get(number)
        if isinstance(rule, InRegister):
            return frame.registers.get(rule.number)
        if isinstance(rule, Offset):
            return cfa + rule.offset if rule.is_value else self._word(cfa + rule.offset)
        if isinstance(rule, Expression):
            value = self._evaluate(frame, rule, cfa)
            return value if rule.is_value or value is None else self._word(value)
        return None

    # Signal frames.

    def _trampoline(self, pc: int) -> SignalTrampoline | None:
        """Return the signal trampoline that ``pc`` is in."""
        for trampoline in self.spec.trampolines:
            start = pc - trampoline.entry
            if start >= 0 and self.space.instructions(start, len(trampoline.code)) == trampoline.code:
                return trampoline
        return None

    def _by_context(self, frame: Frame, trampoline: SignalTrampoline, why: list[str]) -> Frame | _End:
        at: int | None = frame.sp
        if trampoline.pointer is not None:
            at = self._word(frame.sp + trampoline.pointer)
        size = trampoline.registers.itemsize
        raw = self.space.read((at + trampoline.mcontext) & self.mask, size) if at is not None else None
        if raw is None:
            return _End(False, "; ".join([*why, f"the signal's context at {frame.sp:#x} is not known"]))
        record = np.frombuffer(raw, trampoline.registers)[0]
        numbers = {name: i for i, name in enumerate(self.spec.registers)}
        registers = {numbers[name]: int(record[member]) for name, member in trampoline.names.items()}
        return self._checked(frame, registers, Found.SIGNAL)

    # Without call frame information.

    def _by_code(self, frame: Frame) -> Frame | _End | None:
        """Return the caller by the instructions of the function, if all ways on from there lead to the same."""
        told = self._code_frames(frame)
        callers = (self._caller_by(frame, made) for made in told if not made.outermost)
        found = [caller for caller in callers if caller is not None]
        # Whoever clears the frame pointer before the call says so; another value is of another function.
        base = frame.registers.get(self.spec.frame_pointer) if self.spec.frame_pointer is not None else 0
        if not found and not base and any(made.outermost for made in told):
            return _End(complete=True, why=f"the instructions before {frame.pc:#x} say that it has no caller")
        if len({(caller.pc, caller.sp) for caller in found}) != 1:
            return None
        kept = set.intersection(*(set(caller.registers.items()) for caller in found))
        return replace(found[0], registers=dict(sorted(kept)))

    def _code_frames(self, frame: Frame) -> tuple[CodeFrame, ...]:
        """Return what the instructions say of a frame."""
        image, told = self.space.image(frame.lookup_pc), self.spec.frames_by_code
        # What a program makes as it runs (JIT) keeps to no convention.
        if told is None or (image is None and self.spec.link_register is None):
            return ()
        key = frame.pc, frame.exact
        if key not in self._told_by_code:
            symbol = image.symbol(frame.lookup_pc) if image is not None else None
            start = None if symbol is None else symbol.value
            room = len(self._told_by_code) < CODE_PLACES_MAX
            self._told_by_code[key] = tuple(told(self.space.instructions, frame.pc, start, frame.exact)) if room else ()
        return self._told_by_code[key]

    def _caller_by(self, frame: Frame, made: CodeFrame) -> Frame | None:
        """Return the caller, if a frame that instructions tell leads to one."""
        spec, base = self.spec, frame.registers.get(self.spec.stack_pointer if made.base is None else made.base)
        column = spec.return_address if spec.link_register is None else spec.link_register
        if base is None or column in made.changed:
            return None
        kept = spec.preserved | {column}
        saved = made.saved if spec.link_register is not None else {**made.saved, column: made.size - spec.word}
        registers = {n: v for n, v in frame.registers.items() if n in kept and n not in made.changed}
        for number, offset in saved.items():
            value = self._word(base + offset)
            registers.pop(number, None)
            registers |= {number: value} if number in kept and value is not None else {}
        target = registers.pop(column, None)
        if target is None or not self._returns_to(target):
            return None
        registers |= {spec.return_address: target, spec.stack_pointer: (base + made.size) & self.mask}
        found = self._checked(frame, registers, Found.CODE)
        return found if isinstance(found, Frame) else None

    def _by_stack_pointer(self, frame: Frame) -> Frame | None:
        """Return the caller of a function that has pushed nothing yet, or of an address that has no code."""
        if not frame.exact:
            return None
        link = self.spec.link_register
        if link is not None and self.space.executable(frame.pc):  # it may have made calls of its own
            return None
        target = self._word(frame.sp) if link is None else frame.registers.get(link)
        target = None if target is None else self._stripped(target)
        if target is None or not self._returns_to(target):
            return None
        kept = {n: v for n, v in frame.registers.items() if n in self.spec.preserved}
        registers = kept | {
            self.spec.return_address: target,
            self.spec.stack_pointer: (frame.sp + (self.spec.word if link is None else 0)) & self.mask,
        }
        found = self._checked(frame, registers, Found.STACK_POINTER)
        return found if isinstance(found, Frame) else None

    def _by_frame_pointer(self, frame: Frame, why: list[str]) -> Frame | None:
        spec = self.spec
        if spec.frame_pointer is None:
            return None
        pointer = frame.registers.get(spec.frame_pointer)
        if pointer is None:
            why.append("the frame pointer is not known")
            return None
        base = (pointer + spec.frame_record) & self.mask
        if base < frame.sp or base % spec.word or not self.space.same_mapping(base, frame.sp):
            why.append(f"the frame pointer {pointer:#x} is not on the stack")
            return None
        saved, target = self._word(base), self._word(base + spec.word)
        if saved is None or target is None:
            why.append(f"the stack at {base:#x} is not known")
            return None
        target = self._stripped(target)
        # The outermost frame has 0 there (psABI, "Process Initialization"). A signal handler has the frame pointer of
        # what it interrupted, which may be on another stack.
        grows = saved == 0 or saved + spec.frame_record > base or self._trampoline(target) is not None
        if not grows and (image := self.space.image(frame.lookup_pc)) is not None:
            grows = image.is_go  # of a goroutine that the scheduler's stack was entered from
        # Interpreters that are generated put return addresses there that follow no call (HotSpot's return entries).
        if not grows or not (self._returns_to(target) or self.space.generated(target)):
            why.append(f"at the frame pointer {pointer:#x} there is no saved one and a return address")
            return None
        registers = {
            spec.return_address: target,
            spec.stack_pointer: (base + 2 * spec.word) & self.mask,
            spec.frame_pointer: saved,
        }
        found = self._checked(frame, registers, Found.FRAME_POINTER)
        return found if isinstance(found, Frame) else None

    def _by_back_chain(self, frame: Frame, why: list[str]) -> Frame | _End | None:
        if frame.exact:
            why.append(f"whether {frame.pc:#x} is in a function that has made its frame is not known")
            return None
        base = self._word(frame.sp)
        if base == 0:
            return _End(complete=True, why=f"the back chain ends at {frame.sp:#x}")
        target = self._word(base + (self.spec.back_chain or 0)) if base is not None else None
        if base is None or target is None or base % self.spec.word or not self.space.same_mapping(base, frame.sp):
            why.append(f"the back chain at {frame.sp:#x} does not lead to a frame")
            return None
        if not self._returns_to(target):
            why.append(f"the return address {target:#x} in the frame at {base:#x} does not follow a call")
            return None
        found = {self.spec.return_address: target, self.spec.stack_pointer: base}
        return self._checked(frame, found, Found.BACK_CHAIN)

    def _returns_to(self, target: int) -> bool:
        """Tell whether an address follows a call or is a trampoline; of code that is not known, any address may be."""
        if not self.space.executable(target):
            return False
        if self._trampoline(target) is not None:
            return True
        size = self.spec.call_size_max
        code = self.space.instructions(target - size, size)
        return code is None or self.spec.ends_with_call(code)

    def _stripped(self, target: int) -> int:
        """Return a return address without the signature that may be in its upper bits (arm64's PAC)."""
        if self.space.executable(target):
            return target
        candidates = (target & ((1 << bits) - 1) for bits in self.spec.signed_bits)
        return next((address for address in candidates if self.space.executable(address)), target)

    def _word(self, address: int) -> int | None:
        raw = self.space.read(address & self.mask, self.spec.register_size or self.spec.word)
        return int.from_bytes(raw, self.space.order) & self.mask if raw is not None else None

    def _checked(
        self, frame: Frame, registers: dict[int, int], found: Found, *, in_register: bool = False
    ) -> Frame | _End:
        """Return the next frame, if it can be one: the stack goes on upwards, and control comes back to code.

        Args:
            frame: the one before.
            registers: of the next one.
            found: how it was found.
            in_register: whether the return address is in a register, and nothing of it on the stack.
        """
        signal = found in (Found.SIGNAL, Found.SIGNAL_CFI)
        following = self._frame(registers, found, exact=signal)
        if isinstance(following, _End):
            return following
        if signal:  # its stack may be anywhere, and what it interrupted may have jumped anywhere
            return following
        if following.pc == 0:
            return _End(complete=True, why=f"the return address of {frame.pc:#x} is 0, as in an outermost frame")
        pushes_nothing = frame.exact and (self.spec.link_register is not None or in_register)
        if following.sp < frame.sp or (following.sp == frame.sp and not pushes_nothing):
            return _End(False, f"the stack pointer goes from {frame.sp:#x} to {following.sp:#x}, expected a higher one")
        if not self.space.executable(following.pc):
            return _End(False, f"the return address {following.pc:#x} of {frame.pc:#x} is in no executable mapping")
        return following

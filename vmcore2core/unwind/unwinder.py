"""From one frame of a user stack to the next.

For each frame, the first method that works is used: call frame information; the signal trampoline and the context that
the kernel left for it; the methods of ``without_cfi``. A register that is not recovered is unknown from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vmcore2core.arch.spec import SignalTrampoline, UnwindSpec
from vmcore2core.errors import CorruptStructure
from vmcore2core.printable import counted
from vmcore2core.unwind.cfi_rules import CfaRule, Expression, Fde, InRegister, Offset, Row, Rule, SameValue, Undefined
from vmcore2core.unwind.checks import Checks
from vmcore2core.unwind.expression import evaluate
from vmcore2core.unwind.frames import LIMIT, Backtrace, End, Found, Frame, Space
from vmcore2core.unwind.without_cfi import CallersWithoutCfi


class Unwinder:
    """Backtraces of one process's threads."""

    def __init__(self, spec: UnwindSpec, space: Space) -> None:
        self.spec, self.space = spec, space
        self._checks = Checks(spec, space)
        self.mask = self._checks.mask
        self._without_cfi = CallersWithoutCfi(self._checks)

    def backtrace(self, registers: Mapping[str, int], limit: int = LIMIT) -> Backtrace:
        """Return the frames of a thread.

        Args:
            registers: the known ones by native name.
            limit: most frames to return.
        """
        numbered = {i: registers[name] & self.mask for i, name in enumerate(self.spec.registers) if name in registers}
        first = self._checks.frame(numbered, Found.REGISTERS, exact=True)
        if isinstance(first, End):
            return Backtrace((), first.complete, first.why)
        frames = [first]
        seen = {(first.pc, first.sp)}
        while True:
            following = self._caller(frames[-1])
            if isinstance(following, End):
                return Backtrace(tuple(frames), following.complete, following.why + _passed_over(frames, following))
            if (following.pc, following.sp) in seen:
                return Backtrace(tuple(frames), complete=False, end=f"the stack comes back to {following.sp:#x}")
            if len(frames) >= limit:
                return Backtrace(tuple(frames), complete=False, end=f"there are more than {limit} frames")
            seen.add((following.pc, following.sp))
            frames.append(following)

    def _caller(self, frame: Frame) -> Frame | End:
        """Return the frame that called this one."""
        why: list[str] = []
        by_cfi = self._by_cfi(frame, why)
        if by_cfi is not None:
            return by_cfi
        trampoline = self._checks.trampoline(frame.pc)
        if trampoline is not None:
            return self._by_context(frame, trampoline, why)
        return self._without_cfi.find(frame, why)

    # Call frame information.

    def _by_cfi(self, frame: Frame, why: list[str]) -> Frame | End | None:
        image = self.space.image(frame.lookup_pc)
        if image is None:
            code = self.space.executable(frame.lookup_pc)
            what = "a mapping without ELF headers that are known" if code else "no executable mapping"
            why.append(f"{frame.pc:#x} is in {what}")
            return None
        if image.ends_stack(frame.lookup_pc):
            return End(
                complete=True, why=f"Go's table of functions says that {frame.pc:#x} has no caller on this stack"
            )
        try:
            fde = image.fde(frame.lookup_pc)
            if fde is None:
                problem = f" ({image.cfi_problem})" if image.cfi_problem else ""
                why.append(f"no call frame information covers {frame.pc:#x}{problem}")
                return None
            if frame.trampoline and not fde.cie.signal_frame:  # the FDE belongs to the function before the trampoline
                return None
            origin = image.cfi_origin
            found = self._apply(frame, fde, image.eh_frame.row(fde, frame.lookup_pc), why)
        except CorruptStructure as error:
            why.append(f"the call frame information of {frame.pc:#x} is broken: {error}")
            return None
        return replace(found, cfi_origin=origin) if isinstance(found, Frame) else found

    def _apply(self, frame: Frame, fde: Fde, row: Row, why: list[str]) -> Frame | End | None:
        cfa = self._cfa(frame, row)
        if cfa is None:
            why.append(f"the frame of {frame.pc:#x} depends on what is not known")
            return None
        spec, column = self.spec, row.return_address
        if isinstance(row.rules.get(column), Undefined):
            return End(complete=True, why=f"the call frame information of {fde.start:#x} says that it has no caller")
        registers: dict[int, int] = {}
        for number in range(len(spec.registers)):
            value = self._recover(frame, number, row.rules.get(number), cfa)
            if value is not None:
                registers[number] = value & self.mask
        if column != spec.return_address:
            if column == spec.link_register and column not in row.rules:
                # Use the register only if no call has changed it yet; a signal's context is on the stack.
                value = frame.registers.get(column) if frame.exact and not row.signal_frame else None
            else:
                value = self._recover(frame, column, row.rules.get(column), cfa)
            registers |= {spec.return_address: self._checks.stripped(value & self.mask)} if value is not None else {}
        if spec.return_address not in registers:
            why.append(f"the return address of {frame.pc:#x} is not known")
            return None
        found = Found.SIGNAL_CFI if row.signal_frame else Found.CFI
        # glibc's vfork() on x86 takes its return address off the stack, which it shares with the child.
        return self._checks.checked(frame, registers, found, in_register=isinstance(row.rules.get(column), InRegister))

    def _cfa(self, frame: Frame, row: Row) -> int | None:
        if isinstance(row.cfa, CfaRule):
            base = self._checks.base(frame, row.cfa.register, _saved(row, row.cfa.offset))
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
        """Return a register's value in the caller, or None if it is not known."""
        if rule is None:
            if number == self.spec.stack_pointer:
                return cfa - self.spec.cfa_offset
            return frame.registers.get(number) if number in self.spec.preserved else None
        if isinstance(rule, SameValue):
            return frame.registers.get(number)
        if isinstance(rule, InRegister):
            return frame.registers.get(rule.number)
        if isinstance(rule, Offset):
            return cfa + rule.offset if rule.is_value else self._checks.word(cfa + rule.offset)
        if isinstance(rule, Expression):
            value = self._evaluate(frame, rule, cfa)
            return value if rule.is_value or value is None else self._checks.word(value)
        return None

    # Signal frames.

    def _by_context(self, frame: Frame, trampoline: SignalTrampoline, why: list[str]) -> Frame | End:
        at = frame.registers.get(self.spec.stack_pointer)
        if at is not None and trampoline.pointer is not None:
            at = self._checks.word(at + trampoline.pointer)
        size = trampoline.registers.itemsize
        raw = self.space.read((at + trampoline.mcontext) & self.mask, size) if at is not None else None
        if raw is None:
            return End(False, "; ".join([*why, f"the signal's context at {frame.sp:#x} is not known"]))
        record = np.frombuffer(raw, trampoline.registers)[0]
        numbers = {name: i for i, name in enumerate(self.spec.registers)}
        registers = {numbers[name]: int(record[member]) for name, member in trampoline.names.items()}
        return self._checks.checked(frame, registers, Found.SIGNAL)


def _saved(row: Row, cfa: int) -> dict[int, int]:
    """Return where registers are saved, by their number, from what the frame address is ``cfa`` bytes above."""
    return {n: cfa + rule.offset for n, rule in row.rules.items() if isinstance(rule, Offset) and not rule.is_value}


def _passed_over(frames: Sequence[Frame], end: End) -> str:
    """Return what a user must know of a complete stack; empty if there is nothing."""
    count = sum(frame.found is Found.FRAME_POINTER for frame in frames)
    if not count or not end.complete:
        return ""
    return f"; frame pointers led to {counted(count, 'frame')}, and may have passed over callers"

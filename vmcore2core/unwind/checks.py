"""Shared by every way to find a caller on a user stack: reading the stack, and checking that a frame is plausible."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.spec import SignalTrampoline, UnwindSpec
from vmcore2core.unwind.frames import End, Found, Frame, Space


class Checks:
    """Reads the stacks of one process, and checks what is found there.

    Args:
        spec: how its stacks unwind.
        space: the process.

    Attributes:
        mask: all bits of an address.
    """

    def __init__(self, spec: UnwindSpec, space: Space) -> None:
        self.spec, self.space = spec, space
        self.mask = (1 << 8 * spec.word) - 1

    def trampoline(self, pc: int) -> SignalTrampoline | None:
        """Return the signal trampoline that ``pc`` is in."""
        for trampoline in self.spec.trampolines:
            start = pc - trampoline.entry
            if start >= 0 and self.space.instructions(start, len(trampoline.code)) == trampoline.code:
                return trampoline
        return None

    def frame(self, registers: dict[int, int], found: Found, *, exact: bool) -> Frame | End:
        """Return the frame that has these registers.

        Args:
            registers: by DWARF number.
            found: how it was found.
            exact: as in ``Frame``.
        """
        pc, sp = registers.get(self.spec.return_address), registers.get(self.spec.stack_pointer)
        if pc is None or sp is None:
            return End(False, f"the {'program counter' if pc is None else 'stack pointer'} is not known")
        return Frame(pc, sp, found, exact, self.trampoline(pc) is not None, registers)

    def returns_to(self, target: int) -> bool:
        """Tell whether an address follows a call or is a trampoline; if the code is not known, assume that it does."""
        if not self.space.executable(target):
            return False
        if self.trampoline(target) is not None:
            return True
        size = self.spec.call_size_max
        code = self.space.instructions(target - size, size)
        return code is None or self.spec.ends_with_call(code)

    def stripped(self, target: int) -> int:
        """Return a return address without the signature that may be in its upper bits (arm64's PAC)."""
        if self.space.executable(target):
            return target
        candidates = (target & ((1 << bits) - 1) for bits in self.spec.signed_bits)
        return next((address for address in candidates if self.space.executable(address)), target)

    def word(self, address: int) -> int | None:
        """Return the register-sized word on the stack at an address, or None if it is not known."""
        raw = self.space.read(address & self.mask, self.spec.register_size or self.spec.word)
        return int.from_bytes(raw, self.space.order) & self.mask if raw is not None else None

    def base(self, frame: Frame, register: int, saved: Mapping[int, int]) -> int | None:
        """Return the register that offsets in a frame count from, or None if it is not known.

        Args:
            frame: the frame, which the frame pointer may have found without its stack pointer.
            register: its DWARF number.
            saved: DWARF number of a register -> offset where the caller's is saved: they may show the frame record.
        """
        spec, known = self.spec, frame.registers.get(register)
        if known is not None or register != spec.stack_pointer:
            return known
        if spec.frame_pointer is None or spec.link_register is None:
            return None
        pointer, offset = frame.registers.get(spec.frame_pointer), saved.get(spec.frame_pointer)
        if pointer is None or offset is None or saved.get(spec.link_register) != offset + spec.word:
            return None
        return (pointer + spec.frame_record - offset) & self.mask

    def checked(
        self, frame: Frame, registers: dict[int, int], found: Found, *, in_register: bool = False
    ) -> Frame | End:
        """Return the next frame if it is plausible: its stack pointer must be higher, and it must return to code.

        Args:
            frame: the frame before.
            registers: the next frame's registers.
            found: how it was found.
            in_register: whether the return address is only in a register, not on the stack.
        """
        signal = found in (Found.SIGNAL, Found.SIGNAL_CFI)
        following = self.frame(registers, found, exact=signal)
        if isinstance(following, End):
            return following
        if signal:  # a signal's stack may be anywhere, and the interrupted code may have jumped anywhere
            return following
        if following.pc == 0:
            return End(complete=True, why=f"the return address of {frame.pc:#x} is 0, as in an outermost frame")
        pushes_nothing = frame.exact and (self.spec.link_register is not None or in_register)
        if following.sp < frame.sp or (following.sp == frame.sp and not pushes_nothing):
            return End(False, f"the stack pointer goes from {frame.sp:#x} to {following.sp:#x}, expected a higher one")
        if not self.space.executable(following.pc):
            return End(False, f"the return address {following.pc:#x} of {frame.pc:#x} is in no executable mapping")
        return following

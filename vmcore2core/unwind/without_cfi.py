"""From one frame of a user stack to the next without call frame information.

The caller is found from the function's instructions, on machines whose programs lack call frame information or if pages
of it are missing; in the innermost function or one that a signal interrupted, from the return address at the stack
pointer; or from the frame pointer or the back chain.
"""

from __future__ import annotations

from dataclasses import replace

from vmcore2core.arch.spec import CodeFrame
from vmcore2core.unwind.checks import Checks
from vmcore2core.unwind.frames import End, Found, Frame

CODE_PLACES_MAX = 512
"""Most program counters per process whose instructions are analysed."""


class CallersWithoutCfi:
    """Callers in one process.

    Args:
        checks: reads its stacks.
    """

    def __init__(self, checks: Checks) -> None:
        self._checks, self._spec, self._space = checks, checks.spec, checks.space
        self._found_by_code: dict[tuple[int, bool], tuple[CodeFrame, ...]] = {}

    def find(self, frame: Frame, why: list[str]) -> Frame | End:
        """Return the frame that called this one; ``why`` says which methods failed before."""
        return (
            self._by_code(frame)
            or self._by_stack_pointer(frame)
            or (self._by_frame_pointer if self._spec.back_chain is None else self._by_back_chain)(frame, why)
            or End(complete=False, why="; ".join(why))
        )

    def _by_code(self, frame: Frame) -> Frame | End | None:
        """Return the caller by the function's instructions, if all paths from there lead to the same caller."""
        told = self._code_frames(frame)
        callers = (self._caller_by(frame, made) for made in told if not made.outermost)
        found = [caller for caller in callers if caller is not None]
        # An outermost function clears the frame pointer before it calls; any other value may be another function's.
        base = frame.registers.get(self._spec.frame_pointer) if self._spec.frame_pointer is not None else 0
        if not found and not base and any(made.outermost for made in told):
            return End(complete=True, why=f"the instructions before {frame.pc:#x} say that it has no caller")
        if len({(caller.pc, caller.sp) for caller in found}) != 1:
            return None
        kept = set.intersection(*(set(caller.registers.items()) for caller in found))
        return replace(found[0], registers=dict(sorted(kept)))

    def _code_frames(self, frame: Frame) -> tuple[CodeFrame, ...]:
        """Return what the instructions say of a frame."""
        image, told = self._space.image(frame.lookup_pc), self._spec.frames_by_code
        if told is None or self._space.generated(frame.pc):  # what a program generates (JIT) follows no convention
            return ()
        key = frame.pc, frame.exact
        if key not in self._found_by_code:
            symbol = image.symbol(frame.lookup_pc) if image is not None else None
            # A function's part for what seldom happens (.cold) is jumped to, with the frame made.
            start = None if symbol is None or b".cold" in symbol.name else symbol.value
            room = len(self._found_by_code) < CODE_PLACES_MAX
            self._found_by_code[key] = (
                tuple(told(self._space.instructions, frame.pc, start, frame.exact)) if room else ()
            )
        return self._found_by_code[key]

    def _caller_by(self, frame: Frame, made: CodeFrame) -> Frame | None:
        """Return the caller, if the frame that the instructions describe leads to one."""
        spec = self._spec
        register = spec.stack_pointer if made.base is None else made.base
        base = self._checks.base(frame, register, made.saved)
        column = spec.return_address if spec.link_register is None else spec.link_register
        if base is None or column in made.changed:
            return None
        kept = spec.preserved | {column}
        saved = made.saved if spec.link_register is not None else {**made.saved, column: made.size - spec.word}
        registers = {n: v for n, v in frame.registers.items() if n in kept and n not in made.changed}
        for number, offset in saved.items():
            value = self._checks.word(base + offset)
            registers.pop(number, None)
            registers |= {number: value} if number in kept and value is not None else {}
        target = self._checks.stripped(registers.pop(column, 0))
        if not self._checks.returns_to(target):
            return None
        registers |= {spec.return_address: target, spec.stack_pointer: (base + made.size) & self._checks.mask}
        found = self._checks.checked(frame, registers, Found.CODE)
        return found if isinstance(found, Frame) else None

    def _by_stack_pointer(self, frame: Frame) -> Frame | None:
        """Return the caller of a function that has pushed nothing yet, or of a jump to an address without code."""
        if not frame.exact:
            return None
        link = self._spec.link_register
        if link is not None and self._space.executable(frame.pc):  # it may have called other functions
            return None
        target = self._checks.word(frame.sp) if link is None else frame.registers.get(link)
        target = None if target is None else self._checks.stripped(target)
        if target is None or not self._checks.returns_to(target):
            return None
        kept = {n: v for n, v in frame.registers.items() if n in self._spec.preserved}
        registers = kept | {
            self._spec.return_address: target,
            self._spec.stack_pointer: (frame.sp + (self._spec.word if link is None else 0)) & self._checks.mask,
        }
        found = self._checks.checked(frame, registers, Found.STACK_POINTER)
        return found if isinstance(found, Frame) else None

    def _by_frame_pointer(self, frame: Frame, why: list[str]) -> Frame | None:
        spec = self._spec
        if spec.frame_pointer is None:
            return None
        pointer = frame.registers.get(spec.frame_pointer)
        if pointer is None:
            why.append("the frame pointer is not known")
            return None
        base = (pointer + spec.frame_record) & self._checks.mask
        if base < frame.sp or base % spec.word or not self._space.same_mapping(base, frame.sp):
            why.append(f"the frame pointer {pointer:#x} is not on the stack")
            return None
        saved, target = self._checks.word(base), self._checks.word(base + spec.word)
        if saved is None or target is None:
            why.append(f"the stack at {base:#x} is not known")
            return None
        target = self._checks.stripped(target)
        # The outermost frame has 0 there (psABI, "Process Initialization"). A signal handler has the frame pointer of
        # what it interrupted, which may be on another stack.
        grows = saved == 0 or saved + spec.frame_record > base or self._checks.trampoline(target) is not None
        if not grows and (image := self._space.image(frame.lookup_pc)) is not None:
            grows = image.is_go  # of the goroutine from which the scheduler's stack was entered
        # Generated interpreters put return addresses there that follow no call (HotSpot's return entries).
        if not grows or not (self._checks.returns_to(target) or self._space.generated(target)):
            why.append(f"at the frame pointer {pointer:#x} there is no saved one and a return address")
            return None
        registers = {
            spec.return_address: target,
            spec.stack_pointer: (base + 2 * spec.word) & self._checks.mask,
            spec.frame_pointer: saved,
        }
        found = self._checks.checked(frame, registers, Found.FRAME_POINTER)
        if not isinstance(found, Frame):
            return None
        if not spec.record_ends_frame:
            registers.pop(spec.stack_pointer)
        return replace(found, registers=registers)

    def _by_back_chain(self, frame: Frame, why: list[str]) -> Frame | End | None:
        if frame.exact:
            why.append(f"whether {frame.pc:#x} is in a function that has made its frame is not known")
            return None
        base = self._checks.word(frame.sp)
        if base == 0:
            return End(complete=True, why=f"the back chain ends at {frame.sp:#x}")
        target = self._checks.word(base + (self._spec.back_chain or 0)) if base is not None else None
        if base is None or target is None or base % self._spec.word or not self._space.same_mapping(base, frame.sp):
            why.append(f"the back chain at {frame.sp:#x} does not lead to a frame")
            return None
        if not self._checks.returns_to(target):
            why.append(f"the return address {target:#x} in the frame at {base:#x} does not follow a call")
            return None
        found = {self._spec.return_address: target, self._spec.stack_pointer: base}
        return self._checks.checked(frame, found, Found.BACK_CHAIN)

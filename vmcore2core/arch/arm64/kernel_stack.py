"""Kernel stacks of arm64, by frame records: x29 points to the caller's x29 and the return address.

References: arch/arm64/kernel/stacktrace.c: kunwind_next(), kunwind_next_frame_record_meta();
arch/arm64/include/asm/stacktrace/frame.h; arch/arm64/include/asm/pointer_auth.h (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.arm64.registers import Arm64Registers
from vmcore2core.arch.capabilities import KernelStacks
from vmcore2core.arch.kernel_stack import KernelFrame, KernelStackEnd, KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.spec import CpuNote
from vmcore2core.formats import arm64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

FRAME_META_TYPE_FINAL, FRAME_META_TYPE_PT_REGS = 1, 2
KERNEL_BIT = 1 << 55
"""Bit of an address that selects the page table; it is never part of a pointer authentication code."""
VA_BITS_MIN = 48
WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class RecordFrame(KernelFrame):
    """A frame, with the address of its function's record; ``sp`` is the same address, except in the first frame."""

    fp: int


class Arm64Unwinder(KernelUnwinder):
    """Unwinds kernel stacks by frame records.

    Args:
        kernel: the dumped one.

    Raises:
        LayoutUnknown: the layout does not tell where a task left its CPU.
    """

    def __init__(self, kernel: KernelView) -> None:
        self._kernel, self._layout = kernel, kernel.layout
        self._context = {
            name: kernel.layout.member("task_struct", f"thread.cpu_context.{name}") for name in ("pc", "fp", "sp")
        }
        self._meta = kernel.layout.find_member("frame_record_meta", "type")
        t1sz = kernel.layout.find_constant("TCR_EL1_T1SZ")
        bits = kernel.layout.find_constant("VA_BITS") if t1sz is None else 64 - t1sz
        # Kernels with 52-bit addresses keep their code where those with 48 bits do.
        self._tag = WORD & ~((1 << min(bits or VA_BITS_MIN, VA_BITS_MIN)) - 1)

    @override
    def switched_out(self, task: KernelAddr) -> RecordFrame:
        pc, fp, sp = (self._word(task + self._context[name].offset) for name in ("pc", "fp", "sp"))
        return RecordFrame(self._code(pc), sp, "switch frame", exact=False, fp=fp)

    @override
    def running(self, note: CpuNote) -> RecordFrame:
        return RecordFrame(note.regs["pc"], note.regs["sp"], "crash note", exact=True, fp=note.regs["x29"])

    @override
    def caller(self, frame: KernelFrame) -> KernelFrame | KernelStackEnd:
        assert isinstance(frame, RecordFrame)  # noqa: S101 - of this class's own methods
        fp = frame.fp
        if fp % 8 or not fp & KERNEL_BIT:
            return KernelStackEnd(complete=False, why=f"the frame pointer of {frame.pc:#x} is {fp:#x}")
        following, pc = self._word(fp), self._word(fp + 8)
        if following == pc == 0:
            return self._marked(fp)
        # Before Linux 5.11, the outermost record of a thread from user mode has no kernel address here.
        if not pc & KERNEL_BIT:
            return KernelStackEnd(complete=following == 0, why="user mode")
        return RecordFrame(self._code(pc), fp, "frame pointer", exact=False, fp=following)

    def _marked(self, fp: int) -> KernelFrame | KernelStackEnd:
        """Return what follows an empty record.

        Since Linux kernel commit c2c6b27b5aa1 ("arm64: stacktrace: unwind exception boundaries") (in v6.13), such a
        record says whether it is the last one, or belongs to an exception's registers.
        """
        kind = FRAME_META_TYPE_FINAL if self._meta is None else self._word(fp + self._meta.offset)
        if kind == FRAME_META_TYPE_FINAL:
            return KernelStackEnd(complete=True, why="the end of the stack")
        place = self._layout.find_member("pt_regs", "stackframe")
        members = [self._layout.find_member("pt_regs", name) for name in ("pc", "sp", "regs")]
        if kind != FRAME_META_TYPE_PT_REGS or place is None or None in members:
            return KernelStackEnd(complete=False, why=f"the frame record at {fp:#x} is of kind {kind}, expected 1 or 2")
        pc, sp, regs = (fp - place.offset + (0 if member is None else member.offset) for member in members)
        found = self._word(pc)
        return RecordFrame(found, self._word(sp), "exception frame", exact=True, fp=self._word(regs + 8 * 29))

    def _code(self, address: int) -> int:
        """Return an address of code without its pointer authentication code."""
        return address | self._tag if address & KERNEL_BIT else address

    def _word(self, address: int) -> int:
        return self._kernel.uint(address & WORD, 8)


def system_call(frame: Mapping[str, int]) -> SystemCall | None:
    """Return the system call that a thread is in; None if it is in none.

    Args:
        frame: its ``struct pt_regs``: registers by native name, ``orig_x0``, ``syscallno``.
    """
    number = frame["syscallno"]
    if number < 0:
        return None
    compat = bool(frame["pstate"] & fmt.PSR_MODE32_BIT)
    names = ("x1", "x2", "x3", "x4", "x5")
    arguments = (frame["orig_x0"], *(frame[name] for name in names))
    return SystemCall(number, arguments, "compat_sys_call_table" if compat else "sys_call_table", native=not compat)


class Arm64KernelStacks(KernelStacks):
    """Kernel stacks of arm64."""

    registers = Arm64Registers()

    @override
    def unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return Arm64Unwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        frame = self.registers.saved_frame(stack, kernel)
        return None if frame is None else system_call(frame)

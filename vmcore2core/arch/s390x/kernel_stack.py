"""Kernel stacks of s390x, by the back chain: each frame has the caller's address, and r14 as the callee saved it.

References: arch/s390/kernel/unwind_bc.c: unwind_next_frame(), __unwind_start(); arch/s390/include/asm/stacktrace.h:
struct stack_frame (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import KernelStacks
from vmcore2core.arch.kernel_stack import KernelFrame, KernelStackEnd, KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.s390x.registers import S390xRegisters
from vmcore2core.arch.spec import CpuNote
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

R14 = 8
"""Index among the registers in a frame, r6 to r15."""
PSW_MASK_PSTATE = 1 << 48
THREAD_SIZE = 1 << 14
"""The smallest size of any kernel."""
PIF_SYSCALL = 1
WORD = (1 << 64) - 1


class S390xUnwinder(KernelUnwinder):
    """Unwinds kernel stacks by back chains; ``sp`` of a frame is where its function's callees save their registers.

    Args:
        kernel: the dumped one.

    Raises:
        LayoutUnknown: the layout lacks the stack frame's structure.
    """

    def __init__(self, kernel: KernelView) -> None:
        self._kernel = kernel
        self._ksp = kernel.layout.member("task_struct", "thread.ksp").offset
        self._back_chain = kernel.layout.member("stack_frame", "back_chain").offset
        self._r14 = kernel.layout.member("stack_frame", "gprs").offset + 8 * R14
        self._overhead, self._pt_regs = kernel.layout.size("stack_frame"), kernel.layout.size("pt_regs")
        self._psw, self._gprs = (kernel.layout.member("pt_regs", name).offset for name in ("psw", "gprs"))

    @override
    def switched_out(self, task: KernelAddr) -> KernelFrame:
        sp = self._word(task + self._ksp)
        return KernelFrame(self._word(sp + self._r14), sp, "switch frame", exact=False)

    @override
    def running(self, note: CpuNote) -> KernelFrame:
        return KernelFrame(note.regs["pswa"], note.regs["r15"], "crash note", exact=True)

    @override
    def caller(self, frame: KernelFrame) -> KernelFrame | KernelStackEnd:
        sp = self._word(frame.sp + self._back_chain)
        if sp:
            return KernelFrame(self._word(sp + self._r14), sp, "back chain", exact=False)
        regs = frame.sp + self._overhead
        mask, pc = self._word(regs + self._psw), self._word(regs + self._psw + 8)
        if mask & PSW_MASK_PSTATE:
            return KernelStackEnd(complete=True, why="user mode")
        if (regs + self._pt_regs) % THREAD_SIZE == 0:
            return KernelStackEnd(complete=True, why="the end of the stack")
        return KernelFrame(pc, self._word(regs + self._gprs + 8 * 15), "exception frame", exact=True)

    def _word(self, address: int) -> int:
        return self._kernel.uint(address & WORD, 8)


def system_call(regs: Mapping[str, int], pt_regs: int, kernel: KernelView) -> SystemCall | None:
    """Return the system call that a thread is in; None if it is in none, or if that is not known.

    Args:
        regs: its user registers.
        pt_regs: address of its ``struct pt_regs``.
        kernel: the dumped one.

    Raises:
        MemoryFault: it cannot be read.
    """
    flags, code = (kernel.layout.find_member("pt_regs", name) for name in ("flags", "int_code"))
    if flags is None or code is None:
        return None
    if not kernel.uint(pt_regs + flags.offset, 8) & PIF_SYSCALL:
        return None
    number = kernel.uint(pt_regs + code.offset, 4) & 0xFFFF
    return SystemCall(number, (regs["orig_r2"], *(regs[f"r{i}"] for i in range(3, 8))))


class S390xKernelStacks(KernelStacks):
    """Kernel stacks of s390x."""

    registers = S390xRegisters()

    @override
    def unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return S390xUnwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        found = self.registers.saved_frame(stack, kernel)
        return None if found is None else system_call(regs, found[0], kernel)

"""Kernel stacks of POWER, by the back chain: r1 points to the caller's frame, which has the return address.

References: arch/powerpc/kernel/process.c: show_stack(); arch/powerpc/kernel/stacktrace.c: arch_stack_walk();
arch/powerpc/include/asm/ptrace.h: STACK_INT_FRAME_MARKER, STACK_FRAME_REGS_MARKER (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import KernelStacks
from vmcore2core.arch.kernel_stack import KernelFrame, KernelStackEnd, KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.spec import CpuNote
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

LR_SAVE = 16
REGS_MARKERS = (0x5347_4552, 0x7265_6773_6865_7265)
"""STACK_FRAME_REGS_MARKER: "REGS", and "regshere" before Linux 6.2."""
INT_FRAMES = ((32, 48), (96, 112))
"""Offsets of the marker and of ``struct pt_regs`` in an interrupt's frame: since Linux 6.2, and before."""
MSR_PR = 1 << 14
SYSTEM_CALL_TRAPS = (0xC00, 0x3000)
WORD = (1 << 64) - 1


class Ppc64leUnwinder(KernelUnwinder):
    """Unwinds kernel stacks by back chains.

    Args:
        kernel: the dumped one.

    Raises:
        LayoutUnknown: the layout does not tell where a task's stack is.
    """

    def __init__(self, kernel: KernelView) -> None:
        self._kernel = kernel
        self._ksp = kernel.layout.member("task_struct", "thread.ksp").offset
        self._regs = {name: kernel.layout.member("pt_regs", name).offset for name in ("nip", "msr", "gpr")}

    @override
    def switched_out(self, task: KernelAddr) -> KernelFrame:
        """_switch() has a frame of its own, and saves LR in its caller's frame."""
        sp = self._word(self._word(task + self._ksp))
        return KernelFrame(self._word(sp + LR_SAVE), sp, "switch frame", exact=False)

    @override
    def running(self, note: CpuNote) -> KernelFrame:
        return KernelFrame(note.regs["nip"], note.regs["r1"], "crash note", exact=True)

    @override
    def caller(self, frame: KernelFrame) -> KernelFrame | KernelStackEnd:
        regs = next((frame.sp + at for marker, at in INT_FRAMES if self._is_marked(frame.sp + marker)), None)
        if regs is not None:
            if self._word(regs + self._regs["msr"]) & MSR_PR:
                return KernelStackEnd(complete=True, why="user mode")
            pc, sp = self._word(regs + self._regs["nip"]), self._word(regs + self._regs["gpr"] + 8)
            return KernelFrame(pc, sp, "exception frame", exact=True)
        sp = self._word(frame.sp)
        if not sp:
            return KernelStackEnd(complete=True, why="the end of the stack")
        return KernelFrame(self._word(sp + LR_SAVE), sp, "back chain", exact=False)

    def _is_marked(self, address: int) -> bool:
        return self._word(address) in REGS_MARKERS

    def _word(self, address: int) -> int:
        return self._kernel.uint(address & WORD, 8)


def system_call(regs: Mapping[str, int]) -> SystemCall | None:
    """Return the system call that a thread is in; None if it is in none."""
    if regs.get("trap", 0) & ~0xF not in SYSTEM_CALL_TRAPS:
        return None
    return SystemCall(regs["r0"], (regs["orig_gpr3"], *(regs[f"r{i}"] for i in range(4, 9))))


class Ppc64leKernelStacks(KernelStacks):
    """Kernel stacks of POWER."""

    @override
    def unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return Ppc64leUnwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        return system_call(regs)

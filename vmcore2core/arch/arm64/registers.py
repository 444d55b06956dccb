"""arm64: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.arm64.regsets import Thread
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import arm64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Arm64Registers(Registers):
    """General registers of arm64's threads."""

    names = (*(fmt.user_pt_regs.names or ()), "orig_x0", "syscallno")
    saved_sp = "cpu_context.sp"

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/arm64/include/asm/processor.h.

        In a system call, pc is behind the svc, and x0 is still the first argument. The kernel's own core has pc at
        the svc: the signal that ends a process prepares the call's restart (do_signal(), arch/arm64/kernel/signal.c).
        """
        frame = self.saved_frame(stack, kernel)
        return None if frame is None else {name: frame[name] for name in self.names}

    def saved_frame(self, stack: int, kernel: KernelView) -> Mapping[str, int] | None:
        """Return ``struct pt_regs`` at the top of a kernel stack, if it was saved in user mode."""
        layout = kernel.layout
        told = layout.find_size("pt_regs")
        found = []
        for top in stack_sizes(layout, fmt.THREAD_SIZES):
            for size in fmt.PT_REGS_SIZES if told is None else (told,):
                try:
                    raw = kernel.memory.read(stack + top - size, fmt.pt_regs.itemsize)
                except MemoryFault:
                    continue
                record = np.frombuffer(raw, fmt.pt_regs)[0]
                regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
                if self._plausible(regs):
                    found.append(regs)
        # Two candidates: nothing tells a chance match from the true frame.
        return found[0] if len(found) == 1 else None

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this from EL0; valid_native_regs(), valid_compat_regs() in ptrace.c."""
        pstate = regs["pstate"]
        if pstate & (fmt.PSR_MODE_MASK | fmt.PSR_IL_BIT | fmt.PSR_RESERVED):
            return False
        if pstate & fmt.PSR_MODE32_BIT:
            limit, sp, align = fmt.TASK_SIZE_32_MAX, regs["x13"], 2
            masked = pstate & fmt.PSR_AA32_AIF
        else:
            limit, sp, align = fmt.TASK_SIZE_MAX, regs["sp"], 4
            masked = pstate & fmt.PSR_DAIF
        return not masked and regs["pc"] % align == 0 and 0 < regs["pc"] < limit and sp < limit

    @staticmethod
    def thread(task: KernelAddr, regs: Mapping[str, int], kernel: KernelView) -> Thread:
        """Return the structures that a thread's notes are made from."""
        layout = kernel.layout
        t1sz = layout.find_constant("TCR_EL1_T1SZ")
        bits = layout.find_constant("VA_BITS") if t1sz is None else 64 - t1sz
        return Thread(task, regs, bits or 48, kernel)

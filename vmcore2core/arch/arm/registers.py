"""32-bit ARM: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import arm as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class ArmRegisters(Registers):
    """General registers of 32-bit ARM's threads."""

    names = fmt.REGS

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/arm/include/asm/processor.h.

        In a system call, pc is behind the svc, and r0 is still the first argument. The kernel's own core has pc at
        the svc: the signal that ends a process prepares the call's restart (do_signal(), arch/arm/kernel/signal.c).
        """
        for size in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            try:
                raw = kernel.memory.read(
                    stack + size - fmt.THREAD_START_SP - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize
                )
            except MemoryFault:
                continue
            regs = self.regs(raw)
            if self._plausible(regs):
                return regs
        return None

    @staticmethod
    def regs(raw: bytes) -> dict[str, int]:
        """Return the registers of ``struct pt_regs``."""
        record = np.frombuffer(raw, fmt.pt_regs, 1)[0]
        return {name: int(record[name]) for name in fmt.REGS}

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this in user mode; valid_user_regs() in arch/arm/include/asm/ptrace.h.

        The kernel's code at the vectors (kuser helpers) runs in user mode, too.
        """
        cpsr, pc = regs["cpsr"], regs["pc"]
        return (
            cpsr & (fmt.PSR_MODE_MASK | fmt.PSR_I_BIT | fmt.PSR_F_BIT) == fmt.PSR_USR_MODE
            and pc % (2 if cpsr & fmt.PSR_T_BIT else 4) == 0
            and (0 < pc < fmt.PAGE_OFFSETS[0] or 0 <= pc - fmt.GATE_START < fmt.GATE_SIZE)
            and regs["sp"] < fmt.PAGE_OFFSETS[0]
        )

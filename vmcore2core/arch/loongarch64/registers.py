"""LoongArch: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Loongarch64Registers(Registers):
    """General registers of LoongArch's threads."""

    names = fmt.user_pt_regs.names or ()
    tp_register = "tp"
    saved_sp = "reg03"

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/loongarch/include/asm/processor.h, gpr_get().

        In a system call, a0 is -ENOSYS or still the first argument until the call returns; in the kernel's own core,
        the signal that ended the process has changed it.
        """
        for top in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            try:
                raw = kernel.memory.read(stack + top - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize)
            except MemoryFault:
                continue
            record = np.frombuffer(raw, fmt.pt_regs)[0]
            regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
            if self._plausible(regs):
                return {name: regs.get(name, 0) for name in self.names}
        return None

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this in user mode, where interrupts are always on."""
        return (
            regs["csr_prmd"] & (fmt.PRMD_PPLV | fmt.PRMD_PIE | fmt.PRMD_RESERVED) == fmt.PRMD_PPLV | fmt.PRMD_PIE
            and regs["csr_era"] < fmt.TASK_SIZE_MAX
            and regs["sp"] < fmt.TASK_SIZE_MAX
        )

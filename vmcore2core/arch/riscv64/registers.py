"""RISC-V: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr, align_up
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Riscv64Registers(Registers):
    """General registers of RISC-V's threads."""

    names = fmt.user_regs_struct.names or ()
    tp_register = "tp"
    saved_sp = "sp"

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/riscv/include/asm/processor.h.

        In a system call, pc is behind the ecall, and a0 is -ENOSYS or, in older kernels, still the first argument.
        The kernel's own core has pc at the ecall and a0 = orig_a0: the signal that ends a process prepares the call's
        restart (arch_do_signal_or_restart() in arch/riscv/kernel/signal.c).
        """
        found = self.saved_frame(stack, kernel)
        return None if found is None else {name: found[name] for name in self.names}

    def saved_frame(self, stack: int, kernel: KernelView) -> Mapping[str, int] | None:
        """Return the registers of ``struct pt_regs`` at the top of a kernel stack, if it was saved in user mode."""
        return next((regs for _, regs in self.saved_frames(stack, kernel)), None)

    def saved_frames(self, stack: int, kernel: KernelView) -> Iterator[tuple[int, Mapping[str, int]]]:
        """Yield address and registers of ``struct pt_regs`` at the top of a kernel stack, if saved in user mode."""
        layout = kernel.layout
        size = layout.find_size("pt_regs") or fmt.PT_REGS_SIZE
        align = layout.find_constant("STACK_ALIGN")
        align = align if align in fmt.STACK_ALIGNS else fmt.STACK_ALIGN
        for top in stack_sizes(layout, fmt.THREAD_SIZES):
            at = stack + top - align_up(size, align)
            try:
                raw = kernel.memory.read(at, fmt.pt_regs.itemsize)
            except MemoryFault:
                continue
            record = np.frombuffer(raw, fmt.pt_regs)[0]
            regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
            if self._plausible(regs):
                yield at, regs

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether a trap saved this in user mode: SPP is clear, and interrupts were on, as always in user mode."""
        return (
            regs["status"] & (fmt.SR_SPP | fmt.SR_SPIE | fmt.SR_SIE | fmt.SR_RESERVED) == fmt.SR_SPIE
            and regs["status"] & fmt.SR_UXL != fmt.SR_UXL_32
            and regs["pc"] % 2 == 0
            and regs["pc"] < fmt.TASK_SIZE_MAX
            and regs["sp"] < fmt.TASK_SIZE_MAX
        )

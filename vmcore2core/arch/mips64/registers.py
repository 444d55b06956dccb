"""MIPS64: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.mips64 import saved
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView
from vmcore2core.overrides import override


class Mips64Registers(Registers):
    """General registers of MIPS64's threads."""

    names = fmt.GREGS

    def __init__(self, byte_order: ByteOrder) -> None:
        self.byte_order = byte_order

    @property
    def order(self) -> str:
        """The byte order, as numpy and struct have it."""
        return "<" if self.byte_order == "little" else ">"

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/mips/include/asm/processor.h.

        A system call saves only some registers (SAVE_SOME). $s0 to $s7 and $fp are from the frames of the kernel's
        functions, or left out if those do not have them. $at, $t0 to $t3, $t8, hi and lo have older values, as in the
        kernel's own core.
        """
        found = self._pt_regs(stack, kernel)
        if found is None:
            return None
        address, regs = found
        if regs["cause"] & fmt.CAUSE_EXCCODE == fmt.CAUSE_SYSCALL:
            kept = saved.KernelStack(task, stack, address, kernel, self.byte_order).static_regs()
            if kept is not None:
                regs = {
                    **{name: value for name, value in regs.items() if name not in saved.STATIC_NAMES},
                    **kept,
                }
        return {**regs, "zero": 0, "k0": 0, "k1": 0}

    def _pt_regs(self, stack: int, kernel: KernelView) -> tuple[int, dict[str, int]] | None:
        """Return address and contents of the ``struct pt_regs`` of user mode; None if there is not exactly one."""
        layout = kernel.layout
        told = layout.find_size("pt_regs")
        page_size = layout.find_constant("PAGESIZE")
        possible = fmt.THREAD_SIZES if page_size is None else (max(page_size, fmt.THREAD_SIZES[0]),)
        declared = fmt.pt_regs(self.order)
        found = []
        for top in stack_sizes(layout, possible):
            for size in fmt.PT_REGS_SIZES if told is None else (told,):
                address = stack + top - fmt.TOS_GAP - size
                try:
                    record = np.frombuffer(kernel.memory.read(address, declared.itemsize), declared)[0]
                except MemoryFault:
                    continue
                regs = {name: int(record[name]) for name in fmt.PT_REGS_FIELDS}
                if self._plausible(regs):
                    found.append((address, regs))
        # Two candidates: nothing tells a chance match from the true frame.
        return found[0] if len(found) == 1 else None

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this in user mode."""
        return (
            regs["status"] & fmt.STATUS_KSU == fmt.STATUS_USER
            and regs["status"] >> 32 in (0, 0xFFFF_FFFF)
            and 0 < regs["epc"] < fmt.TASK_SIZE_MAX
            and regs["epc"] % 4 == 0
            and regs["sp"] < fmt.TASK_SIZE_MAX
        )

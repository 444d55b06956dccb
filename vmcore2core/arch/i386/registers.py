"""i386: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import ThreadStruct, stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import i386 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

WORD = 4


class I386Registers(Registers):
    """General registers of i386's threads."""

    names = fmt.pt_regs.names or ()
    saved_sp = "sp"

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/x86/include/asm/processor.h.

        The saved selectors tell how large the padding is: no other pair of words in a frame looks like user CS and SS.
        """
        for size in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            for padding in fmt.STACK_PADDINGS:
                try:
                    raw = kernel.memory.read(stack + size - padding - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize)
                except MemoryFault:
                    continue
                regs = self._plausible(raw)
                if regs is not None:
                    return self._with_gs(regs, ThreadStruct(task, kernel))
        return None

    @staticmethod
    def _with_gs(regs: dict[str, int], thread: ThreadStruct) -> dict[str, int]:
        """Return registers with the user's gs, or without gs if that is not known."""
        # Since Linux kernel commit 3fb0fdb3bbe7 ("x86/stackprotector/32: Make the canary into a regular percpu
        # variable") (in v5.13), the kernel does not use gs: it leaves the user's in the register, and saves it when the
        # thread leaves its CPU; on the stack, an interrupt's vector is there. Before that, with CONFIG_X86_32_LAZY_GS.
        if thread.layout.find_size("stack_canary") is not None:
            return regs
        gs = thread.uint("gs", WORD)
        others = {name: value for name, value in regs.items() if name != "gs"}
        return others if gs is None else {**others, "gs": gs & 0xFFFF}

    def _plausible(self, raw: bytes) -> dict[str, int] | None:
        record = np.frombuffer(raw, fmt.pt_regs)[0]
        regs = {name: int(record[name]) & (0xFFFF if name in fmt.SEGMENTS else 0xFFFF_FFFF) for name in self.names}
        user = (
            (regs["cs"] == fmt.USER_CS or regs["cs"] & fmt.LDT_RPL_3 == fmt.LDT_RPL_3)
            and (regs["ss"] == fmt.USER_DS or regs["ss"] & fmt.LDT_RPL_3 == fmt.LDT_RPL_3)
            and regs["eflags"] & fmt.EFLAGS_FIXED
            and regs["eflags"] >> fmt.EFLAGS_BITS == 0
            and regs["eip"] < fmt.PAGE_OFFSETS[0]
            and regs["esp"] < fmt.PAGE_OFFSETS[0]
        )
        return regs if user else None

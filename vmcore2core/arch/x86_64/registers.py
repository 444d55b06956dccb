"""x86-64: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class X86_64Registers(Registers):
    """General registers of x86-64's threads."""

    names = fmt.user_regs_struct.names or ()
    saved_sp = "sp"
    # {es, ds, fsindex, gsindex; fsbase, gsbase} since Linux kernel commit 296f781a4b7f ("x86/asm/64: Rename
    # thread_struct's fs and gs to fsbase and gsbase") (in v4.7).
    thread_members: Mapping[str, int] = MappingProxyType(
        {"fsbase": 0, "gsbase": 8, "es": -8, "ds": -6, "fsindex": -4, "gsindex": -2}
    )

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/x86/include/asm/processor.h.

        TOP_OF_KERNEL_STACK_PADDING is 16 with CONFIG_X86_FRED in newer kernels and 0 before; the saved selectors
        tell which: no other word pair of a frame reads as user CS and SS.
        """
        for size in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            for padding in (0, 16):
                top = stack + size - padding
                try:
                    raw = kernel.memory.read(top - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize)
                except MemoryFault:
                    continue
                regs = self._plausible(raw)
                if regs is not None:
                    return regs
        return None

    def _plausible(self, raw: bytes) -> Mapping[str, int] | None:
        record = np.frombuffer(raw, fmt.pt_regs)[0]
        regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
        # Since Linux kernel commit ee63291aa82e ("x86/ptrace: Cleanup the definition of the pt_regs structure")
        # (in v6.9), FRED's event data stands above the selectors' 16 bits.
        regs["cs"] &= 0xFFFF
        regs["ss"] &= 0xFFFF
        user = (
            regs["cs"] in (fmt.USER_CS, fmt.USER32_CS)
            and regs["ss"] & 3 == 3
            and regs["eflags"] & fmt.EFLAGS_FIXED
            and regs["eflags"] >> 32 == 0
            and regs["rip"] < fmt.TASK_SIZE_MAX_5LEVEL
            and regs["rsp"] < fmt.TASK_SIZE_MAX_5LEVEL
        )
        return regs if user else None

    @override
    def thread_bases(self, task: KernelAddr, kernel: KernelView) -> Mapping[str, int | None]:
        """current_save_fsgs() in arch/x86/kernel/process_64.c keeps them at each switch."""
        bases: dict[str, int | None] = {}
        for reg, member, size in (
            ("fs_base", "fsbase", 8),
            ("gs_base", "gsbase", 8),
            ("ds", "ds", 2),
            ("es", "es", 2),
            ("fs", "fsindex", 2),
            ("gs", "gsindex", 2),
        ):
            found = kernel.layout.find_member("task_struct", f"thread.{member}")
            bases[reg] = kernel.uint(task + found.offset, size) if found else None
        return bases

    @override
    def implausible(self, regs: Mapping[str, int]) -> str | None:
        """No instruction loads a base that is not canonical, or a selector beyond the GDT."""
        for name in ("fs_base", "gs_base"):
            if regs.get(name, 0) >> fmt.CANONICAL_SHIFT not in fmt.CANONICAL_TOPS:
                return f"{name} is {regs[name]:#x}, which is not canonical"
        for name in ("ds", "es", "fs", "gs"):
            selector = regs.get(name, 0)
            if not selector & fmt.SELECTOR_LDT and selector >> 3 >= fmt.GDT_ENTRIES:
                return f"{name} is {selector:#x}, a selector beyond the GDT"
        return None

    @override
    def thread_pointer(self, regs: Mapping[str, int]) -> int | None:
        return regs.get("fs_base")

    @override
    def is_thread_pointer(self, value: int, read_user: Callable[[int, int], bytes | None]) -> bool:
        """A TCB's first and third words point to itself (tcbhead_t of all libcs)."""
        if value % 8 or not 0x1000 <= value < fmt.TASK_SIZE_MAX_5LEVEL:
            return False
        tcb = read_user(value, 24)
        return tcb is not None and tcb[:8] == tcb[16:24] == value.to_bytes(8, "little")

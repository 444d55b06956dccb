"""x86-64: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.interfaces import KernelView, Layout
from vmcore2core.overrides import override

BASES = (
    ("fs_base", "fsbase", 8),
    ("gs_base", "gsbase", 8),
    ("ds", "ds", 2),
    ("es", "es", 2),
    ("fs", "fsindex", 2),
    ("gs", "gsindex", 2),
)
"""Registers that ``struct thread_struct`` has, the member of each, and its bytes."""


def frame_offsets(layout: Layout) -> tuple[int, ...]:
    """Return where ``struct pt_regs`` may be in a kernel stack.

    TOP_OF_KERNEL_STACK_PADDING is 16 with CONFIG_X86_FRED in newer kernels and 0 before; the saved selectors tell
    which: no other word pair of a frame reads as user CS and SS.
    """
    sizes = stack_sizes(layout, fmt.THREAD_SIZES)
    return tuple(size - padding - fmt.pt_regs.itemsize for size in sizes for padding in (0, 16))


def with_selectors(frames: NDArray[np.void]) -> NDArray[np.void]:
    """Return frames, ``fmt.pt_regs``[n], whose selectors have 16 bits.

    Since Linux kernel commit ee63291aa82e ("x86/ptrace: Cleanup the definition of the pt_regs structure") (in v6.9),
    FRED's event data stands above these.
    """
    frames = frames.copy()
    for name in ("cs", "ss"):
        frames[name] &= np.uint64(0xFFFF)
    return frames


def are_user(frames: NDArray[np.void]) -> NDArray[np.bool_]:
    """Tell which frames, ``fmt.pt_regs``[n], can be of user mode."""
    cs, eflags, end = frames["cs"], frames["eflags"], np.uint64(fmt.TASK_SIZE_MAX_5LEVEL)
    user: NDArray[np.bool_] = (cs == fmt.USER_CS) | (cs == fmt.USER32_CS)
    user &= (frames["ss"] & np.uint64(3) == 3) & (eflags & np.uint64(fmt.EFLAGS_FIXED) != 0)
    user &= (eflags >> np.uint64(32) == 0) & (frames["rip"] < end) & (frames["rsp"] < end)
    return user


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
        """Follows task_pt_regs() in arch/x86/include/asm/processor.h."""
        for offset in frame_offsets(kernel.layout):
            try:
                raw = kernel.memory.read(stack + offset, fmt.pt_regs.itemsize)
            except MemoryFault:
                continue
            frame = with_selectors(np.frombuffer(raw, fmt.pt_regs))
            if are_user(frame)[0]:
                return dict(zip(fmt.pt_regs.names or (), frame[0].item(), strict=True))
        return None

    @override
    def thread_bases(self, task: KernelAddr, kernel: KernelView) -> Mapping[str, int | None]:
        """current_save_fsgs() in arch/x86/kernel/process_64.c saves them at each switch."""
        bases: dict[str, int | None] = {}
        for reg, member, size in BASES:
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

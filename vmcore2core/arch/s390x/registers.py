"""s390x: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import s390x as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


def peek_user(regs: Mapping[str, int]) -> dict[str, int]:
    """Return all but the access registers, with the PSW's mask as ptrace(2) shows it: __peek_user()."""
    mask = regs["pswm"] & (fmt.PSW_MASK_USER | fmt.PSW_MASK_RI) | fmt.PSW_USER_BITS
    return {name: regs[name] for name in ("pswa", *fmt.GPRS, "orig_r2")} | {"pswm": mask}


class S390xRegisters(Registers):
    """General registers of s390x's threads."""

    names = fmt.s390_regs.names or ()
    saved_sp = "ksp"
    thread_members: Mapping[str, int] = MappingProxyType({"acrs": 0})

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/s390/include/asm/processor.h, __peek_user().

        In a system call, the PSW's address is behind the svc, and r2 is -ENOSYS or, in older kernels, still the first
        argument, which orig_r2 has. In the kernel's own core, the signal that ends the process sets r2 to -ERESTART*.
        """
        found = self.saved_frame(stack, kernel)
        return None if found is None else peek_user(found[1])

    def saved_frame(self, stack: int, kernel: KernelView) -> tuple[int, Mapping[str, int]] | None:
        """Return ``struct pt_regs`` at the top of a kernel stack, if it was saved in user mode, and its address."""
        layout = kernel.layout
        size = layout.find_size("pt_regs") or fmt.PT_REGS_SIZE
        for top in stack_sizes(layout, fmt.THREAD_SIZES):
            address = stack + top - size
            try:
                raw = kernel.memory.read(address, fmt.pt_regs.itemsize)
            except MemoryFault:
                continue
            record = np.frombuffer(raw, fmt.pt_regs)[0]
            regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
            if self._plausible(regs):
                return address, regs
        return None

    def frame_of(self, task: int, kernel: KernelView) -> tuple[int, Mapping[str, int]] | None:
        """Return the same for a ``struct task_struct *``."""
        found = kernel.layout.find_member("task_struct", "stack")
        if found is None:
            return None
        return self.saved_frame(kernel.uint(task + found.offset, 8), kernel)

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an interruption saved this in user mode."""
        mask = regs["pswm"]
        return (
            mask & fmt.PSW_USER_BITS == fmt.PSW_USER_BITS
            and not mask & (fmt.PSW_RESERVED | fmt.PSW_MASK_WAIT)
            and bool(mask & fmt.PSW_MASK_BA)
            and regs["pswa"] < fmt.TASK_SIZE_MAX
        )

    @override
    def thread_bases(self, task: KernelAddr, kernel: KernelView) -> Mapping[str, int | None]:
        """Returns the access registers, the first two of which have the thread pointer, and orig_r2.

        orig_r2 is no register: the kernel keeps it from the last system call, whether the thread is on a CPU or not.
        """
        frame, found = self.frame_of(task, kernel), kernel.layout.find_member("task_struct", "thread.acrs")
        kept = {} if frame is None else {"orig_r2": frame[1]["orig_r2"]}
        if found is None:
            return {**dict.fromkeys(fmt.ACRS), **kept}
        record = np.frombuffer(kernel.memory.read(task + found.offset, fmt.acrs.itemsize), fmt.acrs)[0]
        return {name: int(record[name]) for name in fmt.ACRS} | kept

    @override
    def thread_pointer(self, regs: Mapping[str, int]) -> int | None:
        high, low = regs.get("acr0"), regs.get("acr1")
        return None if high is None or low is None else high << 32 | low

    @override
    def is_thread_pointer(self, value: int, read_user: Callable[[int, int], bytes | None]) -> bool:
        """Glibc's tcbhead_t begins with its own address."""
        return value != 0 and value % 8 == 0 and read_user(value, 8) == value.to_bytes(8, "big")

"""POWER: the general registers of a thread, where the kernel saved them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Registers
from vmcore2core.arch.ppc64le.regsets import Thread
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.interfaces import ByteOrder, KernelView
from vmcore2core.overrides import override


def gregs_of(raw: bytes, order: ByteOrder, names: Sequence[str]) -> dict[str, int]:
    """Return registers of ``struct pt_regs``; further ones of elf_gregset_t are zero."""
    record = np.frombuffer(raw, fmt.pt_regs[order], 1)[0]
    return {name: int(record[name]) for name in names} | dict.fromkeys(fmt.GREGSET_RESERVED, 0)


class Ppc64leRegisters(Registers):
    """General registers of POWER's threads."""

    names = fmt.ELF_GREGSET
    tp_register = "r13"
    saved_sp = "ksp"

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs(), which is ``thread.regs`` and NULL in a kernel thread, and gpr_get().

        ``struct pt_regs`` ends where the stack ends, in all versions. In a system call (trap tells), r3 is still the
        first argument, or -ERESTART* once a signal has interrupted the call.
        """
        layout = kernel.layout
        at = Thread(task, kernel).uint("regs", 8)
        if at is None:
            size = layout.find_size("pt_regs")
            tops = stack_sizes(layout, fmt.THREAD_SIZES)
            places: Sequence[int] = [stack + top - size for top in tops] if size else ()
        else:
            places = (at,) if stack <= at < stack + fmt.STACK_MAX else ()
        for place in places:
            try:
                regs = self._plausible(kernel.memory.read(place, fmt.pt_regs["little"].itemsize))
            except MemoryFault:
                continue
            if regs is not None:
                regs["msr"] |= Thread(task, kernel).uint("fpexc_mode", 4) or 0  # get_user_msr()
                return regs
        return None

    def _plausible(self, raw: bytes) -> dict[str, int] | None:
        """Return these registers if they were saved in user mode."""
        regs = gregs_of(raw, "little", fmt.PT_REGS)
        user = (
            regs["msr"] & fmt.MSR_PR
            and regs["msr"] & fmt.MSR_LE
            and not regs["msr"] & fmt.MSR_NEVER
            and regs["nip"] % 4 == 0
            and regs["nip"] < fmt.TASK_SIZE_MAX
            and regs["r1"] < fmt.TASK_SIZE_MAX
        )
        return regs | {"softe": fmt.SOFTE_USER} if user else None

"""32-bit ARM: location of a process's vDSO image in the kernel image."""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import Vdso
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class ArmVdso(Vdso):
    """The vDSO image on 32-bit ARM."""

    @override
    def image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """Follows vdso_init() in arch/arm/kernel/vdso.c."""
        found = kernel.layout.find_symbol("vdso_start")
        return None if found is None else KernelAddr(found)

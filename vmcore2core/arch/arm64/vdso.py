"""arm64: location of a process's vDSO image in the kernel image."""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import Vdso
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Arm64Vdso(Vdso):
    """The vDSO image on arm64."""

    @override
    def image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """Follows vdso_info[] in arch/arm64/kernel/vdso.c."""
        found = kernel.layout.find_symbol("vdso_start" if machine.elf_class == 64 else "vdso32_start")
        return None if found is None else KernelAddr(found)

"""MIPS64: location of a process's vDSO image in the kernel image."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import Vdso
from vmcore2core.arch.mips64.unwind import Abi, abi_of
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

VDSO_IMAGES: Mapping[Abi, str] = MappingProxyType(
    {"n64": "vdso_image", "n32": "vdso_image_n32", "o32": "vdso_image_o32"}
)


class Mips64Vdso(Vdso):
    """The vDSO image on MIPS64."""

    @override
    def image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """``struct mips_vdso_image`` begins with its address."""
        found = kernel.layout.find_symbol(VDSO_IMAGES[abi_of(machine)])
        if found is None:
            return None
        return KernelAddr(kernel.uint(found, 8))

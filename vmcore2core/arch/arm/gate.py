"""32-bit ARM: the page of vectors, which is in no process's mm."""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import Gate
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class ArmGate(Gate):
    """The gate mapping of 32-bit ARM."""

    name = "[vectors]"
    readable = True

    @override
    def vma(self, kernel: KernelView) -> KernelAddr | None:
        """With CONFIG_KUSER_HELPERS; get_gate_vma() in arch/arm/kernel/process.c."""
        found = kernel.layout.find_symbol("gate_vma")
        return None if found is None else KernelAddr(found)

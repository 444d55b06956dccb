"""x86-64: the vsyscall page, which is in no process's mm."""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import Gate
from vmcore2core.errors import MemoryFault
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class X86_64Gate(Gate):
    """The gate mapping of x86-64."""

    name = "[vsyscall]"

    @override
    def vma(self, kernel: KernelView) -> KernelAddr | None:
        """Follows get_gate_vma() in arch/x86/entry/vsyscall/vsyscall_64.c."""
        layout = kernel.layout
        address, mode = layout.find_symbol("gate_vma"), layout.find_symbol("vsyscall_mode")
        if address is None or mode is None:
            return None
        try:
            value = kernel.uint(mode, 4)
        except MemoryFault:
            return None
        return KernelAddr(address) if value in fmt.VSYSCALL_MAPPED else None

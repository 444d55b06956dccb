"""Dumps that were taken while the capture kernel ran: memory has that kernel and the crashed one.

The dump's note may belong to either: the capture kernel, too, registers its VMCOREINFO with QEMU.

References: kernel/crash_core.c: crashk_res, crash_save_vmcoreinfo(); kernel/crash_dump.c: elfcorehdr_addr (Linux 7.2).
"""

from __future__ import annotations

from vmcore2core.addresses import AddressRange
from vmcore2core.containers.base import DumpContainer
from vmcore2core.errors import MemoryFault
from vmcore2core.interfaces import ByteOrder
from vmcore2core.layout.find_vmcoreinfo import PER_KERNEL, Opened, other_texts
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.memory.kernel import KernelMemory

ELFCORE_ADDR_NONE = frozenset({(1 << 64) - 1, (1 << 64) - 2})  # ELFCORE_ADDR_MAX, ELFCORE_ADDR_ERR
RESOURCE = "resource"
WORD = 8


def second_kernel(container: DumpContainer, opened: Opened, layout: KernelLayout) -> str | None:
    """Return a sentence if memory has another kernel besides the one that was opened; else None.

    Memory is searched only if the kernel has crashed or was booted after a crash. If it crashed, only the memory that
    it had reserved for the capture kernel is searched; else all memory.

    Args:
        container: the dump.
        opened: the kernel that was opened.
        layout: of it.
    """
    memory, order = opened.memory, opened.arch.byte_order
    header = _uint(memory, layout.find_symbol("elfcorehdr_addr"), order)
    if header is not None and header not in ELFCORE_ADDR_NONE:
        this, other, within = "the capture kernel, which was booted after the crash", "the one that crashed", None
    else:
        within = _reserved(memory, layout, order) if opened.vmcoreinfo.string("CRASHTIME") is not None else None
        this, other = "the one that crashed", "the capture kernel, which was booted then"
        if within is None:
            return None
    mine = [opened.vmcoreinfo.string(key) for key in PER_KERNEL]
    for paddr, info in other_texts(container, within):
        if [info.string(key) for key in PER_KERNEL] != mine:
            return (
                f"memory has two kernels: this is {this}; --vmcoreinfo {paddr:#x} takes {other}, by its VMCOREINFO "
                f"text there"
            )
    return None


def _reserved(memory: KernelMemory, layout: KernelLayout, order: ByteOrder) -> AddressRange | None:
    """Return the range of ``crashk_res``, if there is one."""
    at = layout.find_symbol("crashk_res")
    start, end = (layout.find_member(RESOURCE, name) for name in ("start", "end"))
    if at is None or start is None or end is None:
        return None
    first, last = _uint(memory, at + start.offset, order), _uint(memory, at + end.offset, order)
    return AddressRange(first, last + 1) if first and last and first < last else None


def _uint(memory: KernelMemory, address: int | None, order: ByteOrder) -> int | None:
    try:
        return None if address is None else int.from_bytes(memory.read(address, WORD), order)
    except MemoryFault:
        return None

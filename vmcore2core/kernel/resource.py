"""The kernel's own list of physical memory (include/linux/ioport.h).

References: kernel/resource.c: iomem_resource; arch/x86/kernel/e820.c: e820__reserve_resources(), and others' like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcore2core.addresses import AddressRange
from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel.struct import Kernel, chain

IORESOURCE_SYSTEM_RAM = 0x01000200
"""IORESOURCE_MEM | IORESOURCE_SYSRAM, since Linux 4.6."""
RESOURCES_MAX = 1 << 16
SIZE_MIN = 1 << 20
"""The kernel may call a piece of memory RAM that firmware keeps for itself; such pieces are smaller than this."""


def system_ram(kernel: Kernel) -> tuple[AddressRange, ...]:
    """Return the ranges of /proc/iomem's "System RAM", ascending; none if they cannot be read."""
    root = kernel.layout.find_symbol("iomem_resource")
    if root is None or kernel.arch.pointer_size != 8:  # resource_size_t may be larger than a pointer there
        return ()
    try:
        first = kernel.view("resource", root).follow("child", "resource")
        return tuple(
            AddressRange(entry.ulong("start"), entry.ulong("end") + 1)
            for entry in chain(first, "sibling", "resource", RESOURCES_MAX)
            if entry.ulong("flags") & IORESOURCE_SYSTEM_RAM == IORESOURCE_SYSTEM_RAM
        )
    except (LayoutError, CorruptStructure, MemoryFault):
        return ()


def not_in(ranges: Sequence[AddressRange], memory: Sequence[AddressRange]) -> Iterator[AddressRange]:
    """Yield the parts of some ranges that are not in memory, if they have ``SIZE_MIN`` bytes or more.

    Args:
        ranges: any.
        memory: ascending and disjoint.
    """
    for wanted in ranges:
        start = wanted.start
        for there in memory:
            if there.end <= start or there.start >= wanted.end:
                continue
            if there.start - start >= SIZE_MIN:
                yield AddressRange(start, there.start)
            start = there.end
        if wanted.end - start >= SIZE_MIN:
            yield AddressRange(start, wanted.end)

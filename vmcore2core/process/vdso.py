"""The vDSO's pages, mapped in or not.

Its image is part of the kernel image, in one piece. Where the layout does not tell where, a page of it that is mapped
does: the others lie beside it (arch/x86/entry/vdso/vma.c: vdso_fault(); arch/*/kernel/vdso.S, Linux 4.18 to 7.2).
"""

from __future__ import annotations

import numpy as np

from vmcore2core.addresses import KernelAddr, PhysAddr, PhysAddrs
from vmcore2core.arch.spec import PageTableSpec
from vmcore2core.errors import MemoryFault
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.pages import Pages
from vmcore2core.memory.pagetable import translate
from vmcore2core.memory.region import Region

PAGES_MAX = 64
ELFMAG = b"\x7fELF"


class VdsoBacking:
    """``Backing`` of the vDSO's mapping in one process."""

    def __init__(
        self,
        memory: KernelMemory,
        spec: PageTableSpec,
        pgd: PhysAddr,
        region: Region,
        image: KernelAddr | None = None,
    ) -> None:
        self.page_size = spec.page_size
        self._first = self._first_page(memory, spec, pgd, region)
        if self._first is None and image is not None:
            self._first = self._image_address(memory, image, region.end - region.start)

    @staticmethod
    def _image_address(memory: KernelMemory, image: KernelAddr, size: int) -> int | None:
        """Return the physical address of the image according to the kernel, if it lies in one piece."""
        try:
            first, last = memory.to_phys(image), memory.to_phys(image + size - 1)
        except MemoryFault:
            return None
        inside = any(m.paddr <= first and last < m.paddr + m.range.size for m in memory.kernel_map.searched)
        return first if inside and last == first + size - 1 and _is_elf(memory, first) else None

    @staticmethod
    def _first_page(memory: KernelMemory, spec: PageTableSpec, pgd: PhysAddr, region: Region) -> int | None:
        """Return the physical address of the image, if a mapped page shows that it is within the kernel image."""
        image = [(m.paddr, m.paddr + m.range.size) for m in memory.kernel_map.searched]
        size = region.end - region.start
        for offset in range(0, min(size, PAGES_MAX * spec.page_size), spec.page_size):
            try:
                paddr, _ = translate(memory.physical, spec, pgd, region.start + offset)
            except MemoryFault:
                continue
            first = paddr - offset
            if any(low <= first and first + size <= high for low, high in image) and _is_elf(memory, first):
                return first
        return None

    def lookup(self, first: int, last: int) -> Pages:
        """Return the pages of the image; the index counts pages from the start of the mapping."""
        count = 0 if self._first is None else last - first + 1
        index = np.arange(first, first + count, dtype=np.uint64)
        return Pages.in_memory(index, PhysAddrs(index * np.uint64(self.page_size) + np.uint64(self._first or 0)))


def _is_elf(memory: KernelMemory, paddr: int) -> bool:
    try:
        return memory.physical.read(paddr, len(ELFMAG)) == ELFMAG
    except MemoryFault:
        return False

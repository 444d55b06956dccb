"""Whether mappings agree with the pages that the page tables map: a ``struct page`` knows its place in the file, too.

References: include/linux/pagemap.h: linear_page_index(); include/linux/mm.h: vma_start_anon_pgoff(); mm/rmap.c:
__folio_set_anon(), mm/filemap.c: __filemap_add_folio() (Linux 7.3). A page that was written to and is the process's own
keeps the place of the file's until Linux 7.2; since then, its place is the mapping's anonymous one, which is the
address at which the mapping was when it got its first page of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel import mm
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.memory.pagetable import Ranges, RunKind, walk
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory

PARTS = 3
"""At the borders between so many parts of a mapping, its ends too, a page is looked at."""
PAGE_MAPPING_FLAGS, PAGE_MAPPING_ANON = 0x3, 0x1  # FOLIO_MAPPING_FLAGS since Linux 6.16
PAGE_MAPPING_DAX_SHARED = 0x1  # the whole word, of a page that several files share
INDEX_NAMES = (("page", "index"), ("page", "__folio_index"), ("folio", "index"))
"""Its name since Linux 6.16 is the second; of struct folio, which lies over it, the third."""
OTHERS = mm.VM_HUGETLB | mm.VM_PFNMAP | mm.VM_MIXEDMAP | mm.VM_IO
"""Mappings whose pages count otherwise, or are a driver's."""
ANON_PGOFF_LOW, ANON_PGOFF_HIGH = "__vm_anon_pgoff_lo", "__vm_anon_pgoff_hi"
"""Since Linux 7.3; the second where a word has 64 bits."""


class PageIndex:
    """What all pages of a dump say of their place.

    Args:
        kernel: the dumped kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @cached_property
    def _form(self) -> tuple[int, int, int] | None:
        """Address of the first ``struct page``, bytes of one, and the offset of its index; None where not known."""
        layout = self.kernel.layout
        found = (layout.find_member(*names) for names in INDEX_NAMES)
        index = next((member for member in found if member is not None), None)
        vmemmap, size = self.kernel.arch.vmemmap(self.kernel.memory, layout), layout.find_size("page")
        if index is None or vmemmap is None or not size or layout.find_member("page", "mapping") is None:
            return None
        return vmemmap, size, index.offset

    def misfits(self, mapped: Sequence[tuple[StructView, Region]], memory: UserMemory) -> Iterator[str]:
        """Yield a sentence for each mapping that has a page of another place in its file.

        Args:
            mapped: ``struct vm_area_struct`` with a file, and what is made of it, in address order.
            memory: of the process.
        """
        if self._form is None:
            return
        said: set[int] = set()
        wanted = self._wanted(mapped, memory.spec.page_size)
        starts = np.array(list(wanted), np.uint64)
        ranges = Ranges(starts, starts + np.uint64(memory.spec.page_size))
        for batch in walk(memory.memory, memory.spec, memory.root, ranges):
            # Of a huge page, only the first struct page tells.
            page = (batch.kind == RunKind.LEAF) & (batch.size == memory.spec.page_size)
            for address, paddr in zip(batch.vaddr[page].tolist(), batch.paddr[page].tolist(), strict=True):
                view, region = wanted[address]
                try:
                    error = self._misfit(view, region, address, paddr, memory.spec.page_size)
                except MemoryFault:
                    continue  # no struct page is there, or it is not in the dump
                if error is not None and region.start not in said:
                    said.add(region.start)
                    yield str(error)

    def _wanted(
        self, mapped: Sequence[tuple[StructView, Region]], page_size: int
    ) -> dict[int, tuple[StructView, Region]]:
        """Return the pages that are looked at, by their address, ascending."""
        found = {}
        for view, region in mapped:
            if view.has("vm_pgoff") and not view.ulong("vm_flags") & OTHERS:
                last = (region.end - region.start) // page_size - 1
                for part in range(PARTS + 1):
                    found[region.start + last * part // PARTS * page_size] = view, region
        return found

    def _misfit(
        self, view: StructView, region: Region, address: int, paddr: int, page_size: int
    ) -> CorruptStructure | None:
        file = view.follow("vm_file", "file")
        if self._form is None or file is None or not file.has("f_mapping"):
            return None
        vmemmap, size, index_at = self._form
        page = self.kernel.view("page", vmemmap + paddr // page_size * size)
        mapping = page.pointer("mapping")
        own = mapping & PAGE_MAPPING_FLAGS == PAGE_MAPPING_ANON and mapping != PAGE_MAPPING_DAX_SHARED
        if not own and mapping != file.pointer("f_mapping"):
            return None
        index = self.kernel.read_uint(page.address + index_at, self.kernel.arch.pointer_size)
        expected = index - (address - region.start) // page_size
        anonymous = view.find_uint(ANON_PGOFF_LOW, 4) if own else None
        name, pgoff = "vm_pgoff", region.pgoff
        if anonymous is not None:
            name, pgoff = ANON_PGOFF_LOW, (view.find_uint(ANON_PGOFF_HIGH, 4) or 0) << 32 | anonymous
        if expected == pgoff:
            return None
        return view.corrupt(name, f"{pgoff:#x}, expected {expected:#x} as the page at {address:#x} has it")

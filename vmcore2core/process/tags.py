"""Memory tags (arm64's MTE): which pages have them, and the tags that the kernel keeps for swapped pages.

The processor stores the tags of pages in memory separately, and a dump does not have them. So we can write
PT_AARCH64_MEMTAG_MTE, which the kernel's own core has, only for swapped pages: the kernel keeps their tags in memory.

References: arch/arm64/kernel/elfcore.c; arch/arm64/mm/mteswap.c; mte_sync_tags() in arch/arm64/kernel/mte.c (Linux 5.10
to 7.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PhysAddrs, SwapEntries, U64Array, UserAddr
from vmcore2core.arch.spec import TagSpec
from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel.mm import VM_HUGETLB
from vmcore2core.kernel.page_flags import PageFlags
from vmcore2core.kernel.struct import Kernel
from vmcore2core.kernel.xarray import XArray
from vmcore2core.memory.pages import UserPageState
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import counted
from vmcore2core.process.model import TagRun, Vma

GRANULE = 16
"""Bytes that share one tag of 4 bits."""


class Tags:
    """The tags of one process's memory.

    Attributes:
        runs: the known tags, ascending.
        nr_lost: how many pages have unknown tags.
        problem: a sentence that says why tags cannot be found, or None.
        broken: likewise, if the kernel's records of tags are broken.
    """

    def __init__(self, kernel: Kernel, vmas: Sequence[Vma], memory: UserMemory) -> None:
        self.runs: list[TagRun] = []
        self.nr_lost, self.kind = 0, ""
        self.problem: str | None = None
        self.broken: str | None = None
        try:
            spec = kernel.arch.tags.spec(kernel) if kernel.arch.tags is not None else None
            self.kind = "" if spec is None else spec.name
            regions = _tagged_regions(spec, vmas, memory) if spec is not None else []
            if spec is not None and regions:
                _Search(kernel, spec, memory, self).run(regions)
        except (LayoutError, MemoryFault, CorruptStructure) as error:
            said = f"which pages have memory tags is not known, and none are written: {error}"
            self.runs, self.nr_lost = [], 0
            if isinstance(error, CorruptStructure):
                self.broken = said
            else:
                self.problem = said

    @property
    def notice(self) -> str | None:
        """A sentence about missing tags, or None."""
        if self.nr_lost:
            return (
                f"the memory tags ({self.kind}) of {counted(self.nr_lost, 'page')} are left out: the processor has "
                f"them apart from memory, and so no dump of it has them"
            )
        return self.problem


def _tagged_regions(spec: TagSpec, vmas: Sequence[Vma], memory: UserMemory) -> list[tuple[Vma, Region]]:
    regions = {region.start: region for region in memory.regions}
    return [(vma, regions[vma.start]) for vma in vmas if vma.vm_flags & spec.vm_flag and vma.dumped]


class _Search:
    def __init__(self, kernel: Kernel, spec: TagSpec, memory: UserMemory, found: Tags) -> None:
        self.kernel, self.spec, self.memory, self.found = kernel, spec, memory, found
        self.flags = PageFlags(kernel)
        self.page_size = memory.spec.page_size
        self.tags_size = self.page_size // GRANULE // 2

    def run(self, regions: list[tuple[Vma, Region]]) -> None:
        for vma, region in regions:
            for pages in self.memory.known(region):
                self.found.nr_lost += self._lost(vma, pages.paddrs())
                stored = pages.state == UserPageState.STORED
                if stored.any():
                    self._swapped(pages.at[stored], pages.stored())

    def _lost(self, vma: Vma, paddrs: PhysAddrs) -> int:
        """Return how many pages in memory have tags; if that is not known, count all pages of such a mapping."""
        if vma.vm_flags & VM_HUGETLB or self.spec.page_flag is None:
            return len(paddrs)
        return int(np.count_nonzero(self.flags.test(paddrs, self.spec.page_flag)))

    def _swapped(self, vaddr: U64Array, entries: SwapEntries) -> None:
        """Take the tags of swapped pages; if a page of such a mapping has none, they are lost."""
        kept = self._kept(np.unique(entries))
        has: NDArray[np.bool_] = np.isin(entries, np.fromiter(kept, np.uint64, len(kept)), kind="sort")
        self.found.nr_lost += int(np.count_nonzero(~has))
        vaddr, entries = vaddr[has], SwapEntries(entries[has])
        breaks = np.flatnonzero(np.diff(vaddr) != self.page_size) + 1
        for pages, slots in zip(np.split(vaddr, breaks), np.split(entries, breaks), strict=True):
            if len(pages):
                tags = b"".join(self.kernel.memory.read(kept[slot], self.tags_size) for slot in slots.tolist())
                end = UserAddr(int(pages[-1]) + self.page_size)
                self.found.runs.append(TagRun(UserAddr(int(pages[0])), end, tags, self.spec.p_type))

    def _kept(self, wanted: U64Array) -> dict[int, int]:
        """Return the addresses of the tags of swapped pages, by swp_entry_t.

        Two static arrays have the name mte_pages: the one in arch/arm64/kernel/hibernate.c is empty but for a moment,
        and has page frames as indices.
        """
        arrays = [XArray(self.kernel.view("xarray", at)) for at in self.kernel.layout.find_symbols(self.spec.saved)]
        used = [array for array in arrays if array.xa.pointer("xa_head")]
        if len(used) != 1:
            return {}
        # Look up only adjacent slots together: a broken array may have any number.
        slots = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        runs = (run for part in slots for run in used[0].runs(int(part[0]), int(part[-1])))
        return {run.first: run.entry for run in runs if not run.is_value}

"""The page cache: pages of files in memory, mapped or not.

References: mm/filemap.c: filemap_get_entry(); mm/shmem.c; include/asm-generic/memory_model.h (vmemmap).
"""

from __future__ import annotations

import numpy as np

from vmcore2core.addresses import PhysAddrs, SwapEntries, U64Array
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.bounds import PFN_END
from vmcore2core.kernel.page_structs import PagePlaces, PageStructs
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.xarray import XArray
from vmcore2core.memory.pages import Pages, UserPageState

# address_space_operations of file systems that keep files only in memory: a page that is not there is a hole.
MEMORY_AOPS = ("shmem_aops", "ram_aops", "hugetlbfs_aops")
INDEX_MAX = (1 << 64) - 1


# First page index, number of pages, physical address or swap entry of the first, their state.
Run = tuple[int, int, int, UserPageState]


class PageCache:
    """All files' cached pages; needs a virtual memory map (CONFIG_SPARSEMEM_VMEMMAP) to turn pages into addresses.

    Attributes:
        tells_uptodate: whether PG_uptodate is known, which tells that the file was read into a page. If so, pages
            without the file's bytes are left out; if not, all pages are taken.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        layout = kernel.layout
        self.page_size = kernel.memory.kernel_map.spec.page_size
        self._structs = PageStructs(kernel)
        self._hugetlbfs_aops = layout.find_symbol("hugetlbfs_aops")
        self._shmem_aops = layout.find_symbol("shmem_aops")
        self._counted: set[int] = set()
        bit = layout.find_constant("PG_uptodate")
        self._pg_uptodate = 0 if bit is None or layout.find_member("page", "flags") is None else 1 << bit
        self.tells_uptodate = bool(self._pg_uptodate)
        self._memory_aops = {a for name in MEMORY_AOPS if (a := layout.find_symbol(name)) is not None}

    def lookup(self, file: StructView, first: int, last: int) -> Pages:
        """Return the pages of a ``struct file`` with index in ``[first, last]`` of which the page cache tells.

        Returns:
            Pages that are ``PRESENT``, ``SWAPPED`` (shared memory), ``ZERO`` (a hole of a file that lives in memory) or
            ``BEYOND_FILE``; none has been looked up in the dump.

        Raises:
            CorruptStructure, MemoryFault: the index of the file's pages is broken.
            LayoutUnknown: a member is not known.
        """
        mapping = file.follow("f_mapping", "address_space")
        if mapping is None:
            return _pages([], self.page_size)
        _check_host(mapping)
        return self.pages(mapping, first, last)

    def pages(self, mapping: StructView, first: int, last: int) -> Pages:
        """Return the pages of a ``struct address_space``; see ``lookup``."""
        in_memory = self._in_memory(mapping)
        array = XArray(mapping.embedded("i_pages", "xarray"))
        unit = self._index_unit(mapping, array)
        if in_memory:
            self._check_nrpages(mapping, array)
        runs = []
        for run in array.runs(first >> unit, last >> unit):
            start, end = run.first << unit, (run.last + 1 << unit) - 1
            low, high = max(start, first), min(end, last)
            if not run.is_value:
                paddr = self.paddr_of(run.entry, "address_space.i_pages") + (low - start) * self.page_size
                runs.append((low, high - low + 1, paddr, UserPageState.PRESENT))
            elif in_memory:  # elsewhere it is the shadow of an evicted page
                runs.append((low, high - low + 1, (run.entry >> 1) + low - run.first, UserPageState.SWAPPED))
        runs = self._up_to_date(runs, None if unit else mapping)
        return _pages(self._with_holes(runs, mapping, first, last, in_memory=in_memory), self.page_size)

    def _up_to_date(self, runs: list[Run], mapping: StructView | None) -> list[Run]:
        """Return the runs without pages that do not have the file's bytes yet (folio_test_uptodate()).

        In a file that lives in memory, such a page was allocated and not written, and reads as a hole.

        Args:
            runs: of the index.
            mapping: the address_space that the pages must name, at these indices; None for no check.

        Raises:
            CorruptStructure: a page belongs to another file or to another place in it.
        """
        here = [at for at, run in enumerate(runs) if run[3] == UserPageState.PRESENT]
        places = self._structs.of(np.array([runs[at][2] for at in here], np.uint64))
        if mapping is not None and self._structs.tell_place:
            _check_places(mapping, np.array([runs[at][0] for at in here], np.uint64), places)
        if not self._pg_uptodate:
            return runs
        self.tells_uptodate &= bool(places.known.all())
        old = places.known & (places.flags & np.uint64(self._pg_uptodate) == 0)
        gone = {here[row] for row in np.flatnonzero(old).tolist()}
        return [run for at, run in enumerate(runs) if at not in gone]

    def _check_nrpages(self, mapping: StructView, array: XArray) -> None:
        """Check that a file that lives in memory has as many pages as it counts: a missing page would read as zeros."""
        a_ops = mapping.pointer("a_ops")
        if int(mapping.address) in self._counted or not mapping.has("nrpages") or a_ops == self._hugetlbfs_aops:
            return
        there = 0
        for run in array.runs(0, INDEX_MAX):
            if run.is_value and a_ops != self._shmem_aops:
                raise array.xa.corrupt("xa_head", f"entry {run.entry:#x} of a file that is never swapped")
            there += 0 if run.is_value else run.last - run.first + 1
        if mapping.ulong("nrpages") != there:
            raise mapping.corrupt("nrpages", f"{mapping.ulong('nrpages')}, expected {there} as there are")
        self._counted.add(int(mapping.address))

    def paddr_of(self, page: int, member: str) -> int:
        """Return the physical address of the memory that a ``struct page`` describes.

        Args:
            page: ``struct page *``.
            member: where the pointer was.

        Raises:
            CorruptStructure: there is no such structure at this address.
        """
        pfn, rest = divmod(page - self._structs.vmemmap, self._structs.size)
        if rest or not 0 <= pfn < PFN_END:
            raise CorruptStructure("no struct page is there", page, member)
        return pfn * self.page_size

    def _index_unit(self, mapping: StructView, array: XArray) -> int:
        """Return by how many bits an index of hugetlbfs must be shifted to count pages.

        Since Linux kernel commit a08c7193e4f1 ("mm/filemap: remove hugetlb special casing in filemap.c") (in v6.7),
        an entry spans as many indices as its pages. Before that, it has one, which counts huge pages.
        """
        if self._hugetlbfs_aops is None or not self._in_memory(mapping):
            return 0
        if mapping.pointer("a_ops") != self._hugetlbfs_aops:
            return 0
        inode = mapping.follow("host", "inode") if mapping.has("host") else None
        bits = inode.find_uint("i_blkbits", 1) if inode is not None else None
        run = next(array.runs(0, INDEX_MAX), None)
        if bits is None or run is None or run.first != run.last:
            return 0
        return max(0, bits - (self.page_size.bit_length() - 1))

    def _in_memory(self, mapping: StructView) -> bool:
        return mapping.has("a_ops") and mapping.pointer("a_ops") in self._memory_aops

    def is_of_disk(self, file: StructView) -> bool:
        """Tell whether a file is known to lie on a disk, not in a file system that lives in memory."""
        mapping = file.follow("f_mapping", "address_space")
        known = self._shmem_aops is not None and mapping is not None and mapping.has("a_ops")
        return known and mapping is not None and not self._in_memory(mapping)

    def _with_holes(self, runs: list[Run], mapping: StructView, first: int, last: int, *, in_memory: bool) -> list[Run]:
        """Add the states of pages that are not cached, by the file's size and kind."""
        inode = mapping.follow("host", "inode") if mapping.has("host") else None
        if inode is None or not inode.has("i_size"):
            return runs
        size = inode.uint("i_size", size=8)
        end = -(-size // self.page_size)  # first page index beyond the file
        result: list[Run] = []
        at = first
        for run in [*runs, (last + 1, 0, 0, UserPageState.ZERO)]:
            hole_end = min(run[0], end)
            if in_memory and at < hole_end:
                result.append((at, hole_end - at, 0, UserPageState.ZERO))
            if run[0] > max(at, end):
                beyond = max(at, end)
                result.append((beyond, run[0] - beyond, 0, UserPageState.BEYOND_FILE))
            if run[1]:
                result.append(run)
            at = run[0] + run[1]
        return result


def _check_places(mapping: StructView, index: U64Array, places: PagePlaces) -> None:
    """Check that cached pages belong to this file, at the places in its index."""
    wrong = places.of_file & ((places.mapping != mapping.address) | (places.index != index))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        whose = f"page {int(places.index[row]):#x} of the address_space at {int(places.mapping[row]):#x}"
        raise mapping.corrupt("i_pages", f"page {int(index[row]):#x} is {whose}")


def _check_host(mapping: StructView) -> None:
    """Check that a ``struct address_space`` is its inode's (inode_init_always(); a device's file has another's)."""
    if not mapping.has("host") or mapping.kernel.layout.find_member("inode", "i_data") is None:
        return
    inode = mapping.follow("host", "inode")
    if inode is None:
        raise mapping.corrupt("host", "NULL, expected the file's inode")
    other = inode.pointer("i_mapping") if inode.has("i_mapping") else 0
    if mapping.address not in (inode.addr_of("i_data"), other):
        raise mapping.corrupt("host", f"{inode.address:#x}, an inode whose address_space is another")


def _pages(runs: list[Run], page_size: int) -> Pages:
    """Expand ascending runs to pages."""
    table = np.array(runs, np.uint64).reshape(len(runs), 4)
    count = table[:, 1].astype(np.int64)
    within = (np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)).astype(np.uint64)
    at, first = np.repeat(table[:, 0], count) + within, np.repeat(table[:, 2], count)
    pages = Pages(at, np.repeat(table[:, 3], count).astype(np.uint8))
    here, swapped = pages.state == UserPageState.PRESENT, pages.state == UserPageState.SWAPPED
    paddrs = PhysAddrs(first[here] + within[here] * np.uint64(page_size))
    pages.put(here, Pages.in_memory(at[here], paddrs))
    pages.put(swapped, Pages.in_swap(at[swapped], SwapEntries(first[swapped] + within[swapped])))
    return pages

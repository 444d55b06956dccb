"""The swap cache: pages in memory that have a swap slot, by slot.

A page found there is used only if its own struct page names the slot, and if its bytes have arrived (PG_uptodate).

References: mm/swap_state.c: swap_cache_get_folio(), add_to_swap_cache(); mm/swap_table.h; mm/swap.h (Linux 4.20 to
7.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from vmcore2core.addresses import U64Array
from vmcore2core.errors import CorruptStructure, LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import swap as fmt
from vmcore2core.kernel.bounds import PFN_END, bit_number, struct_size
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.xarray import XArray
from vmcore2core.overrides import override

FOLIO_PAGES_MAX = 1 << 13  # a folio of 512 MiB, in pages of 64 KiB
BITS_PER_BYTE = 8
STRUCT_PAGE_MAX = 1 << 10
STRUCT_MAX = 1 << 16
CLUSTER_SLOTS_MAX = 1 << 13  # SWAPFILE_CLUSTER where it is a huge page of 512 MiB, in pages of 64 KiB
CACHED_CLUSTERS = 1024


class CachePages:
    """The use of ``struct page`` by the swap cache.

    Raises:
        LayoutUnknown: a member, a flag or the virtual memory map is not known.
        LayoutInvalid: one of them is impossible.
    """

    def __init__(self, kernel: Kernel) -> None:
        layout, self.kernel = kernel.layout, kernel
        self.page_size = kernel.memory.kernel_map.spec.page_size
        self.sizeof_page = struct_size(layout, "page", STRUCT_PAGE_MAX)
        vmemmap = kernel.arch.paging.vmemmap(kernel)
        if vmemmap is None:
            raise LayoutUnknown("SYMBOL(vmemmap)")
        self.vmemmap = vmemmap
        uptodate = bit_number(layout, "PG_uptodate")
        if uptodate is None:
            raise LayoutUnknown("NUMBER(PG_uptodate)")
        self._uptodate = 1 << uptodate
        layout.member("page", "private")

    def page_of(self, pfn: int) -> int:
        """Return the address of a page frame's ``struct page``."""
        return self.vmemmap + pfn * self.sizeof_page

    def paddr(self, page: int, entry: int) -> int | None:
        """Return where the page of slot ``entry`` is, if the ``struct page`` that the cache has for it is its folio's.

        Args:
            page: address of a ``struct page``: the folio's first, or the slot's own.
            entry: swp_entry_t.

        Returns:
            Its physical address; None if its bytes have not arrived yet.

        Raises:
            CorruptStructure: it belongs to another slot.
        """
        pfn, rest = divmod(page - self.vmemmap, self.sizeof_page)
        if rest or not 0 <= pfn < PFN_END:
            raise CorruptStructure("the swap cache has no struct page there", page, "page")
        view = self.kernel.view("page", page)
        index = entry - view.ulong("private")
        if not 0 <= index < FOLIO_PAGES_MAX:
            raise CorruptStructure(f"private is {view.ulong('private'):#x}, expected slot {entry:#x}", page, "page")
        if index:
            self._check_tail(page, index)
        if not self._head(view).uint("flags", size=self.kernel.arch.pointer_size) & self._uptodate:
            return None
        return (pfn + index) * self.page_size

    def _check_tail(self, head: int, index: int) -> None:
        """Check that page ``index`` belongs to the folio: the cache, or private, may be out of date."""
        tail = self.kernel.view("page", head + index * self.sizeof_page)
        told = tail.pointer("compound_info", "compound_head")
        # The head's address; in Linux 7.2, where struct page has a power of 2 as its size, a mask that leads to it.
        if not told & 1 or head not in (told - 1, tail.address & told):
            raise CorruptStructure(f"it is not page {index} of the folio at {head:#x}", tail.address, "page")

    def _head(self, page: StructView) -> StructView:
        """Return the first page of a compound page: until Linux 6.0, the cache has the others themselves."""
        if not page.has("compound_head"):
            return page
        head = page.pointer("compound_head")
        return self.kernel.view("page", head - 1) if head & 1 else page


class SwapCache(ABC):
    """The swap cache of one swap device."""

    def __init__(self, pages: CachePages) -> None:
        self.pages = pages

    @abstractmethod
    def lookup(self, offsets: U64Array) -> Iterator[tuple[int, int]]:
        """Yield (index into ``offsets``, address of the ``struct page`` that is cached for it).

        Args:
            offsets: ascending slots, uint64[n].

        Raises:
            CorruptStructure, MemoryFault: the cache cannot be read.
        """

    def zeros(self, offsets: U64Array) -> Iterator[int]:
        """Yield the index of each slot whose page was all zeros, and so was not written."""
        return iter(())


class XArrayCache(SwapCache):
    """Until Linux 6.17: an array of address_spaces for each device.

    Args:
        pages: the pages.
        spaces: ``swapper_spaces[type]``.
        nr_spaces: ``nr_swapper_spaces[type]``.
        zeromap: ``swap_info_struct.zeromap``, or 0.
    """

    def __init__(self, pages: CachePages, spaces: int, nr_spaces: int, zeromap: int) -> None:
        super().__init__(pages)
        self._spaces, self._nr_spaces, self._zeromap = spaces, nr_spaces, zeromap
        self._size = struct_size(pages.kernel.layout, "address_space", STRUCT_MAX)

    @override
    def lookup(self, offsets: U64Array) -> Iterator[tuple[int, int]]:
        space_of = offsets >> np.uint64(fmt.SWAP_ADDRESS_SPACE_SHIFT)
        for number in np.unique(space_of).tolist():
            if number >= self._nr_spaces:
                continue
            at = np.flatnonzero(space_of == number)
            wanted = {int(offsets[i]): int(i) for i in at}
            space = self.pages.kernel.view("address_space", self._spaces + number * self._size)
            tree = XArray(space.embedded("i_pages", "xarray"))
            base = number << fmt.SWAP_ADDRESS_SPACE_SHIFT
            low, high = min(wanted), max(wanted)
            # Since Linux kernel commit 7aad25b4b469 ("mm/swap: get the swap device offset directly" and after) (in
            # v6.11), the index counts from the space's own start. The page itself names its slot.
            for shift in {0, base}:
                for run in tree.runs(low - shift, high - shift):
                    if run.is_value:
                        continue
                    for slot in range(max(run.first + shift, low), min(run.last + shift, high) + 1):
                        if slot in wanted:
                            yield wanted[slot], run.entry

    @override
    def zeros(self, offsets: U64Array) -> Iterator[int]:
        """swap_info_struct.zeromap is there since Linux 6.12."""
        yield from _set_bits(self.pages.kernel, self._zeromap, offsets)


class TableCache(SwapCache):
    """Since Linux 6.18: a table of words for each cluster of slots.

    Args:
        pages: the pages.
        clusters: ``swap_info_struct.cluster_info``.
        slots_max: ``swap_info_struct.max``.
        zeromap: ``swap_info_struct.zeromap``; None if this kernel has the zero flag in the table.
    """

    def __init__(self, pages: CachePages, clusters: int, slots_max: int, zeromap: int | None) -> None:
        super().__init__(pages)
        kernel, layout = pages.kernel, pages.kernel.layout
        self._clusters, self._max, self._zeromap = clusters, slots_max, zeromap
        self._size = struct_size(layout, "swap_cluster_info", STRUCT_MAX)
        self._table = layout.member("swap_cluster_info", "table").offset
        self._bitmap = layout.find_member("swap_cluster_info", "zero_bitmap")
        word = kernel.arch.pointer_size
        self._slots = struct_size(layout, "swap_table", CLUSTER_SLOTS_MAX * word) // word
        if not self._slots:
            raise LayoutInvalid(f"SIZE(swap_table) is less than one word of {word} bytes")
        self._words: OrderedDict[int, U64Array] = OrderedDict()

    def _cluster(self, number: int) -> U64Array:
        """Return the words of a cluster, uint64[SWAPFILE_CLUSTER]; no words where it has no table."""
        if number not in self._words:
            kernel = self.pages.kernel
            order = "<" if kernel.arch.byte_order == "little" else ">"
            table = kernel.read_pointer(self._clusters + number * self._size + self._table)
            size = kernel.arch.pointer_size
            raw = kernel.memory.read(table, self._slots * size) if table else b""
            self._words[number] = np.frombuffer(raw, f"{order}u{size}").astype(np.uint64)
            if len(self._words) > CACHED_CLUSTERS:
                self._words.popitem(last=False)
        return self._words[number]

    def _entries(self, offsets: U64Array) -> U64Array:
        """Return the word of each slot, 0 where there is none."""
        words = np.zeros(len(offsets), np.uint64)
        cluster_of = offsets // np.uint64(self._slots)
        for number in np.unique(cluster_of[offsets < self._max]).tolist():
            table = self._cluster(number)
            if len(table):
                here = cluster_of == number
                words[here] = table[(offsets[here] % np.uint64(self._slots)).astype(np.intp)]
        return words

    @override
    def lookup(self, offsets: U64Array) -> Iterator[tuple[int, int]]:
        """A word is a shadow (bit 0), a page frame (bits 10), or a pointer to a folio."""
        for i, word in enumerate(self._entries(offsets).tolist()):
            if word & fmt.SWP_TB_PFN_MARK_MASK == fmt.SWP_TB_PFN_MARK:
                yield i, self.pages.page_of((word & fmt.SWP_TB_PFN_MASK) >> fmt.SWP_TB_PFN_SHIFT)
            elif word and word != fmt.SWP_TB_BAD and not word & fmt.SWP_TB_POINTER_MASK:
                yield i, word

    @override
    def zeros(self, offsets: U64Array) -> Iterator[int]:
        """Until Linux 7.1 in swap_info_struct.zeromap."""
        if self._zeromap is not None:
            yield from _set_bits(self.pages.kernel, self._zeromap, offsets)
        elif self._bitmap is None:
            words = self._entries(offsets)
            marked = ((words & np.uint64(fmt.SWP_TB_ZERO_FLAG)) != 0) & (words != np.uint64(fmt.SWP_TB_BAD))
            yield from np.flatnonzero(marked).tolist()
        else:
            cluster_of = offsets // np.uint64(self._slots)
            for number in np.unique(cluster_of).tolist():
                bitmap = self.pages.kernel.read_pointer(self._clusters + number * self._size + self._bitmap.offset)
                at = np.flatnonzero(cluster_of == number)
                inside: U64Array = offsets[at] % np.uint64(self._slots)
                yield from (int(at[i]) for i in _set_bits(self.pages.kernel, bitmap, inside))


def _set_bits(kernel: Kernel, bitmap: int, offsets: U64Array) -> Iterator[int]:
    """Yield the index of each number whose bit is set in a bitmap of unsigned longs."""
    if not bitmap or not len(offsets):
        return
    word = kernel.arch.pointer_size * BITS_PER_BYTE
    for i, offset in enumerate(offsets.tolist()):
        at = bitmap + offset // word * kernel.arch.pointer_size
        if kernel.uint(at, kernel.arch.pointer_size) >> offset % word & 1:
            yield i


def swap_cache(pages: CachePages, info: StructView, swap_type: int) -> SwapCache:
    """Return the swap cache of a device.

    Args:
        pages: the pages.
        info: its ``struct swap_info_struct``.
        swap_type: its number.

    Raises:
        LayoutUnknown: it is not known where the cache is.
        LayoutInvalid: a size of its structures is impossible.
        MemoryFault: its structures cannot be read.
    """
    kernel = pages.kernel
    zeromap = info.pointer("zeromap") if info.has("zeromap") else None
    if kernel.layout.find_member("swap_cluster_info", "table") is not None:
        return TableCache(pages, info.pointer("cluster_info"), info.uint("max", size=4), zeromap)
    word = kernel.arch.pointer_size
    spaces = kernel.read_pointer(kernel.layout.symbol("swapper_spaces") + swap_type * word)
    nr_spaces = kernel.uint(kernel.layout.symbol("nr_swapper_spaces") + swap_type * 4, 4)
    return XArrayCache(pages, spaces, nr_spaces if spaces else 0, zeromap or 0)


def cached(cache: SwapCache, offsets: U64Array, swap_type: int) -> dict[int, int | str | None]:
    """Return, by index into ``offsets``, the places of pages that are in the cache.

    Returns:
        Physical address; None for a page whose bytes have not arrived yet; a sentence if the ``struct page`` does not
        fit: then the slot's content elsewhere may be out of date.

    Raises:
        CorruptStructure, MemoryFault: the cache cannot be read.
    """
    found: dict[int, int | str | None] = {}
    for index, page in cache.lookup(offsets):
        try:
            found[index] = cache.pages.paddr(page, swap_type << fmt.SWP_TYPE_SHIFT | int(offsets[index]))
        except (CorruptStructure, MemoryFault) as error:
            found[index] = str(error)
    return found

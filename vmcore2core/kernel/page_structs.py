"""The owner of many pages, and the place in it, by each ``struct page``.

A page behind the first of a folio (a tail) has the folio's place, further on. References: include/linux/mm_types.h,
include/linux/page-flags.h: compound_head(); include/linux/pagemap.h: page_pgoff() (Linux 5.10 to 7.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.containers.base import PageState
from vmcore2core.errors import LayoutUnknown, MemoryFault
from vmcore2core.kernel.bounds import struct_size
from vmcore2core.kernel.struct import Kernel

SIZEOF_PAGE_MAX = 256
FOLIO_PAGES_MAX = 1 << 20  # MAX_FOLIO_ORDER: 4 GiB of 4 KiB pages
MAPPING_FLAGS, MAPPING_ANON = 0x3, 0x1
"""PAGE_MAPPING_FLAGS and its bits, FOLIO_MAPPING_* since Linux 6.16."""
MAPPING_DAX_SHARED = 0x1
"""The whole word, if several files share a page."""
HEADS = ("compound_head", "compound_info")
"""Its name since Linux 7.1 is the second, which may hold a mask that makes a tail's address the head's."""
INDEX_NAMES = (("page", "index"), ("page", "__folio_index"), ("folio", "index"))
"""Its name since Linux 6.16 is the second; of struct folio, which lies over it, the third."""


@dataclass(frozen=True, slots=True)
class PagePlaces:
    """Owners and places of pages; zeros where ``known`` is false.

    Attributes:
        known: bool[n], whether the structure is in the dump, and not part of a broken folio.
        mapping: uint64[n], ``folio->mapping``: ``struct address_space *``, or ``struct anon_vma *`` with a bit set.
        index: uint64[n], which page of that it is.
        flags: uint64[n], ``folio->flags``; zero if the layout does not know them.
    """

    known: NDArray[np.bool_]
    mapping: U64Array
    index: U64Array
    flags: U64Array

    @property
    def anonymous(self) -> NDArray[np.bool_]:
        """Which are anonymous, and not merged with others (KSM)."""
        found: NDArray[np.bool_] = (self.mapping & np.uint64(MAPPING_FLAGS) == MAPPING_ANON) & (
            self.mapping != MAPPING_DAX_SHARED
        )
        return found

    @property
    def of_file(self) -> NDArray[np.bool_]:
        """Which are of a file."""
        found: NDArray[np.bool_] = (self.mapping != 0) & (self.mapping & np.uint64(MAPPING_FLAGS) == 0)
        return found


class PageStructs:
    """The page structures of a kernel.

    Args:
        kernel: the dumped kernel.

    Attributes:
        tell_place: whether the layout knows ``mapping`` and ``index``; what it does not know reads as zeros.

    Raises:
        LayoutUnknown, LayoutInvalid, MemoryFault: it is not known where they are.
    """

    def __init__(self, kernel: Kernel) -> None:
        layout = kernel.layout
        vmemmap = kernel.arch.paging.vmemmap(kernel)
        if vmemmap is None:
            raise LayoutUnknown("SYMBOL(vmemmap)")
        self._kernel, self._mask = kernel, np.uint64((1 << 8 * kernel.arch.pointer_size) - 1)
        self.vmemmap = vmemmap
        self.size = struct_size(layout, "page", SIZEOF_PAGE_MAX)
        mapping, flags = layout.find_member("page", "mapping"), layout.find_member("page", "flags")
        index = next((found for names in INDEX_NAMES if (found := layout.find_member(*names)) is not None), None)
        self.tell_place = mapping is not None and index is not None
        head = next((found for name in HEADS if (found := layout.find_member("page", name)) is not None), None)
        self._columns = tuple(None if member is None else member.offset for member in (mapping, index, flags, head))
        self._page_size = kernel.memory.kernel_map.spec.page_size
        order = "<" if kernel.arch.byte_order == "little" else ">"
        self._dtype = np.dtype(f"{order}u{kernel.arch.pointer_size}")

    def of(self, paddrs: U64Array) -> PagePlaces:
        """Return owners and places of the pages at physical addresses."""
        base = np.uint64(self.vmemmap % (1 << 64))
        return self.at(base + paddrs // np.uint64(self._page_size) * np.uint64(self.size) & self._mask)

    def at(self, pages: U64Array) -> PagePlaces:
        """Return owners and places, given pointers to ``struct page``.

        Args:
            pages: uint64[n].
        """
        known, (mapping, index, flags, head) = self._read(pages)
        rows = np.flatnonzero(known & (head & np.uint64(1) != 0))
        if len(rows):
            heads = self._heads(pages[rows], head[rows])
            known[rows], found = self._read(heads)
            behind = (pages[rows] - heads) // np.uint64(self.size)
            known[rows] &= behind < FOLIO_PAGES_MAX
            mapping[rows], index[rows], flags[rows] = found[0], found[1] + behind, found[2]
        for column in (mapping, index, flags):
            column[~known] = 0
        return PagePlaces(known, mapping, index, flags)

    def _heads(self, pages: U64Array, words: U64Array) -> U64Array:
        """Return the first page of the folios that tails are of."""
        pointer = words - np.uint64(1)
        near = (pointer <= pages) & (pages - pointer < np.uint64(FOLIO_PAGES_MAX * self.size))
        heads: U64Array = np.where(near, pointer, pages & words)
        return heads

    def _read(self, pages: U64Array) -> tuple[NDArray[np.bool_], list[U64Array]]:
        """Return which structures were read, bool[n], and each one's mapping, index, flags and head, uint64[n].

        A structure that lies in two pages of memory (its size is no power of two) is not read.
        """
        size = np.uint64(self._page_size)
        within = (pages & (size - np.uint64(1))).astype(np.intp)
        bases, row = np.unique(pages - within.astype(np.uint64), return_inverse=True)
        paddrs, there = self._to_phys(bases)
        raw, states = self._kernel.memory.physical.read_blocks(paddrs, self._page_size)
        there &= (states == PageState.PRESENT) | (states == PageState.ZERO)
        width = self._dtype.itemsize
        known = there[row] & (within + self.size <= self._page_size) & (within % width == 0)
        table = raw.view(self._dtype)
        column = np.where(known, within, 0) // width
        zeros = np.zeros(len(pages), np.uint64)
        words = [
            zeros.copy() if at is None else table[row, column + at // width].astype(np.uint64) for at in self._columns
        ]
        return known, words

    def _to_phys(self, bases: U64Array) -> tuple[U64Array, NDArray[np.bool_]]:
        paddrs, there = np.zeros(len(bases), np.uint64), np.ones(len(bases), np.bool_)
        for i, base in enumerate(bases.tolist()):
            try:
                paddrs[i] = self._kernel.memory.to_phys(base)
            except MemoryFault:
                there[i] = False
        return paddrs, there

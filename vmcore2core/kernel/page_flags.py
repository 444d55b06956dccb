"""``page->flags`` of many pages at once, through the virtual memory map.

References: include/linux/mm_types.h, include/linux/page-flags.h (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.kernel.bounds import PFN_END, struct_size
from vmcore2core.kernel.struct import Kernel

SIZEOF_PAGE_MAX = 256
READ_PAGES = 1 << 12
"""How many page structures are read at once."""


class PageFlags:
    """The flags of all pages.

    Raises:
        LayoutUnknown, LayoutInvalid, MemoryFault: it is not known where the page structures are.
    """

    def __init__(self, kernel: Kernel) -> None:
        vmemmap = kernel.arch.paging.vmemmap(kernel)
        if vmemmap is None:
            raise LayoutUnknown("SYMBOL(vmemmap)")
        self._kernel, self._vmemmap = kernel, vmemmap
        self._size = struct_size(kernel.layout, "page", SIZEOF_PAGE_MAX)
        self._offset = kernel.layout.member("page", "flags").offset
        self._page_size = kernel.memory.kernel_map.spec.page_size
        word = kernel.arch.pointer_size
        if not 0 <= self._offset <= self._size - word:
            raise LayoutInvalid(f"OFFSET(page.flags) is {self._offset:#x}, expected 0 to {self._size - word:#x}")
        self._dtype = np.dtype(f"{'<' if kernel.arch.byte_order == 'little' else '>'}u{word}")

    def test(self, paddrs: U64Array, bit: int) -> NDArray[np.bool_]:
        """Tell which pages have a flag set; if a page's structure is not in the dump, the flag counts as set.

        Args:
            paddrs: uint64[n], physical addresses of pages.
            bit: its number.
        """
        pfns, back = np.unique(paddrs // np.uint64(self._page_size), return_inverse=True)
        flags = np.full(len(pfns), np.uint64(1 << bit), np.uint64)
        for first, last in _runs(pfns):
            raw = self._read(int(pfns[first]), last - first)
            if raw is not None:
                records = np.frombuffer(raw, np.uint8).reshape(last - first, self._size)
                words = np.ascontiguousarray(records[:, self._offset : self._offset + self._dtype.itemsize])
                flags[first:last] = words.view(self._dtype).reshape(-1)
        found: NDArray[np.bool_] = (flags >> np.uint64(bit) & np.uint64(1)).astype(np.bool_)[back]
        return found

    def _read(self, pfn: int, count: int) -> bytes | None:
        if not 0 <= pfn < PFN_END:
            return None
        try:
            return self._kernel.memory.read(self._vmemmap + pfn * self._size, count * self._size)
        except MemoryFault:
            return None


def _runs(pfns: U64Array) -> Iterator[tuple[int, int]]:
    """Yield the runs of adjacent page frames, as first position and one behind the last."""
    breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
    for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(pfns)], strict=True):
        for at in range(first, last, READ_PAGES):
            yield at, min(at + READ_PAGES, last)

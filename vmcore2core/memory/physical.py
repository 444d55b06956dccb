"""Physical memory of the dumped machine, on top of a container's page frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from vmcore2core.addresses import PhysAddr, U8Array, U64Array
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.errors import MemoryFault, PageExcluded, PageMissing
from vmcore2core.memory.decoded import DecodedPages

CACHED_PAGES = 4096  # 16 MiB of 4 KiB pages: the kernel structures of some hundred processes
SCAN_BYTES = 4 << 20
STEPS_LOOKED_AHEAD = 64  # of 4 MiB: one query tells whether any of their pages is in the dump
FEW_PAGES = 4  # so few are read one by one: numpy takes as long for one as for twenty
BULK_PAGES = 8  # reads of this many pages or more take them in one call: kallsyms, BTF

_FAULTS: dict[int, tuple[type[MemoryFault], str]] = {
    PageState.MISSING: (PageMissing, ""),
    PageState.EXCLUDED: (PageExcluded, ""),
    PageState.TRUNCATED: (PageMissing, "the file ends before it"),
    PageState.DAMAGED: (PageMissing, "its compressed form does not decode"),
}


class PhysicalMemory:
    """``Memory`` over physical addresses; small reads are cached by page, large ones only if pages are compressed.

    Attributes:
        container: the dump.
        page_size: the container's, in bytes.
        cached_pages: how many pages the cache keeps; a capture kernel has room for few.
    """

    def __init__(self, container: DumpContainer) -> None:
        self.container = container
        self.page_size = container.page_size
        self.cached_pages = CACHED_PAGES
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        pages = container if container.compressed is None else DecodedPages(container)
        self._read_pages, self._read_page = pages.read_pages, pages.read_page

    @cached_property
    def nr_frames(self) -> int:
        """Upper bound of the number of page frames in the dump."""
        return sum(found.end - found.start for found in self.container.dumped_ranges()) // self.page_size

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at physical ``address``.

        Raises:
            PageMissing, PageExcluded: one of their pages is not in the dump.
        """
        page_size = self.page_size
        pfn, offset = divmod(address, page_size)
        if offset + size <= page_size:
            page = self._cache.get(pfn) or self._page(pfn)
            return page[offset : offset + size]
        if size >= BULK_PAGES * page_size:
            return self._bulk(address, size)
        pieces = [self._page(pfn)[offset:]]
        left = size - (page_size - offset)
        while left > 0:
            pfn += 1
            pieces.append(self._page(pfn)[:left])
            left -= page_size
        return b"".join(pieces)

    def _bulk(self, address: int, size: int) -> bytes:
        """Read many pages at once, bypassing the cache."""
        page_size = self.page_size
        first, end = address // page_size, -(-(address + size) // page_size)
        pfns = np.arange(first, end, dtype=np.uint64)
        out = np.zeros((len(pfns), page_size), np.uint8)
        states = self.container.read_pages(pfns, out)
        bad = np.flatnonzero((states != PageState.PRESENT) & (states != PageState.ZERO))
        if len(bad):
            fault, detail = _FAULTS[int(states[bad[0]])]
            raise fault(int(pfns[bad[0]]) * page_size, detail)
        offset = address - first * page_size
        return out.reshape(-1)[offset : offset + size].tobytes()

    def _page(self, pfn: int) -> bytes:
        if (page := self._cache.get(pfn)) is not None:
            return page
        if not 0 <= pfn < 1 << 52:
            raise PageMissing(pfn * self.page_size)
        page, state = self._read_page(pfn)
        if state in _FAULTS:
            fault, detail = _FAULTS[state]
            raise fault(pfn * self.page_size, detail)
        self._cache[pfn] = page
        if len(self._cache) > self.cached_pages:
            self._cache.popitem(last=False)
        return page

    def read_blocks(self, paddrs: U64Array, size: int, buffer: U8Array | None = None) -> tuple[U8Array, U8Array]:
        """Read many aligned blocks of one size.

        Args:
            paddrs: uint64[n], physical addresses, multiples of the smaller of ``size`` and the page size.
            size: bytes of a block, a power of two.
            buffer: uint8[m, size], m at least n, which may be used for the result; its contents are overwritten.

        Returns:
            uint8[n, size] and the ``PageState`` of each, uint8[n]; the worst state if a block has several pages.
            Rows that are neither present nor zero hold zeros that must not be used.
        """
        page = self.page_size
        n = len(paddrs)
        if size == page:
            out = np.zeros((n, size), np.uint8) if buffer is None else buffer[:n]
            if n <= FEW_PAGES:
                return out, self._read_few(paddrs, out)
            return out, self._read_pages(paddrs // np.uint64(page), out)
        if size > page:
            per = size // page
            pfns: U64Array = (
                (paddrs[:, None] // np.uint64(page) + np.arange(per, dtype=np.uint64)).astype(np.uint64).ravel()
            )
            out = np.zeros((n * per, page), np.uint8)
            states = self._read_pages(pfns, out).reshape(n, per)
            return out.reshape(n, size), _worst(states)
        whole, states = self.read_blocks(paddrs & ~np.uint64(page - 1), page)
        columns = (paddrs & np.uint64(page - 1)).astype(np.intp)[:, None] + np.arange(size)
        return np.take_along_axis(whole, columns, axis=1), states

    def _read_few(self, paddrs: U64Array, out: U8Array) -> U8Array:
        states = np.zeros(len(paddrs), np.uint8)
        for row, paddr in enumerate(paddrs.tolist()):
            page, states[row] = self._read_page(paddr // self.page_size)
            out[row] = np.frombuffer(page, np.uint8)
        return states

    def block_states(self, paddrs: U64Array, size: int) -> U8Array:
        """Return the states that ``read_blocks`` would return, without reading."""
        page = np.uint64(self.page_size)
        if size <= self.page_size:
            return self.container.page_states(paddrs // page)
        per = size // self.page_size
        pfns: U64Array = (paddrs[:, None] // page + np.arange(per, dtype=np.uint64)).astype(np.uint64).ravel()
        return _worst(self.container.page_states(pfns).reshape(len(paddrs), per))

    def scan(self) -> Iterator[tuple[PhysAddr, U8Array]]:
        """Yield all pages in the dump in ascending order, some MiB at a time.

        Yields:
            Physical address of the first page, and uint8[n, page_size] of consecutive pages, valid until the next ones
            are requested; absent pages are zero.
        """
        step = SCAN_BYTES // self.page_size
        buffer = np.zeros((step, self.page_size), np.uint8)
        for memory_range in self.container.dumped_ranges():
            first, last = memory_range.start // self.page_size, -(-memory_range.end // self.page_size)
            for start in range(first, last, step * STEPS_LOOKED_AHEAD):
                pfns = np.arange(start, min(start + step * STEPS_LOOKED_AHEAD, last), dtype=np.uint64)
                there = self.container.page_states(pfns) == PageState.PRESENT
                for at in range(0, len(pfns), step):
                    if there[at : at + step].any():
                        out = buffer[: len(pfns[at : at + step])]
                        self.container.read_pages(pfns[at : at + step], out)
                        yield PhysAddr((start + at) * self.page_size), out


def _worst(states: U8Array) -> U8Array:
    """Return the worst state of each row: the first that is not present; zero pages count as present."""
    usable = (states == PageState.PRESENT) | (states == PageState.ZERO)
    first_bad = np.argmin(usable, axis=1)
    rows = np.arange(len(states))
    result: U8Array = np.where(usable.all(axis=1), np.uint8(PageState.PRESENT), states[rows, first_bad])
    return result

"""Kernel virtual memory: the image in one piece, everything else through the kernel's own page table.

The walk needs no direct-map base, no vmalloc base and no vmemmap base, which are random since Linux 4.8
(CONFIG_RANDOMIZE_MEMORY) and which only some dumps tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PhysAddr, U8Array, U64Array, distinct
from vmcore2core.arch.spec import KernelMap
from vmcore2core.containers.base import PageState
from vmcore2core.errors import MemoryFault, NotMapped
from vmcore2core.memory.pagetable import KnownTables, translate, translate_many
from vmcore2core.memory.physical import PhysicalMemory

TLB_ENTRIES = 16384
GATHERED = 1024
"""Pages to read together, about: their bytes take some MiB."""
FEW_PAGES = 32
"""So few pages are looked up one by one: a walk decodes whole tables."""


class KernelMemory:
    """``Memory`` over kernel virtual addresses.

    Attributes:
        physical: the memory below.
        kernel_map: how addresses translate.
        searched: where the kernel image may be, for searches.
    """

    def __init__(self, physical: PhysicalMemory, kernel_map: KernelMap) -> None:
        self.physical = physical
        self.searched = kernel_map.searched
        self.kernel_map = kernel_map
        self._page_size = kernel_map.spec.page_size
        top = kernel_map.spec.levels[0]
        # 64-bit addresses are extended by their sign beyond what the tables decode, 32-bit ones are not.
        self._end = 1 << (32 if top.shift + top.bits == 32 else 64)
        self._frames: dict[int, int] = {}  # physical addresses of recently read pages, by their virtual addresses
        self._tables: KnownTables = {}
        self._huge: dict[int, dict[int, int]] = {}  # the same for larger pages, by their size

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at kernel virtual ``address``.

        Raises:
            NotMapped: the kernel has nothing there.
            PageMissing, PageExcluded: it is mapped, but not in the dump.
        """
        page_size = self._page_size
        offset = address & (page_size - 1)
        if offset + size <= page_size:
            base = self._frames.get(address - offset)
            return self._read(address, size, None if base is None else base + offset)
        if self._is_linear(address, size):
            return self._read(address, size)
        pieces = []
        while size > 0:
            part = min(size, page_size - (address & (page_size - 1)))
            pieces.append(self._read(address, part))
            address += part
            size -= part
        return b"".join(pieces)

    def _is_linear(self, address: int, size: int) -> bool:
        return any(m.range.start <= address and address + size <= m.range.end for m in self.kernel_map.linear)

    def _read(self, address: int, size: int, paddr: int | None = None) -> bytes:
        try:
            return self.physical.read(self.to_phys(address) if paddr is None else paddr, size)
        except NotMapped:
            raise
        except MemoryFault as fault:
            raise type(fault)(address, f"physical {fault.address:#x}") from None

    def read_many(self, addresses: U64Array, size: int) -> tuple[U8Array, NDArray[np.bool_]]:
        """Read the same number of bytes at each of many addresses, page by page.

        Args:
            addresses: uint64[n], kernel virtual addresses, in any order.
            size: bytes at each; at most a page.

        Returns:
            uint8[n, size], and bool[n], whether all bytes of a row could be read; other rows are zeros that must not be
            used.
        """
        [found] = self.read_parts(addresses, [(0, size)])
        return found

    def read_parts(
        self, addresses: U64Array, parts: Sequence[tuple[int, int]]
    ) -> list[tuple[U8Array, NDArray[np.bool_]]]:
        """Read parts of each of many structures, so that each page is read once for all parts.

        Args:
            addresses: uint64[n], kernel virtual addresses, in any order.
            parts: offset and size of each; at most a page.

        Returns:
            For each part what ``read_many`` returns.
        """
        found = [(np.zeros((len(addresses), size), np.uint8), np.zeros(len(addresses), np.bool_)) for _, size in parts]
        order = np.argsort(addresses, kind="stable")
        step = GATHERED // max(1, len({offset // self._page_size for offset, _ in parts}))
        for at in range(0, len(order), step):
            rows = order[at : at + step]
            for (raw, there), gathered in zip(found, self._gather(addresses[rows], parts), strict=True):
                raw[rows], there[rows] = gathered
        for raw, there in found:
            raw[~there] = 0
        return found

    def _gather(
        self, addresses: U64Array, parts: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[U8Array, NDArray[np.bool_]]]:
        page_mask = ~np.uint64(self._page_size - 1)
        # A torn layout may have offsets that lead out of the address space, on either side.
        starts = [addresses + np.uint64(offset % (1 << 64)) for offset, _ in parts]
        lows = [start & page_mask for start in starts]
        highs = [start + np.uint64(size - 1) & page_mask for start, (_, size) in zip(starts, parts, strict=True)]
        pages = distinct(np.concatenate((*lows, *highs)))
        content, known = self._read_whole(pages)
        for start, low, high, (_, size) in zip(starts, lows, highs, parts, strict=True):
            first, last = np.searchsorted(pages, low), np.searchsorted(pages, high)
            # For data that crosses into the next page, put both pages one behind the other.
            places = (first * self._page_size + (start - low).astype(np.int64))[:, None] + np.arange(size)
            there = known[first] & known[last] & (high >= low) & (start >= addresses)
            yield np.take(content.reshape(-1), places, mode="clip"), there

    def _read_whole(self, pages: U64Array) -> tuple[U8Array, NDArray[np.bool_]]:
        """Return pages, and whether they could be read."""
        content, (paddrs, known) = np.zeros((len(pages), self._page_size), np.uint8), self._located(pages)
        content[known], states = self.physical.read_blocks(paddrs[known], self._page_size)
        known[known] = (states == PageState.PRESENT) | (states == PageState.ZERO)
        return content, known

    def _located(self, pages: U64Array) -> tuple[U64Array, NDArray[np.bool_]]:
        """Return the physical address of each of the pages, ascending and distinct; and whether it is mapped."""
        if len(pages) <= FEW_PAGES:
            mapped = np.array([self._is_mapped(page) for page in pages.tolist()], np.bool_)
            found = [self.to_phys(page) if there else 0 for page, there in zip(pages.tolist(), mapped, strict=True)]
            return np.array(found, np.uint64), mapped
        paddrs, known = np.zeros(len(pages), np.uint64), np.zeros(len(pages), np.bool_)
        for linear in self.kernel_map.linear:
            start, last = np.uint64(linear.range.start), np.uint64(linear.range.end - 1)
            inside = (pages >= start) & (pages <= last) & ~known
            paddrs[inside], known[inside] = pages[inside] - start + np.uint64(linear.paddr), True
        rest = np.flatnonzero(~known & (pages <= np.uint64(self._end - 1)))
        paddrs[rest], known[rest] = translate_many(
            self.physical, self.kernel_map.spec, self.kernel_map.root, pages[rest]
        )
        return paddrs, known

    def _is_mapped(self, address: int) -> bool:
        try:
            self.to_phys(address)
        except MemoryFault:
            return False
        return True

    def are_mapped(self, addresses: U64Array) -> NDArray[np.bool_]:
        """Tell at which addresses the kernel has memory, bool[n]."""
        pages, which = np.unique(addresses & ~np.uint64(self._page_size - 1), return_inverse=True)
        return self._located(pages)[1][which]

    def to_phys(self, address: int) -> PhysAddr:
        """Return the physical address of kernel virtual ``address``.

        Raises:
            MemoryFault: it is not mapped, or a page table is not in the dump.
        """
        offset = address & (self._page_size - 1)
        base = self._frames.get(address - offset)
        if base is not None:
            return PhysAddr(base + offset)
        for mapping in self.kernel_map.linear:
            if mapping.range.start <= address < mapping.range.end:
                paddr = mapping.paddr + address - mapping.range.start
                if self._is_linear(address - offset, self._page_size):
                    self._remember(self._frames, address - offset, paddr - offset)
                return PhysAddr(paddr)
        for size, pages in self._huge.items():
            base = pages.get(address & -size)
            if base is not None:
                return self._found(address, base + (address & (size - 1)))
        if not 0 <= address < self._end:
            raise NotMapped(address)
        base, size = translate(self.physical, self.kernel_map.spec, self.kernel_map.root, address, self._tables)
        if size > self._page_size:
            self._remember(self._huge.setdefault(size, {}), address & -size, base)
        return self._found(address, base + (address & (size - 1)))

    def _found(self, address: int, paddr: int) -> PhysAddr:
        offset = address & (self._page_size - 1)
        self._remember(self._frames, address - offset, paddr - offset)
        return PhysAddr(paddr)

    @staticmethod
    def _remember(pages: dict[int, int], address: int, base: int) -> None:
        if len(pages) >= TLB_ENTRIES:
            pages.clear()
        pages[address] = base

"""Segments of physical memory in a file, turned into runs of page frames for fast lookups."""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import PageState


@dataclass(frozen=True, slots=True)
class PageRuns:
    """Runs of page frames ``[start[i], end[i])`` with their bytes from ``offset[i]`` in the file on.

    Attributes:
        page_size: bytes.
        start: uint64[n], page frames, ascending.
        end: uint64[n], page frames; ``end[i] <= start[i + 1]``.
        offset: uint64[n], file offset of page ``start[i]``.
        memory: the address ranges that the file describes, with or without their bytes.
    """

    page_size: int
    start: U64Array
    end: U64Array
    offset: U64Array
    memory: tuple[AddressRange, ...]
    _memory_start: U64Array
    _memory_end: U64Array

    @property
    def nr_pages(self) -> int:
        """Pages that have bytes."""
        return int((self.end - self.start).sum())

    def _pages_within(self, size: int) -> U64Array:
        """Return how many pages of each run lie wholly in the first ``size`` bytes of the file."""
        room = np.maximum(np.uint64(size), self.offset) - self.offset
        pages: U64Array = np.minimum(self.end - self.start, room // np.uint64(self.page_size))
        return pages

    def pages_beyond(self, size: int) -> int:
        """Return how many pages do not lie wholly in the first ``size`` bytes of the file."""
        return self.nr_pages - int(self._pages_within(size).sum())

    def dumped(self, size: int) -> tuple[AddressRange, ...]:
        """Return the address ranges whose pages lie wholly in the first ``size`` bytes of the file."""
        pages = self._pages_within(size)
        there = pages > 0
        start, end = merge_ranges(self.start[there], (self.start + pages)[there])
        page_size = np.uint64(self.page_size)
        ranges = zip((start * page_size).tolist(), (end * page_size).tolist(), strict=True)
        return tuple(AddressRange(*r) for r in ranges)

    def locate(self, pfns: U64Array, file_size: int) -> tuple[U8Array, U64Array]:
        """Return the state of each page frame, uint8[n], and the offset of its bytes in the file, uint64[n]."""
        pfns = np.asarray(pfns, dtype=np.uint64)
        page_size = np.uint64(self.page_size)
        present, run = _within(pfns, self.start, self.end)
        offsets = np.zeros(len(pfns), dtype=np.uint64)
        offsets[present] = self.offset[run[present]] + (pfns[present] - self.start[run[present]]) * page_size
        room = np.uint64(max(0, file_size - self.page_size))
        fits = (offsets <= room) & (file_size >= self.page_size)
        states = np.where(fits, np.uint8(PageState.PRESENT), np.uint8(PageState.TRUNCATED))
        if not present.all():
            absent = ~present
            within = _within(pfns[absent], self._memory_start, self._memory_end)[0]
            states[absent] = np.where(within, np.uint8(PageState.EXCLUDED), np.uint8(PageState.MISSING))
        return states, offsets

    def locate_page(self, pfn: int, file_size: int) -> tuple[PageState, int]:
        """Return the state of one page frame and the offset of its bytes in the file, as ``locate`` does for many."""
        run = bisect_right(self.start, pfn) - 1
        if run >= 0 and pfn < self.end[run]:
            offset = int(self.offset[run]) + (pfn - int(self.start[run])) * self.page_size
            return (PageState.PRESENT if offset + self.page_size <= file_size else PageState.TRUNCATED), offset
        memory = bisect_right(self._memory_start, pfn) - 1
        within = memory >= 0 and pfn < self._memory_end[memory]
        return (PageState.EXCLUDED if within else PageState.MISSING), 0


def _within(pfns: U64Array, start: U64Array, end: U64Array) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Return whether each page frame is in a run, and the index of that run."""
    run = np.searchsorted(start, pfns, side="right") - 1
    if not len(start):
        return np.zeros(len(pfns), dtype=np.bool_), run
    return (run >= 0) & (pfns < end[np.maximum(run, 0)]), run


def page_runs(segments: NDArray[np.void], page_size: int) -> PageRuns:
    """Return the page frames that ``segments`` cover completely; if two segments have a page, the first one counts.

    /proc/vmcore has the kernel's text twice: as a segment of its own and in the RAM around it.

    Args:
        segments: structured array with p_paddr, p_offset, p_filesz, p_memsz, none of which wraps around.
        page_size: bytes.
    """
    paddr = segments["p_paddr"].astype(np.uint64)
    memory_start, memory_end = merge_ranges(paddr, paddr + segments["p_memsz"].astype(np.uint64))
    start, end, offset = _disjoint(*_whole_pages(segments, page_size), page_size)
    ranges = zip(memory_start.tolist(), memory_end.tolist(), strict=True)
    return PageRuns(
        page_size=page_size,
        start=start,
        end=end,
        offset=offset,
        memory=tuple(AddressRange(*r) for r in ranges),
        _memory_start=_round_up(memory_start, page_size),
        _memory_end=memory_end // np.uint64(page_size),
    )


def merge_ranges(start: U64Array, end: U64Array) -> tuple[U64Array, U64Array]:
    """Return the union of the ranges ``[start[i], end[i])``, ascending, disjoint and not touching."""
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    first = np.ones(len(start), dtype=np.bool_)
    first[1:] = start[1:] > reach[:-1]
    last = np.append(first[1:], True)
    return start[first], reach[last]


def _round_up(addresses: U64Array, page_size: int) -> U64Array:
    """Return the first page frame at or above each address; adding page_size - 1 could wrap around."""
    whole, rest = np.divmod(addresses, np.uint64(page_size))
    result: U64Array = whole + (rest != 0)
    return result


def _whole_pages(segments: NDArray[np.void], page_size: int) -> tuple[U64Array, U64Array, U64Array, NDArray[np.intp]]:
    """Return first and last page frame, file offset and rank of each segment, by address.

    A segment that continues the previous one, in memory and in the file, is joined to it, so that a page across the
    border is complete.
    """
    rank = np.argsort(segments["p_paddr"], kind="stable")
    paddr = segments["p_paddr"][rank].astype(np.uint64)
    size = segments["p_filesz"][rank].astype(np.uint64)
    offset = segments["p_offset"][rank].astype(np.uint64)
    first = np.ones(len(paddr), dtype=np.bool_)
    first[1:] = (paddr[:-1] + size[:-1] != paddr[1:]) | (offset[:-1] + size[:-1] != offset[1:])
    last = np.append(first[1:], True)
    start_address, end_address = paddr[first], (paddr + size)[last]
    start, end = _round_up(start_address, page_size), end_address // np.uint64(page_size)
    offset = offset[first] + (start * np.uint64(page_size) - start_address)
    keep = end > start
    return start[keep], end[keep], offset[keep], rank[first][keep]


def _disjoint(
    start: U64Array, end: U64Array, offset: U64Array, rank: NDArray[np.intp], page_size: int
) -> tuple[U64Array, U64Array, U64Array]:
    """Return disjoint runs; if runs overlap, the one with the lowest rank gets the pages."""
    if not (end[:-1] > start[1:]).any():
        return start, end, offset
    runs = sorted(zip(start.tolist(), end.tolist(), offset.tolist(), rank.tolist(), strict=True))
    borders = sorted({border for run in runs for border in run[:2]})
    pieces: list[tuple[int, int, int]] = []
    active: list[tuple[int, int, int, int]] = []
    nr_begun = 0
    for here, there in itertools.pairwise(borders):
        while nr_begun < len(runs) and runs[nr_begun][0] <= here:
            run_start, run_end, run_offset, run_rank = runs[nr_begun]
            heapq.heappush(active, (run_rank, run_end, run_start, run_offset))
            nr_begun += 1
        while active and active[0][1] <= here:
            heapq.heappop(active)
        if active:
            _, _, run_start, run_offset = active[0]
            pieces.append((here, there, run_offset + (here - run_start) * page_size))
    table = np.array(pieces, dtype=np.uint64).reshape(-1, 3)
    return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()

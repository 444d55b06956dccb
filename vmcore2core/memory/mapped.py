"""The pages that a process's page tables map.

Neighbours share page tables, and callers read stacks and libraries page by page: the regions of a group are walked
together, and the result is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PhysAddr, PhysAddrs, SwapEntries, U64Array
from vmcore2core.arch.spec import PageTableSpec
from vmcore2core.memory.pages import LAST_KNOWN, PageReader, Pages, SwapSpace, UserPageState
from vmcore2core.memory.pagetable import Ranges, RunKind, WalkBatch, walk
from vmcore2core.memory.region import Region

GROUP_PAGES = 1 << 18
"""Pages of the regions whose page tables are walked together; a larger region is walked alone, window by window."""
REMEMBERED_GROUPS = 4
Group = tuple[int, int]
"""Index of a group's first region, and one after its last."""

_OF_RUN_KIND = np.zeros(256, np.uint8)
_OF_RUN_KIND[RunKind.LEAF] = UserPageState.PRESENT
_OF_RUN_KIND[RunKind.NOT_PRESENT] = UserPageState.SWAPPED
_OF_RUN_KIND[RunKind.BAD] = UserPageState.TABLE_BROKEN
_OF_RUN_KIND[RunKind.TABLE_MISSING] = UserPageState.TABLE_MISSING
_OF_RUN_KIND[RunKind.TOO_MANY] = UserPageState.TABLE_BROKEN


class _Walked(NamedTuple):
    """The pages of a group of regions.

    Attributes:
        pages: ascending.
        unknown: uint64[n], the addresses whose bytes are not known.
        located: whether the pages were looked up in the dump; if not, some are swapped out.
    """

    pages: Pages
    unknown: U64Array
    located: bool


class MappedPages:
    """The pages that the page tables of one process map.

    Args:
        reader: looks pages up.
        spec: form of the page tables.
        root: of the top table.
        regions: of the process, ascending.
    """

    def __init__(self, reader: PageReader, spec: PageTableSpec, root: PhysAddr, regions: Sequence[Region]) -> None:
        self._reader, self._spec, self._root, self._regions = reader, spec, root, regions
        self._groups = _groups(regions, spec.page_size)
        self._remembered: OrderedDict[Group, _Walked] = OrderedDict()

    def take_walks(self, other: MappedPages) -> None:
        """Take over the walks of groups with the same ranges."""
        for (first, end), walked in other._remembered.items():
            ours, theirs = self._regions[first:end], other._regions[first:end]
            same = [(region.start, region.end) for region in ours] == [(region.start, region.end) for region in theirs]
            if same and self.group(theirs[0]) == (first, end):
                self._remembered[first, end] = walked

    def forget_walks(self) -> None:
        """Drop the remembered walks, which are large."""
        self._remembered.clear()

    def group(self, region: Region) -> Group | None:
        """Return the group of a region; None for a region that is walked alone."""
        return self._groups.get(region.start)

    def unknown(self, group: Group) -> U64Array:
        """Return the addresses of a group's pages whose bytes are not known; all of them if some are swapped out."""
        return self._walked(group).unknown

    def pages(self, region: Region, start: int, end: int) -> Pages:
        """Return the pages of ``[start, end)``, which may reach into other regions of the group; do not change them."""
        group = self.group(region)
        if group is None:
            return self._reader.locate(self._walk(np.array([start], np.uint64), np.array([end], np.uint64)))
        walked = self._walked(group)
        part = slice(*np.searchsorted(walked.pages.at, np.array([start, end], np.uint64)).tolist())
        pages = walked.pages[part]
        return pages if walked.located else self._reader.locate(pages.copy())

    def count(self, regions: Sequence[Region], stop: int | None = None) -> int:
        """Return how many pages are mapped in some regions; ranges with too many tables count as mapped.

        Args:
            regions: the regions.
            stop: stop counting when there are more than this.
        """
        page, count = np.uint64(self._spec.page_size), 0
        for batch in walk(self._reader.memory, self._spec, self._root, Ranges(*_edges(regions))):
            leaf = (batch.kind == RunKind.LEAF) | (batch.kind == RunKind.TOO_MANY)
            count += int((batch.size[leaf] // page).sum())
            if stop is not None and count > stop:
                break
        return count

    def _walked(self, group: Group) -> _Walked:
        if group not in self._remembered:
            pages = self._walk(*_edges(self._regions[slice(*group)]))
            # The swap space counts lookups: look pages up only for callers that need them.
            located = self._reader.swap is None or not (pages.state == UserPageState.SWAPPED).any()
            if located:
                pages = self._reader.locate(pages)
            unknown = pages.at[pages.state > LAST_KNOWN] if located else pages.at
            self._remembered[group] = _Walked(pages, unknown, located)
            if len(self._remembered) > REMEMBERED_GROUPS:
                self._remembered.popitem(last=False)
        return self._remembered[group]

    def _walk(self, starts: U64Array, ends: U64Array) -> Pages:
        ranges = Ranges(starts, ends)
        batches = walk(self._reader.memory, self._spec, self._root, ranges)
        return Pages.joined([_pages_of(batch, ranges, self._spec.page_size, self._reader.swap) for batch in batches])


def _edges(regions: Sequence[Region]) -> tuple[U64Array, U64Array]:
    return np.array([r.start for r in regions], np.uint64), np.array([r.end for r in regions], np.uint64)


def _groups(regions: Sequence[Region], page: int) -> dict[int, Group]:
    """Return the group of each region, by its start."""
    groups: dict[int, Group] = {}
    at = 0
    while at < len(regions):
        end, pages = at, 0
        while end < len(regions) and pages + (size := (regions[end].end - regions[end].start) // page) <= GROUP_PAGES:
            end, pages = end + 1, pages + size
        groups |= dict.fromkeys((int(region.start) for region in regions[at:end]), (at, end))
        at = max(end, at + 1)
    return groups


def _pages_of(batch: WalkBatch, ranges: Ranges, page: int, swap: SwapSpace | None) -> Pages:
    """Cut a batch's entries, including huge ones, into pages within the ranges."""
    batch, within_range = _each_range(batch, ranges)
    low = np.maximum(batch.vaddr, ranges.starts[within_range])
    high = np.minimum(batch.vaddr + batch.size, ranges.ends[within_range])
    count = ((high - low) // np.uint64(page)).astype(np.int64)
    row: slice | NDArray[np.intp] = slice(None)
    nth = (low - batch.vaddr) // np.uint64(page)  # page of its entry
    if (count != 1).any():
        row = np.repeat(np.arange(len(count)), count)
        nth = nth[row] + (np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)).astype(np.uint64)
    at = batch.vaddr[row] + nth * np.uint64(page)
    pages = Pages.in_memory(at, PhysAddrs(batch.paddr[row] + nth * np.uint64(page)))
    pages.state[:] = _OF_RUN_KIND[batch.kind[row]]
    swapped = batch.kind == RunKind.NOT_PRESENT
    if swapped.any():
        entries = np.zeros(len(count), np.uint64)
        entries[swapped] = 0 if swap is None else swap.entries(batch.entry[swapped], batch.size[swapped])
        entries, away = entries[row], swapped[row]
        entries += nth * (entries != 0)  # within a huge page, they increase by one for each page
        pages.put(away, Pages.in_swap(at[away], SwapEntries(entries[away])))
    return pages


def _each_range(batch: WalkBatch, ranges: Ranges) -> tuple[WalkBatch, NDArray[np.int64]]:
    """Repeat each entry of a batch for each range that it overlaps; return the entries and these ranges' indices."""
    first = np.searchsorted(ranges.ends, batch.vaddr, side="right")
    count = np.searchsorted(ranges.starts, batch.vaddr + (batch.size - np.uint64(1)), side="right") - first
    if (count == 1).all():
        return batch, first
    again = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(again)) - np.repeat(np.cumsum(count) - count, count)
    entries = WalkBatch(
        batch.vaddr[again], batch.size[again], batch.paddr[again], batch.kind[again], batch.entry[again]
    )
    return entries, first[again] + within

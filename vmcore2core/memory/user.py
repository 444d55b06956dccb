"""One process's memory: the state of each page of its mappings, and the bytes of the known pages."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PhysAddr, U8Array, U64Array, UserAddr
from vmcore2core.arch.spec import PageTableSpec
from vmcore2core.containers.base import PageState
from vmcore2core.memory.pagetable import Ranges, RunKind, WalkBatch, walk
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.memory.region import LAST_KNOWN, Original, Region, SwapSpace, UserPageState

WINDOW_PAGES = 1 << 20  # pages resolved together: bounds the arrays to some tens of MiB
BATCH_SIZE = 1 << 20
"""Bytes of pages to read together: few enough to be still in the processor's cache when they are written."""
GROUP_PAGES = 1 << 18
"""Pages of the regions whose page tables are walked together; a larger region is walked alone, window by window."""
REMEMBERED_GROUPS = 4
READ_MAX = 1 << 24  # most bytes of one read(); use batches() for more


_OF_PAGE_STATE = np.zeros(256, np.uint8)
_OF_PAGE_STATE[PageState.MISSING] = UserPageState.NOT_IN_DUMP
_OF_PAGE_STATE[PageState.EXCLUDED] = UserPageState.EXCLUDED
_OF_PAGE_STATE[PageState.ZERO] = UserPageState.ZERO
_OF_PAGE_STATE[PageState.TRUNCATED] = UserPageState.TRUNCATED
_OF_PAGE_STATE[PageState.DAMAGED] = UserPageState.DAMAGED
_OF_PAGE_STATE[PageState.PRESENT] = UserPageState.PRESENT

_OF_RUN_KIND = {
    RunKind.NOT_PRESENT: UserPageState.SWAPPED,
    RunKind.BAD: UserPageState.TABLE_BROKEN,
    RunKind.TABLE_MISSING: UserPageState.TABLE_MISSING,
    RunKind.TOO_MANY: UserPageState.TABLE_BROKEN,
}


class StateRun(NamedTuple):
    """``[start, end)`` of one state."""

    start: UserAddr
    end: UserAddr
    state: UserPageState


@dataclass(frozen=True)
class Survey:
    """A region's pages: pages per state, and the runs whose bytes are not known, ascending."""

    counts: Counter[UserPageState]
    unknown: tuple[StateRun, ...]


Pages = tuple[U64Array, U64Array, U8Array]
"""Page addresses, physical addresses and ``UserPageState``; see ``UserMemory._resolve``."""
Piece = tuple[Region, int, int]
"""A region, and a range ``[start, end)`` within it."""


class _Walked(NamedTuple):
    """The pages that the page tables of a group of regions map.

    Attributes:
        vaddr, paddr, state: as ``UserMemory._resolve`` returns them.
        unknown: uint64[n], the addresses whose bytes are not known.
        located: whether the pages were looked up in the dump; if not, some are swapped out.
    """

    vaddr: U64Array
    paddr: U64Array
    state: U8Array
    unknown: U64Array
    located: bool


class UserMemory:
    """The memory of one process; a ``PageStream`` for the core writer.

    Attributes:
        damaged: addresses of pages that turned out unreadable only when they were read; a later survey
            counts them as ``DAMAGED``.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        spec: PageTableSpec,
        root: PhysAddr,
        regions: tuple[Region, ...],
        swap: SwapSpace | None = None,
    ) -> None:
        self.memory, self.spec, self.root, self.swap = memory, spec, root, swap
        self.regions = regions
        self._starts = [int(region.start) for region in regions]
        self._groups = _groups(regions, spec.page_size)
        self.damaged: set[int] = set()
        self._remembered: OrderedDict[tuple[int, int], _Walked] = OrderedDict()
        self._surveys: dict[Region, tuple[int, Survey]] = {}

    def with_regions(self, regions: tuple[Region, ...]) -> UserMemory:
        """Return the memory with other regions; if their ranges are the same, the page tables are not walked again."""
        found = UserMemory(self.memory, self.spec, self.root, regions, self.swap)
        for (first, end), walked in self._remembered.items():
            same = [(r.start, r.end) for r in regions[first:end]] == [(r.start, r.end) for r in self.regions[first:end]]
            if same and found._groups.get(self.regions[first].start) == (first, end):
                found._remembered[first, end] = walked
        return found

    def forget_walks(self) -> None:
        """Drop the remembered walks, which are large; keep the surveys."""
        self._remembered.clear()

    def survey(self, region: Region) -> Survey:
        """Return the states of a region's pages, without reading the pages; each region is surveyed once."""
        nr_damaged, survey = self._surveys.get(region, (-1, None))
        if survey is None or nr_damaged != len(self.damaged):
            survey = self._survey(region)
            self._surveys[region] = len(self.damaged), survey
        return survey

    def _survey(self, region: Region) -> Survey:
        counts: Counter[UserPageState] = Counter()
        unknown: list[StateRun] = []
        page = self.spec.page_size
        if region.broken:
            run = StateRun(region.start, region.end, UserPageState.TABLE_BROKEN)
            return Survey(Counter({run.state: (run.end - run.start) // page}), (run,))
        for start, end in _windows(region.start, region.end, page):
            vaddr, _, state = self._resolve(region, start, end)
            per_state = np.bincount(state, minlength=len(UserPageState))
            counts.update({s: int(per_state[s]) for s in UserPageState if per_state[s]})
            counts[UserPageState.ZERO] += (end - start) // page - len(vaddr) if region.zero_fill else 0
            bad = state > LAST_KNOWN
            _append_runs(unknown, vaddr[bad], state[bad], page)
            if not region.zero_fill:
                lost = _complement(vaddr, start, end, page)
                for gap_start, gap_end in lost:
                    counts[UserPageState.NOT_CACHED] += (gap_end - gap_start) // page
                    unknown.append(StateRun(UserAddr(gap_start), UserAddr(gap_end), UserPageState.NOT_CACHED))
        unknown.sort(key=lambda run: run.start)
        return Survey(counts, _merged(unknown))

    def is_known(self, region: Region) -> bool:
        """Tell whether the bytes of all pages of a region are known, as far as that shows without a survey."""
        group = self._plain_group((region, region.start, region.end))
        if group is None or not region.zero_fill or region.broken or self.damaged:
            return False
        unknown = self._walked(group).unknown
        edges = np.array([region.start, region.end], np.uint64)
        return not len(unknown) or not np.diff(np.searchsorted(unknown, edges)).any()

    def known(self, region: Region) -> Iterator[Pages]:
        """Yield the touched pages of a region whose bytes are known.

        Returns:
            Ascending page address, uint64[n]; physical address, uint64[n], or swp_entry_t of ``STORED`` pages;
            ``UserPageState`` as uint8[n].
        """
        for start, end in () if region.broken else _windows(region.start, region.end, self.spec.page_size):
            vaddr, paddr, state = self._resolve(region, start, end)
            there = (state != UserPageState.ZERO) & (state <= LAST_KNOWN)
            yield vaddr[there], paddr[there], state[there]

    def resident_pages(self, left_out: Collection[int] = ()) -> int:
        """Return how many pages the page tables map, in all regions except those that start at ``left_out``."""
        regions = [region for region in self.regions if region.start not in left_out and not region.broken]
        return self.nr_mapped(regions)

    def nr_mapped(self, regions: Sequence[Region], stop: int | None = None) -> int:
        """Return how many pages the page tables map in some regions; ranges with too many tables count as mapped.

        Args:
            regions: the regions.
            stop: stop counting when there are more than this.
        """
        starts, ends = (np.array(edges, np.uint64) for edges in ([r.start for r in regions], [r.end for r in regions]))
        ranges = Ranges(starts, ends)
        page, count = np.uint64(self.spec.page_size), 0
        for batch in walk(self.memory, self.spec, self.root, ranges):
            leaf = (batch.kind == RunKind.LEAF) | (batch.kind == RunKind.TOO_MANY)
            count += int((batch.size[leaf] // page).sum())
            if stop is not None and count > stop:
                break
        return count

    def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[U64Array, U8Array]]:
        """Yield (addresses, pages) of the ranges; a range may span regions."""
        for group, pieces in itertools.groupby(self._pieces(ranges), self._plain_group):
            if group is not None:
                yield from self._read_in_batches(*self._resolve_group(group, list(pieces)), None)
                continue
            for region, low, high in pieces:
                for start, end in _windows(low, high, self.spec.page_size):
                    yield from self._read_in_batches(*self._resolve(region, start, end), region.original)

    def _pieces(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Piece]:
        """Yield the parts of ranges that are in regions whose page tables we believe."""
        for start, end in ranges:
            for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self.regions)):
                region = self.regions[index]
                if region.start >= end:
                    break
                if region.end > start and not region.broken:
                    yield region, max(start, region.start), min(end, region.end)

    def _plain_group(self, piece: Piece) -> tuple[int, int] | None:
        """Return the group of a region whose pages all come from its page tables; None for other regions."""
        region = piece[0]
        return self._groups.get(region.start) if region.backing is None and region.original is None else None

    def _resolve_group(self, group: tuple[int, int], pieces: Sequence[Piece]) -> Pages:
        """Return what ``_resolve`` returns, for parts of plain regions of one group."""
        low, high = (np.array([piece[i] for piece in pieces], np.uint64) for i in (1, 2))
        vaddr, paddr, state = self._of_tables(pieces[0][0], int(low[0]), int(high[-1]))
        if len(pieces) > 1:
            inside = low[np.searchsorted(low, vaddr, side="right") - 1] <= vaddr
            inside &= vaddr < high[np.searchsorted(low, vaddr, side="right") - 1]
            vaddr, paddr, state = vaddr[inside], paddr[inside], state[inside]
        return self._with_damaged(vaddr, paddr, state)

    def _read_in_batches(
        self, vaddr: U64Array, paddr: U64Array, state: U8Array, original: Original | None
    ) -> Iterator[tuple[U64Array, U8Array]]:
        page = self.spec.page_size
        there = (state != UserPageState.ZERO) & (state <= LAST_KNOWN)
        vaddr, paddr, state = vaddr[there], paddr[there], state[there]
        count = max(BATCH_SIZE // page, 1)
        buffer = np.empty((min(count, len(vaddr)), page), np.uint8)
        for at in range(0, len(vaddr), count):
            batch = slice(at, at + count)
            yield self._read(vaddr[batch], paddr[batch], state[batch], original, buffer)

    def read(self, address: int, size: int) -> bytes | None:
        """Return user memory at ``address``, or None if any byte of it is not known."""
        if not 0 <= size <= READ_MAX:
            return None
        page = self.spec.page_size
        start, end = address & ~(page - 1), -(-(address + size) // page) * page
        data = bytearray(end - start)
        at, damaged = start, len(self.damaged)
        for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self.regions)):
            region = self.regions[index]
            if region.start >= end:
                break
            if region.end <= at:
                continue
            if region.start > at:
                return None
            low, high = at, min(end, region.end)
            if region.broken:
                return None
            found = self._resolve(region, low, high)
            if (found[2] > LAST_KNOWN).any() or (not region.zero_fill and len(found[0]) < (high - low) // page):
                return None
            for vaddr, pages in self._read_in_batches(*found, region.original):
                for i, v in enumerate(vaddr):
                    data[int(v) - start : int(v) - start + page] = pages[i].tobytes()
            at = high
        if len(self.damaged) != damaged:  # a page in the dump turned out not to decode
            return None
        return bytes(data[address - start : address - start + size]) if at >= end else None

    def _read(
        self, vaddr: U64Array, paddr: U64Array, state: U8Array, original: Original | None, buffer: U8Array
    ) -> tuple[U64Array, U8Array]:
        here = state == UserPageState.PRESENT
        pages, states = self.memory.read_blocks(paddr[here], self.spec.page_size, buffer)
        good = (states == PageState.PRESENT) | (states == PageState.ZERO)
        if not here.all():
            present, present_good = pages, good
            pages, good = np.zeros((len(vaddr), self.spec.page_size), np.uint8), np.zeros(len(vaddr), np.bool_)
            pages[here], good[here] = present, present_good
            stored, from_file = state == UserPageState.STORED, state == UserPageState.ORIGINAL
            if self.swap is not None and stored.any():
                pages[stored], good[stored] = self.swap.read(paddr[stored])
            if original is not None and from_file.any():
                pages[from_file], good[from_file] = original.read(paddr[from_file])
        if not good.all():
            self.damaged.update(int(v) for v in vaddr[~good])
            return vaddr[good], pages[good]
        return vaddr, pages

    def _resolve(self, region: Region, start: int, end: int) -> Pages:
        """Return all pages of ``[start, end)``, except those about which we only know that they were never touched.

        Returns:
            Ascending page address uint64[n], physical address uint64[n] (for ``STORED`` and ``ORIGINAL`` pages, the
            argument of ``SwapSpace.read`` and ``Original.read``), ``UserPageState`` uint8[n].
        """
        vaddr, paddr, state = self._of_tables(region, start, end)
        if region.backing is not None:
            vaddr, paddr, state = self._with_backing(region, start, end, vaddr, paddr, state)
        if region.original is not None:
            vaddr, paddr, state = self._with_original(region, start, end, vaddr, paddr, state)
        return self._with_damaged(vaddr, paddr, state)

    def _with_damaged(self, vaddr: U64Array, paddr: U64Array, state: U8Array) -> Pages:
        if self.damaged:
            state[np.isin(vaddr, np.fromiter(self.damaged, np.uint64, len(self.damaged)))] = UserPageState.DAMAGED
        return vaddr, paddr, state

    def _of_tables(self, region: Region, start: int, end: int) -> Pages:
        """Return the pages of ``[start, end)`` by the page tables alone, in the form of ``_resolve``.

        Neighbours share page tables, and callers read stacks and libraries page by page: we walk the regions of a group
        together and remember the result. The range may reach into other regions of the group.
        """
        group = self._groups.get(region.start)
        if group is None:
            return self._located(*self._walk(_u64(start), _u64(end)))
        walked = self._walked(group)
        part = slice(*np.searchsorted(walked.vaddr, np.array([start, end], np.uint64)).tolist())
        pages = walked.vaddr[part].copy(), walked.paddr[part].copy(), walked.state[part].copy()
        return pages if walked.located else self._located(*pages)

    def _walked(self, group: tuple[int, int]) -> _Walked:
        if group not in self._remembered:
            regions = self.regions[slice(*group)]
            starts, ends = (
                np.array(edges, np.uint64) for edges in ([r.start for r in regions], [r.end for r in regions])
            )
            vaddr, paddr, state = self._walk(starts, ends)
            # The swap space counts lookups: look pages up only for callers that need them.
            located = self.swap is None or not (state == UserPageState.SWAPPED).any()
            if located:
                vaddr, paddr, state = self._located(vaddr, paddr, state)
            unknown = vaddr[state > LAST_KNOWN] if located else vaddr
            self._remembered[group] = _Walked(vaddr, paddr, state, unknown, located)
            if len(self._remembered) > REMEMBERED_GROUPS:
                self._remembered.popitem(last=False)
        return self._remembered[group]

    def _located(self, vaddr: U64Array, paddr: U64Array, state: U8Array) -> Pages:
        """Return pages after looking up swapped ones in the swap space, and those in memory in the dump."""
        vaddr, paddr, state = self._with_swap(vaddr, paddr, state)
        here = state == UserPageState.PRESENT
        if here.any():
            state[here] = _OF_PAGE_STATE[self.memory.block_states(paddr[here], self.spec.page_size)]
        return vaddr, paddr, state

    def _walk(self, starts: U64Array, ends: U64Array) -> Pages:
        ranges = Ranges(starts, ends)
        batches = walk(self.memory, self.spec, self.root, ranges)
        return _joined([_pages_of(batch, ranges, self.spec.page_size, self.swap) for batch in batches])

    def _with_swap(self, vaddr: U64Array, paddr: U64Array, state: U8Array) -> Pages:
        """Look up the pages whose swp_entry_t is known; drop those that have only a marker."""
        swapped = (state == UserPageState.SWAPPED) & (paddr != 0)
        if self.swap is None or not swapped.any():
            return vaddr, paddr, state
        paddr[swapped], state[swapped] = self.swap.locate(paddr[swapped])
        touched = state != UserPageState.UNTOUCHED
        return vaddr[touched], paddr[touched], state[touched]

    def _with_original(
        self, region: Region, start: int, end: int, vaddr: U64Array, paddr: U64Array, state: U8Array
    ) -> Pages:
        """Take pages that are not in memory from the original file, and if it is safe, those left out of the dump."""
        assert region.original is not None  # noqa: S101 - for mypy
        page = np.uint64(self.spec.page_size)
        base = np.uint64((region.pgoff - region.start // int(page)) % (1 << 64))
        if region.pristine:
            lost = (state == UserPageState.EXCLUDED) | (state == UserPageState.NOT_IN_DUMP)
            lost[lost] = region.original.has(base + vaddr[lost] // page)
            paddr[lost], state[lost] = base + vaddr[lost] // page, UserPageState.ORIGINAL
        gaps = [np.arange(a, b, page, dtype=np.uint64) for a, b in _complement(vaddr, start, end, int(page))]
        absent = np.concatenate([*gaps, np.zeros(0, np.uint64)])
        absent = absent[region.original.has(base + absent // page)]
        originals = np.full(len(absent), UserPageState.ORIGINAL, np.uint8)
        return _joined([(vaddr, paddr, state), (absent, base + absent // page, originals)])

    def _with_backing(
        self, region: Region, start: int, end: int, vaddr: U64Array, paddr: U64Array, state: U8Array
    ) -> Pages:
        """Add the pages that only the page cache has; the page table takes precedence."""
        page = self.spec.page_size
        assert region.backing is not None  # noqa: S101 - for mypy
        if len(vaddr) == (end - start) // page:
            return vaddr, paddr, state
        first = region.pgoff + (start - region.start) // page
        index, cached_paddr, cached_state = region.backing.lookup(first, first + (end - start) // page - 1)
        cached = (index - np.uint64(first)) * np.uint64(page) + np.uint64(start)
        new = ~np.isin(cached, vaddr, assume_unique=True)
        more = self._located(cached[new].astype(np.uint64), cached_paddr[new], cached_state[new])
        return _joined([(vaddr, paddr, state), more])


def _u64(value: int) -> U64Array:
    return np.array([value], np.uint64)


def _windows(start: int, end: int, page: int) -> Iterator[tuple[int, int]]:
    step = WINDOW_PAGES * page
    for at in range(start, end, step):
        yield at, min(at + step, end)


def _groups(regions: tuple[Region, ...], page: int) -> dict[int, tuple[int, int]]:
    """Return the group of each region, by its start: index of the group's first region, and one after its last."""
    groups: dict[int, tuple[int, int]] = {}
    at = 0
    while at < len(regions):
        end, pages = at, 0
        while end < len(regions) and pages + (size := (regions[end].end - regions[end].start) // page) <= GROUP_PAGES:
            end, pages = end + 1, pages + size
        groups |= dict.fromkeys((int(region.start) for region in regions[at:end]), (at, end))
        at = max(end, at + 1)
    return groups


def _pages_of(batch: WalkBatch, ranges: Ranges, page: int, swap: SwapSpace | None) -> Pages:
    """Cut a batch's entries, including huge ones, into pages within the ranges.

    The physical address of a page that is not present is its swp_entry_t, if that is known.
    """
    batch, within_range = _each_range(batch, ranges)
    state = np.zeros(len(batch.kind), np.uint8)
    for kind, user_state in _OF_RUN_KIND.items():
        state[batch.kind == kind] = user_state
    low = np.maximum(batch.vaddr, ranges.starts[within_range])
    high = np.minimum(batch.vaddr + batch.size, ranges.ends[within_range])
    base, step = batch.paddr, np.full(len(batch.kind), page, np.uint64)
    absent = batch.kind == RunKind.NOT_PRESENT
    if swap is not None and absent.any():
        base = batch.paddr.copy()
        base[absent] = swap.entries(batch.entry[absent], batch.size[absent])
        step[absent] = base[absent] != 0  # swap entries within a huge page count up by one a page
    paddr: U64Array = (base + (low - batch.vaddr) // np.uint64(page) * step).astype(np.uint64)
    count = ((high - low) // np.uint64(page)).astype(np.int64)
    if (count == 1).all():
        return low, paddr, state
    within = (np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)).astype(np.uint64)
    inside: U64Array = np.repeat(paddr, count) + within * np.repeat(step, count)
    return np.repeat(low, count) + within * np.uint64(page), inside, np.repeat(state, count)


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


def _joined(parts: list[Pages]) -> Pages:
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.uint8)
    vaddr, paddr, state = (np.concatenate(column) for column in zip(*parts, strict=True))
    if (vaddr[1:] <= vaddr[:-1]).any():
        order = np.argsort(vaddr, kind="stable")
        vaddr, paddr, state = vaddr[order], paddr[order], state[order]
    return vaddr, paddr, state


def _append_runs(runs: list[StateRun], vaddr: U64Array, state: U8Array, page: int) -> None:
    """Append maximal runs of equal state over adjacent pages."""
    if not len(vaddr):
        return
    breaks = np.flatnonzero((np.diff(vaddr) != page) | (np.diff(state) != 0)) + 1
    firsts = np.concatenate(([0], breaks))
    lasts = np.concatenate((breaks, [len(vaddr)])) - 1
    runs.extend(
        StateRun(UserAddr(int(vaddr[a])), UserAddr(int(vaddr[b]) + page), UserPageState(int(state[a])))
        for a, b in zip(firsts, lasts, strict=True)
    )


def _merged(runs: list[StateRun]) -> tuple[StateRun, ...]:
    """Join adjacent runs of one state, which occur at window borders."""
    merged: list[StateRun] = []
    for run in runs:
        if merged and merged[-1].end == run.start and merged[-1].state == run.state:
            merged[-1] = StateRun(merged[-1].start, run.end, run.state)
        else:
            merged.append(run)
    return tuple(merged)


def _complement(vaddr: U64Array, start: int, end: int, page: int) -> list[tuple[int, int]]:
    """Return the maximal gaps in ``[start, end)`` between ascending page addresses."""
    starts = np.concatenate((_u64(start), vaddr + np.uint64(page)))
    ends = np.concatenate((vaddr, _u64(end)))
    gaps = np.flatnonzero(ends > starts)
    return [(int(starts[g]), int(ends[g])) for g in gaps]

"""One process's memory: the state of each page of its mappings, and the bytes of the known pages."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vmcore2core.addresses import PhysAddr, U8Array, U64Array, UserAddr
from vmcore2core.arch.spec import PageTableSpec
from vmcore2core.memory.mapped import Group, MappedPages
from vmcore2core.memory.pages import LAST_KNOWN, Original, PageReader, Pages, SwapSpace, UserPageState
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.memory.region import Backing, Region

WINDOW_PAGES = 1 << 18  # pages resolved together: bounds the arrays to some tens of MiB
BATCH_SIZE = 1 << 20
"""Bytes of pages to read together: few enough to be still in the processor's cache when they are written."""
READ_MAX = 1 << 24  # most bytes of one read(); use batches() for more


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


Piece = tuple[Region, int, int]
"""A region, and a range ``[start, end)`` within it."""


class UserMemory:
    """The memory of one process; a ``PageStream`` for the core writer.

    Attributes:
        reader: finds and reads its pages.
        mapped: what its page tables map.
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
        self.reader = PageReader(memory, spec.page_size, swap)
        self.mapped = MappedPages(self.reader, spec, root, regions)
        self._starts = [int(region.start) for region in regions]
        self.damaged: set[int] = set()
        self._surveys: dict[Region, tuple[int, Survey]] = {}

    def with_regions(self, regions: tuple[Region, ...]) -> UserMemory:
        """Return the memory with other regions; if their ranges are the same, the page tables are not walked again."""
        found = UserMemory(self.memory, self.spec, self.root, regions, self.swap)
        found.mapped.take_walks(self.mapped)
        return found

    def forget_walks(self) -> None:
        """Drop the remembered walks, which are large; keep the surveys."""
        self.mapped.forget_walks()

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
            pages = self._resolve(region, start, end)
            per_state = np.bincount(pages.state, minlength=len(UserPageState))
            counts.update({s: int(per_state[s]) for s in UserPageState if per_state[s]})
            counts[UserPageState.ZERO] += (end - start) // page - len(pages) if region.zero_fill else 0
            bad = pages.state > LAST_KNOWN
            _append_runs(unknown, pages.at[bad], pages.state[bad], page)
            if not region.zero_fill:
                lost = _complement(pages.at, start, end, page)
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
        unknown = self.mapped.unknown(group)
        edges = np.array([region.start, region.end], np.uint64)
        return not len(unknown) or not np.diff(np.searchsorted(unknown, edges)).any()

    def known(self, region: Region) -> Iterator[Pages]:
        """Yield the touched pages of a region whose bytes are known."""
        for start, end in () if region.broken else _windows(region.start, region.end, self.spec.page_size):
            yield _with_bytes(self._resolve(region, start, end))

    def resident_pages(self, left_out: Collection[int] = ()) -> int:
        """Return how many pages the page tables map, in all regions except those that start at ``left_out``."""
        regions = [region for region in self.regions if region.start not in left_out and not region.broken]
        return self.mapped.count(regions)

    def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[U64Array, U8Array]]:
        """Yield (addresses, pages) of the ranges; a range may span regions."""
        for pages in self.located(ranges):
            yield from self._read_in_batches(pages)

    def located(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Pages]:
        """Yield those pages of the ranges whose bytes are known, without reading them."""
        for group, pieces in itertools.groupby(self._pieces(ranges), self._plain_group):
            if group is not None:
                yield _with_bytes(self._resolve_group(list(pieces)))
                continue
            for near in _near(pieces, self.spec.page_size):
                yield _with_bytes(_within(self._resolve(near[0][0], near[0][1], near[-1][2]), near))

    def _pieces(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Piece]:
        """Yield the parts of ranges that are in regions whose page tables we believe."""
        for start, end in ranges:
            for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self.regions)):
                region = self.regions[index]
                if region.start >= end:
                    break
                if region.end > start and not region.broken:
                    yield region, max(start, region.start), min(end, region.end)

    def _plain_group(self, piece: Piece) -> Group | None:
        """Return the group of a region whose pages all come from its page tables; None for other regions."""
        region = piece[0]
        return self.mapped.group(region) if region.backing is None and region.original is None else None

    def _resolve_group(self, pieces: Sequence[Piece]) -> Pages:
        """Return what ``_resolve`` returns, for parts of plain regions of one group."""
        pages = self.mapped.pages(pieces[0][0], pieces[0][1], pieces[-1][2])
        return self._with_damaged(_within(pages, pieces))

    def _read_in_batches(self, pages: Pages) -> Iterator[tuple[U64Array, U8Array]]:
        page = self.spec.page_size
        count = max(BATCH_SIZE // page, 1)
        buffer = np.empty((min(count, len(pages)), page), np.uint8)
        for at in range(0, len(pages), count):
            yield self._read(pages[at : at + count], buffer)

    def read(self, address: int, size: int) -> bytes | None:
        """Return user memory at ``address``, or None if any byte of it is not known."""
        if not 0 <= size <= READ_MAX:
            return None
        page = self.spec.page_size
        start, end = address & ~(page - 1), -(-(address + size) // page) * page
        data, at, damaged = bytearray(end - start), start, len(self.damaged)
        for region, low, high in self._pieces([(start, end)]):
            pages = self._resolve(region, low, high)
            gaps = not region.zero_fill and len(pages) < (high - low) // page
            if low > at or gaps or (pages.state > LAST_KNOWN).any():
                return None
            for vaddr, rows in self._read_in_batches(pages):
                for i, v in enumerate(vaddr):
                    data[int(v) - start : int(v) - start + page] = rows[i].tobytes()
            at = high
        if len(self.damaged) != damaged:  # a page in the dump turned out not to decode
            return None
        return bytes(data[address - start : address - start + size]) if at >= end else None

    def _read(self, pages: Pages, buffer: U8Array) -> tuple[U64Array, U8Array]:
        found, known = self.reader.read(pages, buffer)
        if not known.all():
            self.damaged.update(int(v) for v in pages.at[~known])
            return pages.at[known], found[known]
        return pages.at, found

    def _resolve(self, region: Region, start: int, end: int) -> Pages:
        """Return all pages of ``[start, end)``, except those about which we only know that they were never touched."""
        pages = self.mapped.pages(region, start, end)
        if region.backing is not None:
            pages = self._with_backing(region.backing, region, start, end, pages)
        if region.original is not None:
            pages = self._with_original(region.original, region, start, end, pages)
        return self._with_damaged(pages)

    def _with_damaged(self, pages: Pages) -> Pages:
        if self.damaged:
            pages, damaged = pages.copy(), np.fromiter(self.damaged, np.uint64, len(self.damaged))
            pages.state[np.isin(pages.at, damaged)] = UserPageState.DAMAGED
        return pages

    def _with_original(self, original: Original, region: Region, start: int, end: int, pages: Pages) -> Pages:
        """Take pages that are not in memory from the original file, and if it is safe, those left out of the dump."""
        page = self.spec.page_size
        if region.pristine:
            lost = (pages.state == UserPageState.EXCLUDED) | (pages.state == UserPageState.NOT_IN_DUMP)
            lost[lost] = original.has(region.indices(pages.at[lost], page))
            pages, at = pages.copy(), pages.at[lost]
            pages.put(lost, Pages.in_file(at, region.indices(at, page), original))
        gaps = [np.arange(a, b, page, dtype=np.uint64) for a, b in _complement(pages.at, start, end, page)]
        absent = np.concatenate([*gaps, np.zeros(0, np.uint64)])
        absent = absent[original.has(region.indices(absent, page))]
        return Pages.joined([pages, Pages.in_file(absent, region.indices(absent, page), original)])

    def _with_backing(self, backing: Backing, region: Region, start: int, end: int, pages: Pages) -> Pages:
        """Add the pages that only the page cache has; the page table takes precedence."""
        page = self.spec.page_size
        if len(pages) == (end - start) // page:
            return pages
        first = region.pgoff + (start - region.start) // page
        cached = backing.lookup(first, first + (end - start) // page - 1)
        at = (cached.at - np.uint64(first)) * np.uint64(page) + np.uint64(start)
        new = ~np.isin(at, pages.at, assume_unique=True)
        more = cached[new]
        more.at = at[new]
        return Pages.joined([pages, self.reader.locate(more)])


def _with_bytes(pages: Pages) -> Pages:
    """Return the pages that have bytes in a dump, in swap or in a file."""
    there = (pages.state != UserPageState.ZERO) & (pages.state <= LAST_KNOWN)
    return pages if there.all() else pages[there]


def _within(pages: Pages, pieces: Sequence[Piece]) -> Pages:
    """Return the pages that lie in one of some pieces, which ascend; none lies before the first one."""
    if len(pieces) == 1:
        return pages
    low, high = (np.array([piece[i] for piece in pieces], np.uint64) for i in (1, 2))
    return pages[pages.at < high[np.searchsorted(low, pages.at, side="right") - 1]]


def _near(pieces: Iterable[Piece], page: int) -> Iterator[list[Piece]]:
    """Yield pieces that lie near each other in one region, to be resolved at once; a large one comes in parts."""
    near: list[Piece] = []
    for region, low, high in pieces:
        for start, end in _windows(low, high, page):
            if near and (near[0][0] is not region or end - near[0][1] > WINDOW_PAGES * page):
                yield near
                near = []
            near.append((region, start, end))
    if near:
        yield near


def _windows(start: int, end: int, page: int) -> Iterator[tuple[int, int]]:
    step = WINDOW_PAGES * page
    for at in range(start, end, step):
        yield at, min(at + step, end)


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
    starts = np.concatenate((np.array([start], np.uint64), vaddr + np.uint64(page)))
    ends = np.concatenate((vaddr, np.array([end], np.uint64)))
    gaps = np.flatnonzero(ends > starts)
    return [(int(starts[g]), int(ends[g])) for g in gaps]

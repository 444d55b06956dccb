"""One page-table walker for all architectures: per level and vectorised, driven by ``PageTableSpec``.

A level's tables are read together and decoded by numpy; only entries that overlap a wanted range are followed. Tables
are untrusted: a page that serves as a table on two levels, or more tables than the dump can have, end that branch
instead of multiplying by 512 a level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PhysAddr, U8Array, U64Array
from vmcore2core.arch.spec import EntryKind, PageTableSpec
from vmcore2core.containers.base import PageState
from vmcore2core.errors import NotMapped, PageMissing
from vmcore2core.memory.physical import PhysicalMemory

TABLES_ALWAYS = 1 << 16
TABLES_PER_FRAME = 2
"""A walk ends after ``TABLES_ALWAYS`` tables, plus this many for each page frame of the dump. Each table takes a frame,
and only tables that hugetlb shares have several parents. Tables that refer to each other would multiply."""
TABLES_AT_ONCE = 256  # 1 MiB of 4 KiB tables, 131,072 entries: bounds the memory of a walk
TABLES_KNOWN = 1 << 12
KnownTables = dict[tuple[int, int], int]
"""Physical addresses of tables, by the level above them and the address bits that lead to them."""


class RunKind(IntEnum):
    """What a run of a walk is; uint8 in arrays."""

    LEAF = EntryKind.LEAF
    NOT_PRESENT = EntryKind.NOT_PRESENT
    BAD = EntryKind.BAD
    TABLE_MISSING = 5
    """The table with the entries is not in the dump."""
    TOO_MANY = 6
    """The walk read more tables than the dump can have."""


class WalkBatch(NamedTuple):
    """Non-empty entries, not clipped to the wanted range: a huge page is one element, even if only a part was wanted.

    Attributes:
        vaddr: uint64[n], first address, ascending within the batch.
        size: uint64[n], bytes.
        paddr: uint64[n], physical address of leaves, else 0.
        kind: uint8[n], ``RunKind``.
        entry: uint64[n], the raw entry.
    """

    vaddr: U64Array
    size: U64Array
    paddr: U64Array
    kind: U8Array
    entry: U64Array


class Ranges:
    """Sorted disjoint address ranges that answer "does any overlap?" for many addresses at once."""

    def __init__(self, starts: U64Array, ends: U64Array) -> None:
        self.starts, self.ends = starts, ends

    def overlap(self, vaddr: U64Array, span: int) -> NDArray[np.bool_]:
        """Tell for each ``[vaddr, vaddr + span)`` whether it overlaps any range."""
        index = np.searchsorted(self.ends, vaddr, side="right")
        inside = index < len(self.starts)
        starts = self.starts[np.minimum(index, len(self.starts) - 1)]
        # Compare the last byte, so that the top of the address space does not wrap.
        result: NDArray[np.bool_] = inside & (starts <= vaddr + np.uint64(span - 1))
        return result


def walk(
    memory: PhysicalMemory, spec: PageTableSpec, root: PhysAddr, ranges: Ranges, tables: Counter[int] | None = None
) -> Iterator[WalkBatch]:
    """Yield what the page table at ``root`` maps within ``ranges``, a bounded batch at a time.

    Batches of one table level follow each other, so batches are not in address order where huge and small pages mix.
    Empty entries are not yielded.

    Args:
        memory: where the tables are.
        spec: their form.
        root: of the top table.
        ranges: the wanted addresses.
        tables: counts the tables read, by their position in ``spec.levels``.
    """
    if len(ranges.starts):
        seen: set[int] = {int(root)}
        budget = _Budget(TABLES_ALWAYS + TABLES_PER_FRAME * memory.nr_frames, Counter() if tables is None else tables)
        yield from _level(memory, spec, 0, np.array([root], np.uint64), np.zeros(1, np.uint64), ranges, seen, budget)


@dataclass(slots=True)
class _Budget:
    """How many more tables the walk may read, and how many it has read, by level."""

    tables: int
    read: Counter[int]


def _level(
    memory: PhysicalMemory,
    spec: PageTableSpec,
    index: int,
    tables: U64Array,
    bases: U64Array,
    ranges: Ranges,
    seen: set[int],
    budget: _Budget,
) -> Iterator[WalkBatch]:
    """Walk ``tables`` (physical) of level ``index``, which map addresses from ``bases`` on."""
    level = spec.levels[index]
    nr_entries, span = 1 << level.bits, 1 << level.shift
    budget.read[index] += len(tables)
    raw, states = memory.read_blocks(tables, nr_entries * spec.entry_dtype.itemsize)
    usable = (states == PageState.PRESENT) | (states == PageState.ZERO)
    if not usable.all():
        lost = bases[~usable]
        yield _failed(lost, span * nr_entries, RunKind.TABLE_MISSING)
        raw, bases = raw[usable], bases[usable]
    entries = raw.view(spec.entry_dtype).astype(np.uint64, copy=False)
    rows, columns = np.nonzero(entries)
    entry = entries[rows, columns]
    vaddr = bases[rows] + columns.astype(np.uint64) * np.uint64(span)
    wanted = ranges.overlap(vaddr, span)
    entry, vaddr = entry[wanted], vaddr[wanted]
    kind, paddr = spec.decode(entry, index)
    if spec.address_bits is not None:
        paddr = paddr | np.where(kind == EntryKind.LEAF, vaddr & spec.address_bits(entry, index), np.uint64(0))
    other = (kind != EntryKind.TABLE) & (kind != EntryKind.NONE)
    if other.any():
        n = int(np.count_nonzero(other))
        yield WalkBatch(vaddr[other], np.full(n, span, np.uint64), paddr[other], kind[other], entry[other])
    below = kind == EntryKind.TABLE
    child_tables, child_bases = paddr[below], vaddr[below]
    for at in range(0, len(child_tables), TABLES_AT_ONCE):
        chunk, chunk_bases = child_tables[at : at + TABLES_AT_ONCE], child_bases[at : at + TABLES_AT_ONCE]
        # Two entries of one level may share a table (hugetlb does this), but two levels never do.
        loop = np.fromiter((int(t) in seen for t in chunk), np.bool_, len(chunk))
        if loop.any():
            yield _failed(chunk_bases[loop], span, RunKind.BAD)
            chunk, chunk_bases = chunk[~loop], chunk_bases[~loop]
        budget.tables -= len(chunk)
        if budget.tables < 0:
            yield _failed(chunk_bases, span, RunKind.TOO_MANY)
        elif len(chunk):
            upper = set() if index + 2 == len(spec.levels) else {int(t) for t in chunk}
            yield from _level(memory, spec, index + 1, chunk, chunk_bases, ranges, seen | upper, budget)


def _failed(vaddr: U64Array, span: int, kind: RunKind) -> WalkBatch:
    n = len(vaddr)
    zero = np.zeros(n, np.uint64)
    return WalkBatch(vaddr, np.full(n, span, np.uint64), zero, np.full(n, kind, np.uint8), zero)


def translate(
    memory: PhysicalMemory, spec: PageTableSpec, root: PhysAddr, vaddr: int, known: KnownTables | None = None
) -> tuple[PhysAddr, int]:
    """Translate one address.

    Args:
        memory: where the tables are.
        spec: their form.
        root: the top table.
        vaddr: the address.
        known: tables already found from this root; tables found now are added.

    Returns:
        Physical address of the page (huge or not) that holds it, and that page's size in bytes.

    Raises:
        NotMapped: an entry on the way is empty or not present.
        PageMissing, PageExcluded: a table is not in the dump.
    """
    table: int = root
    entry_size = spec.entry_dtype.itemsize
    for index, level in enumerate(spec.levels):
        place = index, vaddr >> level.shift
        if known is not None and place in known:
            table = known[place]
            continue
        slot = (vaddr >> level.shift) & ((1 << level.bits) - 1)
        raw = memory.read(table + slot * entry_size, entry_size)
        entry = np.frombuffer(raw, spec.entry_dtype).astype(np.uint64)
        kinds, paddrs = spec.decode(entry, index)
        kind, paddr = int(kinds[0]), int(paddrs[0])
        if kind == EntryKind.LEAF:
            if spec.address_bits is not None:
                paddr |= vaddr & int(spec.address_bits(entry, index)[0])
            return PhysAddr(paddr), 1 << level.shift
        if kind != EntryKind.TABLE:
            raise NotMapped(vaddr, f"{level.name} entry is {int(entry[0]):#x}")
        table = paddr
        if known is not None and len(known) < TABLES_KNOWN:
            known[place] = table
    raise PageMissing(vaddr, "the last table level holds a table")


def translate_many(
    memory: PhysicalMemory, spec: PageTableSpec, root: PhysAddr, pages: U64Array
) -> tuple[U64Array, NDArray[np.bool_]]:
    """Translate many addresses of pages.

    Args:
        memory: where the tables are.
        spec: their form.
        root: the top table.
        pages: uint64[n], addresses of pages.

    Returns:
        The physical address of each, uint64[n]; and whether it is mapped, bool[n]: others are 0.
    """
    top = spec.levels[0]
    # Above what the tables decode, an address repeats its sign.
    low, which = np.unique(pages & np.uint64((1 << (top.shift + top.bits)) - 1), return_inverse=True)
    paddrs, mapped = np.zeros(len(low), np.uint64), np.zeros(len(low), np.bool_)
    for batch in walk(memory, spec, root, Ranges(low, low + np.uint64(spec.page_size))):
        leaf = batch.kind == RunKind.LEAF
        vaddr, size, paddr = batch.vaddr[leaf], batch.size[leaf], batch.paddr[leaf]
        if not len(vaddr):
            continue
        near = slice(
            np.searchsorted(low, vaddr[0]), np.searchsorted(low, vaddr[-1] + (size[-1] - np.uint64(1)), "right")
        )
        entry = np.searchsorted(vaddr, low[near], "right") - 1
        offset = low[near] - vaddr[entry]
        inside = offset < size[entry]
        paddrs[near] = np.where(inside, paddr[entry] + offset, paddrs[near])
        mapped[near] |= inside
    return paddrs[which], mapped[which]

"""Counts from a walk of a process's page tables."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vmcore2core.arch.spec import PageTableSpec
from vmcore2core.memory.pages import SwapSpace
from vmcore2core.memory.pagetable import RunKind, WalkBatch


class Walked:
    """Counts of page tables, and of the pages that their entries map.

    Args:
        spec: form of the page tables.
        swap: tells entries of swapped pages from others; None if that is not known.

    Attributes:
        tables: number of tables read, by position in ``spec.levels``.
        in_memory: pages of non-empty entries, without swapped ones.
        in_slots: pages of entries that name a slot of a swap area; None if these cannot be told from others.
        huge: entries above the last level that map pages.
        whole: whether all tables could be read and all entries understood.
    """

    def __init__(self, spec: PageTableSpec, swap: SwapSpace | None) -> None:
        self.spec, self._swap = spec, swap
        self.tables: Counter[int] = Counter()
        self.in_memory = self.huge = 0
        self.in_slots: int | None = 0
        self.whole = True

    def add(self, batch: WalkBatch) -> None:
        """Count a batch's entries."""
        size = batch.size
        there = (batch.kind == RunKind.NOT_PRESENT) | (batch.kind == RunKind.LEAF)
        swapped = self._swapped(batch)
        if swapped is None:
            self.in_slots = None
        elif self.in_slots is not None:
            self.in_slots += swapped
        self.in_memory += int(size[there].sum()) // self.spec.page_size - (swapped or 0)
        self.huge += int((there & (size > np.uint64(1 << self.spec.levels[-1].shift))).sum())
        self.whole &= bool(there.all())

    def _swapped(self, batch: WalkBatch) -> int | None:
        """Return how many pages of a batch are in swap slots."""
        absent = batch.kind == RunKind.NOT_PRESENT
        if not absent.any():
            return 0
        sizes = batch.size[absent]
        named = None if self._swap is None else self._swap.in_slots(batch.entry[absent], sizes)
        return None if named is None else int(sizes[named].sum()) // self.spec.page_size

    def table_bytes(self) -> int:
        """Return the bytes of the tables that the kernel counts: all but the top one and p4d tables below a pgd."""
        levels = self.spec.levels
        return sum(
            count * self.size_of_table(position)
            for position, count in self.tables.items()
            if position and (levels[position - 1].name, levels[position].name) != ("pgd", "p4d")
        )

    def size_of_table(self, position: int) -> int:
        """Return the bytes of a table of ``spec.levels[position]``."""
        return self.spec.entry_dtype.itemsize << self.spec.levels[position].bits

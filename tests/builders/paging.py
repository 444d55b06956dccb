"""x86-64 page tables in a flat physical memory, with literal bits, for tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import ContainerDoc, DumpContainer, PageState

P, RW, US, PSE, PROTNONE = 0x1, 0x2, 0x4, 0x80, 0x100


class FlatContainer(DumpContainer):
    """Physical memory from address 0, in memory; single pages can be declared to be of any state."""

    DOC = ContainerDoc("flat", "for tests", ())
    page_size = 4096
    e_machine = 62
    byte_order = "little"

    def __init__(self, data: bytes, states: dict[int, PageState] | None = None) -> None:
        self.paths = (Path("flat"),)
        self.notes = ()
        self.warnings = []
        self._pages = np.frombuffer(data, np.uint8).reshape(-1, 4096)
        self._states = np.full(len(self._pages), PageState.PRESENT, np.uint8)
        for pfn, state in (states or {}).items():
            self._states[pfn] = state
        self.pages_read = 0
        self.damaged_on_reading: set[int] = set()

    @classmethod
    def detect(cls, _f: BinaryIO) -> bool:
        return False

    def memory_ranges(self) -> tuple[AddressRange, ...]:
        return (AddressRange(0, len(self._pages) * 4096),)

    def page_states(self, pfns: U64Array) -> U8Array:
        states = np.zeros(len(pfns), np.uint8)
        inside = pfns < len(self._pages)
        states[inside] = self._states[pfns[inside].astype(np.intp)]
        return states

    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        states = self.page_states(pfns)
        good = states == PageState.PRESENT
        out[:] = 0
        out[good] = self._pages[pfns[good].astype(np.intp)]
        self.pages_read += len(pfns)
        states[np.isin(pfns, list(self.damaged_on_reading))] = PageState.DAMAGED
        return states


class PhysicalImage:
    """A growing flat memory with a 4-level page table at physical 0x1000."""

    ROOT = 0x1000

    def __init__(self, pages: int) -> None:
        self.data = bytearray(pages * 4096)
        self._next = 2  # page 0 stays empty: 0 is no address of anything

    def page(self, content: bytes = b"") -> int:
        """Take the next free page and return its physical address."""
        paddr = self._next * 4096
        self._next += 1
        self.data[paddr : paddr + len(content)] = content
        return paddr

    def set_entry(self, table: int, slot: int, entry: int) -> None:
        struct.pack_into("<Q", self.data, table + slot * 8, entry)

    def entry(self, table: int, slot: int) -> int:
        return int(struct.unpack_from("<Q", self.data, table + slot * 8)[0])

    def table_at(self, vaddr: int, levels: Sequence[int]) -> int:
        """Return the table below the entries for ``vaddr`` at these shifts, made where it is missing."""
        table = self.ROOT
        for shift in levels:
            slot = vaddr >> shift & 511
            if not self.entry(table, slot):
                self.set_entry(table, slot, self.page() | P | RW | US)
            table = self.entry(table, slot) & 0x000FFFFFFFFFF000
        return table

    def map(self, vaddr: int, entry: int) -> None:
        """Put a PTE."""
        self.set_entry(self.table_at(vaddr, (39, 30, 21)), vaddr >> 12 & 511, entry)

    def map_2m(self, vaddr: int, entry: int) -> None:
        """Put a PMD."""
        self.set_entry(self.table_at(vaddr, (39, 30)), vaddr >> 21 & 511, entry)

    def map_1g(self, vaddr: int, entry: int) -> None:
        """Put a PUD."""
        self.set_entry(self.table_at(vaddr, (39,)), vaddr >> 30 & 511, entry)

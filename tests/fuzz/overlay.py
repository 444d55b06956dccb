"""A dump with bytes replaced in memory, without writing a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr, U8Array, U64Array
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.kernel.struct import Kernel
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.process.snapshot import Processes
from vmcore2core.process.swapped import SwappedPages
from vmcore2core.session import Session


class Poked(DumpContainer):
    """A container whose pages have other bytes at some physical addresses."""

    def __init__(self, base: DumpContainer, pokes: Mapping[int, bytes]) -> None:
        self.base = base
        self.DOC = base.DOC  # type: ignore[misc]
        self.paths, self.page_size, self.notes = base.paths, base.page_size, base.notes
        self.e_machine, self.byte_order, self.dump_level = base.e_machine, base.byte_order, base.dump_level
        self.warnings = list(base.warnings)
        self._by_pfn: dict[int, list[tuple[int, bytes]]] = {}
        for paddr, data in pokes.items():
            pfn, offset = divmod(paddr, base.page_size)
            assert offset + len(data) <= base.page_size
            self._by_pfn.setdefault(pfn, []).append((offset, data))

    @classmethod
    def detect(cls, _f: BinaryIO) -> bool:
        return False

    def memory_ranges(self) -> tuple[AddressRange, ...]:
        return self.base.memory_ranges()

    def dumped_ranges(self) -> tuple[AddressRange, ...]:
        return self.base.dumped_ranges()

    def page_states(self, pfns: U64Array) -> U8Array:
        states = self.base.page_states(pfns)
        for pfn in self._by_pfn:
            states[(pfns == pfn) & (states == PageState.ZERO)] = PageState.PRESENT
        return states

    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        states = self.base.read_pages(pfns, out)
        for pfn, pokes in self._by_pfn.items():
            for row in np.flatnonzero(pfns == pfn):
                for offset, data in pokes:
                    out[row, offset : offset + len(data)] = np.frombuffer(data, np.uint8)
                states[row] = PageState.PRESENT if states[row] == PageState.ZERO else states[row]
        return states


def poked(session: Session, pokes: Mapping[int, bytes]) -> Session:
    """Return an open dump as it would be with other bytes: layout and symbols stay, all else is read again.

    Args:
        session: the dump.
        pokes: physical address to bytes, none across a page's end.
    """
    changed = copy.copy(session)
    changed.container = Poked(session.container, pokes)
    physical = PhysicalMemory(changed.container)
    memory = KernelMemory(physical, session.kernel.memory.kernel_map)
    changed.boot = session.boot._replace(memory=memory)
    changed.kernel = Kernel(session.kernel.arch, memory, session.kernel.layout)
    changed.processes = Processes(changed.kernel, session.container.notes, SwappedPages(changed.kernel))
    return changed


def to_phys(session: Session, address: int) -> PhysAddr:
    """Return where a kernel address is."""
    return session.kernel.memory.to_phys(address)

"""Shared by formats that store memory unchanged: physical address ranges at offsets of one file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import AddressRange, U8Array, U64Array
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.segments import PageRuns, page_runs
from vmcore2core.errors import CodecError
from vmcore2core.overrides import override
from vmcore2core.printable import counted

PAGE_SIZE = 4096
"""Such files do not tell the page size; on every machine, memory comes in multiples of 4 KiB."""

PHYS_BITS = 56
"""More bits than a physical address has on any machine; such addresses and offsets never wrap around."""

_SEGMENT = np.dtype([("p_paddr", "u8"), ("p_offset", "u8"), ("p_filesz", "u8"), ("p_memsz", "u8")])


def segment_table(segments: Iterable[tuple[int, int, int]]) -> NDArray[np.void]:
    """Return (physical address, file offset, bytes) as a table for ``page_runs``; the values must not wrap around."""
    return np.array([(paddr, offset, size, size) for paddr, offset, size in segments], dtype=_SEGMENT)


def described_table(size: int, segments: Iterable[tuple[int, int, int]]) -> NDArray[np.void]:
    """Return such a table for a file that describes all memory below ``size`` and has the bytes of its segments."""
    return np.concatenate((np.array([(0, 0, 0, size)], dtype=_SEGMENT), segment_table(segments)))


class SegmentedContainer(DumpContainer):
    """Segments of one file; a subclass sets ``_file`` and ``_runs``."""

    page_size = PAGE_SIZE
    _file: DumpFile
    _runs: PageRuns

    def _set_segments(self, segments: NDArray[np.void], described_by: str) -> None:
        """Set the segments, and warn of pages behind the end of the file.

        Args:
            segments: see ``page_runs``.
            described_by: what describes them, in the plural: "its program headers".
        """
        self._runs = page_runs(segments, self.page_size)
        missing = self._runs.pages_beyond(self._file.size)
        if missing:
            self.warnings.append(
                f"the file is cut off: it ends at {self._file.size:#x}, and {missing} of the "
                f"{counted(self._runs.nr_pages, 'page')} that {described_by} describe "
                f"{'lies' if missing == 1 else 'lie'} behind that"
            )

    @override
    def memory_ranges(self) -> tuple[AddressRange, ...]:
        """Return the ranges that the segments describe."""
        return self._runs.memory

    @override
    def dumped_ranges(self) -> tuple[AddressRange, ...]:
        """Return the ranges of the segments that have bytes in the file."""
        return self._runs.dumped(self._file.size)

    @override
    def page_states(self, pfns: U64Array) -> U8Array:
        """Return the ``PageState`` of each page frame; a frame that is only partly described is ``MISSING``."""
        return self._located(pfns)[0]

    def _located(self, pfns: U64Array) -> tuple[U8Array, U64Array]:
        states, offsets = self._runs.locate(pfns, self._file.size)
        if self.zero_excluded:
            states[states == PageState.EXCLUDED] = PageState.ZERO
        return states, offsets

    @override
    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        """Copy page frames from the file into ``out``."""
        states, offsets = self._located(pfns)
        return read_present(self._file, offsets, states, out)

    @override
    def read_page(self, pfn: int) -> tuple[bytes, PageState]:
        """Read one page frame."""
        state, offset = self._runs.locate_page(pfn, self._file.size)
        if state is PageState.PRESENT:
            try:
                return self._file.read_exactly(offset, self.page_size, "a page"), state
            except CodecError:
                state = PageState.DAMAGED
        if state is PageState.EXCLUDED and self.zero_excluded:
            state = PageState.ZERO
        return bytes(self.page_size), state

    @override
    def close(self) -> None:
        """Release the file."""
        self._file.close()


def read_present(file: DumpFile, offsets: U64Array, states: U8Array, out: U8Array) -> U8Array:
    """Copy the present pages from a file into ``out``; return the states, in which those that do not decode are marked.

    Args:
        file: the file.
        offsets: file offset of each page.
        states: ``PageState`` of each.
        out: uint8[n, page_size]; other pages are zero there.
    """
    present = states == PageState.PRESENT
    out[~present] = 0
    bad = file.gather(offsets[present], np.flatnonzero(present).astype(np.uint64), out)
    out[bad] = 0
    states[bad] = PageState.DAMAGED
    return states

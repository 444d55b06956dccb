"""The memory that goes into a core, readable before it is written; bytes that the core omits read as not known."""

from __future__ import annotations

import numpy as np

from vmcore2core.addresses import align_down, align_up
from vmcore2core.corefile.plan import segments_of
from vmcore2core.interfaces import PageStream
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.process.secrets import merged


class StoredMemory:
    """A process's memory as its core has it.

    Args:
        snapshot: the process.
        stream: its pages, those with blanked bytes blanked.
    """

    def __init__(self, snapshot: ProcessSnapshot, stream: PageStream) -> None:
        self._page, self._stream = snapshot.page_size, stream
        self._blanked = merged(snapshot.blanked)
        self._ranges = merged((s.start, s.start + s.filesz) for s in segments_of(snapshot) if s.filesz)
        self._starts = np.array([start for start, _ in self._ranges], np.uint64)

    def read(self, address: int, size: int) -> bytes | None:
        """Return memory, or None if the core will not have all of it."""
        at = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        if at < 0 or address + size > self._ranges[at][1]:
            return None
        low, high = align_down(address, self._page), align_up(address + size, self._page)
        found = bytearray(high - low)
        for vaddr, pages in self._stream.batches([(low, high)]):
            for start, row in zip(vaddr.tolist(), pages, strict=True):
                found[start - low : start - low + self._page] = row.tobytes()
        return bytes(found[address - low : address - low + size])

    def is_blanked(self, start: int, end: int) -> bool:
        """Tell whether all of ``[start, end)`` was blanked on request."""
        return any(low <= start and end <= high for low, high in self._blanked)

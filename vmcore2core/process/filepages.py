"""A file's pages in memory, whether or not any process maps them.

References: mm/filemap.c; fs/inode.c: i_size_read().
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pages import LAST_KNOWN, PageReader, Pages, SwapSpace, UserPageState

FILE_MAX = 1 << 32  # bytes: bounds the arrays to some tens of MiB
BATCH_PAGES = 1 << 10


class FilePages:
    """The pages of one file.

    Args:
        cache: the page cache.
        mapping: ``struct address_space``.
        swap: where swapped pages of shared memory are.
        first_only: look at the first page only, as if the file had no other.

    Attributes:
        size: of the file, in bytes.
        page_size: bytes.
        known: bool[pages of the file], true if the page's bytes are known; ``batches`` clears pages that do not decode.

    Raises:
        CorruptStructure, MemoryFault: the page cache of this file is broken, or the file is larger than 4 GiB.
        LayoutUnknown: a member is not known.
    """

    def __init__(
        self, cache: PageCache, mapping: StructView, swap: SwapSpace | None, *, first_only: bool = False
    ) -> None:
        inode = mapping.follow("host", "inode")
        if inode is None:
            raise CorruptStructure("no inode is there", mapping.address, "address_space.host")
        size = inode.uint("i_size", size=8)
        self.page_size = cache.page_size
        self.size = min(size, self.page_size) if first_only else size
        if self.size > FILE_MAX:
            raise CorruptStructure(f"{size:#x} bytes, expected at most {FILE_MAX:#x}", inode.address, "inode.i_size")
        self._reader = PageReader(cache.kernel.memory.physical, self.page_size, swap)
        count = -(-self.size // self.page_size)
        at = np.arange(count, dtype=np.uint64)
        self._pages = Pages(at, np.full(count, UserPageState.NOT_CACHED, np.uint8))
        if count:
            found = self._reader.locate(cache.pages(mapping, 0, count - 1))
            self._pages.put(found.at.astype(np.intp), found)
        self.known: NDArray[np.bool_] = self._pages.state <= LAST_KNOWN

    def take(self, other: FilePages) -> int:
        """Take pages that are missing here from a file with the same content, and return how many were taken."""
        if other.size != self.size or other.page_size != self.page_size:
            return 0
        taken = other.known & ~self.known
        self._pages.put(taken, other._pages[taken])
        self.known |= taken
        return int(np.count_nonzero(taken))

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Runs ``(start, end)`` of file offsets whose bytes are not known, ascending."""
        edges = np.flatnonzero(np.diff(np.concatenate(([True], self.known, [True])).astype(np.int8)))
        return [(int(a) * self.page_size, min(int(b) * self.page_size, self.size)) for a, b in edges.reshape(-1, 2)]

    def batches(self) -> Iterator[tuple[U64Array, U8Array]]:
        """Yield the known pages, except those with the zero state, as uint64[n] index and uint8[n, page_size]."""
        wanted = np.flatnonzero(self.known & (self._pages.state != UserPageState.ZERO))
        for at in range(0, len(wanted), BATCH_PAGES):
            yield self._read(wanted[at : at + BATCH_PAGES])

    def read(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the file, or None if any of them is not known."""
        if size < 0 or offset < 0 or offset + size > self.size or size > BATCH_PAGES * self.page_size:
            return None
        first, end = offset // self.page_size, -(-(offset + size) // self.page_size)
        if not self.known[first:end].all():
            return None
        data = self._read(np.arange(first, end))[1].reshape(-1)
        if not self.known[first:end].all():
            return None
        start = offset - first * self.page_size
        return data[start : start + size].tobytes()

    def _read(self, rows: NDArray[np.intp]) -> tuple[U64Array, U8Array]:
        pages = self._pages[rows]
        found, known = self._reader.read(pages)
        self.known[rows[~known]] = False
        return pages.at[known], found[known]

"""A file's pages in memory, whether or not any process maps them.

References: mm/filemap.c; fs/inode.c: i_size_read().
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers.base import PageState
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.region import SwapSpace, UserPageState

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
        self._memory, self._swap = cache.kernel.memory.physical, swap
        count = -(-self.size // self.page_size)
        self._paddr = np.zeros(count, np.uint64)
        self._state = np.full(count, UserPageState.NOT_CACHED, np.uint8)
        if count:
            self._look_up(cache, mapping, count)
        self.known: NDArray[np.bool_] = np.isin(
            self._state, (UserPageState.PRESENT, UserPageState.ZERO, UserPageState.STORED)
        )

    def _look_up(self, cache: PageCache, mapping: StructView, count: int) -> None:
        found = cache.pages(mapping, 0, count - 1)
        paddr, state = found.paddr, found.state
        swapped = state == UserPageState.SWAPPED
        if self._swap is not None and swapped.any():
            paddr[swapped], state[swapped] = self._swap.locate(paddr[swapped])
        here = np.flatnonzero(state == UserPageState.PRESENT)
        states = self._memory.block_states(paddr[here], self.page_size)
        state[here[states == PageState.ZERO]] = UserPageState.ZERO
        state[here[(states != PageState.ZERO) & (states != PageState.PRESENT)]] = UserPageState.NOT_IN_DUMP
        index = found.index.astype(np.intp)
        self._paddr[index], self._state[index] = paddr, state

    def take(self, other: FilePages) -> int:
        """Take pages that are missing here from a file with the same content, and return how many were taken."""
        if other.size != self.size or other.page_size != self.page_size:
            return 0
        taken = other.known & ~self.known
        self._paddr[taken], self._state[taken] = other._paddr[taken], other._state[taken]
        self.known |= taken
        return int(np.count_nonzero(taken))

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Runs ``(start, end)`` of file offsets whose bytes are not known, ascending."""
        edges = np.flatnonzero(np.diff(np.concatenate(([True], self.known, [True])).astype(np.int8)))
        return [(int(a) * self.page_size, min(int(b) * self.page_size, self.size)) for a, b in edges.reshape(-1, 2)]

    def batches(self) -> Iterator[tuple[U64Array, U8Array]]:
        """Yield the known pages, except those with the zero state, as uint64[n] index and uint8[n, page_size]."""
        wanted = np.flatnonzero(self.known & (self._state != UserPageState.ZERO))
        for at in range(0, len(wanted), BATCH_PAGES):
            yield self._read(wanted[at : at + BATCH_PAGES])

    def read(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the file, or None if any of them is not known."""
        if size < 0 or offset < 0 or offset + size > self.size or size > BATCH_PAGES * self.page_size:
            return None
        first, end = offset // self.page_size, -(-(offset + size) // self.page_size)
        if not self.known[first:end].all():
            return None
        data = np.zeros((end - first, self.page_size), np.uint8)
        wanted = first + np.flatnonzero(self._state[first:end] != UserPageState.ZERO)
        index, pages = self._read(wanted)
        data[index.astype(np.intp) - first] = pages
        if not self.known[first:end].all():
            return None
        start = offset - first * self.page_size
        return data.reshape(-1)[start : start + size].tobytes()

    def _read(self, index: NDArray[np.intp]) -> tuple[U64Array, U8Array]:
        here = self._state[index] == UserPageState.PRESENT
        pages, good = np.zeros((len(index), self.page_size), np.uint8), np.zeros(len(index), np.bool_)
        pages[here], states = self._memory.read_blocks(self._paddr[index[here]], self.page_size)
        good[here] = (states == PageState.PRESENT) | (states == PageState.ZERO)
        if self._swap is not None and not here.all():
            pages[~here], stored = self._swap.read(self._paddr[index[~here]])
            good[~here] = stored.astype(np.bool_)
        self.known[index[~good]] = False
        return index[good].astype(np.uint64), pages[good]

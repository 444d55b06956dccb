"""Bitmaps of page frames, indexed because they are too large to scan for each question.

Bit ``pfn & 7`` of byte ``pfn >> 3`` is page frame ``pfn`` (makedumpfile.h, is_on()).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array

RANK_BYTES = 64
"""Bytes of bitmap for each entry of the table of ranks: 1/8 of the bitmap, 4 MiB for a dump of 1 TiB."""

CHUNK_BYTES = 1 << 20
"""Bytes of bitmap that are unpacked at once."""


def test_bits(bitmap: U8Array, pfns: U64Array) -> NDArray[np.bool_]:
    """Return whether the bit of each page frame is set.

    Args:
        bitmap: uint8[n].
        pfns: uint64[m], each below ``8 * n``.
    """
    bits = bitmap[(pfns >> np.uint64(3)).astype(np.intp)] >> (pfns & np.uint64(7)).astype(np.uint8)
    return (bits & 1).astype(np.bool_)


def test_bit(bitmap: U8Array, pfn: int) -> bool:
    """Return whether the bit of one page frame, below ``8 * n``, is set."""
    return bool(int(bitmap[pfn >> 3]) >> (pfn & 7) & 1)


class RankedBitmap:
    """A bitmap that knows how many bits are set before each one.

    Attributes:
        bitmap: uint8[n], n a multiple of ``RANK_BYTES``.
        count: bits set.
    """

    def __init__(self, bitmap: U8Array) -> None:
        self.bitmap = bitmap
        self._blocks = bitmap.reshape(-1, RANK_BYTES)
        self._rank = np.zeros(len(self._blocks) + 1, dtype=np.uint64)
        step = CHUNK_BYTES // RANK_BYTES
        for i in range(0, len(self._blocks), step):
            counts = np.bitwise_count(self._blocks[i : i + step]).sum(axis=1, dtype=np.uint64)
            self._rank[i + 1 : i + 1 + len(counts)] = counts
        np.cumsum(self._rank, out=self._rank)
        self.count = int(self._rank[-1])

    def rank(self, pfns: U64Array) -> U64Array:
        """Return the number of bits that are set below each page frame, uint64[n]."""
        block = (pfns // np.uint64(RANK_BYTES * 8)).astype(np.intp)
        words = self._blocks[block].view("<u8")
        # In each of the 8 words: the bits below the frame, which are none, all, or some of them.
        bit = (pfns % np.uint64(RANK_BYTES * 8)).astype(np.int64)[:, None] - 64 * np.arange(RANK_BYTES // 8)
        below = np.clip(bit, 0, 63).astype(np.uint64)
        mask = (np.uint64(1) << below) - np.uint64(1)
        mask[bit >= 64] = np.uint64(0xFFFFFFFFFFFFFFFF)
        counts = np.bitwise_count(words & mask).sum(axis=1, dtype=np.uint64)
        ranks: U64Array = self._rank[block] + counts
        return ranks

    def rank_of(self, pfn: int) -> int:
        """Return the number of bits that are set below one page frame of the bitmap."""
        block, bit = divmod(pfn, RANK_BYTES * 8)
        below = int.from_bytes(self._blocks[block].tobytes(), "little") & ((1 << bit) - 1)
        return int(self._rank[block]) + below.bit_count()

    def count_below(self, pfn: int) -> int:
        """Return the number of bits that are set below ``pfn``, which may be the end of the bitmap."""
        if pfn >= self.bitmap.nbytes * 8:
            return self.count
        return self.rank_of(pfn)


def bit_runs(bitmap: U8Array, nr_bits: int) -> Iterator[tuple[int, int]]:
    """Yield the runs ``[start, end)`` of set bits among the first ``nr_bits``, ascending.

    A hostile bitmap may have ``nr_bits / 2`` runs, so the caller must bound them.
    """
    start: int | None = None
    for i in range(0, (nr_bits + 7) // 8, CHUNK_BYTES):
        first = i * 8
        chunk = bitmap[i : i + CHUNK_BYTES]
        if start is None and not chunk.any():
            continue
        bits = np.unpackbits(chunk, bitorder="little")[: nr_bits - first]
        before = np.concatenate(([start is not None], bits[:-1]))
        for change in (np.flatnonzero(bits != before) + first).tolist():
            if start is None:
                start = change
            else:
                yield start, change
                start = None
    if start is not None:
        yield start, nr_bits

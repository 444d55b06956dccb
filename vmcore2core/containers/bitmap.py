"""Bitmaps of page frames, read from the file in blocks: for 128 TiB of memory, a bitmap has 4 GiB.

Bit ``pfn & 7`` of byte ``pfn >> 3`` is page frame ``pfn`` (makedumpfile.h, is_on()).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array, align_down, align_up
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import FormatError
from vmcore2core.overrides import override

BLOCK_BYTES = 1 << 12
"""Bytes of bitmap that are read at once: 128 MiB of memory, with pages of 4 KiB."""
BLOCK_BITS = 8 * BLOCK_BYTES

BLOCKS_KEPT = 1 << 11
"""Most blocks of a bitmap in memory: 8 MiB, for 256 GiB of memory."""

LINE_BYTES = 64
"""Bytes of a block for each entry of its table of ranks."""
LINE_BITS = 8 * LINE_BYTES

CHUNK_BYTES = 1 << 18
"""Bytes of bitmap that are looked through at once."""

PFNS_AT_ONCE = 1 << 14
"""Page frames that are looked up at once: ranks take 500 bytes for each."""

Decoded = Callable[[U8Array], U8Array]

_ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


class Bitmap:
    """A bitmap in a file.

    Args:
        file: the file.
        offset: of the bitmap in it.
        size: bytes of the bitmap.
        what: the bitmap's name, for an error.
        decoded: given bytes of the file, a multiple of 8 except at the end, returns them in this module's form; None if
            they are.

    Raises:
        FormatError: the file ends inside the bitmap.
    """

    def __init__(self, file: DumpFile, offset: int, size: int, what: str, decoded: Decoded | None = None) -> None:
        if offset + size > file.size:
            raise FormatError(f"{what} is cut off by the end of the file", file.size, f"{size} bytes at {offset:#x}")
        self.size = size
        self._file, self._offset, self._what, self._decoded = file, offset, what, decoded
        nr_blocks = -(-size // BLOCK_BYTES)
        self._row = np.zeros(nr_blocks, np.int32)  # of each block in the arrays below; 0 if it is not there
        self._blocks = np.zeros((min(BLOCKS_KEPT, nr_blocks) + 1, BLOCK_BYTES), np.uint8)
        self._kept = 1

    def has(self, pfns: U64Array) -> NDArray[np.bool_]:
        """Return whether the bit of each page frame is set.

        Args:
            pfns: uint64[n], each below ``8 * size``, in any order.
        """
        found = np.zeros(len(pfns), np.bool_)
        for part, rows in self._located(pfns):
            within = pfns[part]
            byte = ((within >> np.uint64(3)) % np.uint64(BLOCK_BYTES)).astype(np.intp)
            found[part] = (self._blocks[rows, byte] >> (within & np.uint64(7)).astype(np.uint8)) & 1
        return found

    def has_one(self, pfn: int) -> bool:
        """Return whether the bit of one page frame, below ``8 * size``, is set."""
        block, bit = divmod(pfn, BLOCK_BITS)
        return bool(int(self._blocks[self._row_of(block), bit >> 3]) >> (bit & 7) & 1)

    def _located(self, pfns: U64Array) -> Iterator[tuple[slice, NDArray[np.intp]]]:
        """Yield parts of ``pfns``, and the row of each page frame's block; rows are valid until the next part."""
        for start in range(0, len(pfns), PFNS_AT_ONCE):
            blocks = (pfns[start : start + PFNS_AT_ONCE] // np.uint64(BLOCK_BITS)).astype(np.intp)
            rows = self._row[blocks].astype(np.intp)
            if rows.all():
                yield slice(start, start + len(blocks)), rows
                continue
            at_once = len(blocks) if len(np.unique(blocks)) < len(self._blocks) else len(self._blocks) - 1
            for at in range(0, len(blocks), at_once):
                part = blocks[at : at + at_once]
                self._load(np.unique(part))
                yield slice(start + at, start + at + len(part)), self._row[part].astype(np.intp)

    def _row_of(self, block: int) -> int:
        if not self._row[block]:
            self._load(np.array([block]))
        return int(self._row[block])

    def _load(self, blocks: NDArray[np.intp]) -> None:
        """Read those of some blocks that are not in memory; if there is no room for them, drop all others."""
        lacking = blocks[self._row[blocks] == 0]
        if self._kept + len(lacking) > len(self._blocks):
            self._row[:] = 0
            self._kept, lacking = 1, blocks
        if not len(lacking):
            return
        borders = np.flatnonzero(np.diff(lacking) != 1) + 1
        for run in np.split(lacking, borders):
            first, last = int(run[0]), int(run[-1])
            here = slice(self._kept, self._kept + len(run))
            self._blocks[here] = self._read(first * BLOCK_BYTES, (last + 1) * BLOCK_BYTES).reshape(-1, BLOCK_BYTES)
            self._row[run] = np.arange(here.start, here.stop, dtype=np.int32)
            self._kept = here.stop
            self._loaded(here)

    def _loaded(self, rows: slice) -> None:
        """Called after blocks were read into these rows."""

    def _read(self, start: int, end: int) -> U8Array:
        """Return bytes of the bitmap, with zeros behind its end."""
        raw = self._file.array(self._offset + start, min(end, self.size) - start, self._what)
        if self._decoded is not None:
            raw = self._decoded(raw)
        return raw if len(raw) == end - start else np.concatenate((raw, np.zeros(end - start - len(raw), np.uint8)))

    def chunks(self) -> Iterator[tuple[int, U8Array]]:
        """Yield those parts of the bitmap in which a bit may be set: the first byte's number, and the bytes.

        A part begins at a multiple of ``BLOCK_BYTES``. Parts ascend.
        """
        for start, end in self._ranges():
            for at in range(start, end, CHUNK_BYTES):
                bits = self._read(at, min(at + CHUNK_BYTES, end))
                if bits.any():
                    yield at, bits

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of whole blocks outside of which the file has a hole, ascending and not touching."""
        first = reached = 0
        for data in self._file.data_ranges(self._offset, self._offset + self.size):
            start = align_down(data[0] - self._offset, BLOCK_BYTES)
            if start > reached:
                yield first, reached
                first = start
            reached = align_up(data[1] - self._offset, BLOCK_BYTES)
        yield first, reached

    def any(self) -> bool:
        """Tell whether any bit is set."""
        return next(self.chunks(), None) is not None

    def runs(self, nr_bits: int) -> Iterator[tuple[int, int]]:
        """Yield the runs ``[start, end)`` of set bits among the first ``nr_bits``, ascending.

        A hostile bitmap may have ``nr_bits / 2`` runs, so the caller must bound them.
        """
        start, reached = None, 0
        for at, chunk in self.chunks():
            first = at * 8
            if first >= nr_bits:
                break
            if start is not None and first > reached:
                yield start, reached
                start = None
            reached = min(first + len(chunk) * 8, nr_bits)
            if start is not None and reached == first + len(chunk) * 8 and (chunk.view(np.uint64) == _ALL_ONES).all():
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
            yield start, reached

    def equals(self, other: Bitmap) -> bool:
        """Tell whether another bitmap has the same bits, without more than a chunk of each in memory."""
        if self.size != other.size:
            return False
        return _all_in(self, other) and _all_in(other, self)


def _all_in(these: Bitmap, those: Bitmap) -> bool:
    """Tell whether each chunk of a bitmap that has bits is equal in the other one."""
    return all(np.array_equal(bits, those._read(at, at + len(bits))) for at, bits in these.chunks())


class RankedBitmap(Bitmap):
    """A bitmap that knows how many bits are set before each one.

    Attributes:
        count: bits set.
    """

    def __init__(self, file: DumpFile, offset: int, size: int, what: str, decoded: Decoded | None = None) -> None:
        super().__init__(file, offset, size, what, decoded)
        self._before = np.zeros(len(self._row) + 1, np.uint64)  # bits set before each block
        for at, chunk in self.chunks():
            first = at // BLOCK_BYTES + 1
            counts = np.bitwise_count(chunk.view(np.uint64).reshape(-1, BLOCK_BYTES // 8))
            self._before[first : first + len(counts)] = counts.sum(axis=1, dtype=np.uint64)
        np.cumsum(self._before, out=self._before)
        self.count = int(self._before[-1])
        self._lines = np.zeros((len(self._blocks), BLOCK_BYTES // LINE_BYTES), np.uint16)  # bits before each line

    @override
    def _loaded(self, rows: slice) -> None:
        words = self._blocks[rows].view(np.uint64).reshape(-1, BLOCK_BYTES // LINE_BYTES, LINE_BYTES // 8)
        counts = np.bitwise_count(words).sum(axis=2, dtype=np.uint16)
        self._lines[rows, 1:] = np.cumsum(counts[:, :-1], axis=1, dtype=np.uint16)

    def rank(self, pfns: U64Array) -> U64Array:
        """Return the number of bits that are set below each page frame of the bitmap, uint64[n]."""
        ranks = self._before[(pfns // np.uint64(BLOCK_BITS)).astype(np.intp)]
        for part, rows in self._located(pfns):
            bits = (pfns[part] % np.uint64(BLOCK_BITS)).astype(np.int64)
            line = bits // LINE_BITS
            words = self._blocks.view("<u8").reshape(len(self._blocks), -1, LINE_BYTES // 8)[rows, line]
            # In each of the 8 words: the bits below the frame, which are none, all, or some of them.
            bit = (bits % LINE_BITS)[:, None] - 64 * np.arange(LINE_BYTES // 8)
            mask = (np.uint64(1) << np.clip(bit, 0, 63).astype(np.uint64)) - np.uint64(1)
            mask[bit >= 64] = _ALL_ONES
            ranks[part] += self._lines[rows, line] + np.bitwise_count(words & mask).sum(axis=1, dtype=np.uint64)
        return ranks

    def rank_of(self, pfn: int) -> int:
        """Return the number of bits that are set below one page frame of the bitmap."""
        block, bit = divmod(pfn, BLOCK_BITS)
        row = self._row_of(block)
        line, bit = divmod(bit, LINE_BITS)
        words = self._blocks[row, line * LINE_BYTES : (line + 1) * LINE_BYTES].tobytes()
        below = int.from_bytes(words, "little") & ((1 << bit) - 1)
        return int(self._before[block]) + int(self._lines[row, line]) + below.bit_count()

    def count_below(self, pfn: int) -> int:
        """Return the number of bits that are set below ``pfn``, which may be the end of the bitmap."""
        return self.count if pfn >= 8 * self.size else self.rank_of(pfn)

    def neighbourhoods(self, nr_bits: int) -> Iterator[tuple[int, int]]:
        """Yield ranges ``[start, end)`` outside of which no bit is set; their borders are those of blocks.

        Args:
            nr_bits: how many bits of the bitmap are in use.
        """
        used = np.diff(self._before).astype(np.bool_)
        edges = np.flatnonzero(np.diff(used, prepend=False, append=False)).tolist()
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if start * BLOCK_BITS < nr_bits:
                yield start * BLOCK_BITS, min(end * BLOCK_BITS, nr_bits)

"""Flattened dumps (makedumpfile -F, QEMU's kdump formats): a seekable file under any other container.

Only the headers of the pieces are read, once, to index them. If two pieces overlap, the later one counts, as if the
stream were written to a file.

References: makedumpfile 1.7.9: rearrange_dumpdata(); libkdumpfile's flatmap.c.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vmcore2core.containers.dumpfile import DumpFile, LayeredFile
from vmcore2core.errors import FormatError
from vmcore2core.formats import flattened as fmt
from vmcore2core.overrides import override

PIECES_MAX = 1 << 26

OFFSET_MAX = (1 << 63) - 1


def is_flattened(f: BinaryIO) -> bool:
    """Tell whether the file, positioned at 0, is a flattened dump."""
    return f.read(len(fmt.MAKEDUMPFILE_SIGNATURE)) == fmt.MAKEDUMPFILE_SIGNATURE


class FlattenedFile(LayeredFile):
    """The dump that a flattened file describes, as a ``DumpFile``.

    Attributes:
        size: bytes of the described dump up to the last piece in the file.
        cut_off: sentence about a missing end, or None.
    """

    def __init__(self, inner: DumpFile) -> None:
        super().__init__(inner)
        raw = inner.read_exactly(0, fmt.makedumpfile_header.itemsize, "makedumpfile_header")
        header = np.frombuffer(raw, fmt.makedumpfile_header)[0]
        for field, good in (("type", fmt.TYPE_FLAT_HEADER), ("version", fmt.VERSION_FLAT_HEADER)):
            if int(header[field]) != good:
                offset = fmt.makedumpfile_header.fields[field][1]  # type: ignore[index]
                raise FormatError(f"makedumpfile_header {field} {int(header[field])}", offset, str(good))
        self._starts, self._ends, self._positions = self._index()
        self.size = int(self._ends.max(initial=0))

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return start and end of each disjoint piece of the described dump, ascending, and its place in the file."""
        pieces = array("q")  # a terabyte has millions of pieces: start, end and position of each
        at = fmt.MAX_SIZE_MDF_HEADER
        step = fmt.makedumpfile_data_header.itemsize
        while True:
            raw = self.inner.read(at, step)
            if len(raw) < step:
                without_end = f"the flattened file is cut off: it ends at {self.inner.size:#x} without its end mark"
                self.cut_off = self.cut_off or without_end
                break
            offset, size = (int.from_bytes(raw[i : i + 8], "big", signed=True) for i in (0, 8))
            if offset == fmt.END_FLAG_FLAT_HEADER and size == fmt.END_FLAG_FLAT_HEADER:
                break
            if offset < 0 or size < 0 or offset + size > OFFSET_MAX or len(pieces) >= 3 * PIECES_MAX:
                raise FormatError(
                    f"makedumpfile_data_header offset {offset:#x}, buf_size {size:#x}",
                    at,
                    "a piece of data or the end mark",
                )
            at += step
            size_there = min(size, self.inner.size - at)
            if size_there:
                pieces.extend((offset, offset + size_there, at))
            at += size
        return _disjoint(np.frombuffer(pieces, np.int64).reshape(-1, 3))

    @override
    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Between the pieces there are zeros."""
        first, last = np.searchsorted(self._ends, start, side="right"), np.searchsorted(self._starts, end)
        for i in range(int(first), int(last)):
            yield max(start, int(self._starts[i])), min(end, int(self._ends[i]))

    @override
    def read(self, offset: int, size: int) -> bytes:
        """Bytes that no piece describes read as zeros, as in a file with holes."""
        end = min(offset + size, self.size)
        chunks = []
        index = max(int(np.searchsorted(self._starts, offset, side="right")) - 1, 0)
        while offset < end:
            if index < len(self._starts) and self._ends[index] <= offset:
                index += 1
                continue
            if index >= len(self._starts) or self._starts[index] > offset:
                gap_end = end if index >= len(self._starts) else min(end, int(self._starts[index]))
                chunks.append(bytes(gap_end - offset))
                offset = gap_end
                continue
            part = min(end, int(self._ends[index])) - offset
            chunks.append(self.inner.read(int(self._positions[index]) + offset - int(self._starts[index]), part))
            offset += part
            index += 1
        return b"".join(chunks)


def _disjoint(columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut overlapping pieces so that a later one hides an earlier one, and join what is contiguous on both sides.

    Args:
        columns: int64[n, 3], start, end and position of each piece.
    """
    starts, ends = columns[:, 0], columns[:, 1]
    order = np.argsort(starts, kind="stable")
    if (starts[order][1:] < ends[order][:-1]).any():
        columns = _without_hidden([(start, end, position) for start, end, position in columns.tolist()])
        order = np.argsort(columns[:, 0], kind="stable")
    columns = columns[order]
    together = (columns[1:, 0] == columns[:-1, 1]) & (
        columns[1:, 2] - columns[:-1, 2] == columns[1:, 0] - columns[:-1, 0]
    )
    first = np.flatnonzero(np.concatenate(([True], ~together)))[: len(columns)]
    last = np.concatenate((first[1:], [len(columns)])) - 1 if len(columns) else first
    return columns[first, 0], columns[last, 1], columns[first, 2]


def _without_hidden(pieces: list[tuple[int, int, int]]) -> NDArray[np.int64]:
    """Return disjoint pieces. The list of borders makes this linear in pieces times overlaps, and overlaps are few."""
    events = sorted((start, rank) for rank, (start, _, _) in enumerate(pieces))
    borders = sorted({edge for start, end, _ in pieces for edge in (start, end)})
    active: list[tuple[int, int]] = []
    result = []
    at = 0
    for low, high in pairwise(borders):
        while at < len(events) and events[at][0] <= low:
            heapq.heappush(active, (-events[at][1], pieces[events[at][1]][1]))
            at += 1
        while active and active[0][1] <= low:
            heapq.heappop(active)
        if active:
            start, _, position = pieces[-active[0][0]]
            result.append((low, high, position + low - start))
    return np.array(result, np.int64).reshape(len(result), 3)

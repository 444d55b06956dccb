"""The bytes of a dump file: mapped where the system can, read where it cannot (a pipe's copy, some /proc files).

Nothing here reads past the end of the file: a mapping touched beyond it raises SIGBUS, which no Python code survives.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.errors import DumpError, FormatError, UsageError

HEAD_SIZE = 8192
"""Bytes that detection sees."""

GATHER_ROWS = 256
"""Pages per fancy-index call: 1 MiB stays in the cache; 890 k pages/s against 510 k for 20,000 at once."""

FEW_RUNS = 8  # a window over the whole file costs more than so many reads
RUN_ROWS = 8
"""Mean length from which runs are read one by one."""

RESIDENT_MAX = 64 << 20
"""Bytes that are touched in the mapping before it is let go: they count as this process's memory."""


def os_error(path: Path, error: OSError) -> DumpError:
    """Return the sentence for an ``OSError`` on ``path``."""
    return DumpError(f"{path} cannot be read: {error.strerror or error}")


class DumpFile:
    """A dump file opened for reading.

    Attributes:
        path: as given.
        size: bytes in the file when it was opened.
        data: uint8[size], the mapping, or None where the file cannot be mapped.
        cut_off: a sentence, where it is known without looking at the dump that the end is missing.
    """

    cut_off: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: U8Array | None = None
        self._mapping: mmap.mmap | None = None
        self._touched = 0
        try:
            self._file = path.open("rb", buffering=0)
            # Of a block device, stat says 0.
            self.size = os.lseek(self._file.fileno(), 0, os.SEEK_END)
        except OSError as error:
            raise os_error(path, error) from error
        # ValueError: an empty file, or a size that the address space has no room for.
        with contextlib.suppress(OSError, ValueError):
            self._mapping = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
            self.data = np.frombuffer(self._mapping, dtype=np.uint8)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of ``[offset, offset + size)`` that the file has; fewer at its end.

        Raises:
            DumpError: the system cannot read them.
        """
        size = max(0, min(size, self.size - offset))
        if self.data is not None:
            return self.data[offset : offset + size].tobytes()
        chunks = []
        try:
            while size > 0 and (chunk := os.pread(self._file.fileno(), min(size, 1 << 30), offset)):
                chunks.append(chunk)
                offset += len(chunk)
                size -= len(chunk)
        except OSError as error:
            raise os_error(self.path, error) from error
        return b"".join(chunks)

    def head(self) -> BinaryIO:
        """Return the first bytes of the file as a file of its own, for detection."""
        return io.BytesIO(self.read(0, HEAD_SIZE))

    def read_exactly(self, offset: int, size: int, what: str) -> bytes:
        """Return ``size`` bytes at ``offset``.

        Raises:
            FormatError: the file ends inside ``what``.
        """
        raw = self.read(offset, size)
        if len(raw) < size:
            raise FormatError(f"{what} is cut off by the end of the file", self.size, f"{size} bytes at {offset:#x}")
        return raw

    def array(self, offset: int, size: int, what: str) -> U8Array:
        """Return uint8[size] at ``offset``: a view of the mapping, or a copy where there is none.

        Raises:
            FormatError: the file ends inside ``what``.
        """
        if self.data is not None and offset + size <= self.size:
            return self.data[offset : offset + size]
        return np.frombuffer(self.read_exactly(offset, size, what), dtype=np.uint8)

    def buffer(self, offset: int, size: int) -> memoryview:
        """Return a view of ``size`` bytes at ``offset``; the caller has checked that the file has them.

        Raises:
            CodecError: they do not decode, where the file is compressed.
        """
        if self.data is not None:
            self._touch(size)
            return self.data[offset : offset + size].data
        return memoryview(self.read(offset, size))

    def identity(self) -> str | None:
        """Return a text that changes with the content, where one is known without reading all of it."""
        return None

    def gather(self, offsets: U64Array, rows: U64Array, out: U8Array) -> list[int]:
        """Copy pages into ``out``: row ``rows[i]`` gets the bytes at ``offsets[i]``.

        Runs that lie together in the file and in ``out`` are copied as one.

        Args:
            offsets: uint64[n], of any alignment, each with a whole page before the end of the file.
            rows: uint64[n].
            out: uint8[m, page_size], C-contiguous.

        Returns:
            The rows whose bytes do not decode, where the file is compressed; what is in them must not be used.
        """
        if not len(offsets):
            return []
        page_size = out.shape[1]
        together = (np.diff(offsets) == page_size) & (np.diff(rows) == 1)
        starts = np.concatenate(([0], np.flatnonzero(~together) + 1))
        if self.data is None or len(offsets) >= RUN_ROWS * len(starts) or len(starts) <= FEW_RUNS:
            self._gather_runs(offsets, rows, starts.tolist(), out)
            return []
        # Of uint8, so that any alignment will do: np.take of a misaligned view would copy all of the file.
        windows = np.lib.stride_tricks.sliding_window_view(self.data, page_size)
        for i in range(0, len(offsets), GATHER_ROWS):
            self._touch(GATHER_ROWS * page_size)
            part = slice(i, i + GATHER_ROWS)
            out[rows[part].astype(np.intp)] = windows[offsets[part].astype(np.intp)]
        return []

    def _touch(self, size: int) -> None:
        """Let the mapping's pages go when many were touched; the system keeps the file's pages as long as it can."""
        self._touched += size
        if self._touched >= RESIDENT_MAX and self._mapping is not None:
            self._touched = 0
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def _gather_runs(self, offsets: U64Array, rows: U64Array, starts: list[int], out: U8Array) -> None:
        for start, end in zip(starts, [*starts[1:], len(offsets)], strict=True):
            row, offset = int(rows[start]), int(offsets[start])
            self.read_into(offset, out[row : row + end - start].reshape(-1))

    def read_into(self, offset: int, out: U8Array) -> None:
        """Fill ``out`` from ``offset`` on, without the mapping: what is read by it counts as this process's memory.

        Args:
            offset: of the first byte.
            out: uint8[n], C-contiguous.

        Raises:
            DumpError: the file ends before, or the system cannot read it.
        """
        left = out.data
        try:
            while left and (count := os.preadv(self._file.fileno(), [left], offset)):
                left, offset = left[count:], offset + count
        except OSError as error:
            raise os_error(self.path, error) from error
        if left:
            raise FormatError("a page is cut off by the end of the file", offset, f"{len(left)} bytes more")

    def close(self) -> None:
        """Close the file; the mapping goes when the last array over it does."""
        self.data = self._mapping = None
        self._file.close()


def only_file(files: Sequence[DumpFile], what: str) -> DumpFile:
    """Return the file of a format whose dumps are one.

    Raises:
        UsageError: there are several.
    """
    if len(files) != 1:
        raise UsageError(f"{what} is one file, and {len(files)} were given")
    return files[0]


class LayeredFile(DumpFile):
    """What another file unwraps to; a subclass sets ``size`` and overrides ``read``.

    Attributes:
        inner: the file below, closed with this one.
    """

    def __init__(self, inner: DumpFile) -> None:  # there is no file of its own to open
        self.path = inner.path
        self.inner = inner
        self.size = 0
        self.data = None
        self.cut_off = inner.cut_off

    def read(self, offset: int, size: int) -> bytes:
        """See ``DumpFile.read``."""
        raise NotImplementedError

    def read_into(self, offset: int, out: U8Array) -> None:
        """See ``DumpFile.read_into``."""
        out[:] = np.frombuffer(self.read_exactly(offset, len(out), "a page"), dtype=np.uint8)

    def close(self) -> None:
        """Close the file below."""
        self.inner.close()

"""The bytes of a dump file, read on demand.

The file is not mapped with mmap(). If a mapped file is truncated or its disk fails, the system sends SIGBUS, and Python
dies. A read reports an error instead.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.errors import DumpError, FormatError, UsageError
from vmcore2core.folders import bytes_on_disk
from vmcore2core.overrides import override

HEAD_SIZE = 8192
"""Bytes that detection sees."""

READ_MAX = 1 << 30
"""Bytes that are asked for at once."""


def os_error(path: Path, error: OSError) -> DumpError:
    """Return the sentence for an ``OSError`` on ``path``."""
    if isinstance(error, IsADirectoryError):
        return DumpError(f"{path} is a directory, not a file")
    return DumpError(f"{path} cannot be read: {error.strerror or error}")


class DumpFile:
    """A dump file opened for reading.

    Args:
        path: the file.
        handle: its descriptor if it is open already; it is closed with this object.

    Attributes:
        path: as given.
        size: bytes in the file when it was opened.
        span_max: bytes that are best read at once if several pages lie near each other.
        cut_off: a sentence if the end is known to be missing without reading the dump, or None.

    Raises:
        DumpError: the system cannot open it.
    """

    cut_off: str | None = None
    span_max = 1 << 18

    def __init__(self, path: Path, handle: int | None = None) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0) if handle is None else os.fdopen(handle, "rb", buffering=0)
            self._fd = self._file.fileno()
            # For a block device, stat says 0.
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            self._begun = os.fstat(self._fd)
        except OSError as error:
            raise os_error(path, error) from error

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of ``[offset, offset + size)`` that the file has; fewer at its end.

        Raises:
            DumpError: the system cannot read them, or the file was truncated since it was opened.
        """
        size = max(0, min(size, self.size - offset))
        chunks = []
        try:
            while size > 0 and (chunk := os.pread(self._fd, min(size, READ_MAX), offset)):
                chunks.append(chunk)
                offset += len(chunk)
                size -= len(chunk)
        except OSError as error:
            raise os_error(self.path, error) from error
        if size > 0:
            self._check_cut()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield those parts of ``[start, end)`` that are no holes of the file, ascending; a hole reads as zeros."""
        begun = self._begun
        if not stat.S_ISREG(begun.st_mode) or bytes_on_disk(begun) >= begun.st_size:
            yield start, end
            return
        while start < end:
            try:
                data = os.lseek(self._fd, start, os.SEEK_DATA)
                hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno != errno.ENXIO:  # the file system does not know its holes
                    yield start, end
                return
            if data < end:
                yield data, hole
            start = hole if data < end else end

    def changed(self) -> str | None:
        """Return a sentence if the file was written to or truncated since it was opened."""
        now, before = os.fstat(self._fd), self._begun
        if not stat.S_ISREG(now.st_mode) or (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            return None
        return (
            f"{self.path} has changed while it was read: it has {now.st_size:#x} bytes, and had {before.st_size:#x} "
            "when it was opened; expected a dump that nobody writes to"
        )

    def _check_cut(self) -> None:
        if os.fstat(self._fd).st_size < self._begun.st_size:
            raise DumpError(f"{self.changed()}")

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
        """Return uint8[size] at ``offset``.

        Raises:
            FormatError: the file ends inside ``what``.
        """
        return np.frombuffer(self.read_exactly(offset, size, what), dtype=np.uint8)

    def buffer(self, offset: int, size: int) -> memoryview:
        """Return ``size`` bytes at ``offset``; the caller has checked that the file has them.

        Raises:
            CodecError: the file is compressed, and they do not decode.
        """
        return memoryview(self.read(offset, size))

    def read_once(self) -> None:
        """Note that the whole file will be read once, so nothing of it need be kept for later."""

    def identity(self) -> str | None:
        """Return a text that changes with the content, if it is known without reading all of it; else None."""
        return None

    def strong_identity(self) -> str | None:
        """Return a text that no other content has, without reading any; None if too little is known for that."""
        begun = self._begun
        # Devices, /proc/kcore and /proc/vmcore: they belong to another kernel after the next boot.
        if not begun.st_size or not stat.S_ISREG(begun.st_mode) or self.path.resolve().is_relative_to("/proc"):
            return None
        return f"{begun.st_dev} {begun.st_ino} {begun.st_size} {begun.st_mtime_ns} {begun.st_ctime_ns}"

    def gather(self, offsets: U64Array, rows: U64Array, out: U8Array) -> list[int]:
        """Copy pages into ``out``: row ``rows[i]`` gets the bytes at ``offsets[i]``.

        Runs that lie together in the file and in ``out`` are copied as one.

        Args:
            offsets: uint64[n], of any alignment; a whole page lies between each and the end of the file.
            rows: uint64[n].
            out: uint8[m, page_size], C-contiguous.

        Returns:
            The rows whose bytes do not decode (of a compressed file); their content must not be used.
        """
        if not len(offsets):
            return []
        page_size = out.shape[1]
        together = (np.diff(offsets) == page_size) & (np.diff(rows) == 1)
        starts = np.concatenate(([0], np.flatnonzero(~together) + 1))
        lengths = np.diff(starts, append=len(offsets)) * page_size
        flat = out.reshape(-1).data
        places = zip((rows[starts] * np.uint64(page_size)).tolist(), lengths.tolist(), strict=True)
        for offset, (at, length) in zip(offsets[starts].tolist(), places, strict=True):
            self._fill(offset, flat[at : at + length])
        return []

    def _fill(self, offset: int, left: memoryview) -> None:
        """Read from ``offset`` on until the buffers are full.

        Raises:
            DumpError: the file ends too early, or the system cannot read it.
        """
        try:
            while (count := os.preadv(self._fd, [left], offset)) != len(left):
                if not count:
                    break
                left, offset = left[count:], offset + count
            else:
                return
        except OSError as error:
            raise os_error(self.path, error) from error
        self._check_cut()
        raise FormatError("a page is cut off by the end of the file", offset, f"{len(left)} bytes more")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def only_file(files: Sequence[DumpFile], what: str) -> DumpFile:
    """Return the file of a format whose dumps have one file.

    Raises:
        UsageError: there are several.
    """
    if len(files) != 1:
        raise UsageError(f"{what} is one file, and {len(files)} were given")
    return files[0]


class LayeredFile(DumpFile):
    """The content of another file, unwrapped; a subclass sets ``size`` and overrides ``read``.

    Attributes:
        inner: the file below, closed with this one.
    """

    span_max = 0  # if a block does not decode, only the pages in it are lost

    def __init__(self, inner: DumpFile) -> None:  # there is no file of its own to open
        self.path = inner.path
        self.inner = inner
        self.size = 0
        self.cut_off = inner.cut_off

    @override
    def read(self, offset: int, size: int) -> bytes:
        raise NotImplementedError

    @override
    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Nothing is known of zeros."""
        yield start, end

    @override
    def _fill(self, offset: int, left: memoryview) -> None:
        left[:] = self.read_exactly(offset, len(left), "a page")

    @override
    def changed(self) -> str | None:
        """The file below tells."""
        return self.inner.changed()

    @override
    def strong_identity(self) -> str | None:
        """That of the file below."""
        return self.inner.strong_identity()

    @override
    def close(self) -> None:
        """Close the file below."""
        self.inner.close()

"""Where a core's bytes go: to a file with holes, or to compressed frames that can be read one by one.

References: RFC 8878; zstd's contrib/seekable_format/zstd_seekable_compression_format.md (1.5.7).
"""

from __future__ import annotations

import contextlib
import errno
import os
from array import array
from typing import Protocol

import numpy as np

from vmcore2core.errors import OutputError
from vmcore2core.formats import packed as fmt
from vmcore2core.interfaces import Compression

FRAME_SIZE = 1 << 20
"""Bytes in a frame, all of which a reader decompresses to read one page."""
ZSTD_LEVEL = 3
"""zstd's own default."""
COMPRESSED_MAX = 1 << 42
"""Largest core to compress, in bytes: zeros, which are free as holes, cost time and 20 bytes per frame here."""
WRITEBACK_EVERY = 16 << 20
"""After this many bytes, tell the kernel to begin writing them to disk."""


class Sink(Protocol):
    """Takes a file's bytes in ascending order; bytes that are not written read as zeros."""

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data``, behind what was written before."""
        ...

    def finish(self, size: int) -> None:
        """End the file at ``size``."""
        ...


def pwrite_all(fd: int, data: memoryview, offset: int) -> int:
    """Write all of ``data`` at ``offset``, with several system calls if needed; return the offset behind it.

    Raises:
        OSError: a system call fails, or writes nothing.
    """
    while data:
        count = os.pwrite(fd, data, offset)
        if not count:
            raise OSError(errno.EIO, "the file system wrote nothing")
        data, offset = data[count:], offset + count
    return offset


class FileSink:
    """A plain file with holes; bytes go to disk early, so that the final sync has little left to write.

    Args:
        fd: the file.
        size: its final size in bytes, so that a file system's size limit is hit before anything is read.
    """

    def __init__(self, fd: int, size: int = 0) -> None:
        self._fd = fd
        self._begun: int | None = None
        os.ftruncate(fd, size)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset of the file."""
        self._begun = offset if self._begun is None else self._begun
        offset = pwrite_all(self._fd, data, offset)
        if offset - self._begun >= WRITEBACK_EVERY:
            _start_writeback(self._fd, self._begun, offset - self._begun)
            self._begun = offset

    def finish(self, size: int) -> None:
        """Give the file its size."""
        os.ftruncate(self._fd, size)


def _start_writeback(fd: int, offset: int, size: int) -> None:
    """Have the kernel begin to write a range to disk, without waiting; if it refuses, fsync() writes everything later.

    POSIX_FADV_DONTNEED starts the writing of dirty pages, and does not drop them (mm/fadvise.c: generic_fadvise(),
    Linux 7.2). Python has no sync_file_range(2).
    """
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


class ZstdSink:
    """zstd frames of ``FRAME_SIZE`` bytes, then the seek table; a frame of zeros is compressed once.

    Raises:
        OutputError: the core is too large.
    """

    def __init__(self, fd: int, size: int) -> None:
        import zstandard

        if size > COMPRESSED_MAX:
            raise OutputError(
                f"a core of {size:#x} bytes is too large to be compressed, expected at most {COMPRESSED_MAX:#x}"
            )
        self._file, self._packed = FileSink(fd), 0
        self._compress = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress
        self._zeros = self._compress(bytes(FRAME_SIZE))
        self._frame, self._filled, self._dirty = bytearray(FRAME_SIZE), 0, False
        self._sizes = array("I")
        self._at = 0

    def write(self, data: memoryview, offset: int) -> None:
        """Compress bytes at an offset, which never decreases."""
        data = data.cast("B")
        self._skip(offset)
        while data:
            count = min(len(data), FRAME_SIZE - self._filled)
            self._frame[self._filled : self._filled + count] = data[:count]
            self._dirty = True
            data = data[count:]
            self._advance(count)

    def finish(self, size: int) -> None:
        """Write the remaining bytes as a shorter last frame, then the seek table."""
        self._skip(size)
        rest = self._filled
        if rest:
            self._put(self._compress(bytes(self._frame[:rest])))
        table = np.empty(len(self._sizes), fmt.ZSTD_SEEK_TABLE_ENTRY)
        table["Compressed_Size"] = np.frombuffer(self._sizes, np.uint32)
        table["Decompressed_Size"] = FRAME_SIZE
        table["Decompressed_Size"][len(table) - bool(rest) :] = rest
        footer = {
            "Number_Of_Frames": len(table),
            "Seek_Table_Descriptor": 0,
            "Seekable_Magic_Number": fmt.ZSTD_SEEKABLE_MAGIC,
        }
        content = table.tobytes() + fmt.ZSTD_SEEK_TABLE_FOOTER.build(footer)
        header = {"Skippable_Magic_Number": fmt.ZSTD_SEEK_TABLE_MAGIC, "Frame_Size": len(content)}
        self._file.write(memoryview(fmt.ZSTD_SEEK_TABLE_HEADER.build(header) + content), self._packed)

    def _skip(self, offset: int) -> None:
        """Go to ``offset`` over zeros."""
        if offset < self._at:
            raise ValueError(f"{offset:#x} is before {self._at:#x}, up to where the file is written")
        while self._at < offset:
            self._advance(min(offset - self._at, FRAME_SIZE - self._filled))

    def _advance(self, count: int) -> None:
        self._at += count
        self._filled += count
        if self._filled == FRAME_SIZE:
            self._put(self._compress(bytes(self._frame)) if self._dirty else self._zeros)
            if self._dirty:
                self._frame = bytearray(FRAME_SIZE)
            self._filled, self._dirty = 0, False

    def _put(self, frame: bytes) -> None:
        self._file.write(memoryview(frame), self._packed)
        self._packed += len(frame)
        self._sizes.append(len(frame))


def sink(fd: int, compression: Compression | None, size: int) -> Sink:
    """Return the sink that writes a core of ``size`` bytes to a file descriptor.

    Raises:
        OutputError: it is too large to be compressed.
    """
    return FileSink(fd, size) if compression is None else ZstdSink(fd, size)

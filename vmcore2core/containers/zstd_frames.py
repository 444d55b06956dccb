"""zstd files: where the frames are. Files of many frames (seekable format, pzstd, t2sz) are read in place.

References: RFC 8878, 3.1; zstd's contrib/seekable_format/zstd_seekable_compression_format.md.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from vmcore2core.containers.blockfile import BlockFile
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import CodecError, FormatError
from vmcore2core.formats import packed as fmt
from vmcore2core.overrides import override

WINDOW_MAX = 1 << 31
"""zstd --long=31; the library touches only the part of that memory that it needs."""

FRAME_OVERHEAD = 1 << 16
"""Bytes by which a frame that is read in place may be larger than its content."""


@dataclass
class ZstdIndex:
    """The frames of a file, skippable ones left out.

    Attributes:
        offsets: where each frame is in the file.
        sizes: of each frame in the file.
        contents: decoded size of each frame; meaningless if ``known`` is False.
        known: every frame tells its decoded size.
        end: where the last complete frame ends in the file.
        is_cut_off: the file ends inside a frame.
    """

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    contents: array[int] = field(default_factory=lambda: array("Q"))
    known: bool = True
    end: int = 0
    is_cut_off: bool = False


def index_frames(file: DumpFile) -> ZstdIndex:
    """Return where the frames are; only headers of frames and blocks are read.

    Raises:
        FormatError: a header has an impossible value.
    """
    index = ZstdIndex()
    at = 0
    while at < file.size:
        head = file.read(at, fmt.ZSTD_FRAME_HEADER_MAX)
        if head.startswith(fmt.ZSTD_SKIPPABLE_MAGICS) and len(head) >= fmt.ZSTD_SKIPPABLE_HEADER:
            end = at + fmt.ZSTD_SKIPPABLE_HEADER + int.from_bytes(head[4 : fmt.ZSTD_SKIPPABLE_HEADER], "little")
        elif head.startswith(fmt.ZSTD_MAGIC):
            end = _add_frame(file, at, head, index)
        else:
            break
        index.is_cut_off = end > file.size
        if index.is_cut_off:
            break
        index.end = at = end
    return index


def _add_frame(file: DumpFile, at: int, head: bytes, index: ZstdIndex) -> int:
    """Add the frame at ``at`` if it is complete; return where it ends, or a place behind the file's end."""
    import zstandard

    try:
        parameters = zstandard.get_frame_parameters(head)
        header_size = zstandard.frame_header_size(head)
        content = zstandard.frame_content_size(head)
    except zstandard.ZstdError as error:
        if at + fmt.ZSTD_FRAME_HEADER_MAX > file.size:
            return file.size + 1
        raise FormatError(f"a zstd frame header with an impossible field ({error})", at, "RFC 8878's") from error
    if parameters.window_size > WINDOW_MAX:
        raise FormatError(f"a zstd frame with a window of {parameters.window_size:#x}", at, f"{WINDOW_MAX:#x} at most")
    end = at + header_size
    last = False
    while not last:
        raw = file.read(end, fmt.ZSTD_BLOCK_HEADER)
        if len(raw) < fmt.ZSTD_BLOCK_HEADER:
            return file.size + 1
        block = int.from_bytes(raw, "little")
        kind, size = block >> fmt.ZSTD_BLOCK_TYPE_SHIFT & fmt.ZSTD_BLOCK_TYPE_MASK, block >> fmt.ZSTD_BLOCK_SIZE_SHIFT
        if kind == fmt.ZSTD_BLOCK_RESERVED or size > fmt.ZSTD_BLOCK_MAX:
            raise FormatError(f"a zstd block of type {kind} and {size:#x} bytes", end, "a block of RFC 8878, 3.1.1.2")
        last = bool(block & fmt.ZSTD_BLOCK_LAST)
        end += fmt.ZSTD_BLOCK_HEADER + (1 if kind == fmt.ZSTD_BLOCK_RLE else size)
    end += fmt.ZSTD_CHECKSUM if parameters.has_checksum else 0
    if end <= file.size:
        index.known = index.known and content >= 0
        index.offsets.append(at)
        index.sizes.append(end - at)
        index.contents.append(max(content, 0))
    return end


class ZstdFrames(BlockFile):
    """A zstd file whose frames tell their decoded size and are small enough to be decoded for a single page."""

    def __init__(self, inner: DumpFile, index: ZstdIndex) -> None:
        super().__init__(inner)
        import zstandard

        self._decompress = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX).decompress
        self._error = zstandard.ZstdError
        self._index = index
        ends = np.cumsum(np.frombuffer(index.contents, np.uint64), dtype=np.uint64)
        self.size = int(ends[-1])
        self._starts = ends - np.frombuffer(index.contents, np.uint64)
        if index.is_cut_off:
            self.cut_off = f"the zstd file is cut off: it ends at {inner.size:#x}, inside a frame"
        elif index.end < inner.size:
            self.cut_off = f"the zstd file has something other than a frame at {index.end:#x}, which is left out"

    @override
    def _decode(self, index: int, size: int) -> bytes:
        at, packed = self._index.offsets[index], self._index.sizes[index]
        where = f"the zstd frame at file offset {at:#x}"
        if packed > size + FRAME_OVERHEAD:
            raise CodecError(f"{where} has {packed:#x} bytes for {size:#x}")
        try:
            block = self._decompress(self.inner.read(at, packed))
        except (self._error, ValueError, MemoryError) as error:
            raise CodecError(f"{where} does not decode: {error}") from error
        if len(block) != size:
            raise CodecError(f"{where} decodes to {len(block):#x} bytes, expected {size:#x}")
        return block

"""AVML's compressed memory images (avml --compress): LiME's headers, each followed by snappy frames.

On opening, only the frames' headers are read, to index them. A frame has 64 KiB of memory; reading a page decodes
one frame.

References: AVML src/image.rs, copy_block(), and src/io/snappy.rs (0.14); snappy's framing_format.txt.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from vmcore2core.containers.base import ContainerDoc
from vmcore2core.containers.blockfile import BlockFile
from vmcore2core.containers.dumpfile import DumpFile, only_file
from vmcore2core.containers.lime import RANGES_MAX, LimeRange, end_warning, read_range_header
from vmcore2core.containers.segmented import SegmentedContainer, segment_table
from vmcore2core.errors import CodecError, FormatError
from vmcore2core.formats import lime as fmt
from vmcore2core.overrides import override


class _SnappyFrames(BlockFile):
    """The memory of all ranges, concatenated.

    Attributes:
        segments: (physical address, offset here, bytes) of each range.
        end: offset in the file behind the last whole range.
        is_whole: the last range that has a header is complete.
    """

    def __init__(self, inner: DumpFile) -> None:
        super().__init__(inner)
        import cramjam

        self._decompress = cramjam.snappy.decompress_into
        self._error: type[Exception] = cramjam.DecompressionError
        self._chunk_starts, self._chunk_offsets = array("Q"), array("Q")
        self.segments: list[tuple[int, int, int]] = []
        self.end = 0
        self.is_whole = True
        described = 0
        while (found := read_range_header(inner, self.end)) is not None:
            if found.version != fmt.AVML_VERSION or len(self.segments) == RANGES_MAX:
                what = f"range {len(self.segments)} of the image, of version {found.version}"
                raise FormatError(what, self.end, f"at most {RANGES_MAX} ranges, all of version {fmt.AVML_VERSION}")
            self.segments.append((found.start, described, found.size))
            self.is_whole = self._index_range(found, described)
            if not self.is_whole:
                break
            described += found.size
        self._starts = np.frombuffer(self._chunk_starts, np.uint64)

    def _index_range(self, found: LimeRange, described: int) -> bool:
        """Add the frames of one range; return whether the file has all of them."""
        at, start, end = found.data_offset, described, described + found.size
        while start < end:
            raw = self.inner.read(at, fmt.SNAPPY_CHUNK_HEADER + fmt.SNAPPY_CRC + fmt.SNAPPY_PREAMBLE_MAX)
            length = int.from_bytes(raw[1 : fmt.SNAPPY_CHUNK_HEADER], "little")
            next_at = at + fmt.SNAPPY_CHUNK_HEADER + length
            if len(raw) < fmt.SNAPPY_CHUNK_HEADER or next_at > self.inner.size:
                return False
            size = _decoded_size(raw, length, at)
            if size > end - start:
                what = f"a snappy chunk of {size:#x} bytes"
                raise FormatError(what, at, f"{end - start:#x} at most, which the range at {found.start:#x} lacks")
            if size:
                self._chunk_starts.append(start)
                self._chunk_offsets.append(at)
            start += size
            self.size = start
            at = next_at
        raw = self.inner.read(at, fmt.avml_block_size.itemsize)
        if len(raw) < fmt.avml_block_size.itemsize:
            self.cut_off = self.cut_off or (
                f"the file is cut off: it ends at {self.inner.size:#x}, before the size of a range's snappy frames"
            )
            return False
        self.end = at + fmt.avml_block_size.itemsize
        size = int(np.frombuffer(raw, fmt.avml_block_size)[0]["size"])
        if size != at - found.data_offset:
            raise FormatError(f"size {size:#x} of a range's snappy frames", at, f"{at - found.data_offset:#x}")
        return True

    @override
    def _decode(self, index: int, size: int) -> bytes:
        at = self._chunk_offsets[index]
        length = int.from_bytes(self.inner.read(at + 1, fmt.SNAPPY_CHUNK_HEADER - 1), "little")
        chunk = self.inner.read(at, fmt.SNAPPY_CHUNK_HEADER + length)
        block = bytearray(size)
        try:
            # With an identifier, a chunk is a whole stream, and the decoder checks the CRC.
            decoded = self._decompress(fmt.SNAPPY_STREAM_IDENTIFIER + chunk, block)
        except (self._error, ValueError, MemoryError) as error:
            raise CodecError(f"the snappy chunk at file offset {at:#x} does not decode: {error}") from error
        if decoded != size:
            raise CodecError(f"the snappy chunk at file offset {at:#x} decodes to {decoded:#x} bytes, not {size:#x}")
        return bytes(block)


def _decoded_size(raw: bytes, length: int, at: int) -> int:
    """Return how many bytes a chunk decodes to; 0 if it has no data.

    Args:
        raw: its header, and what follows of checksum and preamble.
        length: bytes behind the header.
        at: where it is in the file.

    Raises:
        FormatError: it is not a chunk of snappy's framing format, or an impossible one.
    """
    kind = raw[0]
    if kind not in (fmt.SNAPPY_COMPRESSED, fmt.SNAPPY_UNCOMPRESSED):
        identifier = fmt.SNAPPY_STREAM_IDENTIFIER
        if kind >= fmt.SNAPPY_SKIPPABLE_MIN and (
            kind != identifier[0] or identifier.startswith(raw[: len(identifier)])
        ):
            return 0
        raise FormatError(f"a snappy chunk of type {kind:#x}", at, "data, padding, or a stream identifier")
    if not fmt.SNAPPY_CRC < length <= fmt.SNAPPY_CHUNK_MAX:
        raise FormatError(f"a snappy chunk of {length:#x} bytes", at, f"5 to {fmt.SNAPPY_CHUNK_MAX:#x}")
    if kind == fmt.SNAPPY_UNCOMPRESSED:
        size = length - fmt.SNAPPY_CRC
    else:
        size = _varint(raw[fmt.SNAPPY_CHUNK_HEADER + fmt.SNAPPY_CRC : fmt.SNAPPY_CHUNK_HEADER + length])
    if not 0 < size <= fmt.SNAPPY_CHUNK_DATA_MAX:
        raise FormatError(f"a snappy chunk that decodes to {size:#x} bytes", at, f"1 to {fmt.SNAPPY_CHUNK_DATA_MAX:#x}")
    return size


def _varint(raw: bytes) -> int:
    """Return a little-endian base-128 number; 0 if it does not end."""
    value = 0
    for index, byte in enumerate(raw):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value
    return 0


class AvmlContainer(SegmentedContainer):
    """An AVML image with snappy frames."""

    DOC = ContainerDoc(
        name="AVML",
        summary="avml --compress",
        references=("AVML src/image.rs and src/io/snappy.rs", "snappy framing_format.txt"),
        limitations=(
            "no registers of running tasks, because the machine kept running while its memory was read",
            "an image that is cut off exactly between two ranges looks complete",
            "AVML leaves out blocks of 16 MiB that are all zeros, and the file does not tell: their pages are missing",
        ),
    )
    compressed = "snappy"

    def __init__(self, files: Sequence[DumpFile]) -> None:
        file = only_file(files, "an AVML image")
        self.paths = (file.path,)
        self.e_machine = None
        self.byte_order = None
        self.notes = ()
        frames = _SnappyFrames(file)
        if not frames.segments:
            size = fmt.lime_mem_range_header.itemsize
            raise FormatError("lime_mem_range_header is cut off by the end of the file", file.size, f"{size} bytes")
        self._file = frames
        self.warnings = [] if frames.cut_off is None else [frames.cut_off]
        if frames.is_whole:
            self.warnings += end_warning(file, frames.end)
        self._set_segments(segment_table(frames.segments), "its headers")

    @classmethod
    @override
    def detect(cls, f: BinaryIO) -> bool:
        """Tell whether the file begins with AVML's magic number."""
        return f.read(len(fmt.AVML_MAGIC)) == fmt.AVML_MAGIC


CONTAINER = AvmlContainer

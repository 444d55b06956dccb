"""xz files of small blocks (xz --block-size, pixz), read in place with the help of the index at the end of each stream.

References: the .xz file format 1.2.1, 2.1 to 4.
"""

from __future__ import annotations

import lzma
import zlib
from typing import NamedTuple

import numpy as np

from vmcore2core.containers.blockfile import BlockFile
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import CodecError
from vmcore2core.formats import packed as fmt
from vmcore2core.overrides import override

MEMORY_MAX = 2 << 30
"""Memory that liblzma may use: dictionaries of up to 1.5 GiB."""

INDEX_MAX = 4 << 20
"""Most bytes of the index of one stream: half a million blocks and more."""

PADDING_STEP = 1 << 16

BLOCK_OVERHEAD = 1 << 16
"""Bytes by which a block may be larger than its content."""


class XzBlock(NamedTuple):
    """A block: its offset in the file, its size there with padding, its decoded size, and its stream's header."""

    offset: int
    packed_size: int
    size: int
    header: bytes


def index_blocks(file: DumpFile) -> list[XzBlock] | None:
    """Return the blocks of all streams; None if the file is anything else than concatenated streams."""
    backwards: list[XzBlock] = []
    end = _without_padding(file, file.size)
    while end > 0:
        if end % fmt.XZ_ALIGN or end < fmt.XZ_FOOTER_SIZE:
            return None
        stream = _stream_blocks(file, end, file.read(end - fmt.XZ_FOOTER_SIZE, fmt.XZ_FOOTER_SIZE))
        if stream is None:
            return None
        start, found = stream
        backwards += reversed(found)
        end = _without_padding(file, start)
    return backwards[::-1]


def _without_padding(file: DumpFile, end: int) -> int:
    """Return where the run of zeros before ``end`` begins."""
    while end > 0:
        raw = file.read(max(0, end - PADDING_STEP), min(end, PADDING_STEP))
        left = len(raw.rstrip(b"\0"))
        end -= len(raw) - left
        if left:
            break
    return end


def _stream_blocks(file: DumpFile, end: int, footer: bytes) -> tuple[int, list[XzBlock]] | None:
    """Return where the stream that ends at ``end`` begins, and its blocks; None if there is none."""
    if not footer.endswith(fmt.XZ_FOOTER_MAGIC) or not _crc_is_right(footer[fmt.XZ_FOOTER_BACKWARD_SIZE :][:6], footer):
        return None
    flags = footer[fmt.XZ_FOOTER_FLAGS : fmt.XZ_FOOTER_MAGIC_OFFSET]
    backward = footer[fmt.XZ_FOOTER_BACKWARD_SIZE : fmt.XZ_FOOTER_FLAGS]
    index_size = (int.from_bytes(backward, "little") + 1) * fmt.XZ_ALIGN
    index_at = end - fmt.XZ_FOOTER_SIZE - index_size
    if index_size > INDEX_MAX or index_at < fmt.XZ_HEADER_SIZE:
        return None
    raw = file.read(index_at, index_size)
    if not _crc_is_right(raw[: -fmt.XZ_ALIGN], raw[-fmt.XZ_ALIGN :]):
        return None
    records = _records(raw)
    if records is None:
        return None
    sizes = [(-(-unpadded // fmt.XZ_ALIGN) * fmt.XZ_ALIGN, size) for unpadded, size in records]
    at = index_at - sum(packed for packed, _ in sizes)
    start = at - fmt.XZ_HEADER_SIZE
    header = file.read(start, fmt.XZ_HEADER_SIZE) if start >= 0 else b""
    flags_end = fmt.XZ_FLAGS_OFFSET + fmt.XZ_FLAGS_SIZE
    if not header.startswith(fmt.XZ_MAGIC) or header[fmt.XZ_FLAGS_OFFSET : flags_end] != flags:
        return None
    blocks = []
    for packed, size in sizes:
        blocks.append(XzBlock(at, packed, size, header))
        at += packed
    return start, blocks


def _crc_is_right(data: bytes, crc: bytes) -> bool:
    return zlib.crc32(data) == int.from_bytes(crc[:4], "little")


def _records(raw: bytes) -> list[tuple[int, int]] | None:
    """Return unpadded and uncompressed size of each block; None if the bytes are not an index with a right CRC."""
    count, at = _varint(raw, 1)
    if raw[0] or count is None or count > len(raw) // 2:
        return None
    records = []
    for _ in range(count):
        unpadded, at = _varint(raw, at)
        size, at = _varint(raw, at)
        if not unpadded or size is None:
            return None
        if size:
            records.append((unpadded, size))
        else:
            return None
    return records


def _varint(raw: bytes, at: int) -> tuple[int | None, int]:
    """Return a number and where it ends; None if it does not end."""
    value = 0
    for index, byte in enumerate(raw[at : at + fmt.XZ_VARINT_MAX]):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, at + index + 1
    return None, at


class XzBlocks(BlockFile):
    """An xz file of one or more blocks."""

    def __init__(self, inner: DumpFile, blocks: list[XzBlock]) -> None:
        super().__init__(inner)
        self._blocks = blocks
        ends = np.cumsum(np.array([block.size for block in blocks], np.uint64), dtype=np.uint64)
        self.size = int(ends[-1])
        self._starts = np.concatenate((np.zeros(1, np.uint64), ends[:-1]))

    @override
    def _decode(self, index: int, size: int) -> bytes:
        block = self._blocks[index]
        where = f"the xz block at file offset {block.offset:#x}"
        if block.packed_size > size + BLOCK_OVERHEAD:
            raise CodecError(f"{where} has {block.packed_size:#x} bytes for {size:#x}")
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_MAX)
        try:
            # A stream that ends after one block; the decoder still verifies the block's check.
            data = decoder.decompress(
                block.header + self.inner.read(block.offset, block.packed_size), max_length=size + 1
            )
            if not decoder.needs_input:
                data += decoder.decompress(b"", max_length=1)
        except (lzma.LZMAError, EOFError, ValueError, MemoryError) as error:
            raise CodecError(f"{where} does not decode: {error}") from error
        if len(data) != size:
            raise CodecError(f"{where} decodes to {len(data):#x} bytes, expected {size:#x}")
        return data

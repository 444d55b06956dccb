"""Compressed files around any dump: read in place if their blocks are small, else unpacked to the cache once.

References: see ``formats.packed``.
"""

from __future__ import annotations

from vmcore2core.containers.cache import Keeping
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.lz4_stream import Lz4Stream
from vmcore2core.containers.streams import ZstdStream, bzip2_stream, gzip_stream, xz_stream
from vmcore2core.containers.unpacked import unpack
from vmcore2core.containers.xz_blocks import XzBlocks, index_blocks
from vmcore2core.containers.zstd_frames import ZstdFrames, index_frames
from vmcore2core.formats import packed as fmt

ZSTD_IN_PLACE_MAX = 16 << 20
"""Largest frame, decoded, of a file that is read in place: a page that is not cached takes 20 ms."""

XZ_IN_PLACE_MAX = 4 << 20
"""The same for xz, which is slower: 50 ms."""

KEPT = Keeping()


def unwrapped(file: DumpFile, keeping: Keeping = KEPT) -> DumpFile:
    """Return the content of a compressed file; any other file as it is.

    Raises:
        FormatError, CodecError: it is broken.
        DumpError: it cannot be read, or there is no place to unpack it to.
    """
    head = file.read(0, 16)
    if head.startswith(fmt.ZSTD_MAGIC) or (head.startswith(fmt.ZSTD_SKIPPABLE_MAGICS) and _is_zstd(file, head)):
        return _zstd(file, keeping)
    if head.startswith(fmt.XZ_MAGIC):
        return _xz(file, keeping)
    if head.startswith(fmt.GZIP_MAGIC):
        return unpack(file, "gzip", gzip_stream(file), None, keeping)
    if head.startswith(fmt.BZIP2_MAGIC) and head[len(fmt.BZIP2_MAGIC) + 1 :].startswith(fmt.BZIP2_BLOCK_MAGICS):
        return unpack(file, "bzip2", bzip2_stream(file), None, keeping)
    if head.startswith((fmt.LZ4_MAGIC, fmt.LZ4_LEGACY_MAGIC)):
        return unpack(file, "lz4", Lz4Stream(file), None, keeping)
    return file


def _is_zstd(file: DumpFile, head: bytes) -> bool:
    """Tell whether a zstd frame follows the first skippable one (pzstd)."""
    end = fmt.ZSTD_SKIPPABLE_HEADER + int.from_bytes(head[4 : fmt.ZSTD_SKIPPABLE_HEADER], "little")
    return file.read(end, len(fmt.ZSTD_MAGIC)) == fmt.ZSTD_MAGIC


def _zstd(file: DumpFile, keeping: Keeping) -> DumpFile:
    index = index_frames(file)
    if len(index.contents) and index.known and max(index.contents) <= ZSTD_IN_PLACE_MAX and sum(index.contents):
        return ZstdFrames(file, index)
    size = sum(index.contents) if index.known and not index.is_cut_off else None
    return unpack(file, "zstd", ZstdStream(file, index), size, keeping)


def _xz(file: DumpFile, keeping: Keeping) -> DumpFile:
    blocks = index_blocks(file)
    if blocks and max(block.size for block in blocks) <= XZ_IN_PLACE_MAX:
        return XzBlocks(file, blocks)
    size = None if blocks is None else sum(block.size for block in blocks)
    return unpack(file, "xz", xz_stream(file), size, keeping)

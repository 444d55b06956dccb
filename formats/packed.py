"""Compressed files that a dump may be in: their signatures, and the headers from which an index is made.

Sources of truth: RFC 1952 (gzip); bzip2's bzlib_private.h; the .xz file format 1.2.1; RFC 8878 (zstd); LZ4's
doc/lz4_Frame_format.md (1.6.2).
"""

from __future__ import annotations

import numpy as np
from construct import Int8ul, Int32ul, Struct

GZIP_MAGIC = b"\x1f\x8b\x08"
"""ID1, ID2, CM = deflate."""

BZIP2_MAGIC = b"BZh"
"""Then the block size, '1' to '9'."""
BZIP2_BLOCK_MAGICS = (b"1AY&SY", b"\x17rE8P\x90")
"""Magic numbers of what follows: a block, or the end of an empty stream."""

# .xz: stream header (magic, flags, CRC-32), blocks, index, footer (CRC-32, backward size, flags, magic).
XZ_MAGIC = b"\xfd7zXZ\0"
XZ_FOOTER_MAGIC = b"YZ"
XZ_HEADER_SIZE = 12
XZ_FOOTER_SIZE = 12
XZ_FLAGS_OFFSET = 6
XZ_FOOTER_BACKWARD_SIZE = 4
XZ_FOOTER_FLAGS = 8
XZ_FOOTER_MAGIC_OFFSET = 10
XZ_FLAGS_SIZE = 2
XZ_ALIGN = 4
"""Blocks are padded to a multiple of this; backward size counts so many bytes, less one."""
XZ_VARINT_MAX = 9

# zstd: the frame header is read by the library; behind it are blocks with 3 bytes of header each.
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE_MAGICS = tuple(bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16))
ZSTD_SKIPPABLE_HEADER = 8
ZSTD_FRAME_HEADER_MAX = 18
ZSTD_BLOCK_HEADER = 3
ZSTD_BLOCK_LAST = 0x1
ZSTD_BLOCK_TYPE_SHIFT = 1
ZSTD_BLOCK_TYPE_MASK = 0x3
ZSTD_BLOCK_RLE = 1
ZSTD_BLOCK_RESERVED = 3
ZSTD_BLOCK_SIZE_SHIFT = 3
ZSTD_BLOCK_MAX = 1 << 17
ZSTD_CHECKSUM = 4

# LZ4 frame: magic, then FLG; python-lz4 reads the rest.
LZ4_MAGIC = b"\x04\x22\x4d\x18"
LZ4_FLG = 4
LZ4_FLG_DICT_ID = 0x01

LZ4_BLOCK_SIZE = 4
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZ4_LEGACY_BLOCK = 8 << 20
"""Decoded size of every block except the last."""
LZ4_LEGACY_PACKED_MAX = LZ4_LEGACY_BLOCK + LZ4_LEGACY_BLOCK // 255 + 16
"""Bytes that a block takes at most, LZ4_COMPRESSBOUND(); a larger number is the next frame's magic number."""

# zstd's seekable format, 0.1.0 (contrib/seekable_format/zstd_seekable_compression_format.md): a last skippable frame.
ZSTD_SEEK_TABLE_MAGIC = 0x184D2A5E
ZSTD_SEEKABLE_MAGIC = 0x8F92EAB1
ZSTD_SEEK_TABLE_ENTRY = np.dtype([("Compressed_Size", "<u4"), ("Decompressed_Size", "<u4")])
ZSTD_SEEK_TABLE_HEADER = Struct("Skippable_Magic_Number" / Int32ul, "Frame_Size" / Int32ul)
ZSTD_SEEK_TABLE_FOOTER = Struct(
    "Number_Of_Frames" / Int32ul, "Seek_Table_Descriptor" / Int8ul, "Seekable_Magic_Number" / Int32ul
)
"""Descriptor 0: the entries have no checksums; the frames have their own."""

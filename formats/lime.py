"""LiME's memory images, and AVML's, which have the same header and snappy frames behind it.

An image is, for each range of System RAM, a header and the range's bytes, from s_addr to e_addr inclusive. In AVML's
version 2 the bytes are a stream of snappy frames instead, and its size as a uint64 behind it.

Sources of truth: LiME src/lime.h, lime_mem_range_header; AVML src/image.rs, Header, and src/io/snappy.rs; snappy's
framing_format.txt (2013-10-25).
"""

from __future__ import annotations

import numpy as np

LIME_MAGIC = b"EMiL"
"""0x4C694D45, as x86's byte order has it."""
LIME_VERSION = 1

AVML_MAGIC = b"AVML"
"""0x4C4D5641."""
AVML_VERSION = 2

lime_mem_range_header = np.dtype(
    [("magic", "S4"), ("version", "<u4"), ("s_addr", "<u8"), ("e_addr", "<u8"), ("reserved", "<u8")]
)
"""32 bytes; e_addr is the address of the last byte."""

avml_block_size = np.dtype([("size", "<u8")])
"""Behind the frames of each range: their size in bytes."""

# A chunk: one byte of type, three of length; a data chunk begins with the masked CRC-32C of the decoded bytes.
SNAPPY_CHUNK_HEADER = 4
SNAPPY_CRC = 4
SNAPPY_COMPRESSED = 0x00
SNAPPY_UNCOMPRESSED = 0x01
SNAPPY_SKIPPABLE_MIN = 0x80
"""Readers skip unknown chunk types from here to 0xfe; they must not skip others."""
SNAPPY_STREAM_IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
SNAPPY_CHUNK_DATA_MAX = 65536
"""Bytes that a data chunk may decode to."""
SNAPPY_CHUNK_MAX = 4 + 32 + 65536 + 65536 // 6
"""Bytes that a data chunk may take behind its header: its checksum, and snappy's worst case."""
SNAPPY_PREAMBLE_MAX = 5
"""Bytes of the varint before compressed data, which has the decoded size."""

"""Compressed sections: a broken one is reported, and no more is decompressed than needed."""

from __future__ import annotations

import struct
import zlib

import pytest
import zstandard

from vmcore2core.elf.compressed import decompressed
from vmcore2core.errors import CodecError

PLAIN = b"symbols and strings " * 400
ZLIB, ZSTD = zlib.compress(PLAIN), zstandard.ZstdCompressor().compress(PLAIN)


def section(ch_type: int, packed: bytes, size: int = len(PLAIN)) -> bytes:
    """Elf64_Chdr: ch_type, ch_reserved, ch_size, ch_addralign."""
    return struct.pack("<IIQQ", ch_type, 0, size, 8) + packed


@pytest.mark.parametrize("raw", [section(1, ZLIB), section(2, ZSTD)], ids=["zlib", "zstd"])
def test_a_section_decompresses_to_what_its_header_says(raw: bytes) -> None:
    assert decompressed(raw, (64, "little"), 1 << 20) == PLAIN


def test_a_32_bit_header_is_shorter() -> None:
    """Elf32_Chdr: ch_type, ch_size, ch_addralign."""
    raw = struct.pack(">III", 1, len(PLAIN), 4) + ZLIB
    assert decompressed(raw, (32, "big"), 1 << 20) == PLAIN


@pytest.mark.parametrize(
    ("raw", "limit", "sentence"),
    [
        (section(1, ZLIB)[:20], 1 << 20, "is shorter than its compression header"),
        (section(1, ZLIB), 100, f"has {len(PLAIN):#x} bytes, expected at most 0x64"),
        (section(7, ZLIB), 1 << 20, r"has ch_type 7, expected 1 \(zlib\) or 2 \(zstd\)"),
        (section(1, ZLIB, 100), 1 << 20, "decompresses to 0x65 bytes, expected 0x64"),
        (section(2, ZSTD, 100), 1 << 20, "decompresses to 0x65 bytes, expected 0x64"),
        (section(1, b"not zlib"), 1 << 20, "does not decompress: "),
        (section(2, b"not zstd"), 1 << 20, "does not decompress: "),
        (section(1, ZLIB, len(PLAIN) + 1), 1 << 20, "decompresses to "),
    ],
)
def test_what_is_broken_is_said(raw: bytes, limit: int, sentence: str) -> None:
    with pytest.raises(CodecError, match=sentence):
        decompressed(raw, (64, "little"), limit)

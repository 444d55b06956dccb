"""lz4 files out of struct.pack and literal numbers; XXH32 as its specification writes it.

References: LZ4's doc/lz4_Frame_format.md and doc/lz4_Block_format.md; xxHash's doc/xxhash_spec.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence


def xxh32(data: bytes) -> int:
    """Return XXH32 with seed 0."""
    p1, p2, p3, p4, p5 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1
    mask = 0xFFFFFFFF

    def rotl(value: int, bits: int) -> int:
        value &= mask
        return (value << bits | value >> 32 - bits) & mask

    stripes = len(data) // 16 * 16
    if stripes:
        a, b, c, d = (p1 + p2) & mask, p2, 0, -p1 & mask
        for w, x, y, z in struct.iter_unpack("<4I", data[:stripes]):
            a, b, c, d = a + w * p2 & mask, b + x * p2 & mask, c + y * p2 & mask, d + z * p2 & mask
            a, b = (a << 13 | a >> 19) * p1 & mask, (b << 13 | b >> 19) * p1 & mask
            c, d = (c << 13 | c >> 19) * p1 & mask, (d << 13 | d >> 19) * p1 & mask
        total = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)
    else:
        total = p5
    total += len(data)
    words = stripes + (len(data) - stripes) // 4 * 4
    for (word,) in struct.iter_unpack("<I", data[stripes:words]):
        total = rotl(total + word * p3, 17) * p4
    for byte in data[words:]:
        total = rotl(total + byte * p5, 11) * p1
    total &= mask
    total = (total ^ total >> 15) * p2 & mask
    total = (total ^ total >> 13) * p3 & mask
    return total ^ total >> 16


def frame_header(flg: int, bd: int = 4 << 4, size: int | None = None) -> bytes:
    """Return magic, FLG, BD, content size where one is given, and HC."""
    descriptor = bytes([flg, bd]) + (b"" if size is None else struct.pack("<Q", size))
    return struct.pack("<I", 0x184D2204) + descriptor + bytes([xxh32(descriptor) >> 8 & 0xFF])


def stored(data: bytes) -> bytes:
    """Return a block that is not compressed."""
    return struct.pack("<I", len(data) | 1 << 31) + data


def packed(data: bytes) -> bytes:
    """Return a block of compressed data."""
    return struct.pack("<I", len(data)) + data


def compressed(data: bytes) -> bytes:
    """Return what lz4's own encoder makes of a block that refers to no other."""
    import cramjam

    return bytes(cramjam.lz4.compress_block(data, store_size=False))


def lz4_frame(data: bytes, *, block: int = 4, more: int = 0) -> bytes:
    """Return a frame of independent blocks.

    Args:
        block: the code of the blocks' largest size in BD: 4 for 64 KiB, to 7 for 4 MiB.
        more: bits of FLG: block checksums 0x10, content size 8, content checksum 4.
    """
    size = 1 << 8 + 2 * block
    out = frame_header(0x60 | more, block << 4, len(data) if more & 8 else None)
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        inside = compressed(piece)
        one = stored(piece) if len(inside) >= len(piece) else packed(inside)
        out += one + (struct.pack("<I", xxh32(one[4:])) if more & 0x10 else b"")
    return out + bytes(4) + (struct.pack("<I", xxh32(data)) if more & 4 else b"")


def lz4_legacy(data: bytes) -> bytes:
    """Return a legacy frame, as ``lz4 -l`` writes it: blocks of 8 MiB."""
    blocks = (packed(compressed(data[at : at + (8 << 20)])) for at in range(0, len(data), 8 << 20))
    return struct.pack("<I", 0x184C2102) + b"".join(blocks)


def lz4_linked(data: bytes) -> bytes:
    """Return a frame with a content checksum whose blocks refer to the 64 KiB before them where those come again."""
    out = frame_header(0x44)
    for at in range(0, len(data), 1 << 16):
        piece = data[at : at + (1 << 16)]
        inside = _linked_block(data[max(0, at - 65535) : at], piece)
        out += stored(piece) if len(inside) >= len(piece) else packed(inside)
    return out + bytes(4) + struct.pack("<I", xxh32(data))


def _linked_block(before: bytes, piece: bytes) -> bytes:
    out, at, pending = b"", 0, b""
    window = before + piece
    while at < len(piece):
        found = before.rfind(piece[at : at + 64]) if at + 100 < len(piece) else -1
        if found < 0:
            pending += piece[at : at + 64]
        else:
            assert window[found : found + 64] == piece[at : at + 64]
            out += sequence(pending, len(before) + at - found, 64)
            pending = b""
        at += 64
    return out + sequence(pending)


def sequence(literals: bytes, offset: int = 0, length: int = 0) -> bytes:
    """Return a sequence: literals, and a match of ``length`` bytes from ``offset`` back, but in the last one."""

    def more(count: int) -> bytes:
        return b"" if count < 15 else b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])

    match = length - 4 if length else 0
    token = bytes([min(len(literals), 15) << 4 | min(match, 15)])
    tail = struct.pack("<H", offset) + more(match) if length else b""
    return token + more(len(literals)) + literals + tail


def linked_frame(blocks: Sequence[bytes]) -> bytes:
    """Return a frame of linked blocks without checksums, made of ``stored`` and ``packed``."""
    return frame_header(0x40) + b"".join(blocks) + bytes(4)

"""LiME and AVML images out of struct.pack and literal numbers; AVML's frames by snappy's own encoder."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def lime_header(start: int, size: int, magic: int = 0x4C694D45, version: int = 1, reserved: int = 0) -> bytes:
    """Return lime_mem_range_header; e_addr is the last byte's address."""
    return struct.pack("<IIQQQ", magic, version, start, start + size - 1, reserved)


def build_lime(ranges: Iterable[tuple[int, bytes]]) -> bytes:
    """Return a LiME image of (physical address, bytes)."""
    return b"".join(lime_header(start, len(data)) + data for start, data in ranges)


def snappy_frames(data: bytes) -> bytes:
    """Return a snappy stream: identifier, and chunks of 64 KiB."""
    import cramjam

    return bytes(cramjam.snappy.compress(data))


def build_avml(ranges: Iterable[tuple[int, bytes]], *, block: int = 1 << 24, skip_zeros: bool = False) -> bytes:
    """Return what avml --compress makes of (physical address, bytes).

    Args:
        block: a range is cut into blocks of so many bytes.
        skip_zeros: leave out blocks of zeros, as AVML does.
    """
    image = bytearray()
    for start, data in ranges:
        for at in range(0, len(data), block):
            part = data[at : at + block]
            if skip_zeros and not part.strip(b"\0"):
                continue
            frames = snappy_frames(part)
            image += lime_header(start + at, len(part), magic=0x4C4D5641, version=2)
            image += frames + struct.pack("<Q", len(frames))
    return bytes(image)


def crc32c(data: bytes) -> int:
    """Return CRC-32C (Castagnoli), bit by bit as RFC 3720, B.4, has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> bytes:
    """Return the checksum of a chunk, as framing_format.txt, 3, has it."""
    crc = crc32c(data)
    return struct.pack("<I", (crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF)


def snappy_chunk(kind: int, payload: bytes, checksum: bytes = b"") -> bytes:
    """Return a chunk: 0 holds compressed data, 1 holds data as they are, both behind a checksum."""
    return bytes([kind]) + (len(checksum) + len(payload)).to_bytes(3, "little") + checksum + payload

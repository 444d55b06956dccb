"""makedumpfile's flattened form of any bytes, by struct.pack."""

from __future__ import annotations

import struct


def build_flattened(pieces: list[tuple[int, bytes]], *, end: bool = True, kind: int = 1, version: int = 1) -> bytes:
    head = struct.pack(">16sqq", b"makedumpfile", kind, version).ljust(4096, b"\0")
    body = b"".join(struct.pack(">qq", offset, len(data)) + data for offset, data in pieces)
    return head + body + (struct.pack(">qq", -1, -1) if end else b"")

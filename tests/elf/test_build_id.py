"""Build IDs among notes; tests/process/test_sysroot.py has those of whole files."""

from __future__ import annotations

import struct

from vmcore2core.elf.build_id import build_id_in
from vmcore2core.elf.headers import part

PROPERTY = struct.pack("<III4s", 4, 16, 5, b"GNU\0") + bytes(16)
ID = bytes(range(1, 21))
BUILD_ID = struct.pack("<III4s", 4, 20, 3, b"GNU\0") + ID


def test_it_stands_behind_other_notes() -> None:
    assert build_id_in(PROPERTY + BUILD_ID, "little") == ID
    assert build_id_in(PROPERTY + BUILD_ID, "big") is None


def test_a_note_of_somebody_else_or_without_bytes_is_none() -> None:
    assert build_id_in(BUILD_ID.replace(b"GNU", b"Xen"), "little") is None
    assert build_id_in(struct.pack("<III4s", 4, 0, 3, b"GNU\0"), "little") is None


def test_a_part_has_nothing_behind_its_end() -> None:
    read = part(lambda offset, size: bytes(range(100))[offset : offset + size], 10, 5)
    assert (read(0, 5), read(1, 4), read(1, 5)) == (bytes(range(10, 15)), bytes(range(11, 15)), None)

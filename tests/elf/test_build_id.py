"""Build IDs among notes; tests/process/test_sysroot.py has those of whole files."""

from __future__ import annotations

import re
import struct
import subprocess
from functools import partial
from pathlib import Path

from tests.needs import need
from vmcore2core.elf.build_id import build_id, build_id_in
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


def test_it_is_found_by_segments_else_by_sections(tmp_path: Path) -> None:
    """readelf -n says which one it is. A file of debug information may have the segments of another file."""
    (tmp_path / "a.c").write_text("int main(void) { return 0; }")
    program = tmp_path / "a"
    subprocess.run([need("cc"), "-Wl,--build-id=sha1", "-o", program, tmp_path / "a.c"], check=True)
    shown = subprocess.run([need("readelf"), "-n", program], capture_output=True, text=True, check=True).stdout
    (known,) = re.findall("Build ID: ([0-9a-f]+)", shown)
    whole = program.read_bytes()
    (phoff,), (phnum,) = struct.unpack_from("<Q", whole, 32), struct.unpack_from("<H", whole, 56)
    moved = bytearray(whole)
    for at in range(phoff, phoff + 56 * phnum, 56):
        if struct.unpack_from("<I", whole, at) == (4,):  # PT_NOTE
            struct.pack_into("<Q", moved, at + 8, 1 << 40)
    for content in (whole, bytes(moved)):
        assert build_id(partial(_read, content), 64, "little") == bytes.fromhex(known)
    no_sections = bytes(moved[:40]) + bytes(8) + bytes(moved[48:])
    wrong_size = whole[:54] + b"\x07\0" + whole[56:]  # e_phentsize
    for content in (no_sections, wrong_size, whole[:32], b""):
        assert build_id(partial(_read, content), 64, "little") is None


def _read(content: bytes, offset: int, size: int) -> bytes | None:
    raw = content[offset : offset + size]
    return raw if len(raw) == size else None

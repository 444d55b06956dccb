"""Dumps that say less than kdump's; cores must be the same.

Most hypervisors write no VMCOREINFO note; and the note's 4096 bytes may end before the text does."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.guests import GUESTS, bundled, convert

SUB_HEADER_VMCOREINFO = 4096 + 32  # kdump_sub_header's offset_vmcoreinfo and size_vmcoreinfo


def without_note(dump: Path, target: Path) -> Path:
    """Copy a kdump file; its VMCOREINFO is no longer referred to, and its note has another name."""
    data = bytearray(dump.read_bytes())
    offset, size = struct.unpack_from("<QQ", data, SUB_HEADER_VMCOREINFO)
    assert data[offset : offset + 10] == b"OSRELEASE="
    struct.pack_into("<QQ", data, SUB_HEADER_VMCOREINFO, 0, 0)
    data[offset : offset + size] = bytes(size)
    name = data.index(b"VMCOREINFO\0")
    data[name : name + 10] = b"SOMETHING!"
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("guest", GUESTS)
def test_the_text_is_found_in_memory_and_the_cores_are_the_same(guest: str, tmp_path: Path) -> None:
    dump = bundled(guest, tmp_path)
    bare = without_note(dump, tmp_path / "bare")
    told, found = tmp_path / "told", tmp_path / "found"
    assert convert(dump, "--all", "-o", told).returncode == 0
    result = convert(bare, "--all", "-o", found, "-v")
    assert result.returncode == 0
    assert "VMCOREINFO text at physical 0x" in result.stderr
    names = sorted(path.name for path in told.glob("core.*[0-9]"))
    assert sorted(path.name for path in found.glob("core.*[0-9]")) == names
    assert len(names) >= 3
    for name in names:
        ours, theirs = Core(found / name), Core(told / name)
        diff = compare_pages(ours, theirs)
        assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
        assert ours.registers == theirs.registers
        assert ours.extents == theirs.extents
        assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (theirs.note(NT_AUXV), theirs.note(NT_FILE))


def cut_off(dump: Path, target: Path, size: int) -> Path:
    """Copy a kdump file; its VMCOREINFO ends after ``size`` bytes."""
    data = bytearray(dump.read_bytes())
    offset, whole = struct.unpack_from("<QQ", data, SUB_HEADER_VMCOREINFO)
    assert size < whole
    struct.pack_into("<QQ", data, SUB_HEADER_VMCOREINFO, offset, size)
    data[offset + size : offset + whole] = bytes(whole - size)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("guest", ["debian-6.1-amd64", "debian-7.2-amd64"])
@pytest.mark.parametrize("last", [b"SYMBOL(_stext)=", b"NUMBER(phys_base)=-", b"NUMBER(pgtable_l5_enabled)="])
def test_a_text_that_is_cut_off_is_made_up_for_by_what_memory_has(guest: str, last: bytes, tmp_path: Path) -> None:
    dump = bundled(guest, tmp_path)
    size = dump.read_bytes().index(last) - dump.read_bytes().index(b"OSRELEASE=") + len(last) + 3
    (tmp_path / "cut").mkdir()
    bare = cut_off(dump, tmp_path / "cut" / dump.name, size)  # our own note names the dump
    told, found = tmp_path / "told", tmp_path / "found"
    assert convert(dump, "--comm", "lab-dynamic", "-o", told).returncode == 0
    result = convert(bare, "--comm", "lab-dynamic", "-o", found)
    said = ""
    if last.startswith(b"SYMBOL(_stext)"):
        said = r"vmcore2core: VMCOREINFO text at physical 0x\w+ is used instead of the dump's note: .* is not in it\n"
    assert result.returncode == 0
    assert re.fullmatch(said, result.stderr)
    (core,) = found.glob("core.*[0-9]")
    assert core.read_bytes() == (told / core.name).read_bytes()

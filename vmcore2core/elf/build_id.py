"""The GNU build ID of an ELF file: the descriptor of its note NT_GNU_BUILD_ID.

References: GNU ld's manual, --build-id; System V gABI, "Note Section".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from vmcore2core.elf.headers import Read, parse_headers, parse_sections
from vmcore2core.elf.notes import parse_notes
from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import elf, elf_dynamic
from vmcore2core.interfaces import ByteOrder

NOTES_MAX = 1 << 16
NOTES_KEPT = 256


def build_id(read: Read, elf_class: int, order: ByteOrder) -> bytes | None:
    """Return the build ID of an ELF file, or None if it has none or the bytes that name it are missing.

    Args:
        read: bytes by file offset.
        elf_class: 32 or 64, what the process is.
        order: likewise.
    """
    try:
        headers = parse_headers(read, elf_class, order)
    except CorruptStructure:
        return None
    if headers is None:
        return None
    found = _first(read, ((s.p_offset, s.p_filesz) for s in headers.segments if s.p_type == elf.PT_NOTE), order)
    if found is None:  # a file of debug information has another file's segments, but its own sections
        sections = parse_sections(read, headers, elf_class, order)
        places = ((s.sh_offset, s.sh_size) for s in sections if s.sh_type == elf_dynamic.SHT_NOTE)
        found = _first(read, places, order)
    return found


def _first(read: Read, places: Iterable[tuple[int, int]], order: ByteOrder) -> bytes | None:
    """Return the build ID among the notes at some file offsets."""
    for offset, size in places:
        raw = read(offset, size) if 0 < size <= NOTES_MAX else None
        found = None if raw is None else build_id_in(raw, order)
        if found is not None:
            return found
    return None


@lru_cache(maxsize=NOTES_KEPT)
def build_id_in(notes: bytes, order: ByteOrder) -> bytes | None:
    """Return the build ID among notes, or None; processes have the same files, so that the same notes come again."""
    for note in parse_notes(notes, order, 0)[0]:
        if (note.name, note.n_type) == ("GNU", elf_dynamic.NT_GNU_BUILD_ID) and note.desc:
            return note.desc
    return None

"""ELF notes of a dump, from PT_NOTE segments and kdump-compressed sub-headers.

References: System V gABI, "Note Section"; fs/proc/vmcore.c (v6.12), update_note_header_size_elf64(), which ends a
CPU's notes at the first one without a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from vmcore2core.formats._cabi import align_up
from vmcore2core.formats.elf import NOTE_ALIGN, Nhdr
from vmcore2core.interfaces import ByteOrder

NOTES_SIZE_MAX = 256 << 20
"""Most bytes of notes to read from one dump: 8192 CPUs with about 20 KiB of registers each need 160 MiB."""

NOTES_MAX = 1 << 17
"""Most notes to read from one dump; 8192 CPUs with a dozen each have fewer."""


class Note(NamedTuple):
    """One ELF note: name without its NUL, NT_* type, descriptor."""

    name: str
    n_type: int
    desc: bytes


_NOT_ZERO = re.compile(rb"[^\0]")


def parse_notes(raw: bytes, byte_order: ByteOrder, offset: int) -> tuple[tuple[Note, ...], str | None]:
    """Return the notes in ``raw``, and a sentence if they are broken.

    Zeros between notes are padding. Notes after a broken one are ignored.

    Args:
        raw: the note segment.
        byte_order: of the headers.
        offset: of ``raw`` in the file, for the message.
    """
    nhdr = Nhdr[byte_order]
    nhdr_size = nhdr.sizeof()
    notes: list[Note] = []
    at = 0
    while (found := _NOT_ZERO.search(raw, at)) is not None:
        at = max(at, found.start() & ~(NOTE_ALIGN - 1))
        if at + nhdr_size > len(raw):
            return tuple(notes), f"the ELF notes end inside a note header at file offset {offset + at:#x}"
        if len(notes) == NOTES_MAX:
            return tuple(notes), f"there are more than {NOTES_MAX} ELF notes; those after the first ones are ignored"
        header = nhdr.parse(raw[at : at + nhdr_size])
        n_namesz, n_descsz, n_type = int(header.n_namesz), int(header.n_descsz), int(header.n_type)
        name_at = at + nhdr_size
        desc_at = name_at + align_up(n_namesz, NOTE_ALIGN)
        if desc_at + n_descsz > len(raw):
            return tuple(notes), (
                f"the ELF note at file offset {offset + at:#x} (n_namesz {n_namesz:#x}, n_descsz {n_descsz:#x}) "
                f"is larger than the {len(raw) - at:#x} bytes left for notes; it and those after it are ignored"
            )
        name = raw[name_at : name_at + n_namesz].rstrip(b"\0").decode("latin-1")
        notes.append(Note(name, n_type, raw[desc_at : desc_at + n_descsz]))
        at = desc_at + align_up(n_descsz, NOTE_ALIGN)
    return tuple(notes), None


def build_notes(notes: Iterable[Note], byte_order: ByteOrder) -> list[bytes]:
    """Return a PT_NOTE segment in pieces: each note's header with its name, and its descriptor, padded to 4 bytes.

    A descriptor that needs no padding is not copied.
    """
    pieces = []
    for note in notes:
        pieces.append(_nhdr(byte_order, note.name, len(note.desc), note.n_type))
        pieces.append(note.desc.ljust(align_up(len(note.desc), NOTE_ALIGN), b"\0"))
    return pieces


@lru_cache(maxsize=64)  # the threads of a process have notes of a few types and sizes
def _nhdr(order: ByteOrder, name: str, n_descsz: int, n_type: int) -> bytes:
    """Return a note's header and name."""
    raw = name.encode() + b"\0"
    header = Nhdr[order].build({"n_namesz": len(raw), "n_descsz": n_descsz, "n_type": n_type})
    return header + raw.ljust(align_up(len(raw), NOTE_ALIGN), b"\0")

"""ELF vmcores out of struct.pack and literal numbers, never out of vmcore2core.formats."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Order = Literal["little", "big"]

PAGE_SIZE = 4096


def page(pfn: int, size: int = PAGE_SIZE) -> bytes:
    """Return a page that names itself, and that no codec makes larger."""
    return (b"page frame %#x " % pfn * (size // 13))[:size]


def note(name: bytes, n_type: int, desc: bytes, order: Order = "little") -> bytes:
    """Return one ELF note; the name gets its NUL, both get their padding."""
    char = "<" if order == "little" else ">"
    name += b"\0"
    head = struct.pack(char + "III", len(name), len(desc), n_type)
    return head + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


@dataclass(frozen=True)
class Load:
    """One PT_LOAD: ``data`` at ``paddr``; p_memsz and p_offset as given, or as ``data`` has it."""

    paddr: int
    data: bytes = b""
    memsz: int | None = None
    vaddr: int = 0
    offset: int | None = None
    filesz: int | None = None


def build_elf_vmcore(
    loads: Sequence[Load],
    notes: bytes = b"",
    *,
    bits: int = 64,
    order: Order = "little",
    e_machine: int = 62,
    e_type: int = 4,
    e_ehsize: int | None = None,
    xnum: bool = False,
    sections_first: bool = False,
    pad: int = 0,
) -> bytes:
    """Return an ELF vmcore.

    Args:
        loads: in file order.
        notes: the PT_NOTE segment; no such segment if empty.
        xnum: put the number of program headers into section header 0, and 0xffff into e_phnum.
        sections_first: as QEMU does: section headers before the program headers.
        pad: bytes between headers and data, to spoil alignment.
    """
    char = "<" if order == "little" else ">"
    ehsize, phsize, shsize = (64, 56, 64) if bits == 64 else (52, 32, 40)
    word = "Q" if bits == 64 else "I"
    phnum = len(loads) + bool(notes)
    has_section = xnum or sections_first
    shoff = ehsize if has_section else 0
    phoff = ehsize + shsize * has_section
    at = phoff + phnum * phsize + pad
    headers = bytearray()
    data = bytearray()

    def phdr(p_type: int, flags: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int) -> bytes:
        if bits == 64:
            return struct.pack(char + "IIQQQQQQ", p_type, flags, offset, vaddr, paddr, filesz, memsz, 0)
        return struct.pack(char + "IIIIIIII", p_type, offset, vaddr, paddr, filesz, memsz, flags, 0)

    if notes:
        headers += phdr(4, 0, at, 0, 0, len(notes), len(notes))
        data += notes
    for load in loads:
        offset = at + len(data) if load.offset is None else load.offset
        filesz = len(load.data) if load.filesz is None else load.filesz
        memsz = filesz if load.memsz is None else load.memsz
        headers += phdr(1, 7, offset, load.vaddr, load.paddr, filesz, memsz)
        data += load.data
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1 if order == "little" else 2, 1]) + bytes(9)
    ehdr = ident + struct.pack(
        char + f"HHI{word}{word}{word}IHHHHHH",
        e_type,
        e_machine,
        1,
        0,
        phoff,
        shoff,
        0,
        ehsize if e_ehsize is None else e_ehsize,
        phsize,
        0xFFFF if xnum else phnum,
        shsize if has_section else 0,
        int(has_section),
        0,
    )
    section = b""
    if has_section:
        zero4 = struct.pack(char + f"II{word}{word}{word}{word}", 0, 0, 0, 0, 0, 0)
        section = zero4 + struct.pack(char + f"II{word}{word}", 0, phnum if xnum else 0, 0, 0)
    return bytes(ehdr + section + headers + bytes(pad) + data)

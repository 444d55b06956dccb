"""The headers of an ELF image; every field is checked before use.

References: System V gABI, chapters "Program Header" and "Sections".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from construct import ConstructError

from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import elf, elf_dynamic
from vmcore2core.formats._cabi import ElfClass
from vmcore2core.interfaces import ByteOrder

Read = Callable[[int, int], bytes | None]
"""Bytes by (offset, size); None if any of them is not known."""

Variant = tuple[ElfClass, ByteOrder]
"""Class and byte order of an ELF file."""

SEGMENTS_MAX = 1024
SECTIONS_MAX = 1 << 14
PARSED_MAX = 256
"""Headers to keep, parsed: a table of 1024 program headers, the largest, takes some 200 KiB."""


class Segment(NamedTuple):
    """A program header; addresses are the file's own."""

    p_type: int
    p_flags: int
    p_offset: int
    p_vaddr: int
    p_filesz: int
    p_memsz: int


class Section(NamedTuple):
    """A section header."""

    sh_name: int
    sh_type: int
    sh_flags: int
    sh_addr: int
    sh_offset: int
    sh_size: int
    sh_link: int


class ElfHeaders(NamedTuple):
    """The headers of an ELF image.

    Attributes:
        segments: the program headers.
        e_shoff: file offset of the section headers, 0 for none.
        e_shnum: their number.
        e_shstrndx: index of the section that holds the names.
    """

    segments: tuple[Segment, ...]
    e_shoff: int
    e_shnum: int
    e_shstrndx: int

    def of_type(self, p_type: int) -> Segment | None:
        """Return the first program header of a type."""
        return next((segment for segment in self.segments if segment.p_type == p_type), None)

    def holding(self, offset: int, page_size: int) -> Segment | None:
        """Return the executable PT_LOAD that maps the page at a file offset."""
        for segment in self.segments:
            first = segment.p_offset & ~(page_size - 1)
            if (
                segment.p_type == elf.PT_LOAD
                and segment.p_flags & elf.PF_X
                and first <= offset < segment.p_offset + segment.p_filesz
            ):
                return segment
        return None


def part(read: Read, start: int, size: int) -> Read:
    """Return a reader of the ``size`` bytes from ``start`` on, by their offset there."""
    return lambda offset, length: read(start + offset, length) if offset + length <= size else None


def ident_variant(ident: bytes) -> Variant | None:
    """Return class and byte order from e_ident; None if it is not the start of an ELF file."""
    if len(ident) < elf.EI_NIDENT or not ident.startswith(elf.ELFMAG):
        return None
    elf_class, order = elf.ELF_CLASSES.get(ident[elf.EI_CLASS]), elf.ELF_BYTE_ORDERS.get(ident[elf.EI_DATA])
    return None if elf_class is None or order is None else (elf_class, order)


def variant_of(elf_class: int, order: ByteOrder) -> Variant:
    """Return class and byte order, as ``formats.elf`` has its declarations by them.

    Args:
        elf_class: 64, or 32.
        order: byte order.
    """
    return elf.ELF_CLASSES[elf.ELFCLASS64 if elf_class == 64 else elf.ELFCLASS32], order


def parse_ehdr(read: Read, elf_class: int, order: ByteOrder) -> Any:  # noqa: ANN401 - construct's container
    """Return ``Elf_Ehdr`` at offset 0, or None if it is not that of a file of this class or its bytes are not known.

    Args:
        read: bytes by file offset.
        elf_class: 32 or 64.
        order: byte order.

    Raises:
        CorruptStructure: it starts like an ELF file, but its header is not valid.
    """
    variant = variant_of(elf_class, order)
    raw = read(0, elf.Ehdr[variant].sizeof())
    return None if raw is None or ident_variant(raw) != variant else _ehdr(raw, variant)


def parse_headers(read: Read, elf_class: int, order: ByteOrder) -> ElfHeaders | None:
    """Return the headers of the image at offset 0, or None if there is no image or its bytes are not known.

    Args:
        read: bytes by file offset.
        elf_class: the process's class, 32 or 64.
        order: the process's byte order.

    Raises:
        CorruptStructure: it starts like an ELF file, but its headers are not valid.
    """
    variant, ehdr = variant_of(elf_class, order), parse_ehdr(read, elf_class, order)
    if ehdr is None:
        return None
    itemsize = elf.PHDR_DTYPE[variant].itemsize
    if ehdr.e_phentsize != itemsize or not 0 < ehdr.e_phnum <= SEGMENTS_MAX:
        raise CorruptStructure(
            f"{ehdr.e_phnum} program headers of {ehdr.e_phentsize} bytes, expected 1 to {SEGMENTS_MAX} of {itemsize}",
            ehdr.e_phoff,
            "Elf_Ehdr.e_phoff",
        )
    table = read(ehdr.e_phoff, ehdr.e_phnum * itemsize)
    if table is None:
        return None
    good = ehdr.e_shentsize == elf_dynamic.SHDR_DTYPE[variant].itemsize
    segments = _segments(table, variant)
    return ElfHeaders(segments, ehdr.e_shoff if good else 0, ehdr.e_shnum if good else 0, ehdr.e_shstrndx)


@lru_cache(maxsize=PARSED_MAX)
def _ehdr(raw: bytes, variant: Variant) -> Any:  # noqa: ANN401 - likewise
    """Return an ELF header; processes have the same files, so that the same bytes come again and again."""
    try:
        return elf.Ehdr[variant].parse(raw)
    except ConstructError as error:
        raise CorruptStructure("is not an ELF header", 0, "Elf_Ehdr") from error


@lru_cache(maxsize=PARSED_MAX)
def _segments(table: bytes, variant: Variant) -> tuple[Segment, ...]:
    """Return the program headers, likewise."""
    names = ("p_type", "p_flags", "p_offset", "p_vaddr", "p_filesz", "p_memsz")
    return tuple(Segment(*(int(row[name]) for name in names)) for row in np.frombuffer(table, elf.PHDR_DTYPE[variant]))


def parse_sections(read: Read, headers: ElfHeaders, elf_class: int, order: ByteOrder) -> tuple[Section, ...]:
    """Return the section headers; empty if there are none or their bytes are not known.

    Args:
        read: bytes by file offset.
        headers: of the same file.
        elf_class: 32 or 64.
        order: byte order.
    """
    dtype = elf_dynamic.SHDR_DTYPE[variant_of(elf_class, order)]
    if not headers.e_shoff or headers.e_shnum > SECTIONS_MAX:
        return ()
    table = read(headers.e_shoff, headers.e_shnum * dtype.itemsize)
    if not table:
        return ()
    names = ("sh_name", "sh_type", "sh_flags", "sh_addr", "sh_offset", "sh_size", "sh_link")
    return tuple(Section(*(int(row[name]) for name in names)) for row in np.frombuffer(table, dtype))

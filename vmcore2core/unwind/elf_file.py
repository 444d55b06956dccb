"""An ELF file read by file offset, wherever its bytes are: its sections and its symbol table.

References: System V gABI, chapters "Sections" and "Symbol Table"; gdb's manual, "MiniDebugInfo" (.gnu_debugdata).
"""

from __future__ import annotations

import lzma
from functools import cached_property

from vmcore2core.elf.compressed import decompressed
from vmcore2core.elf.headers import ElfHeaders, Section, Variant, parse_headers, parse_sections, variant_of
from vmcore2core.errors import CodecError, CorruptStructure
from vmcore2core.formats import elf_dynamic
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.reading import PagedRead
from vmcore2core.unwind.symbols import SymbolTable, read_table

SECTION_MAX = 1 << 26
"""Most bytes of a section that is read as a whole, decompressed."""
PAGE = 4096


class ElfFile:
    """An ELF file.

    Args:
        read: its bytes by offset.
        headers: its headers.
        elf_class: 32 or 64.
        order: byte order.
    """

    def __init__(self, read: PagedRead, headers: ElfHeaders, elf_class: int, order: ByteOrder) -> None:
        self.read, self.headers, self.elf_class = read, headers, elf_class
        self.order: ByteOrder = order

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The section headers; empty if they are not known."""
        return parse_sections(self.read, self.headers, self.elf_class, self.order)

    def section(self, name: bytes) -> Section | None:
        """Return the first section with a name, or None."""
        if self.headers.e_shstrndx >= len(self.sections):
            return None
        strings = self.sections[self.headers.e_shstrndx]
        for section in self.sections:
            if section.sh_name < strings.sh_size and section.sh_type != elf_dynamic.SHT_NOBITS:
                found = self.read.string(strings.sh_offset + section.sh_name)
                if found == name:
                    return section
        return None

    def content(self, section: Section) -> bytes | None:
        """Return a section's decompressed bytes, or None if they are not known or too many."""
        if section.sh_size > SECTION_MAX:
            return None
        raw = b"".join(piece for _, piece in self.read.known(section.sh_offset, section.sh_size))
        if len(raw) != section.sh_size:
            return None
        if not section.sh_flags & elf_dynamic.SHF_COMPRESSED:
            return raw
        try:
            return decompressed(raw, self._variant, SECTION_MAX)
        except CodecError:
            return None

    @cached_property
    def symtab(self) -> SymbolTable | None:
        """The symbol table (.symtab), or None."""
        symtab = next((s for s in self.sections if s.sh_type == elf_dynamic.SHT_SYMTAB), None)
        if symtab is None or symtab.sh_link >= len(self.sections):
            return None
        strings, dtype = self.sections[symtab.sh_link], elf_dynamic.SYM_DTYPE[self._variant]
        return read_table(
            self.read,
            symtab.sh_offset,
            symtab.sh_size // dtype.itemsize,
            dtype,
            strings=self.read,
            strtab=strings.sh_offset,
            strsz=strings.sh_size,
            end_of=self._section_end,
        )

    def _section_end(self, address: int, index: int) -> int | None:
        if index >= len(self.sections):
            return None
        section = self.sections[index]
        end = section.sh_addr + section.sh_size
        return end if section.sh_addr <= address < end else None

    @property
    def debug_link(self) -> bytes | None:
        """The file name in .gnu_debuglink, or None."""
        section = self.section(b".gnu_debuglink")
        return None if section is None else self.read.string(section.sh_offset)

    @cached_property
    def mini_debug_information(self) -> ElfFile | None:
        """The ELF file in .gnu_debugdata, which has the symbols that .dynsym lacks; or None."""
        section = self.section(b".gnu_debugdata")
        packed = None if section is None else self.content(section)
        if packed is None:
            return None
        try:
            plain = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=SECTION_MAX).decompress(packed, SECTION_MAX)
        except lzma.LZMAError:
            return None
        return open_elf(_bytes_read(plain), self)

    @property
    def _variant(self) -> Variant:
        return variant_of(self.elf_class, self.order)


def open_elf(read: PagedRead, like: ElfFile) -> ElfFile | None:
    """Return the ELF file that ``read`` reads, if it has the class and byte order of ``like``, else None."""
    try:
        headers = parse_headers(read, like.elf_class, like.order)
    except CorruptStructure:
        return None
    return None if headers is None else ElfFile(read, headers, like.elf_class, like.order)


def _bytes_read(data: bytes) -> PagedRead:
    """Return a reader of bytes, padded with zeros to the end of their last page."""

    def fetch(at: int, size: int) -> bytes | None:
        return data[at : at + size].ljust(size, b"\0") if at < len(data) else None

    return PagedRead(fetch, PAGE)

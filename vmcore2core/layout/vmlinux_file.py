"""A vmlinux as an ELF file: its sections, and its kernel's identity.

The file comes from the user and may have any content: every length is checked against the file before it is used, and
every defect raises ``LayoutInvalid``.

References: System V gABI, "Sections" and "Section Compression"; scripts/link-vmlinux.sh; init/version-timestamp.c:
linux_banner (Linux 7.2).
"""

from __future__ import annotations

import os
import stat
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmcore2core.elf.build_id import build_id_in
from vmcore2core.elf.compressed import decompressed
from vmcore2core.elf.headers import ElfHeaders, ident_variant, parse_ehdr, parse_headers, parse_sections
from vmcore2core.errors import CodecError, CorruptStructure, LayoutInvalid
from vmcore2core.formats.elf import (
    EI_CLASS,
    EI_DATA,
    EI_NIDENT,
    ELFMAG,
    ET_DYN,
    ET_EXEC,
    PT_NOTE,
    SHT_NULL,
)
from vmcore2core.formats.elf_dynamic import (
    SHF_ALLOC,
    SHF_COMPRESSED,
    SHT_NOBITS,
    SHT_NOTE,
)

SHNUM_MAX = 4096  # a vmlinux has some 100 sections
NOTES_SIZE_MAX = 1 << 20
NAMES_SIZE_MAX = 1 << 20
READ_SIZE_MAX = 1 << 30  # one pread() gives 2 GiB at most
RODATA_SIZE_MAX = 256 << 20
SECTION_SIZE_MAX = 1 << 30  # .debug_info is some 200 MiB


@dataclass(frozen=True, slots=True)
class Section:
    """One section header, with its name."""

    name: str
    sh_type: int
    sh_flags: int
    sh_addr: int
    sh_offset: int
    sh_size: int
    sh_link: int

    @property
    def in_memory(self) -> bool:
        """Whether the kernel has it in memory (SHF_ALLOC)."""
        return bool(self.sh_flags & SHF_ALLOC)

    @property
    def compressed(self) -> bool:
        """Whether its bytes in the file are compressed (SHF_COMPRESSED)."""
        return bool(self.sh_flags & SHF_COMPRESSED)


class VmlinuxFile:
    """An open vmlinux, or the part of it that a debug package has.

    It is not mapped with mmap(): a file that becomes shorter while it is read gives an error, not a signal.

    Args:
        path: the file.

    Attributes:
        elf_class: 32 or 64.
        byte_order: of the kernel.
        sections: in the file's order.

    Raises:
        LayoutInvalid: it cannot be read or is not a vmlinux.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd, self.size = _open(path)
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            self._read_headers()
        except LayoutInvalid:
            self._close()
            raise

    def close(self) -> None:
        """Close the file; it is closed without this, too, when nothing refers to it any more."""
        self._close()

    def pread(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of the file.

        Raises:
            LayoutInvalid: the file ends too early, or cannot be read.
        """
        if offset + size > self.size:
            raise LayoutInvalid(f"{self.path} ends at {self.size:#x}, expected {size:#x} bytes at {offset:#x}")
        parts, left = [], size
        while left:
            try:
                part = os.pread(self._fd, min(left, READ_SIZE_MAX), offset + size - left)
            except OSError as error:
                raise LayoutInvalid(f"{self.path} cannot be read: {error.strerror}") from error
            if not part:
                raise LayoutInvalid(f"{self.path} has become shorter while it was read")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _read_headers(self) -> None:
        ident = self.pread(0, EI_NIDENT) if self.size >= EI_NIDENT else b""
        if not ident.startswith(ELFMAG):
            raise LayoutInvalid(f"{self.path} is not an ELF file, expected the kernel's vmlinux (not vmlinuz, bzImage)")
        variant = ident_variant(ident)
        if variant is None:
            raise LayoutInvalid(
                f"{self.path} has ELF class {ident[EI_CLASS]} and data encoding {ident[EI_DATA]}, expected 1 or 2"
            )
        self.elf_class, self.byte_order = variant
        try:
            ehdr = parse_ehdr(self.pread, *variant)
            if ehdr.e_type not in (ET_EXEC, ET_DYN):
                expected = f"{ET_EXEC} or {ET_DYN} of a vmlinux"
                raise LayoutInvalid(f"{self.path} has ELF type {ehdr.e_type}, expected {expected}")
            headers = parse_headers(self.pread, *variant)
        except CorruptStructure as error:
            raise LayoutInvalid(f"{self.path}: {error}") from error
        assert headers is not None  # noqa: S101 - pread() returns all bytes, or raises
        self.e_machine, self._segments = int(ehdr.e_machine), headers.segments
        self.sections = self._read_sections(headers)

    def _read_sections(self, headers: ElfHeaders) -> tuple[Section, ...]:
        count, names_index = headers.e_shnum, headers.e_shstrndx
        found = parse_sections(self.pread, headers, self.elf_class, self.byte_order) if count <= SHNUM_MAX else ()
        if not 0 <= names_index < len(found):
            raise LayoutInvalid(
                f"{self.path} has {count} section headers with names in {names_index}, expected 1 to {SHNUM_MAX}"
            )
        strings = found[names_index]
        names = self.pread(strings.sh_offset, min(strings.sh_size, NAMES_SIZE_MAX))
        sections = tuple(Section(_string(names, header.sh_name), *header[1:]) for header in found)
        for section in sections:
            end = section.sh_offset + section.sh_size
            if section.sh_type not in (SHT_NULL, SHT_NOBITS) and end > self.size:
                raise LayoutInvalid(f"{self.path} ends at {self.size:#x}, expected section {section.name} to {end:#x}")
        return sections

    def section(self, name: str) -> Section | None:
        """Return the first section with this name that has bytes in the file; None if there is none."""
        for section in self.sections:
            if section.name == name and section.sh_type not in (SHT_NULL, SHT_NOBITS) and section.sh_size:
                return section
        return None

    def data(self, section: Section, limit: int = SECTION_SIZE_MAX) -> bytes:
        """Return a section's bytes, decompressed.

        Raises:
            LayoutInvalid: it is broken or larger than ``limit``.
        """
        if section.sh_size > limit:
            raise LayoutInvalid(
                f"{self.path}: section {section.name} has {section.sh_size:#x} bytes, expected at most {limit:#x}"
            )
        raw = self.pread(section.sh_offset, section.sh_size)
        if not section.compressed:
            return raw
        try:
            return decompressed(raw, (self.elf_class, self.byte_order), limit)
        except CodecError as error:
            raise LayoutInvalid(f"{self.path}: section {section.name} {error}") from error

    @cached_property
    def build_id(self) -> str | None:
        """The GNU build ID, hexadecimal; None if the file has none."""
        places = [(s.sh_offset, s.sh_size) for s in self.sections if s.sh_type == SHT_NOTE]
        for offset, size in places or [(s.p_offset, s.p_filesz) for s in self._segments if s.p_type == PT_NOTE]:
            found = build_id_in(self.pread(offset, min(size, NOTES_SIZE_MAX)), self.byte_order)
            if found is not None:
                return found.hex()
        return None

    def has_release(self, release: str) -> bool | None:
        """Tell whether ``linux_banner`` has this release; None if the file has no ``.rodata``."""
        rodata = self.section(".rodata")
        return None if rodata is None else f"Linux version {release} ".encode() in self.data(rodata, RODATA_SIZE_MAX)


def _open(path: Path) -> tuple[int, int]:
    """Open a regular file; return its descriptor and size. Do not wait for a FIFO's writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise LayoutInvalid(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise LayoutInvalid(f"{path} is not a regular file, expected the kernel's vmlinux")
    return fd, status.st_size


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset:end].decode("latin-1") if 0 <= offset <= end else ""

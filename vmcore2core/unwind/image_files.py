"""One ELF image loaded in a process, and the files that supply its bytes that memory lacks.

Loaded bytes are read from the process's memory; other bytes (section headers, .symtab) from the file's page cache.
Bytes in neither come from the file that was found for the image, or from its separate debug information.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from vmcore2core.elf.headers import ElfHeaders, Section, Segment
from vmcore2core.formats import elf
from vmcore2core.process.sysroot import OriginalFile
from vmcore2core.unwind.elf_file import ElfFile, open_elf
from vmcore2core.unwind.originals import Original, whole_file
from vmcore2core.unwind.reading import EitherRead, PagedRead
from vmcore2core.unwind.symbols import Origin

if TYPE_CHECKING:
    from vmcore2core.interfaces import ByteOrder


@dataclass(frozen=True)
class ImageSource:
    """Where an image's bytes are.

    Attributes:
        read: the process's memory.
        file: the file's page cache by file offset, or None for an image without a file (the vDSO).
        original: the file itself, for bytes in neither of these; None for an image without a file.
        elf_class: 32 or 64.
        order: byte order.
        page_size: bytes.
    """

    read: PagedRead
    file: PagedRead | None
    original: Original | None
    elf_class: int
    order: ByteOrder
    page_size: int

    @property
    def word(self) -> int:
        """Bytes of an address."""
        return self.elf_class // 8


class ImageFiles:
    """Where the bytes of an ELF image are.

    Args:
        headers: its headers.
        bias: what to add to the file's addresses to get the process's.
        source: where its bytes are.

    Attributes:
        read: reads loaded bytes, by the process's addresses.
        file: reads the file's bytes from the page cache, by file offset.
    """

    def __init__(self, headers: ElfHeaders, bias: int, source: ImageSource) -> None:
        self.headers, self.bias, self.source = headers, bias, source
        memory = EitherRead(source.read, self._loaded_elsewhere, source.page_size)
        self.read = EitherRead(memory, self._loaded_from_file, source.page_size)
        cached = source.file or PagedRead(lambda _offset, _size: None, source.page_size)
        self.file = ElfFile(cached, headers, source.elf_class, source.order)

    def _loaded_from_file(self, address: int, size: int) -> bytes | None:
        """Return the file's bytes for an address, if a segment loads it."""
        original = self.source.original
        return None if original is None else self._at(address, size, original.read)

    def _loaded_elsewhere(self, address: int, size: int) -> bytes | None:
        """Return the bytes for a read-only address from the page cache, of this file or of another copy."""
        return None if self.source.file is None else self._at(address, size, self.source.file, but=elf.PF_W)

    def _at(self, address: int, size: int, file: PagedRead, but: int = 0) -> bytes | None:
        """Return a file's bytes for an address, if a segment without any of the flags ``but`` loads it."""
        page = self.source.page_size
        for segment in self.headers.segments:
            if segment.p_type != elf.PT_LOAD or not segment.p_filesz or segment.p_flags & but:
                continue
            first = segment.p_vaddr & -page
            at, end = address - self.bias - first, -(-(segment.p_vaddr + segment.p_filesz) // page) * page - first
            if at >= 0 and at + size <= end:
                return file((segment.p_offset & -page) + at, size)
        return None

    def elf_files(self) -> Iterator[tuple[ElfFile, Origin]]:
        """Yield the file in memory, the file that was found on disk, and its separate debug information.

        They are read separately, because one of the first two may be stripped of sections that the other has.
        """
        yield self.file, Origin.MEMORY
        if self.original is not None:
            yield self.original, Origin.FILE
        if self.debug_information is not None:
            yield self.debug_information, Origin.DEBUG

    @cached_property
    def original(self) -> ElfFile | None:
        """The file that was found, or None."""
        original = self.source.original
        return None if original is None or original.path is None else open_elf(original.read, self.file)

    @cached_property
    def debug_file(self) -> OriginalFile | None:
        """The separate file of debug information, or None."""
        if self.source.original is None:
            return None
        link = self.file.debug_link or (None if self.original is None else self.original.debug_link)
        return self.source.original.debug_information(link)

    @cached_property
    def debug_information(self) -> ElfFile | None:
        """The separate file of debug information as an ELF file, or None."""
        found = self.debug_file
        return None if found is None else open_elf(whole_file(found, self.source.page_size), self.file)

    def section(self, name: bytes) -> Section | None:
        """Return a section of the file, from its headers in memory or in the file that was found."""
        found = self.file.section(name)
        return found if found is not None or self.original is None else self.original.section(name)

    def segment(self, address: int) -> Segment | None:
        """Return the PT_LOAD that has one of the file's addresses, or None."""
        for segment in self.headers.segments:
            if segment.p_type == elf.PT_LOAD and segment.p_vaddr <= address < segment.p_vaddr + segment.p_memsz:
                return segment
        return None

    @property
    def variant(self) -> tuple[Literal[32, 64], ByteOrder]:
        """Class and byte order."""
        source = self.source
        return elf.ELF_CLASSES[elf.ELFCLASS64 if source.elf_class == 64 else elf.ELFCLASS32], source.order

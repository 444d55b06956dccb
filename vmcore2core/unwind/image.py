"""One ELF image as it lies in a process: its call frame information, and names for its code.

What is loaded is read where it is loaded (.eh_frame, .dynsym); what is not (.symtab, section headers) is read from the
file's page cache. What memory does not have of either comes from the original file, where one was found. Static
executables have no PT_GNU_EH_FRAME: gcc links them with crtbeginT.o, which registers .eh_frame itself; there the
section headers tell where it is.

References: LSB Core 5.0, chapter 10.6 (.eh_frame_hdr); glibc's elf/dl-reloc.c and elf/get-dynamic-info.h (2.41).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import dwarf_cfi, elf, elf_dynamic
from vmcore2core.process.elf import ElfHeaders, Segment
from vmcore2core.process.sysroot import OriginalFile
from vmcore2core.unwind import gopclntab
from vmcore2core.unwind.cfi import DebugFrame, EhFrame, Fde
from vmcore2core.unwind.cursor import Cursor
from vmcore2core.unwind.eh_index import EhIndex
from vmcore2core.unwind.elf_file import ElfFile, open_elf
from vmcore2core.unwind.gopclntab import GoTable
from vmcore2core.unwind.lines import LineTable, SourceLine
from vmcore2core.unwind.originals import Original, whole_file
from vmcore2core.unwind.reading import EitherRead, PagedRead
from vmcore2core.unwind.symbols import Origin, Symbol, SymbolTable, count_by_gnu_hash, count_by_hash, read_table

if TYPE_CHECKING:
    from vmcore2core.interfaces import ByteOrder

DYNAMIC_MAX = 4096
HDR_READ = 32  # .eh_frame_hdr up to its table, with the longest encodings


@dataclass(frozen=True)
class ImageSource:
    """Where an image's bytes are.

    Attributes:
        read: the process's memory.
        file: the file's page cache by its offsets, or None for an image that no file has (the vDSO).
        original: the file itself, for what neither of these has; None likewise.
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


def _has_lines(file: ElfFile) -> bool:
    return file.section(b".debug_line") is not None


class Image:
    """An ELF image.

    Args:
        headers: its headers.
        bias: what to add to the file's addresses to get the process's.
        source: where its bytes are.

    Attributes:
        read: what is loaded, by the process's addresses.
        file: what is not.
        cfi_problem: why call frame information is missing, or None.
        cfi_origin: where the FDE came from that ``fde`` found last.
    """

    def __init__(self, headers: ElfHeaders, bias: int, source: ImageSource) -> None:
        self.headers, self.bias, self.source = headers, bias, source
        self.read = EitherRead(source.read, self._loaded_from_file, source.page_size)
        nothing = PagedRead(lambda _offset, _size: None, source.page_size)
        original = nothing if source.original is None else source.original.read
        self._by_offset = EitherRead(source.file or nothing, original, source.page_size)
        self.file = ElfFile(self._by_offset, headers, source.elf_class, source.order)
        self.eh_frame = EhFrame(self.read, source.order, source.word)
        self.cfi_problem: str | None = None
        self.cfi_origin = Origin.MEMORY
        self._tables_from_file: set[str] = set()

    def _loaded_from_file(self, address: int, size: int) -> bytes | None:
        """Return what the file has for an address, where a segment loads it from there."""
        page = self.source.page_size
        if self.source.original is None:
            return None
        for segment in self.headers.segments:
            if segment.p_type != elf.PT_LOAD or not segment.p_filesz:
                continue
            first = segment.p_vaddr & -page
            at, end = address - self.bias - first, -(-(segment.p_vaddr + segment.p_filesz) // page) * page - first
            if at >= 0 and at + size <= end:
                return self.source.original.read((segment.p_offset & -page) + at, size)
        return None

    def fde(self, pc: int) -> Fde | None:
        """Return the FDE of the function that holds ``pc``, or None; ``cfi_problem`` then may say why.

        Raises:
            CorruptStructure: what there is, is malformed.
        """
        self.read.second_used = False
        table = self._search_table
        if table is not None:
            address = self._search(table, pc)
        else:
            address = self._index.find(pc) if self._index is not None else None
        fde = self.eh_frame.fde(address) if address is not None else None
        if fde is not None and fde.start <= pc < fde.end:
            self.cfi_origin = Origin.FILE if self.read.second_used else Origin.MEMORY
            return fde
        return self._debug_fde(pc)

    def _debug_fde(self, pc: int) -> Fde | None:
        """Return the FDE that .debug_frame has: of programs without .eh_frame, such as Go's."""
        for index, frame, origin in self._debug_frames:
            address = index.find(pc)
            fde = frame.fde(address) if address is not None else None
            if fde is not None and fde.start <= pc < fde.end:
                self.cfi_origin = origin
                return fde
        return None

    @cached_property
    def _debug_frames(self) -> list[tuple[EhIndex, DebugFrame, Origin]]:
        """Return the .debug_frame sections of the file and of its separate debug information."""
        found = []
        for file, origin in ((self.file, Origin.MEMORY), (self.debug_information, Origin.DEBUG)):
            self._by_offset.second_used = False
            section = None if file is None else file.section(b".debug_frame")
            data = None if file is None or section is None else file.content(section)
            if not data:
                continue
            frame = DebugFrame(data, self.bias, self.source.order, self.source.word)
            from_file = file is self.file and self._by_offset.second_used
            found.append((EhIndex(frame, 0, len(data)), frame, Origin.FILE if from_file else origin))
        return found

    def symbol(self, pc: int) -> Symbol | None:
        """Return the function that holds ``pc``; its address is the process's."""
        for table, read in (("symtab", self._by_offset), ("dynsym", self.read)):
            read.second_used = False
            found = self._find(self.file.symtab if table == "symtab" else self._dynsym, pc)
            if read.second_used:  # by the reading of the table, which is done once, or of this name
                self._tables_from_file.add(table)
            if found is not None:
                return replace(found, source=Origin.FILE) if table in self._tables_from_file else found
        for elf_file in (self.debug_information, self.file.mini_debug_information):
            if elf_file is not None and (found := self._find(elf_file.symtab, pc)) is not None:
                return replace(found, source=Origin.DEBUG)
        return self._go_function(pc)

    def _go_function(self, pc: int) -> Symbol | None:
        """Return the function by Go's own table, which stripped programs have, too."""
        table, self.read.second_used = self._gopclntab, False
        found = table.find(pc) if table is not None else None
        return replace(found, source=Origin.FILE) if found is not None and self.read.second_used else found

    @cached_property
    def _gopclntab(self) -> GoTable | None:
        order, word = self.source.order, self.source.word
        sections = (section for name in gopclntab.SECTIONS if (section := self.file.section(name)) is not None)
        text = self.file.section(b".text")
        starts = (text.sh_addr + self.bias,) if text is not None else ()
        places = [section.sh_addr + self.bias for section in sections]
        if not self.file.sections and self.headers.of_type(elf.PT_NOTE) is not None:
            places += self._searched_for_go()
        for place in places:
            table = GoTable(self.read, place, order, word, starts)
            if table.good:
                return table
        return None

    def _searched_for_go(self) -> Iterator[int]:
        """Yield where Go's table may be in a file whose section headers are not known."""
        for segment in self.headers.segments:
            if segment.p_type == elf.PT_LOAD and not segment.p_flags & elf.PF_X:
                start, size = segment.p_vaddr + self.bias, segment.p_filesz
                yield from gopclntab.headers(self.read, start, size, self.source.order, self.source.word)

    def lines(self, pc: int) -> tuple[SourceLine, ...]:
        """Return the source lines of an address: of inlined functions, the innermost first, and of the function."""
        table = self._line_table
        if table is None:
            return ()
        lowest = min(s.p_vaddr for s in self.headers.segments if s.p_type == elf.PT_LOAD)
        return table.at(pc - self.bias - lowest)

    @cached_property
    def _line_table(self) -> LineTable | None:
        """Return the source lines of the file, of its separate debug information, or of what memory has of it."""
        original = self.source.original
        if original is None:
            return None
        if self.debug_information is not None and self.debug_file is not None and _has_lines(self.debug_information):
            return original.lines.of_file(self.debug_file.path)
        if not _has_lines(self.file):
            return None
        if original.path is not None:
            return original.lines.of_file(original.path)
        data = self.file.whole()
        return None if data is None else original.lines.of_bytes((original.image.path, original.build_id), data)

    @property
    def knows_all_names(self) -> bool:
        """Whether the file's symbol tables are there as a whole: the file itself would not name more."""
        tables = (self.file.symtab, self._dynsym)
        return bool(self.file.sections) and all(table is None or table.complete for table in tables)

    def _find(self, table: SymbolTable | None, pc: int) -> Symbol | None:
        found = table.find(pc - self.bias) if table is not None else None
        return None if found is None else Symbol(found.name, found.value + self.bias)

    @cached_property
    def debug_file(self) -> OriginalFile | None:
        """The separate file of debug information, or None."""
        return None if self.source.original is None else self.source.original.debug_information(self.file.debug_link)

    @cached_property
    def debug_information(self) -> ElfFile | None:
        """The same, as an ELF file."""
        found = self.debug_file
        return None if found is None else open_elf(whole_file(found, self.source.page_size), self.file)

    # Call frame information.

    @cached_property
    def _search_table(self) -> tuple[int, int, int] | None:
        """Return (address of .eh_frame_hdr, address of its table, entries), or None where there is none to search."""
        segment = self.headers.of_type(elf_dynamic.PT_GNU_EH_FRAME)
        if segment is None:
            return None
        hdr = segment.p_vaddr + self.bias
        raw = self.read(hdr, min(segment.p_memsz, HDR_READ))
        if raw is None:
            return None
        cursor = Cursor(raw, hdr, ".eh_frame_hdr", self.source.order, self.source.word)
        try:
            version, eh_frame, count_encoding, encoding = (cursor.uint(1) for _ in range(4))
            if version != dwarf_cfi.EH_FRAME_HDR_VERSION or encoding != dwarf_cfi.DW_EH_PE_TABLE:
                return None
            if eh_frame != dwarf_cfi.DW_EH_PE_omit:
                cursor.encoded(eh_frame, data_base=hdr)
            count = cursor.encoded(count_encoding, data_base=hdr)
        except CorruptStructure as error:
            self.cfi_problem = str(error)
            return None
        room = max(segment.p_memsz - cursor.at, 0) // dwarf_cfi.EH_TABLE_ENTRY
        return hdr, cursor.here, min(count, room)

    def _search(self, table: tuple[int, int, int], pc: int) -> int | None:
        """Return the address of the FDE that may hold ``pc``, by bisection of .eh_frame_hdr's table."""
        hdr, at, count = table
        low, high = 0, count  # the first entry above pc is in [low, high]
        found = None
        while low < high:
            middle = (low + high) // 2
            raw = self.read(at + middle * dwarf_cfi.EH_TABLE_ENTRY, dwarf_cfi.EH_TABLE_ENTRY)
            if raw is None:
                self.cfi_problem = f".eh_frame_hdr at {hdr:#x} is not known in full"
                return None
            cursor = Cursor(raw, at, ".eh_frame_hdr", self.source.order, self.source.word)
            if hdr + cursor.sint(4) <= pc:
                low, found = middle + 1, hdr + cursor.sint(4)
            else:
                high = middle
        return found

    @cached_property
    def _index(self) -> EhIndex | None:
        section = self.file.section(b".eh_frame")
        if section is None or not section.sh_flags & elf_dynamic.SHF_ALLOC:
            self.cfi_problem = self.cfi_problem or "where its .eh_frame is, if it has one, is not known"
            return None
        index = EhIndex(self.eh_frame, section.sh_addr + self.bias, section.sh_size)
        self.cfi_problem = index.problem or self.cfi_problem
        return index

    # Names.

    @cached_property
    def _dynsym(self) -> SymbolTable | None:
        """Return .dynsym, by the dynamic section."""
        tags = self._dynamic
        strsz = tags.get(elf_dynamic.DT_STRSZ)
        addresses = {
            tag: self._loaded(tags[tag])
            for tag in (elf_dynamic.DT_SYMTAB, elf_dynamic.DT_STRTAB, elf_dynamic.DT_HASH, elf_dynamic.DT_GNU_HASH)
            if tag in tags
        }
        symtab, strtab = addresses.get(elf_dynamic.DT_SYMTAB), addresses.get(elf_dynamic.DT_STRTAB)
        if symtab is None or strtab is None or strsz is None:
            return None
        count = self._dynsym_count(
            addresses.get(elf_dynamic.DT_HASH), addresses.get(elf_dynamic.DT_GNU_HASH), symtab, strtab
        )
        return read_table(
            self.read,
            symtab,
            count,
            self._sym_dtype,
            strings=self.read,
            strtab=strtab,
            strsz=strsz,
            end_of=self._segment_end,
        )

    def _dynsym_count(self, by_hash: int | None, by_gnu_hash: int | None, symtab: int, strtab: int) -> int:
        source = self.source
        count = count_by_hash(self.read, by_hash, source.order) if by_hash is not None else None
        if count is None and by_gnu_hash is not None:
            count = count_by_gnu_hash(self.read, by_gnu_hash, source.order, source.word)
        # Every linker puts .dynstr somewhere behind .dynsym.
        room = max(strtab - symtab, 0) // self._sym_dtype.itemsize
        return min(count, room) if count is not None and room else count or room

    @cached_property
    def _dynamic(self) -> dict[int, int]:
        segment = self.headers.of_type(elf_dynamic.PT_DYNAMIC)
        if segment is None:
            return {}
        dtype = elf_dynamic.DYN_DTYPE[self._variant]
        count = min(segment.p_memsz // dtype.itemsize, DYNAMIC_MAX)
        raw = self.read(segment.p_vaddr + self.bias, count * dtype.itemsize)
        tags: dict[int, int] = {}
        for row in np.frombuffer(raw or b"", dtype):
            if row["d_tag"] == elf_dynamic.DT_NULL:
                break
            tags.setdefault(int(row["d_tag"]), int(row["d_val"]))
        return tags

    def _loaded(self, address: int) -> int | None:
        """Return the process's address of a dynamic tag's: glibc has relocated it in place, musl and the vDSO not."""
        for candidate in (address - self.bias, address):
            if self._segment(candidate) is not None:
                return candidate + self.bias
        return None

    def _segment(self, address: int) -> Segment | None:
        for segment in self.headers.segments:
            if segment.p_type == elf.PT_LOAD and segment.p_vaddr <= address < segment.p_vaddr + segment.p_memsz:
                return segment
        return None

    def _segment_end(self, address: int, _index: int) -> int | None:
        segment = self._segment(address)
        return segment.p_vaddr + segment.p_memsz if segment is not None else None

    @property
    def _variant(self) -> tuple[Literal[32, 64], ByteOrder]:
        source = self.source
        return elf.ELF_CLASSES[elf.ELFCLASS64 if source.elf_class == 64 else elf.ELFCLASS32], source.order

    @property
    def _sym_dtype(self) -> np.dtype[np.void]:
        return elf_dynamic.SYM_DTYPE[self._variant]

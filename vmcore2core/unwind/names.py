"""Names for the code of an ELF image: functions, from any table that has them, and source lines.

References: glibc's elf/dl-reloc.c and elf/get-dynamic-info.h (2.41).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from vmcore2core.elf.headers import ElfHeaders
from vmcore2core.formats import elf, elf_dynamic
from vmcore2core.formats import gopclntab as fmt
from vmcore2core.unwind import gopclntab
from vmcore2core.unwind.elf_file import ElfFile
from vmcore2core.unwind.gopclntab import GoTable
from vmcore2core.unwind.image_files import ImageFiles, ImageSource
from vmcore2core.unwind.lines import LineTable, SourceLine
from vmcore2core.unwind.symbols import Origin, Symbol, SymbolTable, count_by_gnu_hash, count_by_hash, read_table

DYNAMIC_MAX = 4096
NOTES_MAX = 4096


class ImageNames(ImageFiles):
    """An ELF image and its names; see ``ImageFiles``."""

    def __init__(self, headers: ElfHeaders, bias: int, source: ImageSource) -> None:
        super().__init__(headers, bias, source)
        self._dynsym_from_file = False

    def symbol(self, pc: int) -> Symbol | None:
        """Return the function that holds ``pc``; its address is the process's."""
        found = self._find(self.file.symtab, pc) or self._dynamic_symbol(pc)
        if found is not None:
            return found
        for file, origin in self.elf_files():
            found = self._find(file.symtab, pc) if file is not self.file else None
            if found is not None:
                return replace(found, source=origin)
        for file, _ in self.elf_files():
            mini = file.mini_debug_information
            if mini is not None and (found := self._find(mini.symtab, pc)) is not None:
                return replace(found, source=Origin.DEBUG)
        return self._go_function(pc)

    def variable(self, address: int) -> Symbol | None:
        """Return the variable that holds an address; its address is the process's."""
        tables = (self.file.symtab, self._dynsym, *(file.symtab for file, _ in self.elf_files()))
        found = (table.find_object(address - self.bias) for table in tables if table is not None)
        symbol = next((one for one in found if one is not None), None)
        return None if symbol is None else Symbol(symbol.name, symbol.value + self.bias)

    def _dynamic_symbol(self, pc: int) -> Symbol | None:
        self.read.second_used = False
        found = self._find(self._dynsym, pc)
        self._dynsym_from_file |= self.read.second_used  # reading the table (once) or a name used the file
        return replace(found, source=Origin.FILE) if found is not None and self._dynsym_from_file else found

    def _find(self, table: SymbolTable | None, pc: int) -> Symbol | None:
        found = table.find(pc - self.bias) if table is not None else None
        return None if found is None else Symbol(found.name, found.value + self.bias)

    @property
    def knows_all_names(self) -> bool:
        """Whether the file's symbol tables are complete, so that the file itself would not name more."""
        tables = (self.file.symtab, self._dynsym)
        return bool(self.file.sections) and all(table is None or table.complete for table in tables)

    def lines(self, pc: int) -> tuple[SourceLine, ...]:
        """Return the source lines of an address: inlined functions' lines, innermost first, then the function's."""
        table = self._line_table
        if table is None:
            return ()
        lowest = min(s.p_vaddr for s in self.headers.segments if s.p_type == elf.PT_LOAD)
        return table.at(pc - self.bias - lowest)

    @cached_property
    def _line_table(self) -> LineTable | None:
        """Return the line table of the separate debug information, or of the file that was found, or None."""
        original = self.source.original
        if original is None:
            return None
        if self.debug_information is not None and self.debug_file is not None and _has_lines(self.debug_information):
            return original.lines.of_file(self.debug_file.path)
        if self.original is not None and original.path is not None and _has_lines(self.original):
            return original.lines.of_file(original.path)
        return None

    def _go_function(self, pc: int) -> Symbol | None:
        """Return the function from Go's own table, which stripped programs keep, or None."""
        table, self.read.second_used = self._gopclntab, False
        found = table.find(pc) if table is not None else None
        return replace(found, source=Origin.FILE) if found is not None and self.read.second_used else found

    @property
    def is_go(self) -> bool:
        """Whether the program has Go's table; Go's functions keep frame pointers (amd64 and arm64)."""
        return self._gopclntab is not None

    def ends_stack(self, pc: int) -> bool:
        """Tell whether the function that holds ``pc`` has no caller on its stack, as Go's table says."""
        if self.headers.of_type(elf_dynamic.PT_GNU_EH_FRAME) is not None:
            return False
        return self._gopclntab is not None and self._gopclntab.ends_stack(pc)

    @cached_property
    def _gopclntab(self) -> GoTable | None:
        order, word = self.source.order, self.source.word
        found = (self.section(name) for name in gopclntab.SECTIONS)
        places = [section.sh_addr + self.bias for section in found if section is not None]
        text = self.section(b".text")
        starts = (text.sh_addr + self.bias,) if text is not None else ()
        # Go's linker puts the section headers at the file's front, where they are loaded, and their names at the end.
        if not places and self.original is None and self._has_go_note():
            places += self._searched_for_go()
        for place in places:
            table = GoTable(self.read, place, order, word, starts)
            if table.good:
                return table
        return None

    def _has_go_note(self) -> bool:
        """Tell whether the image has Go's note, which Go programs have in their first page."""
        notes = [segment for segment in self.headers.segments if segment.p_type == elf.PT_NOTE]
        raw = (self.read(note.p_vaddr + self.bias, min(note.p_filesz, NOTES_MAX)) for note in notes)
        return any(fmt.NOTE_NAME in piece for piece in raw if piece is not None)

    def _searched_for_go(self) -> Iterator[int]:
        """Yield the addresses at which Go's table may be, if the file's section headers are not known."""
        for segment in self.headers.segments:
            if segment.p_type == elf.PT_LOAD and not segment.p_flags & elf.PF_X:
                start, size = segment.p_vaddr + self.bias, segment.p_filesz
                yield from gopclntab.headers(self.read, start, size, self.source.order, self.source.word)

    @cached_property
    def _dynsym(self) -> SymbolTable | None:
        """Return .dynsym, found through the dynamic section."""
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
        dtype = elf_dynamic.DYN_DTYPE[self.variant]
        count = min(segment.p_memsz // dtype.itemsize, DYNAMIC_MAX)
        raw = self.read(segment.p_vaddr + self.bias, count * dtype.itemsize)
        tags: dict[int, int] = {}
        for row in np.frombuffer(raw or b"", dtype):
            if row["d_tag"] == elf_dynamic.DT_NULL:
                break
            tags.setdefault(int(row["d_tag"]), int(row["d_val"]))
        return tags

    def _loaded(self, address: int) -> int | None:
        """Return a dynamic tag's address in the process: glibc relocates tags in place, musl and the vDSO do not."""
        for candidate in (address - self.bias, address):
            if self.segment(candidate) is not None:
                return candidate + self.bias
        return None

    def _segment_end(self, address: int, _index: int) -> int | None:
        segment = self.segment(address)
        return segment.p_vaddr + segment.p_memsz if segment is not None else None

    @property
    def _sym_dtype(self) -> np.dtype[np.void]:
        return elf_dynamic.SYM_DTYPE[self.variant]


def _has_lines(file: ElfFile) -> bool:
    return file.section(b".debug_line") is not None

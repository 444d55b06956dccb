"""Rebuilds an ELF file that lacks pages, so that debuggers can read its symbols and call frame information.

The known bytes stay at their offsets. Section headers follow them: the file's own if they are in memory, else headers
made from its program headers and its dynamic section, because only those are mapped. A section with any unknown byte
becomes SHT_NOBITS, so that no debugger takes a hole's zeros for its bytes. In place of such sections, a new .symtab
has the known dynamic symbols, and a new .debug_frame and .eh_frame have the known call frame information.

lief builds and edits ELF files, but moves segments when it adds section headers to a file that has none, and needs all
bytes of a file.

References: System V gABI, chapters "Sections", "Symbol Table" and "Dynamic Linking".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vmcore2core.elf.headers import SECTIONS_MAX, ElfHeaders, Read, Segment, parse_headers
from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import elf, elf_dynamic
from vmcore2core.formats._cabi import ElfClass, align_up
from vmcore2core.handover.debug_frame import debug_frame, eh_frame, fdes_of
from vmcore2core.handover.go_symbols import go_symbols
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.reading import PagedRead
from vmcore2core.unwind.symbols import SYMBOLS_MAX, count_by_gnu_hash, count_by_hash

DYNAMIC_MAX = 1 << 16
STRINGS_MAX = 1 << 26
ALIGN = 16
SYMBOLS = (elf_dynamic.SHT_SYMTAB, elf_dynamic.SHT_DYNSYM)

Known = Callable[[int, int], bool]
"""Whether all of a file's bytes are known, by file offset and size."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The bytes to write into a copy of a file's known bytes.

    Attributes:
        header: the new ELF header, at offset 0.
        tail: the bytes to append.
        tail_at: file offset of ``tail``.
    """

    header: bytes
    tail: bytes
    tail_at: int


def rebuilt(read: Read, known: Known, size: int, elf_class: int, order: ByteOrder, page_size: int) -> Rebuilt | None:
    """Return the bytes that make a partly known file a readable ELF file, or None if its ELF headers are not known.

    Args:
        read: bytes by file offset.
        known: whether ``read`` would return them; only asked of ranges within the file.
        size: size of the file in bytes.
        elf_class: 32 or 64.
        order: byte order.
        page_size: bytes of a page; each page is known as a whole, or not at all.
    """

    def padded(offset: int, wanted: int) -> bytes | None:
        raw = read(offset, min(wanted, size - offset)) if offset < size else None
        return None if raw is None else raw.ljust(wanted, b"\0")

    paged = PagedRead(padded, page_size)
    try:
        headers = parse_headers(paged, elf_class, order)
    except CorruptStructure:
        return None
    return None if headers is None else _Builder(paged, known, size, elf_class, order, headers).run()


class _Builder:
    """Rebuilds one file; the attributes are the steps' shared state."""

    def __init__(
        self, read: PagedRead, known: Known, size: int, elf_class: int, order: ByteOrder, headers: ElfHeaders
    ) -> None:
        self.read, self.known, self.size, self.headers = read, known, size, headers
        self.order, self.word = order, elf_class // 8
        self.variant = cast("ElfClass", elf_class), order
        self.rows: list[dict[str, int]] = []
        self.names = b"\0"
        self.tail = bytearray()
        self.tail_at = align_up(size, ALIGN)
        self.by_address = PagedRead(self._at_address, read.page_size)

    def run(self) -> Rebuilt:
        own = self._own_sections()
        named = own is not None and self._take_names(own)
        if own is not None and named:
            self._take(own)
        else:
            self._sections_of_segments(own)
        torn = self._torn_symtab(own) if own is not None and named else None
        if torn is not None:
            self._add_symbols(self.read, *torn)
        elif not any(row["sh_type"] in SYMBOLS for row in self.rows) and not self._add_go_symbols():
            self._add_dynamic_symbols()
        self._add_call_frames()
        return self._finish()

    def _at_address(self, address: int, size: int) -> bytes | None:
        """Read the file by its own addresses."""
        for segment in self.headers.segments:
            # Whole pages are mapped, so the bytes around a segment are the file's, too.
            within = segment.p_offset % self.read.page_size
            at = address - segment.p_vaddr + within
            if segment.p_type == elf.PT_LOAD and 0 <= at <= at + size <= align_up(
                within + segment.p_filesz, self.read.page_size
            ):
                return self.read(segment.p_offset - within + at, size)
        return None

    def _known(self, offset: int, size: int) -> bool:
        return 0 <= offset <= offset + size <= self.size and self.known(offset, size)

    def _own_sections(self) -> NDArray[np.void] | None:
        """Return the file's own section headers, or None if they are not all known."""
        headers, dtype = self.headers, elf_dynamic.SHDR_DTYPE[self.variant]
        if not headers.e_shoff or not headers.e_shstrndx < headers.e_shnum <= SECTIONS_MAX:
            return None
        raw = self.read(headers.e_shoff, headers.e_shnum * dtype.itemsize)
        return None if raw is None else np.frombuffer(raw, dtype)

    def _take_names(self, table: NDArray[np.void]) -> bool:
        """Take the names of the file's own sections; return whether they are known."""
        strings = table[self.headers.e_shstrndx]
        names = self.read(int(strings["sh_offset"]), int(strings["sh_size"]))
        self.names = b"\0" if names is None else names + b"\0"
        return names is not None

    def _take(self, table: NDArray[np.void]) -> None:
        for row in table:
            values = {name: int(row[name]) for name in table.dtype.names or ()}
            empty = values["sh_type"] in (elf_dynamic.SHT_NULL, elf_dynamic.SHT_NOBITS)
            if not empty and not self._known(values["sh_offset"], values["sh_size"]):
                values["sh_type"] = elf_dynamic.SHT_NOBITS
            self.rows.append(values)
        for row in self.rows:
            # Symbols without their names are useless.
            if row["sh_type"] in SYMBOLS and not self._has_names(row):
                row["sh_type"] = elf_dynamic.SHT_NOBITS

    def _sections_of_segments(self, own: NDArray[np.void] | None) -> None:
        """Make sections from the mapped segments: text and data for symbols to refer to, notes, .eh_frame_hdr.

        Args:
            own: the file's own section headers if only their names are missing: Go's linker puts the headers at the
                front of the file, and its notes in no segment.
        """
        self._add("", elf_dynamic.SHT_NULL, 0, 0, 0, 0)
        for segment in self.headers.segments:
            if segment.p_type == elf.PT_LOAD and segment.p_flags & (elf.PF_X | elf.PF_W):
                self._add_load(segment)
            elif segment.p_type == elf.PT_NOTE and self._known(segment.p_offset, segment.p_filesz):
                place = segment.p_vaddr, segment.p_offset, segment.p_filesz
                self._add(".note", elf_dynamic.SHT_NOTE, elf_dynamic.SHF_ALLOC, *place, sh_addralign=4)
        for row in () if own is None else own[own["sh_type"] == elf_dynamic.SHT_NOTE]:
            place = int(row["sh_addr"]), int(row["sh_offset"]), int(row["sh_size"])
            if self._known(*place[1:]) and not any(place[1] == made["sh_offset"] for made in self.rows):
                self._add(".note", elf_dynamic.SHT_NOTE, elf_dynamic.SHF_ALLOC, *place, sh_addralign=4)

    def _add_load(self, segment: Segment) -> None:
        flags, text = elf_dynamic.SHF_ALLOC, bool(segment.p_flags & elf.PF_X)
        flags |= elf_dynamic.SHF_EXECINSTR if text else elf_dynamic.SHF_WRITE
        whole = segment.p_filesz == segment.p_memsz and self._known(segment.p_offset, segment.p_filesz)
        kind = elf_dynamic.SHT_PROGBITS if whole else elf_dynamic.SHT_NOBITS
        # Use no name that linkers use: where their sections begin is not known, and gdb places a separate debug file's
        # sections by those of the same name.
        name = ".load.text" if text else ".load.data"
        self._add(name, kind, flags, segment.p_vaddr, segment.p_offset, segment.p_memsz, sh_addralign=16)

    def _has_names(self, row: dict[str, int]) -> bool:
        link = row["sh_link"]
        return link < len(self.rows) and self.rows[link]["sh_type"] == elf_dynamic.SHT_STRTAB

    def _torn_symtab(self, own: NDArray[np.void]) -> tuple[int, int, int, int] | None:
        """Return .symtab's place, its number of symbols, and its string table's place, if bytes of it are missing."""
        for before, row in zip(own, self.rows, strict=True):
            link = row["sh_link"]
            if before["sh_type"] == elf_dynamic.SHT_SYMTAB != row["sh_type"] and link < len(self.rows):
                count = row["sh_size"] // elf_dynamic.SYM_DTYPE[self.variant].itemsize
                names = self.rows[link]
                return row["sh_offset"], min(count, SYMBOLS_MAX), names["sh_offset"], names["sh_size"]
        return None

    def _add_dynamic_symbols(self) -> None:
        dynamic = self._dynamic()
        symtab, strtab, strsz = (
            dynamic.get(tag) for tag in (elf_dynamic.DT_SYMTAB, elf_dynamic.DT_STRTAB, elf_dynamic.DT_STRSZ)
        )
        count = self._count(dynamic)
        if symtab is not None and strtab is not None and strsz is not None:
            self._add_symbols(self.by_address, symtab, count, strtab, strsz)

    def _add_symbols(self, read: PagedRead, symtab: int, count: int, strtab: int, strsz: int) -> None:
        """Add a symbol table of the symbols whose entries and names are known.

        Args:
            read: reads the table and the names.
            symtab: where the table begins, as ``read`` counts.
            count: number of symbols.
            strtab, strsz: where the names begin, and their size in bytes.
        """
        if strsz > STRINGS_MAX or not count:
            return
        dtype = elf_dynamic.SYM_DTYPE[self.variant]
        parts = [
            self._symbols_in(start, run, symtab, dtype) for start, run in read.known(symtab, count * dtype.itemsize)
        ]
        table = np.concatenate([np.zeros(0, dtype), *parts])
        table = table[(table["st_shndx"] != elf_dynamic.SHN_UNDEF) & (table["st_name"] < strsz)]
        strings = b"".join(self._strings(read, strtab, strsz))
        named = np.array([bool(read.string(strtab + int(offset))) for offset in table["st_name"]], np.bool_)
        self._add_symtab(table[named].copy(), strings)

    def _add_go_symbols(self) -> bool:
        """Add a symbol table of a Go program's functions; return whether any function was found."""
        dtype = elf_dynamic.SYM_DTYPE[self.variant]
        table, strings = go_symbols(self.by_address, self.headers, self.order, self.word, dtype)
        if len(table):
            self._add_symtab(table, strings)
        return bool(len(table))

    def _add_symtab(self, table: NDArray[np.void], strings: bytes) -> None:
        """Add the symbols that lie in an existing section, and their names."""
        dtype = table.dtype
        table["st_shndx"] = self._section_of(table["st_value"].astype(np.uint64))
        # A symbol without a section would have an absolute address, which debuggers do not relocate.
        table = table[table["st_shndx"] != elf_dynamic.SHN_UNDEF]
        local = table["st_info"] >> elf_dynamic.STB_SHIFT == elf_dynamic.STB_LOCAL
        table = np.concatenate([np.zeros(1, dtype), table[local], table[~local]])
        place = self._append(table.tobytes())
        index = len(self.rows)
        entry = dtype.itemsize
        self._add(
            ".symtab",
            elf_dynamic.SHT_SYMTAB,
            0,
            0,
            *place,
            sh_link=index + 1,
            sh_info=1 + int(np.count_nonzero(local)),
            sh_addralign=8,
            sh_entsize=entry,
        )
        self._add(".strtab", elf_dynamic.SHT_STRTAB, 0, 0, *self._append(strings), sh_addralign=1)

    def _symbols_in(self, start: int, run: bytes, symtab: int, dtype: np.dtype[np.void]) -> NDArray[np.void]:
        """Return the symbols that lie completely in a run of known bytes."""
        skip = -(start - symtab) % dtype.itemsize
        return np.frombuffer(run, dtype, max(len(run) - skip, 0) // dtype.itemsize, min(skip, len(run)))

    def _strings(self, read: PagedRead, strtab: int, strsz: int) -> Iterator[bytes]:
        """Yield the string table, with zeros where it is not known; no symbol that is kept has its name there."""
        at = strtab
        for start, run in read.known(strtab, strsz):
            yield bytes(start - at)
            yield run
            at = start + len(run)
        yield bytes(strtab + strsz - at)

    def _section_of(self, values: NDArray[np.uint64]) -> NDArray[np.uint16]:
        found = np.zeros(len(values), np.uint16)
        for index, row in enumerate(self.rows):
            if row["sh_flags"] & elf_dynamic.SHF_ALLOC and row["sh_type"] != elf_dynamic.SHT_NOTE:
                inside = (values >= np.uint64(row["sh_addr"])) & (values < np.uint64(row["sh_addr"] + row["sh_size"]))
                found[inside] = index
        return found

    def _dynamic(self) -> dict[int, int]:
        segment = self.headers.of_type(elf_dynamic.PT_DYNAMIC)
        dtype = elf_dynamic.DYN_DTYPE[self.variant]
        raw = (
            None
            if segment is None
            else self.read(segment.p_offset, min(segment.p_filesz, DYNAMIC_MAX) // dtype.itemsize * dtype.itemsize)
        )
        table = np.frombuffer(raw or b"", dtype)
        return {int(row["d_tag"]): int(row["d_val"]) for row in reversed(table)}

    def _count(self, dynamic: dict[int, int]) -> int:
        """Return the number of dynamic symbols, or 0 if it is not known."""
        gnu, old = dynamic.get(elf_dynamic.DT_GNU_HASH), dynamic.get(elf_dynamic.DT_HASH)
        count = None if gnu is None else count_by_gnu_hash(self.by_address, gnu, self.order, self.word)
        if count is None and old is not None:
            count = count_by_hash(self.by_address, old, self.order)
        symtab, strtab = dynamic.get(elf_dynamic.DT_SYMTAB, 0), dynamic.get(elf_dynamic.DT_STRTAB, 0)
        if count is None and symtab < strtab:  # GNU linkers put the names behind the symbols
            count = (strtab - symtab) // elf_dynamic.SYM_DTYPE[self.variant].itemsize
        return min(count or 0, SYMBOLS_MAX)

    def _add_call_frames(self) -> None:
        """Add call frame information, unless the file's own section of it is complete.

        Neither section is mapped: gdb takes an .eh_frame only if it is, and lldb would lay it over other memory. An
        empty .eh_frame is the place for what the start script tells lldb.
        """
        hdr = self.headers.of_type(elf_dynamic.PT_GNU_EH_FRAME)
        own = self._find(".eh_frame")
        if own is not None and own["sh_type"] != elf_dynamic.SHT_NOBITS:
            return
        fdes = [] if hdr is None else list(fdes_of(self.by_address, hdr.p_vaddr, self.order, self.word))
        if fdes:
            self._add_frame_section(".debug_frame", debug_frame(fdes, self.order, self.word))
        self._add_frame_section(".eh_frame", eh_frame(fdes, self.order, self.word))

    def _add_frame_section(self, name: str, content: bytes) -> None:
        self._add(name, elf_dynamic.SHT_PROGBITS, 0, 0, *self._append(content), sh_addralign=self.word)

    def _find(self, name: str) -> dict[str, int] | None:
        at = self.names.find(name.encode() + b"\0")
        while at >= 0:
            for row in self.rows:
                if row["sh_name"] == at:
                    return row
            at = self.names.find(name.encode() + b"\0", at + 1)
        return None

    def _append(self, content: bytes) -> tuple[int, int]:
        """Append to the tail; return offset and size."""
        self.tail += bytes(-len(self.tail) % ALIGN)
        at = self.tail_at + len(self.tail)
        self.tail += content
        return at, len(content)

    def _add(
        self, name: str, sh_type: int, sh_flags: int, sh_addr: int, sh_offset: int, sh_size: int, **more: int
    ) -> None:
        row = dict.fromkeys(("sh_link", "sh_info", "sh_addralign", "sh_entsize"), 0)
        row |= {
            "sh_type": sh_type,
            "sh_flags": sh_flags,
            "sh_addr": sh_addr,
            "sh_offset": sh_offset,
            "sh_size": sh_size,
        }
        self.rows.append({**row, **more, "sh_name": len(self.names) if name else 0})
        self.names += name.encode() + b"\0" if name else b""

    def _finish(self) -> Rebuilt:
        """Append the section headers, and return the tail with an ELF header that points to them."""
        names_at = len(self.names)
        self.names += b".shstrtab\0"
        place = self._append(self.names)
        self._add("", elf_dynamic.SHT_STRTAB, 0, 0, *place, sh_addralign=1)
        self.rows[-1]["sh_name"] = names_at
        dtype = elf_dynamic.SHDR_DTYPE[self.variant]
        table = np.zeros(len(self.rows), dtype)
        for name in dtype.names or ():
            table[name] = [row[name] for row in self.rows]
        e_shoff, _ = self._append(table.tobytes())
        declaration = elf.Ehdr[self.variant]
        ehdr: Any = declaration.parse(self.read(0, declaration.sizeof()) or b"")
        ehdr.e_shoff, ehdr.e_shentsize = e_shoff, dtype.itemsize
        ehdr.e_shnum, ehdr.e_shstrndx = len(self.rows), len(self.rows) - 1
        return Rebuilt(declaration.build(ehdr), bytes(self.tail), self.tail_at)

"""One ELF image loaded in a process: its call frame information, on top of ``ImageNames``.

Static executables have no PT_GNU_EH_FRAME: gcc links them with crtbeginT.o, which registers .eh_frame itself. Their
section headers say where it is.

Reference: LSB Core 5.0, chapter 10.6 (.eh_frame_hdr).
"""

from __future__ import annotations

from functools import cached_property

from vmcore2core.elf.headers import ElfHeaders
from vmcore2core.errors import CorruptStructure
from vmcore2core.formats import dwarf_cfi, elf_dynamic
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.cfi_rules import Fde
from vmcore2core.unwind.cursor import Cursor
from vmcore2core.unwind.debug_frame import DebugFrame
from vmcore2core.unwind.eh_index import EhIndex, EhIndexes
from vmcore2core.unwind.image_files import ImageSource
from vmcore2core.unwind.names import ImageNames
from vmcore2core.unwind.symbols import Origin

HDR_READ = 32  # .eh_frame_hdr up to its table, with the longest encodings


class Image(ImageNames):
    """An ELF image; see ``ImageFiles``.

    Attributes:
        eh_frame: its .eh_frame.
        cfi_problem: why call frame information is missing, or None.
        cfi_origin: source of the FDE that ``fde`` found last.
    """

    def __init__(self, headers: ElfHeaders, bias: int, source: ImageSource) -> None:
        super().__init__(headers, bias, source)
        self.eh_frame = EhFrame(self.read, source.order, source.word)
        self.cfi_problem: str | None = None
        self.cfi_origin = Origin.MEMORY

    def fde(self, pc: int) -> Fde | None:
        """Return the FDE of the function that holds ``pc``, or None; ``cfi_problem`` then may say why.

        Raises:
            CorruptStructure: the call frame information is malformed.
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
        """Return the FDE from .debug_frame, for programs without .eh_frame, such as Go's."""
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
        for file, origin in self.elf_files():
            section = file.section(b".debug_frame")
            data = None if section is None else file.content(section)
            if data:
                frame = DebugFrame(data, self.bias, self.source.order, self.source.word)
                found.append((self._indexes.of(frame, 0, len(data)), frame, origin))
        return found

    @cached_property
    def _search_table(self) -> tuple[int, int, int] | None:
        """Return (address of .eh_frame_hdr, address of its table, entries), or None if no table can be searched."""
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

    @property
    def _indexes(self) -> EhIndexes:
        """The indexes that processes of the same program have made."""
        return EhIndexes() if self.source.original is None else self.source.original.indexes

    @cached_property
    def _index(self) -> EhIndex | None:
        section = self.section(b".eh_frame")
        if section is None or not section.sh_flags & elf_dynamic.SHF_ALLOC:
            self.cfi_problem = self.cfi_problem or "where its .eh_frame is, if it has one, is not known"
            return None
        index = self._indexes.of(self.eh_frame, section.sh_addr + self.bias, section.sh_size)
        self.cfi_problem = index.problem or self.cfi_problem
        return index

"""Symbols of Go programs whose symbol table is not in memory, made from the Go runtime's own table of functions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.elf.headers import ElfHeaders
from vmcore2core.formats import elf, elf_dynamic
from vmcore2core.formats import gopclntab as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind import gopclntab
from vmcore2core.unwind.reading import PagedRead

NOTES_MAX = 1 << 16


def go_symbols(
    read: PagedRead, headers: ElfHeaders, order: ByteOrder, word: int, dtype: np.dtype[np.void]
) -> tuple[NDArray[np.void], bytes]:
    """Return Elf_Sym[n] of a Go program's known functions, and their string table.

    Args:
        read: bytes of the file by its own addresses.
        headers: the file's headers.
        order: byte order.
        word: bytes of an address.
        dtype: Elf_Sym.
    """
    strings, rows = bytearray(b"\0"), []
    for start, end, name in _functions(read, headers, order, word):
        rows.append((len(strings), start, end - start))
        strings += name + b"\0"
    table = np.zeros(len(rows), dtype)
    if rows:
        table["st_name"], table["st_value"], table["st_size"] = np.array(rows, np.uint64).T
        table["st_info"] = elf_dynamic.STB_GLOBAL << elf_dynamic.STB_SHIFT | elf_dynamic.STT_FUNC
    return table, bytes(strings)


def _functions(read: PagedRead, headers: ElfHeaders, order: ByteOrder, word: int) -> Iterator[tuple[int, int, bytes]]:
    notes = [segment for segment in headers.segments if segment.p_type == elf.PT_NOTE]
    raw = (read(note.p_vaddr, min(note.p_filesz, NOTES_MAX)) for note in notes)
    if not any(fmt.NOTE_NAME in piece for piece in raw if piece is not None):
        return
    for segment in headers.segments:
        if segment.p_type == elf.PT_LOAD and not segment.p_flags & elf.PF_X:
            for place in gopclntab.headers(read, segment.p_vaddr, segment.p_filesz, order, word):
                table = gopclntab.GoTable(read, place, order, word, ())
                if table.good:
                    yield from table.functions()
                    return

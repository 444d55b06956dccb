"""The dynamic linker's list of loaded objects, as debuggers follow it.

From AT_PHDR to the program's PT_DYNAMIC, its DT_DEBUG, ``struct r_debug``, and the ``struct link_map`` of each object.

References: glibc's elf/link.h (2.41); gdb's solib-svr4.c: svr4_current_sos() (13.1) for the order of the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np

from vmcore2core.formats import elf, elf_dynamic, link
from vmcore2core.formats._cabi import ByteOrder, ElfClass
from vmcore2core.process.model import ProcessSnapshot, Vma

OBJECTS_MAX = 1 << 14
PHNUM_MAX = 1024
DYNAMIC_MAX = 1 << 16  # bytes
PATH_MAX = 4096
STRING_STEP = 256

Read = Callable[[int, int], bytes | None]
"""Returns user memory at (address, size), or None if any byte of it is not known."""


class LoadedObject(NamedTuple):
    """One ``struct link_map``.

    Attributes:
        l_addr: load bias, to be added to the file's addresses.
        l_name: the name under which the linker found it; empty for the program itself.
        l_ld: address of its dynamic section.
    """

    l_addr: int
    l_name: bytes
    l_ld: int


class LinkMap(NamedTuple):
    """The objects in the linker's order, and ``(start, end)`` of all bytes that a debugger reads to find them."""

    objects: tuple[LoadedObject, ...] = ()
    extents: tuple[tuple[int, int], ...] = ()


def auxv_value(snapshot: ProcessSnapshot, a_type: int) -> int | None:
    """Return the auxiliary vector's value of a type, or None."""
    if snapshot.auxv is None:
        return None
    dtype = link.AUXV_DTYPE[_variant(snapshot)]
    table = np.frombuffer(snapshot.auxv[: len(snapshot.auxv) // dtype.itemsize * dtype.itemsize], dtype)
    found = table["a_val"][table["a_type"] == a_type]
    return int(found[0]) if len(found) else None


def vma_at(snapshot: ProcessSnapshot, address: int) -> Vma | None:
    """Return the mapping that contains an address."""
    return next((vma for vma in snapshot.vmas if vma.start <= address < vma.end), None)


def program_path(snapshot: ProcessSnapshot) -> bytes | None:
    """Return the path of the process's program, from its mapping; None if it is not known."""
    phdr = auxv_value(snapshot, link.AT_PHDR)
    vma = None if phdr is None else vma_at(snapshot, phdr)
    return None if vma is None else vma.path


def link_map(snapshot: ProcessSnapshot, read: Read) -> LinkMap:
    """Return the known part of the linker's list; a static program has no list, and a broken one ends early.

    Args:
        snapshot: the process.
        read: its memory.
    """
    return _Reader(snapshot, read).run()


class _Reader:
    def __init__(self, snapshot: ProcessSnapshot, read: Read) -> None:
        self.snapshot, self._read = snapshot, read
        self.variant = _variant(snapshot)
        self.extents: list[tuple[int, int]] = []

    def run(self) -> LinkMap:
        head = self._r_debug()
        debug = None if not head else self._record(head, link.R_DEBUG_DTYPE[self.variant])
        objects: list[LoadedObject] = []
        seen: set[int] = set()
        at = 0 if debug is None else debug["r_map"]
        while at and at not in seen and len(objects) < OBJECTS_MAX:
            seen.add(at)
            entry = self._record(at, link.LINK_MAP_DTYPE[self.variant])
            if entry is None:
                break
            objects.append(LoadedObject(entry["l_addr"], self._string(entry["l_name"]), entry["l_ld"]))
            at = entry["l_next"]
        return LinkMap(tuple(objects), tuple(self.extents))

    def _r_debug(self) -> int | None:
        """Return the program's DT_DEBUG."""
        phdr, phnum = (auxv_value(self.snapshot, a_type) for a_type in (link.AT_PHDR, link.AT_PHNUM))
        if phdr is None or phnum is None or phnum > PHNUM_MAX:
            return None
        table = self._table(phdr, elf.PHDR_DTYPE[self.variant], phnum)
        if table is None:
            return None
        bias = next((phdr - int(row["p_vaddr"]) for row in table if row["p_type"] == elf_dynamic.PT_PHDR), 0)
        row = next((row for row in table if row["p_type"] == elf_dynamic.PT_DYNAMIC), None)
        if row is None or row["p_memsz"] > DYNAMIC_MAX:
            return None
        dtype = elf_dynamic.DYN_DTYPE[self.variant]
        dynamic = self._table(bias + int(row["p_vaddr"]), dtype, int(row["p_memsz"]) // dtype.itemsize)
        found = [] if dynamic is None else dynamic["d_val"][dynamic["d_tag"] == link.DT_DEBUG]
        return int(found[0]) if len(found) else None

    def _table(self, address: int, dtype: np.dtype[np.void], count: int) -> np.ndarray | None:
        raw = self._bytes(address, count * dtype.itemsize)
        return None if raw is None else np.frombuffer(raw, dtype)

    def _record(self, address: int, dtype: np.dtype[np.void]) -> dict[str, int] | None:
        table = self._table(address, dtype, 1)
        return None if table is None else {name: int(table[0][name]) for name in dtype.names or ()}

    def _string(self, address: int) -> bytes:
        text = b""
        while address and len(text) < PATH_MAX:
            at = address + len(text)
            piece = self._read(at, STRING_STEP - at % STRING_STEP)
            if piece is None:
                return b""
            head, nul, _ = piece.partition(b"\0")
            text += head
            if nul:
                self.extents.append((address, address + len(text) + 1))
                return text
        return b""

    def _bytes(self, address: int, size: int) -> bytes | None:
        if not 0 <= address < 1 << self.snapshot.elf_class:
            return None
        raw = self._read(address, size)
        if raw is not None:
            self.extents.append((address, address + size))
        return raw


def _variant(snapshot: ProcessSnapshot) -> tuple[ElfClass, ByteOrder]:
    return cast("ElfClass", snapshot.elf_class), snapshot.byte_order

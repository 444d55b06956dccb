"""Find other copies of a mapped file: a file with the same build ID may have pages that this file's cache lacks.

Containers and chroots have their own files of the same programs and libraries, each with its own cached pages. We
search the executable mappings of all processes for them, once, and only when a page is missing.
"""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np

from vmcore2core.elf.build_id import build_id
from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.interfaces import ByteOrder
from vmcore2core.kernel import mm
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.structs import Structs
from vmcore2core.kernel.vmas import Vmas
from vmcore2core.process.filepages import FilePages
from vmcore2core.process.snapshot import Processes

VMAS_MAX = 1 << 17
"""Most mappings to look at: about two seconds."""
COPIES_MAX = 64
"""Most files of one size to look at."""
_BROKEN = (CorruptStructure, MemoryFault, LayoutUnknown)

log = logging.getLogger(__name__)


class Copies:
    """The files that any process has mapped as executable.

    Args:
        processes: of the dump.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._found: dict[tuple[bytes, int], FilePages | None] = {}

    def read(
        self, wanted: bytes, size: int, elf_class: int, order: ByteOrder, offset: int, length: int
    ) -> bytes | None:
        """Return bytes of a file, with zeros from its end to the end of that page; None if any are not known.

        Args:
            wanted: its build ID.
            size: of the file in bytes.
            elf_class, order: of the process that maps it.
            offset, length: of the bytes to read.
        """
        key = wanted, size
        if key not in self._found:
            self._found[key] = self._pages(wanted, size, elf_class, order)
        pages = self._found[key]
        if pages is None or offset + length > -(-size // pages.page_size) * pages.page_size:
            return None
        found = pages.read(offset, max(min(length, size - offset), 0))
        return None if found is None else found.ljust(length, b"\0")

    def _pages(self, wanted: bytes, size: int, elf_class: int, order: ByteOrder) -> FilePages | None:
        """Return the pages of all copies of a file together; None if there is only one copy."""
        candidates = self._of_size.get(size, [])[:COPIES_MAX]
        pages: FilePages | None = None
        for mapping in candidates if len(candidates) > 1 else ():
            try:
                one = FilePages(self._cache, mapping, self._processes.swap.space)
            except _BROKEN:
                continue
            if build_id(one.read, elf_class, order) != wanted:
                continue
            if pages is None:
                pages = one
            else:
                pages.take(one)
        return pages

    @cached_property
    def _cache(self) -> PageCache:
        return PageCache(self._processes.kernel)

    @cached_property
    def _of_size(self) -> dict[int, list[StructView]]:
        """``struct address_space`` of each file that is mapped as executable, by the file's size."""
        files: dict[int, None] = {}
        looked = 0
        for leader in self._processes.with_mm():
            try:
                vmas = Vmas(self._processes.mm_of(leader))  # unchecked: a file counts only with the right build ID
            except _BROKEN as error:
                log.info("files of one process are not looked at: %s", error)
                continue
            files |= dict.fromkeys(vmas.file[vmas.flags & np.uint64(mm.VM_EXEC) != 0].tolist())
            looked += len(vmas)
            if looked > VMAS_MAX:
                break
        kernel = self._processes.kernel
        mappings = dict.fromkeys(Structs(kernel, "file", [file for file in files if file]).ulong("f_mapping").tolist())
        by_size: dict[int, list[StructView]] = {}
        for mapping in (kernel.view("address_space", address) for address in mappings if address):
            by_size.setdefault(_size(mapping), []).append(mapping)
        return by_size


def _size(mapping: StructView) -> int:
    try:
        inode = mapping.follow("host", "inode")
        return 0 if inode is None else inode.uint("i_size", size=8)
    except _BROKEN:
        return 0

"""The page cache, for pages of mapped files that are not in the process's page tables; lookups are cached."""

from __future__ import annotations

from collections import OrderedDict
from stat import S_ISREG

import numpy as np

from vmcore2core.errors import CorruptStructure, LayoutError, LayoutUnknown, MemoryFault
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.memory.pages import Pages

CACHED_SIZE = 1 << 24
"""Most bytes of lookups to keep: of some 900,000 pages."""
# Since Linux kernel commit 3aa63a569c64 ("fs: switch timespec64 fields in inode to discrete integers") (in v6.11) the
# seconds are a member; 12cd44023651 ("fs: rename inode i_atime and i_mtime fields") (in v6.7) had renamed the struct.
MTIMES = ("i_mtime_sec", "__i_mtime", "i_mtime")


def mtime_of(inode: StructView) -> int | None:
    """Return when a file was last changed, in seconds since 1970, or None if that is not known (inode_get_mtime()).

    Raises:
        MemoryFault: the ``struct inode`` cannot be read.
    """
    return next((time for time in (inode.find_uint(name, 8) for name in MTIMES) if time is not None), None)


class CachedLookups:
    """The page cache of all files; it keeps the lookups that were used last, as processes share libraries.

    Attributes:
        problem: why the page cache cannot be searched, or None.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.problem: str | None = None
        self._pages: PageCache | None = None
        self._answers: OrderedDict[tuple[int, int, int], Pages] = OrderedDict()
        self._room = CACHED_SIZE
        try:
            self._pages = PageCache(kernel)
        except (LayoutError, MemoryFault) as error:
            self.problem = f"files' pages that were not mapped in cannot be looked for: {error}"

    def lookup(self, file: StructView, first: int, last: int) -> Pages | None:
        """Return a file's pages as ``Backing.lookup`` does; None if no page cache can be searched.

        Raises:
            CorruptStructure, MemoryFault, LayoutUnknown: this file's page cache is broken.
        """
        if self._pages is None:
            return None
        key = int(file.pointer("f_mapping")), first, last
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        found = self._answers[key] = self._pages.lookup(file, first, last)
        self._room -= _size(found)
        while self._room < 0 and len(self._answers) > 1:
            self._room += _size(self._answers.popitem(last=False)[1])
        return found

    def is_of_disk(self, file: StructView) -> bool:
        """Tell whether a file's file system is known to be on disk, not in memory.

        Raises:
            CorruptStructure, MemoryFault, LayoutUnknown: its structures are broken, or not known.
        """
        return self._pages is not None and self._pages.is_of_disk(file)

    def paddr_of(self, page: int) -> int | None:
        """Return the physical address of a page of a special mapping; None if no page's address can be found.

        Args:
            page: ``struct page *``.

        Raises:
            CorruptStructure: there is no ``struct page`` at this address.
        """
        return None if self._pages is None else self._pages.paddr_of(page, "vm_special_mapping.pages")


def _size(pages: Pages) -> int:
    """Return the bytes that a lookup takes, with a thousand more for a lookup without pages."""
    return 17 * len(pages) + (1 << 10)  # two uint64 and a uint8


class FileBacking:
    """``Backing`` of one mapping: the page cache of its ``struct file``.

    Args:
        cache: of all files.
        file: ``struct file``.
        problems: where a sentence goes if this file's page cache is broken.

    Attributes:
        broken: whether this file's page cache turned out to be broken.
    """

    def __init__(self, cache: CachedLookups, file: StructView, problems: list[str]) -> None:
        self.cache, self.file, self.problems = cache, file, problems
        self.broken = False

    def on_disk(self) -> bool:
        """Tell whether the file has the pages that the page cache lacks: it has a name and is not kept in memory.

        The kernel writes a page before it drops it from the page cache (mm/vmscan.c: __remove_mapping()).
        """
        try:
            inode = self.file.follow("f_inode", "inode") if self.file.has("f_inode") else None
            if inode is None or not inode.find_uint("i_nlink", 4) or not S_ISREG(inode.find_uint("i_mode", 2) or 0):
                return False
            return self.cache.is_of_disk(self.file)
        except (CorruptStructure, MemoryFault, LayoutUnknown):
            return False

    @property
    def file_size(self) -> int | None:
        """Bytes of the file (``inode.i_size``), or None if that is not known."""
        try:
            inode = self.file.follow("f_inode", "inode") if self.file.has("f_inode") else None
            return None if inode is None else inode.find_uint("i_size", 8)
        except (CorruptStructure, MemoryFault):
            return None

    @property
    def file_mtime(self) -> int | None:
        """When the file was last changed, in seconds since 1970, or None if that is not known."""
        try:
            inode = self.file.follow("f_inode", "inode") if self.file.has("f_inode") else None
            return None if inode is None else mtime_of(inode)
        except (CorruptStructure, MemoryFault):
            return None

    def lookup(self, first: int, last: int) -> Pages:
        """Return the pages of the file that are in the page cache."""
        try:
            pages = self.cache.lookup(self.file, first, last)
        except (CorruptStructure, MemoryFault, LayoutUnknown) as error:
            sentence = f"the page cache of the file at {self.file.address:#x} cannot be read: {error}"
            if sentence not in self.problems:
                self.problems.append(sentence)
            self.broken, pages = True, None
        return Pages(np.zeros(0, np.uint64), np.zeros(0, np.uint8)) if pages is None else pages

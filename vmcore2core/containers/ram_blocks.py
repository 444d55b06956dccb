"""The places of the pages of a saved machine's RAM blocks in the file.

References: see ``formats.qemu_migration``; QEMU's docs/devel/migration/mapped-ram.rst.
"""

from __future__ import annotations

import numpy as np

from vmcore2core.addresses import U64Array
from vmcore2core.containers.bitmap import Bitmap
from vmcore2core.formats.qemu_migration import TARGET_PAGE_SIZE
from vmcore2core.overrides import override

PAGES_AT_ONCE = 1 << 20
"""Pages that are counted at once."""

NOT_SEEN, ZERO = 0, 1
"""Values for pages that are not in the file; no page begins so near to the file's start."""


class RamBlock:
    """A RAM block that has no page in the file.

    Args:
        name: QEMU's.
        size: bytes.
    """

    def __init__(self, name: bytes, size: int) -> None:
        self.name, self.size = name, size
        self.nr_pages = size // TARGET_PAGE_SIZE

    def places(self, index: U64Array) -> U64Array:
        """Return the place of each page in the file, or ``NOT_SEEN`` or ``ZERO``.

        Args:
            index: uint64[n], below ``nr_pages``.
        """
        return np.full(len(index), NOT_SEEN, np.uint64)

    def missing(self) -> int:
        """Return how many pages the file lacks."""
        return self.nr_pages


class SentBlock(RamBlock):
    """A block whose pages come one by one; a page may come again.

    Attributes:
        pages: uint64[nr_pages], the place of the last copy of each.
    """

    def __init__(self, name: bytes, size: int) -> None:
        super().__init__(name, size)
        self.pages: U64Array = np.zeros(self.nr_pages, np.uint64)

    @override
    def places(self, index: U64Array) -> U64Array:
        return self.pages[index.astype(np.intp)]

    @override
    def missing(self) -> int:
        return int((self.pages == NOT_SEEN).sum())


class MappedBlock(RamBlock):
    """A block whose pages lie in the file at fixed places (mapped-ram), with a bitmap of the pages that are not zero.

    Args:
        name: QEMU's.
        size: bytes.
        bitmap: at least a bit a page.
        pages_offset: of page 0 in the file.
        file_size: pages behind it are lacking.
    """

    def __init__(self, name: bytes, size: int, bitmap: Bitmap, pages_offset: int, file_size: int) -> None:
        super().__init__(name, size)
        self._bitmap, self._pages_offset = bitmap, pages_offset
        self._nr_there = max(0, file_size - pages_offset) // TARGET_PAGE_SIZE

    @override
    def places(self, index: U64Array) -> U64Array:
        places = np.uint64(self._pages_offset) + index * np.uint64(TARGET_PAGE_SIZE)
        places[index >= np.uint64(self._nr_there)] = NOT_SEEN
        places[~self._bitmap.has(index)] = ZERO
        return places

    @override
    def missing(self) -> int:
        starts = range(self._nr_there, self.nr_pages, PAGES_AT_ONCE)
        parts = (np.arange(at, min(at + PAGES_AT_ONCE, self.nr_pages), dtype=np.uint64) for at in starts)
        return sum(int(np.count_nonzero(self._bitmap.has(part))) for part in parts)

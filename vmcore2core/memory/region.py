"""A mapping's addresses, and the sources of its pages that are not in the page table."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from vmcore2core.addresses import PageIndices, U64Array, UserAddr
from vmcore2core.memory.pages import Original, Pages


class Backing(Protocol):
    """The source of a mapping's pages that are not in the page table: the page cache of its file."""

    def lookup(self, first: int, last: int) -> Pages:
        """Return the known pages with index ``[first, last]``; those in memory and in swap have not been looked up."""
        ...


class Region(NamedTuple):
    """One VMA and the sources of its pages.

    Attributes:
        start: first byte.
        end: first byte after it.
        zero_fill: whether a page that was never touched reads as zeros: private anonymous memory.
        pgoff: for files, the page index of ``start``.
        backing: the source of pages that are not in the page table.
        pristine: whether the process never wrote to any of its pages: all mapped pages are the file's own.
        on_disk: whether the file has, unchanged, the pages that neither the page table nor the page cache has: this is
            a private mapping of a file that has a name, on a file system that is not in memory.
        original: the source of the file's pages that are not in memory at all.
        broken: whether we do not believe its page tables: all its pages are ``TABLE_BROKEN``.
    """

    start: UserAddr
    end: UserAddr
    zero_fill: bool = True
    pgoff: int = 0
    backing: Backing | None = None
    pristine: bool = False
    on_disk: bool = False
    original: Original | None = None
    broken: bool = False

    def indices(self, addresses: U64Array, page_size: int) -> PageIndices:
        """Return the pages of its file that lie at addresses of pages."""
        base = np.uint64((self.pgoff - self.start // page_size) % (1 << 64))
        return PageIndices(base + addresses // np.uint64(page_size))

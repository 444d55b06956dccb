"""The possible states of a user page, and the sources of pages that are not in the page table.

Plain data and protocols: other modules read pages from the page cache, from swap and from files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array, UserAddr


class UserPageState(IntEnum):
    """The state of a user page; uint8 in arrays. Up to ``ORIGINAL`` its bytes are known."""

    PRESENT = 0
    """In the dump."""
    ZERO = 1
    """Never touched, or left out of the dump because it was zero: reads as zeros."""
    STORED = 2
    """Swapped out, and ``SwapSpace.read`` can read it: compressed in memory, or in a swap file that the user gave."""
    ORIGINAL = 3
    """A page of a file that is not in memory; it comes from the original file, which the user gave."""
    EXCLUDED = 4
    NOT_IN_DUMP = 5
    TRUNCATED = 6
    DAMAGED = 7
    SWAPPED = 8
    """Swapped out, to an unknown place."""
    NOT_CACHED = 9
    """A page of a file (or of the vDSO) that is neither mapped nor found in the page cache."""
    BEYOND_FILE = 10
    """Past the end of the mapped file: there is no such page (SIGBUS)."""
    TABLE_MISSING = 11
    TABLE_BROKEN = 12
    SWAPPED_TO_DISK = 13
    """Swapped out to a file or partition that the user did not give."""
    SWAP_UNREADABLE = 14
    """Swapped out to compressed memory that cannot be read: its records are broken, or its codec is unknown."""
    HWPOISON = 15
    """A hardware memory error destroyed the page."""
    DEVICE_PRIVATE = 16
    """In the memory of a device."""
    GUARD = 17
    """A guard page (MADV_GUARD_INSTALL): there is no such page (SIGSEGV)."""
    SPECIAL = 18
    """The page table has an entry of an unknown kind."""
    UNTOUCHED = 19
    """Only a marker in the page table: treated like an empty entry."""
    SWAP_CUT_OFF = 20
    """Swapped out to a file or partition that the user gave, but which ends before the page."""


LAST_KNOWN = UserPageState.ORIGINAL


class Backing(Protocol):
    """The source of a mapping's pages that are not in the page table: the page cache of its file."""

    def lookup(self, first: int, last: int) -> tuple[U64Array, U64Array, U8Array]:
        """Return the known pages with index ``[first, last]``.

        Returns:
            Ascending page index, uint64[n]; physical address, uint64[n]; ``UserPageState`` as uint8[n]
            (``PRESENT`` if the caller must look at the physical address; if it is ``SWAPPED``, the physical address
            is the swp_entry_t).
        """
        ...


class SwapSpace(Protocol):
    """Where swapped pages are; a page's swp_entry_t is the kernel's: type and offset."""

    def entries(self, ptes: U64Array, sizes: U64Array) -> U64Array:
        """Return the swp_entry_t of page-table entries that are not present, uint64[n]; 0 if it is not known.

        Args:
            ptes: uint64[n], of any level.
            sizes: uint64[n], bytes that each stands for.
        """
        ...

    def in_slots(self, ptes: U64Array, sizes: U64Array) -> NDArray[np.bool_] | None:
        """Tell which page-table entries that are not present name a slot of a swap area, bool[n]; None if not known.

        Args:
            ptes: uint64[n], of any level.
            sizes: uint64[n], bytes that each stands for.
        """
        ...

    def locate(self, entries: U64Array) -> tuple[U64Array, U8Array]:
        """Return where the pages of swp_entry_t values are.

        Returns:
            uint64[n]: the physical address of ``PRESENT`` pages, and the argument of ``read`` for ``STORED`` ones; and
            ``UserPageState`` as uint8[n].
        """
        ...

    def read(self, entries: U64Array) -> tuple[U8Array, U8Array]:
        """Read ``STORED`` pages.

        Returns:
            uint8[n, page_size]; and uint8[n], 0 for pages that turned out unreadable: their bytes must not be used.
        """
        ...


class Original(Protocol):
    """The mapped file on disk."""

    def has(self, indices: U64Array) -> NDArray[np.bool_]:
        """Tell which pages the file has, by their index."""
        ...

    def read(self, indices: U64Array) -> tuple[U8Array, NDArray[np.bool_]]:
        """Read pages that the file has.

        Returns:
            uint8[n, page_size]; and whether each could be read after all.
        """
        ...


@dataclass(frozen=True, slots=True)
class Region:
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

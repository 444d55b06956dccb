"""What a page of a process may be, and where pages come from that its page table does not have.

Plain data and protocols: who reads pages from the page cache, from swap and from files is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array, UserAddr


class UserPageState(IntEnum):
    """What a user page is; uint8 in arrays. Up to ``ORIGINAL`` its bytes are known."""

    PRESENT = 0
    """In the dump."""
    ZERO = 1
    """Never touched, or left out of the dump because it was zero: reads as zeros."""
    STORED = 2
    """Swapped out to where ``SwapSpace.read`` gets it from: compressed in memory, or in a swap file that was given."""
    ORIGINAL = 3
    """A page of a file that is not in memory, and comes from the original file, which was given."""
    EXCLUDED = 4
    NOT_IN_DUMP = 5
    TRUNCATED = 6
    DAMAGED = 7
    SWAPPED = 8
    """Swapped out, and nothing is known of where to."""
    NOT_CACHED = 9
    """A page of a file (or of the vDSO) that is neither mapped nor found in the page cache."""
    BEYOND_FILE = 10
    """Past the end of the mapped file: there is no such page (SIGBUS)."""
    TABLE_MISSING = 11
    TABLE_BROKEN = 12
    SWAPPED_TO_DISK = 13
    """Swapped out to a file or partition that was not given."""
    SWAP_UNREADABLE = 14
    """Swapped out to compressed memory that cannot be read: its records are broken, or its codec is not known."""
    HWPOISON = 15
    """The memory failed, and the page with it."""
    DEVICE_PRIVATE = 16
    """In the memory of a device."""
    GUARD = 17
    """A guard page (MADV_GUARD_INSTALL): there is no such page (SIGSEGV)."""
    SPECIAL = 18
    """The page table has an entry whose kind is not known."""
    UNTOUCHED = 19
    """Nothing but a marker in the page table: as if there were no entry."""
    SWAP_CUT_OFF = 20
    """Swapped out to a file or partition that was given, and which ends before it."""


LAST_KNOWN = UserPageState.ORIGINAL


class Backing(Protocol):
    """Where pages of a mapping come from that the process has not mapped in: the page cache of its file."""

    def lookup(self, first: int, last: int) -> tuple[U64Array, U64Array, U8Array]:
        """Return what is known of the pages with index ``[first, last]``.

        Returns:
            Ascending page index, uint64[n]; physical address, uint64[n]; ``UserPageState`` as uint8[n]
            (``PRESENT`` where the physical address is to be looked at; where it is ``SWAPPED``, the physical address
            is the swp_entry_t).
        """
        ...


class SwapSpace(Protocol):
    """Where swapped pages are; a page's swp_entry_t is what the kernel calls so: type and offset."""

    def entries(self, ptes: U64Array, sizes: U64Array) -> U64Array:
        """Return the swp_entry_t of page-table entries that are not present, uint64[n]; 0 where it is not known.

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
            uint64[n]: the physical address of ``PRESENT`` pages, and for ``STORED`` ones what ``read`` takes; and
            ``UserPageState`` as uint8[n].
        """
        ...

    def read(self, entries: U64Array) -> tuple[U8Array, U8Array]:
        """Read ``STORED`` pages.

        Returns:
            uint8[n, page_size]; and uint8[n], 0 for pages that cannot be read after all: their bytes must not be used.
        """
        ...


class Original(Protocol):
    """The file that a mapping is of, as it is on disk."""

    def has(self, indices: U64Array) -> NDArray[np.bool_]:
        """Tell which pages the file has, by their index."""
        ...

    def read(self, indices: U64Array) -> tuple[U8Array, NDArray[np.bool_]]:
        """Read pages that it has.

        Returns:
            uint8[n, page_size]; and whether each could be read after all.
        """
        ...


@dataclass(frozen=True, slots=True)
class Region:
    """One VMA as its memory goes.

    Attributes:
        start: first byte.
        end: first byte after it.
        zero_fill: whether a page that was never touched reads as zeros: private anonymous memory.
        pgoff: for files, the page index of ``start``.
        backing: where pages come from that are not mapped in.
        pristine: whether the process never wrote to any page of it: what is mapped in are the file's own pages.
        on_disk: whether a page that neither the page table nor the page cache has is in the file, as the process saw
            it: this is a private mapping of a file that has a name, on a file system that is not in memory.
        original: where the file's pages come from that are not in memory at all.
        broken: whether what the page tables say of it is not believed: all of it is ``TABLE_BROKEN``.
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

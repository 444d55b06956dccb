"""Pages of a process or of a file: the state of each, where its bytes are, and how they are read.

``PageReader`` is the one way to a page's bytes: for the core, for stacks, and for files in the page cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import PageIndices, PhysAddrs, SwapEntries, U8Array, U64Array
from vmcore2core.containers.base import PageState
from vmcore2core.memory.physical import PhysicalMemory


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
_OF_PAGE_STATE = np.zeros(256, np.uint8)
_OF_PAGE_STATE[PageState.MISSING] = UserPageState.NOT_IN_DUMP
_OF_PAGE_STATE[PageState.EXCLUDED] = UserPageState.EXCLUDED
_OF_PAGE_STATE[PageState.ZERO] = UserPageState.ZERO
_OF_PAGE_STATE[PageState.TRUNCATED] = UserPageState.TRUNCATED
_OF_PAGE_STATE[PageState.DAMAGED] = UserPageState.DAMAGED
_OF_PAGE_STATE[PageState.PRESENT] = UserPageState.PRESENT


class SwapSpace(Protocol):
    """Where swapped pages are; a page's swp_entry_t is the kernel's: type and offset."""

    def entries(self, ptes: U64Array, sizes: U64Array) -> SwapEntries:
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

    def locate(self, entries: SwapEntries) -> tuple[PhysAddrs, U8Array]:
        """Return where the pages of swap entries are.

        Returns:
            uint64[n]: the physical address of ``PRESENT`` pages, 0 for others; and ``UserPageState`` as uint8[n].
        """
        ...

    def read(self, entries: SwapEntries) -> tuple[U8Array, NDArray[np.bool_]]:
        """Read ``STORED`` pages.

        Returns:
            uint8[n, page_size]; and whether each could be read after all: if not, its bytes must not be used.
        """
        ...


class Original(Protocol):
    """The mapped file on disk."""

    def has(self, indices: PageIndices) -> NDArray[np.bool_]:
        """Tell which pages the file has, by their index."""
        ...

    def read(self, indices: PageIndices) -> tuple[U8Array, NDArray[np.bool_]]:
        """Read pages that the file has.

        Returns:
            uint8[n, page_size]; and whether each could be read after all.
        """
        ...


class Pages:
    """Pages, each with its state and the place of its bytes.

    The place is a physical address, a swap entry or a page of a file, as the state says: ``in_memory``, ``in_swap`` and
    ``in_file`` take it, ``paddrs``, ``swapped``, ``stored`` and ``indices`` give it, each with a type of its own.

    Args:
        at: as the attribute.
        state: likewise; here of pages without a place.

    Attributes:
        at: uint64[n], the pages' user addresses, or their indices within a file.
        state: uint8[n], ``UserPageState``.
        original: the file of pages that are ``ORIGINAL``.
    """

    __slots__ = ("_place", "at", "original", "state")

    def __init__(
        self, at: U64Array, state: U8Array, _place: U64Array | None = None, original: Original | None = None
    ) -> None:
        self.at, self.state, self.original = at, state, original
        self._place: U64Array = np.zeros(len(at), np.uint64) if _place is None else _place

    @classmethod
    def in_memory(cls, at: U64Array, paddrs: PhysAddrs) -> Pages:
        """Return pages that are ``PRESENT``."""
        return cls(at, np.full(len(at), UserPageState.PRESENT, np.uint8), paddrs)

    @classmethod
    def in_swap(cls, at: U64Array, entries: SwapEntries) -> Pages:
        """Return pages that are ``SWAPPED``."""
        return cls(at, np.full(len(at), UserPageState.SWAPPED, np.uint8), entries)

    @classmethod
    def in_file(cls, at: U64Array, indices: PageIndices, original: Original) -> Pages:
        """Return pages that are ``ORIGINAL``."""
        return cls(at, np.full(len(at), UserPageState.ORIGINAL, np.uint8), indices, original)

    @classmethod
    def joined(cls, parts: Sequence[Pages]) -> Pages:
        """Return the pages of all parts, in ascending order."""
        if not parts:
            return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint8))
        if len(parts) == 1:
            pages = parts[0]
        else:
            at, state = np.concatenate([part.at for part in parts]), np.concatenate([part.state for part in parts])
            pages = cls(at, state, np.concatenate([part._place for part in parts]))
            pages.original = next((part.original for part in parts if part.original is not None), None)
        disordered = (pages.at[1:] <= pages.at[:-1]).any()
        return pages[np.argsort(pages.at, kind="stable")] if disordered else pages

    def paddrs(self) -> PhysAddrs:
        """Return the physical addresses of the pages that are ``PRESENT``."""
        return PhysAddrs(self._place[self.state == UserPageState.PRESENT])

    def swapped(self) -> SwapEntries:
        """Return the swap entries of the pages that are ``SWAPPED``."""
        return SwapEntries(self._place[self.state == UserPageState.SWAPPED])

    def stored(self) -> SwapEntries:
        """Return the swap entries of the pages that are ``STORED``."""
        return SwapEntries(self._place[self.state == UserPageState.STORED])

    def indices(self) -> PageIndices:
        """Return the indices of the ``ORIGINAL`` pages in their file."""
        return PageIndices(self._place[self.state == UserPageState.ORIGINAL])

    def put(self, rows: NDArray[np.bool_] | NDArray[np.intp], other: Pages) -> None:
        """Replace the state and the place of some pages."""
        self.state[rows], self._place[rows] = other.state, other._place
        if other.original is not None:
            self.original = other.original

    def copy(self) -> Pages:
        """Return a copy to change."""
        return Pages(self.at.copy(), self.state.copy(), self._place.copy(), self.original)

    def __getitem__(self, rows: slice | NDArray[np.bool_] | NDArray[np.intp]) -> Pages:
        return Pages(self.at[rows], self.state[rows], self._place[rows], self.original)

    def __len__(self) -> int:
        return len(self.at)


class PageReader:
    """Finds pages in the dump and in the swap space, and reads them.

    Args:
        memory: of the machine.
        page_size: bytes.
        swap: where swapped pages are, or None if that is not known.
    """

    def __init__(self, memory: PhysicalMemory, page_size: int, swap: SwapSpace | None) -> None:
        self.memory, self.page_size, self.swap = memory, page_size, swap

    def locate(self, pages: Pages) -> Pages:
        """Look up swapped pages in the swap space, and those in memory in the dump; the pages given are changed.

        Returns:
            The pages, without those that have only a marker.
        """
        if self.swap is not None and (swapped := pages.state == UserPageState.SWAPPED).any():
            paddrs, states = self.swap.locate(pages.swapped())
            pages.state[swapped] = states
            swapped[swapped] = here = states == UserPageState.PRESENT
            pages.put(swapped, Pages.in_memory(pages.at[swapped], PhysAddrs(paddrs[here])))
            pages = pages[pages.state != UserPageState.UNTOUCHED]
        present = pages.state == UserPageState.PRESENT
        if present.any():
            pages.state[present] = _OF_PAGE_STATE[self.memory.block_states(pages.paddrs(), self.page_size)]
        return pages

    def read(self, pages: Pages, buffer: U8Array | None = None) -> tuple[U8Array, NDArray[np.bool_]]:
        """Read pages, whether or not they were looked up.

        Args:
            pages: the pages.
            buffer: uint8[m, page_size], m at least n, which may be used for the result; its contents are overwritten.

        Returns:
            uint8[n, page_size]; and bool[n], whether a page's bytes are known: those of others must not be used.
        """
        here = pages.state == UserPageState.PRESENT
        present, states = self.memory.read_blocks(pages.paddrs(), self.page_size, buffer)
        good = (states == PageState.PRESENT) | (states == PageState.ZERO)
        if here.all():
            return present, good
        found, known = np.zeros((len(pages), self.page_size), np.uint8), pages.state == UserPageState.ZERO
        found[here], known[here] = present, good
        stored, from_file = pages.state == UserPageState.STORED, pages.state == UserPageState.ORIGINAL
        if self.swap is not None and stored.any():
            found[stored], known[stored] = self.swap.read(pages.stored())
        if pages.original is not None and from_file.any():
            found[from_file], known[from_file] = pages.original.read(pages.indices())
        return found, known

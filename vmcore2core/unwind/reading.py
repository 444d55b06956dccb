"""Reads a process and the files it maps, and caches pages; unknown bytes read as None, never as zeros."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vmcore2core.memory.region import Backing
from vmcore2core.memory.user import UserMemory
from vmcore2core.overrides import override
from vmcore2core.unwind.cursor import Read

CACHED_PAGES = 2048
SMALL_PAGES = 4  # larger reads are not cached
READ_MAX = 1 << 20
ADDRESS_END = 1 << 64
NAME_MAX = 4096


class PagedRead:
    """A ``Read`` that caches pages.

    Args:
        fetch: reads pages that are not cached.
        page_size: bytes.
    """

    def __init__(self, fetch: Read, page_size: int) -> None:
        self.fetch, self.page_size = fetch, page_size
        self._pages: OrderedDict[int, bytes | None] = OrderedDict()

    def __call__(self, address: int, size: int) -> bytes | None:
        """Return the bytes, or None if memory lacks any, or if the size is too large for a valid structure."""
        if not 0 <= size <= READ_MAX or not 0 <= address <= ADDRESS_END - size:
            return None
        page = self.page_size
        first, last = address // page, (address + max(size, 1) - 1) // page
        if last - first >= SMALL_PAGES:
            return self.fetch(address, size)
        pieces = []
        for number in range(first, last + 1):
            piece = self._page(number)
            if piece is None:
                return None
            pieces.append(piece)
        offset = address - first * page
        return b"".join(pieces)[offset : offset + size]

    def _page(self, number: int) -> bytes | None:
        if number in self._pages:
            self._pages.move_to_end(number)
            return self._pages[number]
        found = self.fetch(number * self.page_size, self.page_size)
        self._pages[number] = found
        if len(self._pages) > CACHED_PAGES:
            self._pages.popitem(last=False)
        return found

    def known(self, address: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield the known runs of ``[address, address + size)``, as (address, bytes)."""
        start, run = address, b""
        for at, length, piece in self._pieces(address, min(address + size, ADDRESS_END)):
            if piece is not None:
                run += piece
                continue
            if run:
                yield start, run
            start, run = at + length, b""
        if run:
            yield start, run

    def _pieces(self, address: int, end: int) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield (address, size, bytes) for all of ``[address, end)``, page by page if some of it is not known."""
        for low in range(address, end, READ_MAX):
            high = min(low + READ_MAX, end)
            whole = self(low, high - low)
            if whole is not None:
                yield low, high - low, whole
                continue
            at = low
            while at < high:
                length = min(self.page_size - at % self.page_size, high - at)
                yield at, length, self(at, length)
                at += length

    def string(self, address: int) -> bytes | None:
        """Return a NUL-terminated string, or None if it is not known or too long."""
        found = b""
        while len(found) < NAME_MAX:
            piece = self(address + len(found), self.page_size - (address + len(found)) % self.page_size)
            if piece is None:
                return None
            before, nul, _ = piece.partition(b"\0")
            found += before
            if nul:
                return found if len(found) < NAME_MAX else None
        return None


class EitherRead(PagedRead):
    """A ``Read`` of two sources, page by page: bytes that the first does not know come from the second.

    Args:
        first: asked first.
        second: asked for the pages, or parts of pages, that the first does not know.
        page_size: bytes.

    Attributes:
        second_used: whether something came from the second since this was last set to False.
    """

    def __init__(self, first: Read, second: Read, page_size: int) -> None:
        super().__init__(self._either, page_size)
        self.first, self.second = first, second
        self.second_used = False

    @override
    def __call__(self, address: int, size: int) -> bytes | None:
        found = self.first(address, size)
        if found is None:
            found = super().__call__(address, size)
            self.second_used |= found is not None
        return found

    def _either(self, address: int, size: int) -> bytes | None:
        pieces = []
        at, end = address, address + size
        while at < end:
            length = min(self.page_size - at % self.page_size, end - at)
            piece = self.first(at, length)
            piece = self.second(at, length) if piece is None else piece
            if piece is None:
                return None
            pieces.append(piece)
            at += length
        return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A read-only mapping: ``[start, end)`` of the process shows the file from ``offset`` on."""

    start: int
    end: int
    offset: int


def file_read(memory: UserMemory, backing: Backing, mapped: Sequence[Mapped], user: PagedRead) -> PagedRead:
    """Return a reader of a mapped file by file offset: from the page cache, else through read-only mappings.

    Args:
        memory: the process's memory.
        backing: the file's page cache.
        mapped: the process's read-only mappings of the file.
        user: reads the process's memory.
    """
    page = memory.spec.page_size

    def through_mapping(offset: int) -> bytes | None:
        for where in mapped:
            if where.offset <= offset < where.offset + where.end - where.start:
                return user(where.start + offset - where.offset, page)
        return None

    def fetch(offset: int, size: int) -> bytes | None:
        first, end = offset // page, -(-(offset + size) // page)
        pages = backing.lookup(first, end - 1)
        found, good = memory.reader.read(pages)
        data, known = np.zeros((end - first, page), np.uint8), np.zeros(end - first, np.bool_)
        at = (pages.at[good] - np.uint64(first)).astype(np.intp)
        data[at], known[at] = found[good], True
        for missing in np.flatnonzero(~known).tolist():
            piece = through_mapping((first + missing) * page)
            if piece is None:
                return None
            data[missing] = np.frombuffer(piece, np.uint8)
        return data.tobytes()[offset - first * page :][:size]

    return PagedRead(fetch, page)

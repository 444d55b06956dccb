"""Names of Go functions, from the program's own table of functions.

References: Go's src/debug/gosym/pclntab.go: readFuncTab(), funcName(); src/runtime/symtab.go (go1.25).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from vmcore2core.formats import gopclntab as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.reading import PagedRead
from vmcore2core.unwind.symbols import Symbol

FUNCTIONS_MAX = 1 << 21
LISTED_MAX = 1 << 18
SECTIONS = (b".gopclntab", b".data.rel.ro.gopclntab")
SEARCH_MAX = 1 << 28
WINDOW = 1 << 20


class GoTable:
    """A ``struct pcHeader`` and its tables.

    Args:
        read: the process's memory.
        address: of the header.
        order: byte order.
        word: bytes of a pointer.
        text: possible addresses of the program's code, for headers that do not have it.

    Attributes:
        good: whether a valid table is at the address.
    """

    def __init__(self, read: PagedRead, address: int, order: ByteOrder, word: int, text: tuple[int, ...]) -> None:
        self._read, self._word = read, word
        self._order: ByteOrder = order
        self.good = False
        raw = read(address, fmt.HEADER_HEAD + 8 * word)
        if raw is None:
            return
        self._magic = int.from_bytes(raw[:4], order)
        names = fmt.HEADER_WORDS.get(self._magic)
        if names is None or raw[4:6] != bytes(2) or raw[6] not in fmt.MIN_LC or raw[7] != word:
            return
        words = (
            int.from_bytes(raw[at : at + word], order)
            for at in range(fmt.HEADER_HEAD, fmt.HEADER_HEAD + 8 * word, word)
        )
        self._header = dict(zip(names, words, strict=False))
        self._names = address + self._header["funcnameOffset"]
        self._functab = address + self._header["pclnOffset"]
        self._text = 0 if self._magic == fmt.GO_1_16 else next(self._starts(text), 0)
        self.good = 0 < self._header["nfunc"] <= FUNCTIONS_MAX

    def _starts(self, text: tuple[int, ...]) -> Iterator[int]:
        """Yield the possible base addresses of functab's entries, the likeliest first."""
        if self._header["textStart"]:
            yield self._header["textStart"]
        yield from text

    def find(self, address: int) -> Symbol | None:
        """Return the function that holds an address, or None."""
        entry = self._holding(address)
        name = None if entry is None else self._name(entry)
        return Symbol(name, self._text + entry[0]) if entry is not None and name else None

    def functions(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield start, end and name of each known function."""
        entry = self._entry(0)
        for number in range(1, min(self._header["nfunc"], LISTED_MAX) + 1):
            following = self._entry(number)
            name = None if entry is None or following is None else self._name(entry)
            if entry is not None and following is not None and name and entry[0] < following[0]:
                yield self._text + entry[0], self._text + following[0], name
            entry = following

    def _name(self, entry: tuple[int, int]) -> bytes | None:
        raw = self._read(self._functab + entry[1] + fmt.nameoff_at(self._magic, self._word), 4)
        return None if raw is None else self._read.string(self._names + int.from_bytes(raw, self._order))

    def ends_stack(self, address: int) -> bool:
        """Tell whether the function that holds an address has no caller on its stack."""
        entry, at = self._holding(address), fmt.flag_at(self._magic)
        raw = self._read(self._functab + entry[1] + at, 1) if entry is not None and at is not None else None
        return raw is not None and bool(raw[0] & (fmt.FUNC_FLAG_TOP_FRAME | fmt.FUNC_FLAG_SP_WRITE))

    def _holding(self, address: int) -> tuple[int, int] | None:
        """Return functab's entry of the function that holds an address."""
        low, high = 0, self._header["nfunc"] - 1  # the entry behind these is the end of the last function
        wanted = address - self._text
        while low < high:
            middle = (low + high + 1) // 2
            entry = self._entry(middle)
            if entry is None:
                return None
            low, high = (middle, high) if entry[0] <= wanted else (low, middle - 1)
        entry, following = self._entry(low), self._entry(low + 1)
        return entry if entry is not None and following is not None and entry[0] <= wanted < following[0] else None

    def _entry(self, number: int) -> tuple[int, int] | None:
        dtype = fmt.functab_dtype(self._magic, self._order, self._word)
        raw = self._read(self._functab + number * dtype.itemsize, dtype.itemsize)
        if raw is None:  # the last one has no offset
            half = self._read(self._functab + number * dtype.itemsize, dtype.itemsize // 2)
            return None if half is None else (int.from_bytes(half, self._order), 0)
        row = np.frombuffer(raw, dtype)[0]
        return int(row["entry"]), int(row["funcoff"])


def headers(read: PagedRead, start: int, size: int, order: ByteOrder, word: int) -> Iterator[int]:
    """Yield the addresses in a range at which there may be a ``struct pcHeader``; it is aligned as a pointer."""
    magics = b"|".join(re.escape(magic.to_bytes(4, order)) for magic in fmt.HEADER_WORDS)
    pattern = re.compile(b"(?:%b)\0\0[%b]%b" % (magics, bytes(fmt.MIN_LC), re.escape(bytes([word]))), re.DOTALL)
    end = start + min(size, SEARCH_MAX)
    for at in range(start, end, WINDOW):
        for address, run in read.known(at, min(WINDOW, end - at)):
            for match in pattern.finditer(run):
                if (address + match.start()) % word == 0:
                    yield address + match.start()

"""Names of functions, from the symbol tables of an image.

References: System V gABI, chapter "Symbol Table"; binutils' bfd/elflink.c (2.44) for DT_GNU_HASH.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.formats import elf_dynamic as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.reading import PagedRead

SYMBOLS_MAX = 1 << 20
CANDIDATES_MAX = 16


class Origin(Enum):
    """Where a function's name or its call frame information comes from."""

    MEMORY = "memory"
    """Loaded, or in the page cache."""
    FILE = "file"
    """The file that was found for the one that is mapped."""
    DEBUG = "debug information"
    """A separate file of debug information, or .gnu_debugdata."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function's name and where it begins, as the file counts addresses."""

    name: bytes
    value: int
    source: Origin = Origin.MEMORY


EndOf = Callable[[int, int], int | None]
"""(address, section index) -> end of the section or segment that holds the address, or None."""


class SymbolTable:
    """The functions of one symbol table.

    Args:
        symbols: Elf_Sym[n] as read, without unknown entries.
        complete: whether the table has no unknown entries.
        strings: reads a name by its address.
        strtab: address of the string table.
        strsz: its size.
        end_of: bounds of functions without a size.
    """

    def __init__(
        self,
        symbols: NDArray[np.void],
        *,
        complete: bool,
        strings: Callable[[int], bytes | None],
        strtab: int,
        strsz: int,
        end_of: EndOf,
    ) -> None:
        defined = (symbols["st_shndx"] != fmt.SHN_UNDEF) & (symbols["st_shndx"] < fmt.SHN_LORESERVE)
        kind = symbols["st_info"] & np.uint8(fmt.STT_MASK)
        self._all: U64Array = np.sort(symbols["st_value"][defined].astype(np.uint64))
        functions = symbols[defined & ((kind == fmt.STT_FUNC) | (kind == fmt.STT_GNU_IFUNC))]
        self._objects = symbols[defined & (kind == fmt.STT_OBJECT)]
        self._symbols = functions
        self._start: U64Array = functions["st_value"].astype(np.uint64)
        self._size: U64Array = functions["st_size"].astype(np.uint64)
        self.complete = complete
        self._string, self._strtab, self._strsz, self._end_of = strings, strtab, strsz, end_of

    def find(self, address: int) -> Symbol | None:
        """Return the function that holds an address, or None if that is not certain."""
        if not 0 <= address < 1 << 64 or not len(self._start):
            return None
        at = np.uint64(address)
        # Unsigned differences do not overflow where the start is not above the address.
        covers = (self._start <= at) & (at - np.minimum(self._start, at) < self._size)
        if covers.any():
            start = self._start[covers].max()
            return self._best(np.flatnonzero(covers & (self._start == start)))
        return self._without_size(address)

    def find_object(self, address: int) -> Symbol | None:
        """Return the variable that holds an address, or None."""
        if not 0 <= address < 1 << 64 or not len(self._objects):
            return None
        at, start = np.uint64(address), self._objects["st_value"].astype(np.uint64)
        covers = (start <= at) & (at - np.minimum(start, at) < self._objects["st_size"].astype(np.uint64))
        return self._best(np.flatnonzero(covers), self._objects) if covers.any() else None

    def _without_size(self, address: int) -> Symbol | None:
        """Return a function of size 0 (assembler): up to the next symbol or the end of its section."""
        below = (self._start <= np.uint64(address)) & (self._size == 0)
        if not self.complete or not below.any():
            return None
        start = self._start[below].max()
        last = self._all[int(np.searchsorted(self._all, np.uint64(address), side="right")) - 1]
        chosen = np.flatnonzero(below & (self._start == start))
        end = self._end_of(int(start), int(self._symbols["st_shndx"][chosen[0]]))
        if last != start or end is None or address >= end:
            return None
        return self._best(chosen)

    def _best(self, candidates: NDArray[np.intp], symbols: NDArray[np.void] | None = None) -> Symbol | None:
        """Return the best of several names of a function: global before local, few leading underscores, short."""
        found, symbols = [], self._symbols if symbols is None else symbols
        for i in candidates[:CANDIDATES_MAX].tolist():
            row = symbols[i]
            offset = int(row["st_name"])
            name = self._string(self._strtab + offset) if 0 < offset < self._strsz else None
            if name:
                local = int(row["st_info"]) >> fmt.STB_SHIFT == fmt.STB_LOCAL
                name = name.partition(b"@")[0] or name  # clock_nanosleep@@GLIBC_2.17, in .symtab alone
                rank = (local, len(name) - len(name.lstrip(b"_")), len(name), name)
                found.append((rank, Symbol(name, int(row["st_value"]))))
        return min(found)[1] if found else None


def read_table(
    read: PagedRead,
    address: int,
    count: int,
    dtype: np.dtype[np.void],
    *,
    strings: PagedRead,
    strtab: int,
    strsz: int,
    end_of: EndOf,
) -> SymbolTable:
    """Return a symbol table; entries whose bytes are not known are left out.

    Args:
        read: reads the table.
        address: the table's address, as ``read`` counts.
        count: number of symbols.
        dtype: Elf_Sym.
        strings: reads the names.
        strtab: the string table's address, as ``strings`` counts.
        strsz: its size in bytes.
        end_of: bounds of functions without a size.
    """
    wanted = min(count, SYMBOLS_MAX)
    size = dtype.itemsize
    parts = [np.zeros(0, dtype)]
    for start, run in read.known(address, wanted * size):
        skip = -(start - address) % size
        whole = max((len(run) - skip) // size, 0)
        parts.append(np.frombuffer(run, dtype, whole, skip) if whole else np.zeros(0, dtype))
    symbols = np.concatenate(parts)
    complete = len(symbols) == count
    return SymbolTable(symbols, complete=complete, strings=strings.string, strtab=strtab, strsz=strsz, end_of=end_of)


def count_by_hash(read: PagedRead, address: int, order: ByteOrder) -> int | None:
    """Return the number of symbols by DT_HASH, or None if it is not known."""
    dtype = fmt.HASH_DTYPE[order]
    head = read(address, dtype.itemsize)
    return int(np.frombuffer(head, dtype)[0]["nchain"]) if head is not None else None


def count_by_gnu_hash(read: PagedRead, address: int, order: ByteOrder, word: int) -> int | None:
    """Return the number of symbols that DT_GNU_HASH covers, or None if it is not known.

    Args:
        read: user memory.
        address: of the hash table.
        order: byte order.
        word: bytes of an address.
    """
    dtype = fmt.GNU_HASH_DTYPE[order]
    raw = read(address, dtype.itemsize)
    if raw is None:
        return None
    head = np.frombuffer(raw, dtype)[0]
    nbuckets, symoffset, bloom = int(head["nbuckets"]), int(head["symoffset"]), int(head["bloom_size"])
    if nbuckets > SYMBOLS_MAX or bloom > SYMBOLS_MAX:
        return None
    at = address + dtype.itemsize + bloom * word
    code = np.dtype("<u4" if order == "little" else ">u4")
    buckets = b"".join(run for _, run in read.known(at, nbuckets * code.itemsize))
    if len(buckets) != nbuckets * code.itemsize:
        return None
    last = int(np.frombuffer(buckets, code).max()) if nbuckets else 0
    if last < symoffset:
        return symoffset
    chains = at + nbuckets * code.itemsize
    while last < SYMBOLS_MAX:
        raw = read(chains + (last - symoffset) * code.itemsize, code.itemsize)
        if raw is None:
            return None
        last += 1
        if int.from_bytes(raw, order) & fmt.GNU_HASH_CHAIN_END:
            return last
    return None

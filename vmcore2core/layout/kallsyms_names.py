"""The names of kallsyms, found without decoding them all.

A name is a sequence of tokens. A polynomial hash of a whole name follows from those of its tokens, so numpy hashes all
100,000 to 200,000 names in a fraction of the time that decoding takes; only what has the wanted hash is decoded.

References: kernel/kallsyms.c: kallsyms_expand_symbol(); scripts/kallsyms.c: write_src() (Linux 4.18 to 7.2).
"""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.errors import LayoutInvalid, MemoryFault
from vmcore2core.interfaces import ByteOrder, Memory

NR_TOKENS = 256
TOKEN_TABLE_MAX = 1 << 16  # kallsyms_token_index is of 16-bit offsets
NAMES_SIZE_MAX = 64 << 20  # twenty times what a kernel with all modules built in has
NAMES_PER_READ = 1 << 20
BIG_SYMBOL = 0x80  # since Linux 6.1, a length byte with this bit has 7 more bits in the next byte
NAME_MAX = 4096  # bytes of a name that is found: KSYM_NAME_LEN is 512
NAMES_AT_ONCE = 1 << 13  # hashed together: the arrays stay in the cache
PRIME = 0x100000001B3
MASK = (1 << 64) - 1


def read_tokens(memory: Memory, table: int, index: int, byte_order: ByteOrder) -> list[bytes]:
    """Return the 256 tokens.

    Args:
        memory: kernel virtual memory.
        table: address of kallsyms_token_table.
        index: address of kallsyms_token_index.
        byte_order: of the kernel.

    Raises:
        LayoutInvalid: the two do not fit each other.
        MemoryFault: they cannot be read.
    """
    code = "<u2" if byte_order == "little" else ">u2"
    offsets = np.frombuffer(memory.read(index, 2 * NR_TOKENS), code).tolist()
    # The last token's end is not in the index: read on until its NUL.
    strings = memory.read(table, offsets[-1] + 1)
    while strings.count(b"\0", offsets[-1]) == 0:
        if len(strings) >= TOKEN_TABLE_MAX:
            raise LayoutInvalid(f"kallsyms_token_table at {table:#x} does not end")
        strings += memory.read(table + len(strings), 1)
    rising = offsets[0] == 0 and all(a < b for a, b in pairwise(offsets))
    if not rising or any(strings[b - 1] for b in offsets[1:]):
        raise LayoutInvalid(f"kallsyms_token_index at {index:#x} does not fit kallsyms_token_table")
    return [strings[at : strings.index(b"\0", at)] for at in offsets]


def name_hash(name: bytes) -> int:
    """Return the sum of ``name[i] * PRIME ** (len(name) - 1 - i)`` modulo 2 ** 64."""
    value = 0
    for byte in name:
        value = (value * PRIME + byte) & MASK
    return value


class SymbolNames:
    """kallsyms_names, searched by name.

    Args:
        memory: kernel virtual memory.
        address: of kallsyms_names.
        count: kallsyms_num_syms.
        tokens: see ``read_tokens``.

    Raises:
        LayoutInvalid: there is an empty name, as no kernel has.
        MemoryFault: the names cannot be read.
    """

    def __init__(self, memory: Memory, address: int, count: int, tokens: list[bytes]) -> None:
        self._memory, self._address, self._tokens = memory, address, tokens
        self._data = b""
        self._starts = self._walk(count)
        self._hashes = self._hashed()

    def indices(self, name: str) -> list[int]:
        """Return the positions of a symbol in the table, ascending."""
        wanted = name.encode()
        hits = np.flatnonzero(self._hashes == np.uint64(name_hash(wanted))).tolist()
        return [hit for hit in hits if self._decode(hit) == wanted]

    def _decode(self, position: int) -> bytes:
        """Return a name without the type letter before it."""
        start, end = self._starts[position], self._starts[position + 1]
        start += 2 if self._data[start] & BIG_SYMBOL else 1
        return b"".join(map(self._tokens.__getitem__, self._data[start:end]))[1:]

    def _walk(self, count: int) -> array[int]:
        """Return where each name's length byte is, and their end; read as far as the names go."""
        data, at = self._data, 0
        starts = array("I")
        append = starts.append
        for position in range(count):
            append(at)
            if at + 2 > len(data):
                data = self._read_to(at + 2)
            length = data[at]
            at += 1
            if length & BIG_SYMBOL:
                length = length & ~BIG_SYMBOL | data[at] << 7
                at += 1
            if not length:
                raise LayoutInvalid(f"kallsyms_names at {self._address:#x}: name {position} is empty")
            at += length
        append(at)
        self._read_to(at)
        return starts

    def _read_to(self, end: int) -> bytes:
        """Read on until there are ``end`` bytes; shorter pieces where memory ends."""
        if end > NAMES_SIZE_MAX:
            raise LayoutInvalid(f"kallsyms_names at {self._address:#x} is longer than {NAMES_SIZE_MAX:#x} bytes")
        size = NAMES_PER_READ
        while len(self._data) < end:
            try:
                self._data += self._memory.read(self._address + len(self._data), size)
            except MemoryFault:
                if size == 1:
                    raise
                size //= 2
        return self._data

    def _hashed(self) -> U64Array:
        """Return ``name_hash`` of each name, uint64[count]; of one longer than ``NAME_MAX`` anything."""
        lengths = np.array([len(token) for token in self._tokens], np.int64)
        # The first token begins with the type letter, which is no part of the name.
        whole = np.array([name_hash(token) for token in self._tokens], np.uint64)
        without_letter = np.array([name_hash(token[1:]) for token in self._tokens], np.uint64)
        powers = np.full(NAME_MAX + 1, PRIME, np.uint64)
        powers[0] = 1
        powers = np.multiply.accumulate(powers)
        data, starts = np.frombuffer(self._data, np.uint8), np.frombuffer(self._starts, np.uint32).astype(np.int64)
        hashes = np.empty(len(starts) - 1, np.uint64)
        for at in range(0, len(hashes), NAMES_AT_ONCE):
            begins = starts[at : at + NAMES_AT_ONCE + 1]
            codes = data[begins[0] : begins[-1]]
            hashes[at : at + NAMES_AT_ONCE] = _hash_some(
                codes, begins - begins[0], lengths, whole, without_letter, powers
            )
        return hashes


def _hash_some(
    codes: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    lengths: NDArray[np.int64],
    whole: U64Array,
    without_letter: U64Array,
    powers: U64Array,
) -> U64Array:
    """Hash names that lie together.

    Args:
        codes: uint8[n], their bytes, length bytes included.
        bounds: int64[m + 1], where each begins in ``codes``, and the end.
        lengths: int64[256], bytes of each token.
        whole: uint64[256], hash of each token.
        without_letter: uint64[256], hash of each without its first byte.
        powers: uint64[NAME_MAX + 1], of ``PRIME``.

    Returns:
        uint64[m].
    """
    starts, ends = bounds[:-1], bounds[1:]
    big = codes[starts] >= BIG_SYMBOL
    sizes, hashes = lengths[codes], whole[codes]
    sizes[starts], hashes[starts] = 0, 0
    sizes[starts[big] + 1], hashes[starts[big] + 1] = 0, 0
    first = starts + 1 + big
    hashes[first] = without_letter[codes[first]]
    so_far = np.cumsum(sizes)
    behind = np.repeat(so_far[ends - 1], ends - starts) - so_far
    return np.add.reduceat(hashes * powers[np.minimum(behind, NAME_MAX)], starts)

"""The names of kallsyms, found without decoding them.

A name is a sequence of tokens. All names are sorted by their last two tokens. Of 100,000 to 200,000 names, a handful
ends like the wanted one; these are compared with it at once, token by token from the end. kallsyms_markers tell where
every 256th name begins. If they do not fit, the lengths are followed one by one.

References: kernel/kallsyms.c: kallsyms_expand_symbol(); scripts/kallsyms.c: write_src() (Linux 4.18 to 7.2).
"""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmcore2core.errors import LayoutInvalid, MemoryFault
from vmcore2core.interfaces import ByteOrder, Memory

NR_TOKENS = 256
TOKEN_MAX = 512  # bytes of a token: KSYM_NAME_LEN
NAMES_SIZE_MAX = 64 << 20  # 20 times as many as in a kernel with all modules built in
NAMES_PER_READ = 1 << 20
BIG_SYMBOL = 0x80  # since Linux 6.1, a length byte with this bit has 7 more bits in the next byte
NAMES_PER_MARKER = 256
NAME_MAX = 4096  # most bytes of a name: KSYM_NAME_LEN is 512


def read_tokens(memory: Memory, table: int, index: int, byte_order: ByteOrder) -> list[bytes]:
    """Return the 256 tokens.

    Args:
        memory: kernel virtual memory.
        table: address of kallsyms_token_table.
        index: address of kallsyms_token_index.
        byte_order: of the kernel.

    Raises:
        LayoutInvalid: the two tables do not fit each other.
        MemoryFault: they cannot be read.
    """
    code = "<u2" if byte_order == "little" else ">u2"
    offsets = np.frombuffer(memory.read(index, 2 * NR_TOKENS), code).tolist()
    # The last token's end is not in the index: read on until its NUL.
    strings = memory.read(table, offsets[-1] + 1)
    while strings[-1]:
        if len(strings) > offsets[-1] + TOKEN_MAX:
            raise LayoutInvalid(f"kallsyms_token_table at {table:#x} does not end")
        strings += memory.read(table + len(strings), 1)
    rising = offsets[0] == 0 and all(a < b for a, b in pairwise(offsets))
    if not rising or any(strings[b - 1] for b in offsets[1:]):
        raise LayoutInvalid(f"kallsyms_token_index at {index:#x} does not fit kallsyms_token_table")
    return [strings[at : strings.index(b"\0", at)] for at in offsets]


class SymbolNames:
    """kallsyms_names, searched by name.

    Args:
        memory: kernel virtual memory.
        address: of kallsyms_names.
        count: kallsyms_num_syms.
        tokens: see ``read_tokens``.
        token_table: address of kallsyms_token_table, before which the markers are.
        byte_order: of the kernel.

    Raises:
        LayoutInvalid: there is an empty name, which no kernel has.
        MemoryFault: the names cannot be read.
    """

    def __init__(
        self, memory: Memory, address: int, count: int, tokens: list[bytes], token_table: int, byte_order: ByteOrder
    ) -> None:
        self._memory, self._address, self._tokens = memory, address, tokens
        self._data = b""
        starts = self._by_markers(count, token_table, "<" if byte_order == "little" else ">")
        starts = self._walk(count) if starts is None else starts
        self._codes = np.frombuffer(self._data, np.uint8)
        first, self._ends = starts[:-1].astype(np.int64), starts[1:].astype(np.int64)
        self._first = first + 1 + (self._codes.take(first) >= BIG_SYMBOL)
        # The last two bytes of a name: of one token, the first of them is its length byte.
        endings = self._codes.take(self._ends - 2).astype(np.uint16) << 8 | self._codes.take(self._ends - 1)
        self._by_ending = np.argsort(endings, kind="stable")
        self._endings = endings.take(self._by_ending)
        self._lengths = np.array([len(token) for token in tokens], np.int64)
        self._codes_of: dict[bytes, list[int]] = {}
        self._first_codes_of: dict[bytes, list[int]] = {}  # without the letter of the type, which may be any letter
        for code, token in enumerate(tokens):
            if token:
                self._codes_of.setdefault(token, []).append(code)
                self._first_codes_of.setdefault(token[1:], []).append(code)

    def indices(self, name: str) -> list[int]:
        """Return the positions of a symbol in the table, ascending."""
        wanted = name.encode()
        if not 0 < len(wanted) <= NAME_MAX:
            return []
        ends_at = self._ends_at(wanted)
        found: list[int] = []
        left = len(wanted) + 1  # the letter of the type precedes the name
        hits = self._ending_like(ends_at)
        at = self._ends[hits] - 1
        rest = left - self._lengths[self._codes[at]]
        while len(hits):
            whole = (rest == 0) & (at == self._first[hits])
            found += hits[whole].tolist()
            on = (rest > 0) & (at > self._first[hits])
            hits, at, rest = hits[on], at[on] - 1, rest[on]
            codes = self._codes[at]
            on = ends_at[rest, codes]
            hits, at, rest = hits[on], at[on], rest[on] - self._lengths[codes[on]]
        return sorted(found)

    def name(self, index: int) -> bytes:
        """Return the name of a symbol by its position in the table."""
        codes = self._codes[self._first[index] : self._ends[index]].tolist()
        return b"".join(self._tokens[code] for code in codes)[1:]

    def _ending_like(self, ends_at: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the positions of names whose last two tokens may be the wanted name's."""
        endings = []
        for last in np.flatnonzero(ends_at[-1]).tolist():
            before = ends_at[-1 - len(self._tokens[last])]
            endings += [code << 8 | last for code in np.flatnonzero(before).tolist()]
        wanted = np.array(endings, np.uint16)
        bounds = (np.searchsorted(self._endings, wanted, side).tolist() for side in ("left", "right"))
        parts = [self._by_ending[first:end] for first, end in zip(*bounds, strict=True) if first < end]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _ends_at(self, name: bytes) -> NDArray[np.bool_]:
        """Return bool[len(name) + 2, 256]: whether each token may end behind so many bytes of a letter and the name.

        Behind none of them there is the length byte, of which that of a name of one token is asked for.
        """
        table = np.zeros((len(name) + 2, NR_TOKENS), np.bool_)
        table[0, 1] = True
        longest = int(self._lengths.max())
        for end in range(len(name) + 1):
            codes = list(self._first_codes_of.get(name[:end], ()))
            for start in range(max(0, end - longest), end):
                codes += self._codes_of.get(name[start:end], ())
            table[end + 1, codes] = True
        return table

    def _by_markers(self, count: int, token_table: int, order: str) -> NDArray[np.uint32] | None:
        """Return the same as ``_walk``, 256 names at a time; None if the markers do not fit the names."""
        nr_markers = -(-count // NAMES_PER_MARKER)
        # Between them and kallsyms_token_table there may be kallsyms_seqs_of_names, three bytes a name (Linux 6.2, and
        # the later 6.1). Markers were of an unsigned long each before 4.20; Linux 7.2 has no padding between tables.
        for width, between, align in ((4, 0, 8), (4, 3 * count, 8), (4, 0, 4), (8, 0, 8)):
            place = (((token_table - between) & -align) - width * nr_markers) & -align
            if not 0 < place - self._address <= NAMES_SIZE_MAX:
                continue
            try:
                markers = np.frombuffer(self._memory.read(place, width * nr_markers), f"{order}u{width}")
                if markers[0] or not (markers < place - self._address).all():
                    continue
                codes = np.frombuffer(self._memory.read(self._address, place - self._address), np.uint8)
            except MemoryFault:
                continue
            starts = _walk_blocks(codes, markers.astype(np.int64), count)
            if starts is not None:
                self._data = codes.tobytes()
                return starts
        return None

    def _walk(self, count: int) -> NDArray[np.uint32]:
        """Return uint32[count + 1]: the offset of each name's length byte, and the end of the names."""
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
        return np.frombuffer(starts, np.uint32)

    def _read_to(self, end: int) -> bytes:
        """Read on until there are ``end`` bytes; pieces are shorter at the end of memory."""
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


def _walk_blocks(codes: NDArray[np.uint8], markers: NDArray[np.int64], count: int) -> NDArray[np.uint32] | None:
    """Walk the names from all markers at once.

    Args:
        codes: uint8[n], kallsyms_names and up to a word of padding.
        markers: int64[m], within them.
        count: kallsyms_num_syms.

    Returns:
        uint32[count + 1]: the offset of each name's length byte, and the end of the names; None if a walk does not end
        at the next marker, or if a name is empty.
    """
    starts = np.empty((NAMES_PER_MARKER, len(markers)), np.int64)
    at, beyond = markers.copy(), len(codes) - 2
    for step in range(NAMES_PER_MARKER):
        starts[step] = at
        at = np.minimum(at, beyond)
        length = codes.take(at).astype(np.int64)
        if length.max() >= BIG_SYMBOL:
            big = length >= BIG_SYMBOL
            length[big] = (length[big] & ~BIG_SYMBOL | codes[at[big] + 1].astype(np.int64) << 7) + 1
        at += length + 1
    flat = np.append(starts.T.ravel(), at[-1])[: count + 1]
    within = flat[:-1].max() <= beyond and flat[-1] <= len(codes) and (at[:-1] == markers[1:]).all()
    return flat.astype(np.uint32) if within and codes[flat[:-1]].all() else None

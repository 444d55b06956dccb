"""kallsyms tables as scripts/kallsyms.c of Linux writes them, compressed, in a small piece of kernel memory."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from typing import Literal

from vmcore2core.errors import NotMapped

Form = Literal["place-relative", "base-relative", "absolute per-CPU"]
Symbol = tuple[int, str, str]
"""Address, type letter, name: a line of /proc/kallsyms."""


class FakeMemory:
    """Kernel virtual memory of a few pieces; everything else is not mapped.

    Attributes:
        pieces: address -> bytes; a test may change them.
        bytes_read: how much was read so far.
    """

    def __init__(self, pieces: dict[int, bytearray]) -> None:
        self.pieces = pieces
        self.bytes_read = 0

    def read(self, address: int, size: int) -> bytes:
        for start, data in self.pieces.items():
            if start <= address and address + size <= start + len(data):
                self.bytes_read += size
                return bytes(data[address - start : address - start + size])
        raise NotMapped(address)


@cache  # several tests write the same names in other forms
def compress(names: tuple[bytes, ...], nr_tokens: int = 256) -> tuple[list[bytes], list[bytes]]:
    """Return each name as token codes, and the 256 tokens expanded ("" for a code that is not used).

    Codes that occur as characters stand for themselves; the others take the pair of codes that occurs most, again and
    again, from 255 down: optimize_result().
    """
    used = {code for name in names for code in name}
    pairs: dict[int, tuple[int, ...]] = {code: (code,) for code in used}
    coded = [list(name) for name in names]
    for code in range(nr_tokens - 1, -1, -1):
        if code in pairs:
            continue
        profit = Counter(pair for name in coded for pair in pairwise(name))
        if not profit:
            break
        best, count = profit.most_common(1)[0]
        if count < 2:
            break
        pairs[code] = best
        for name in coded:
            at = 0
            while at < len(name) - 1:
                if (name[at], name[at + 1]) == best:
                    name[at : at + 2] = [code]
                at += 1

    def expand(code: int) -> bytes:
        parts = pairs.get(code, ())
        return bytes(parts) if parts == (code,) else b"".join(expand(part) for part in parts)

    return [bytes(name) for name in coded], [expand(code) for code in range(256)]


def length_bytes(length: int) -> bytes:
    """Return a name's length: one byte, or two of seven bits each from 128 on (since Linux 6.1)."""
    assert 0 < length <= 0x3FFF
    return bytes([length]) if length <= 0x7F else bytes([length & 0x7F | 0x80, length >> 7])


@dataclass
class Tables:
    """Where the tables are, by the names that VMCOREINFO gives them, and the memory that holds them."""

    memory: FakeMemory
    addresses: dict[str, int] = field(default_factory=dict)

    def write(self, table: str, offset: int, data: bytes) -> None:
        """Overwrite part of a table; what would be behind the end of its piece of memory is not written."""
        table_at = self.addresses[table]
        start, piece = next((s, p) for s, p in self.memory.pieces.items() if s <= table_at < s + len(p))
        at = table_at - start + offset
        data = data[: max(0, len(piece) - at)]
        piece[at : at + len(data)] = data

    def vmcoreinfo(self) -> bytes:
        """The lines of kernel/vmcore_info.c."""
        return b"".join(
            b"SYMBOL(kallsyms_%s)=%x\n" % (name.encode(), at)
            for name, at in self.addresses.items()
            if name != "markers"
        )


def build(
    symbols: Sequence[Symbol],
    form: Form = "base-relative",
    *,
    order: str = "<",
    at: int = 0xFFFF_FFFF_8200_0000,
    base: int | None = None,
    aligned: bool = True,
    word: int = 8,
    marker: int = 4,
    seqs: bool = False,
) -> Tables:
    """Write the tables.

    Args:
        symbols: in address order.
        form: "absolute per-CPU": addresses below 4 GiB are stored as they are.
        order: "<" or ">".
        at: where the tables begin.
        base: kallsyms_relative_base; the lowest address by default.
        aligned: as the assembler did it up to Linux 7.1; else the number of symbols is right before the names.
        word: bytes of an unsigned long.
        marker: bytes of each of kallsyms_markers; 8 before Linux 4.20.
        seqs: kallsyms_seqs_of_names stands behind the markers, as in Linux 6.2.
    """
    coded, tokens = compress(tuple(f"{letter}{name}".encode() for _, letter, name in symbols))
    names = b"".join(length_bytes(len(name)) + name for name in coded)
    token_table = b"".join(token + b"\0" for token in tokens)
    index, offset = [], 0
    for token in tokens:
        index.append(offset)
        offset += len(token) + 1
    lowest = min(address for address, _, _ in symbols if address >> 32 or form != "absolute per-CPU")
    base = lowest if base is None else base
    body = bytearray()
    addresses: dict[str, int] = {}

    def put(name: str, data: bytes, align: int = word) -> None:
        body.extend(bytes(-len(body) % align))
        addresses[name] = at + len(body)
        body.extend(data)

    if not aligned:
        body.extend(bytes(4))
    put("num_syms", struct.pack(order + "I", len(symbols)), 4)
    put("names", names, word if aligned else 1)
    starts = [0, *accumulate(len(length_bytes(len(name)) + name) for name in coded)]
    markers = struct.pack(f"{order}{-(-len(coded) // 256)}{'I' if marker == 4 else 'Q'}", *starts[: len(coded) : 256])
    put("markers", markers, word if aligned else 4)
    if seqs:
        put("seqs_of_names", b"".join((i * 7 % len(coded)).to_bytes(3, "big") for i in range(len(coded))))
    put("token_table", token_table, word if aligned else 1)
    put("token_index", struct.pack(order + "256H", *index))
    place = at + len(body) + (-len(body) % word)
    values = []
    for i, (address, _, _) in enumerate(symbols):
        if form == "place-relative":
            values.append(address - (place + 4 * i))
        elif form == "base-relative":
            values.append(address - base - (1 << 32 if address - base >= 1 << 31 else 0))
        else:
            values.append(address if not address >> 32 else base - address - 1)
    put("offsets", struct.pack(f"{order}{len(values)}i", *values))
    if form != "place-relative":
        put("relative_base", struct.pack(order + ("Q" if word == 8 else "I"), base))
    return Tables(FakeMemory({at: body}), addresses)

"""The kallsyms tables, found by their form, for kernels whose VMCOREINFO lacks their addresses (before Linux 6.0).

They follow each other in .rodata, each aligned to a word::

    kallsyms_offsets        s32[num_syms]
    kallsyms_relative_base  unsigned long
    kallsyms_num_syms       u32
    kallsyms_names          length byte and tokens, for each symbol
    kallsyms_markers        where every 256th name begins: u32[], unsigned long[] before Linux 4.20
    kallsyms_token_table    256 strings
    kallsyms_token_index    where each string begins: u16[256]

In Linux 6.2 and its stable kernels, kallsyms_seqs_of_names precedes the tokens. Since 6.4, the first two tables and
that one follow the others; in 7.2, they are aligned to four bytes, and there is no relative_base.

The last table has the most distinctive form, so the search looks for it. From there, each table leads to the one before
it, and the names must begin where the markers say.

References: scripts/kallsyms.c: write_src() (Linux 4.18 to 7.2; 6.0 and later tell the addresses).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np

from vmcore2core.addresses import align_up
from vmcore2core.errors import MemoryFault
from vmcore2core.interfaces import ByteOrder, Memory
from vmcore2core.layout.image import Image, image_blocks
from vmcore2core.layout.kallsyms import KallsymsTables
from vmcore2core.layout.kallsyms_names import NAMES_PER_MARKER, NR_TOKENS

INDEX_BYTES = 2 * NR_TOKENS
TOKEN_MAX = 128  # bytes of the longest token: far beyond what the compression makes
ALIGN = 4
PAGE = 4096
NEAR, FAR = 64 << 10, 4 << 20
"""How far before the tokens the markers may begin: without, and with another table between them."""
TABLES_TRIED = 32
"""Most tables that may look like token indices; a kernel has one, and memory some copies of it."""
MARKERS_TRIED = 8
MARKER_STEPS = (2 * NAMES_PER_MARKER, 512 * NAMES_PER_MARKER)
"""Bytes of 256 names."""


def find_kallsyms(memory: Image, byte_order: ByteOrder, word: int = 8) -> Iterator[KallsymsTables]:
    """Yield tables in the kernel image that have the form of kallsyms; the caller checks them against symbols.

    Args:
        memory: kernel virtual memory.
        byte_order: of the kernel.
        word: bytes of an ``unsigned long``.
    """
    indices = (
        base + offset
        for base, block in image_blocks(memory, overlap=PAGE)
        for offset in _token_indices(block, byte_order)
    )
    for token_index in itertools.islice(indices, TABLES_TRIED):
        yield from _tables_around(memory, token_index, byte_order, word)


def _token_indices(block: bytes, byte_order: ByteOrder) -> list[int]:
    """Return the offsets in ``block`` at which a table of 256 rising 16-bit offsets begins."""
    words = np.frombuffer(block, "<u2" if byte_order == "little" else ">u2", len(block) // 2)
    starts = np.flatnonzero(words[: len(words) - NR_TOKENS : ALIGN // 2] == 0) * (ALIGN // 2)
    # Most words are zero or code: two quick tests leave a handful of places for the full test.
    for near in (1, 3, 17, 255):
        steps = words[starts + near].astype(np.int32) - words[starts + near - 1]
        starts = starts[(steps >= 2) & (steps <= TOKEN_MAX)]
    return [int(start) * 2 for start in starts if _rises(words[start : start + NR_TOKENS].astype(np.int32))]


def _rises(index: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> bool:
    steps = np.diff(index)
    return bool(((steps >= 2) & (steps <= TOKEN_MAX)).all())


def _tables_around(memory: Memory, token_index: int, byte_order: ByteOrder, word: int) -> Iterator[KallsymsTables]:
    """Yield the tables that this index belongs to; none if they do not fit each other."""
    with contextlib.suppress(MemoryFault):
        token_table = _token_table(memory, token_index, byte_order)
        if token_table is None:
            return
        for address, markers in _markers(memory, token_table, byte_order):
            for gap in (word, ALIGN):
                found = _names(memory, address, markers, byte_order, gap)
                if found is not None:
                    names, count = found
                    for offsets, base in _offsets_around(names, token_index, count, word):
                        if _ascends(memory, offsets, count, byte_order, placed=base is None):
                            yield KallsymsTables(names, names - gap, token_table, token_index, offsets, base)
                    return


def _offsets_around(names: int, token_index: int, count: int, word: int) -> Iterator[tuple[int, int | None]]:
    """Yield possible addresses of kallsyms_offsets and kallsyms_relative_base (or None), oldest kernels first."""
    relative_base = names - 2 * word
    yield relative_base - align_up(4 * count, word), relative_base
    behind = token_index + INDEX_BYTES
    yield align_up(behind, word), align_up(align_up(behind, word) + 4 * count, word)
    yield behind, None


def _ascends(memory: Memory, offsets: int, count: int, byte_order: ByteOrder, *, placed: bool) -> bool:
    """Tell whether the last offsets are sorted, as the symbols are: by address.

    Args:
        placed: each is relative to its own place; else to one address, maybe negated.
    """
    number = min(count, NAMES_PER_MARKER)
    try:
        raw = memory.read(offsets + 4 * (count - number), 4 * number)
    except MemoryFault:
        return False
    values = np.frombuffer(raw, "<i4" if byte_order == "little" else ">i4").astype(np.int64)
    steps = np.diff(values) + (4 if placed else 0)
    return bool((steps >= 0).all() or (not placed and (steps <= 0).all())) and bool(steps.any())


def _token_table(memory: Memory, token_index: int, byte_order: ByteOrder) -> int | None:
    """Return the address of the 256 strings before the index: each ends where the next begins."""
    raw = memory.read(token_index, INDEX_BYTES)
    index = [int.from_bytes(raw[at : at + 2], byte_order) for at in range(0, INDEX_BYTES, 2)]
    if index[0] or any(not 2 <= b - a <= TOKEN_MAX for a, b in itertools.pairwise(index)):
        return None
    shortest = index[-1] + 2
    for size in range(align_up(shortest, ALIGN), align_up(shortest + TOKEN_MAX, ALIGN), ALIGN):
        table = memory.read(token_index - size, size)
        if all(table[at - 1] == 0 and table[at] for at in index[1:]) and table.count(b"\0", 0, index[-1]) == 255:
            return token_index - size
    return None


def _markers(memory: Memory, end: int, byte_order: ByteOrder) -> Iterator[tuple[int, list[int]]]:
    """Yield (address, rising offsets from 0 on) of possible kallsyms_markers, nearest to ``end`` first."""
    for window, width in ((NEAR, 4), (NEAR, 8), (FAR, 4)):
        try:
            raw = memory.read(end - window, window)
        except MemoryFault:
            continue
        values = np.frombuffer(raw, f"{'<' if byte_order == 'little' else '>'}u{width}").astype(np.int64)
        steps = np.diff(values)
        rises = (steps >= MARKER_STEPS[0]) & (steps <= MARKER_STEPS[1])
        begins = np.flatnonzero((values[:-3] == 0) & rises[:-2] & rises[1:-1] & rises[2:])
        for at in begins[: -MARKERS_TRIED - 1 : -1].tolist():
            length = int(np.argmin(np.append(rises[at:], False))) + 1
            yield end - window + width * at, values[at : at + length].tolist()


def _names(
    memory: Memory, markers_address: int, markers: list[int], byte_order: ByteOrder, gap: int
) -> tuple[int, int] | None:
    """Return (kallsyms_names, number of symbols): the place from which the names fit the markers.

    Args:
        gap: bytes from the number of symbols to the names, which are a multiple of it.
    """
    last = (markers_address - markers[-1]) // gap * gap
    longest = NAMES_PER_MARKER * 256
    window = memory.read(last - longest, longest)
    for start in range(last, last - longest + gap, -gap):
        head = start - gap - (last - longest)
        count = int.from_bytes(window[head : head + 4], byte_order)
        if -(-count // NAMES_PER_MARKER) == len(markers) and _fits(memory, start, markers):
            return start, count
    return None


def _fits(memory: Memory, names: int, markers: list[int]) -> bool:
    """Tell whether the first 256 names end where the second marker says."""
    text = memory.read(names, markers[1])
    at = 0
    for _ in range(NAMES_PER_MARKER):
        if at >= len(text) or not text[at]:
            return False
        at += text[at] + 1
    return at == markers[1]

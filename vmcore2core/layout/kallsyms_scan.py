"""The kallsyms tables by their form, for kernels whose VMCOREINFO does not say where they are (before Linux 6.0).

They stand in .rodata one behind the other, each aligned to a word::

    kallsyms_offsets        s32[num_syms]
    kallsyms_relative_base  unsigned long
    kallsyms_num_syms       u32
    kallsyms_names          length byte and tokens, for each symbol
    kallsyms_markers        where every 256th name begins: u32[], unsigned long[] before Linux 4.20
    kallsyms_token_table    256 strings
    kallsyms_token_index    where each string begins: u16[256]

The last has the most particular form, so it is searched for; from there each table leads to the one before it, and the
names must begin where the markers say.

References: scripts/kallsyms.c: write_src() (Linux 4.18 to 5.19; 6.0 and later tell the addresses).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from vmcore2core.addresses import align_up
from vmcore2core.errors import MemoryFault
from vmcore2core.interfaces import ByteOrder
from vmcore2core.layout.image import image_blocks
from vmcore2core.layout.kallsyms import SYMBOLS_MAX, KallsymsTables
from vmcore2core.layout.kallsyms_names import NR_TOKENS
from vmcore2core.memory.kernel import KernelMemory

INDEX_BYTES = 2 * NR_TOKENS
TOKEN_MAX = 128  # bytes of the longest token: far beyond what the compression makes
NAMES_PER_MARKER = 256
PAGE = 4096


def find_kallsyms(memory: KernelMemory, byte_order: ByteOrder, word: int = 8) -> Iterator[KallsymsTables]:
    """Yield what has the form of kallsyms' tables in the kernel image; the caller checks them against symbols.

    Args:
        memory: kernel virtual memory.
        byte_order: of the kernel.
        word: bytes of an ``unsigned long``.
    """
    for base, block in image_blocks(memory, overlap=PAGE):
        for offset in _token_indices(block, byte_order, word):
            tables = _tables_before(memory, base + offset, byte_order, word)
            if tables is not None:
                yield tables


def _token_indices(block: bytes, byte_order: ByteOrder, word: int) -> list[int]:
    """Return the offsets in ``block`` at which a table of 256 rising 16-bit offsets begins."""
    words = np.frombuffer(block, "<u2" if byte_order == "little" else ">u2", len(block) // 2)
    starts = np.flatnonzero(words[: len(words) - NR_TOKENS : word // 2] == 0) * (word // 2)
    # Most words are zero or code: two looks at a few words each leave a handful for the full one.
    for near in (1, 3, 17, 255):
        steps = words[starts + near].astype(np.int32) - words[starts + near - 1]
        starts = starts[(steps >= 2) & (steps <= TOKEN_MAX)]
    return [int(start) * 2 for start in starts if _rises(words[start : start + NR_TOKENS].astype(np.int32))]


def _rises(index: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> bool:
    steps = np.diff(index)
    return bool(((steps >= 2) & (steps <= TOKEN_MAX)).all())


def _tables_before(memory: KernelMemory, token_index: int, byte_order: ByteOrder, word: int) -> KallsymsTables | None:
    """Return the tables that end with this index, or None where they do not fit each other."""
    try:
        token_table = _token_table(memory, token_index, byte_order, word)
        if token_table is None:
            return None
        for width in (4, 8):
            markers = _markers(memory, token_table, width, byte_order)
            end = token_table - width * len(markers)
            names = _names(memory, end, markers, byte_order, word) if markers else None
            if names is not None:
                start, count = names
                relative_base = start - 2 * word
                offsets = relative_base - align_up(4 * count, word)
                return KallsymsTables(start, start - word, token_table, token_index, offsets, relative_base)
    except MemoryFault:
        pass
    return None


def _token_table(memory: KernelMemory, token_index: int, byte_order: ByteOrder, word: int) -> int | None:
    """Return the address of the 256 strings before the index: each ends where the next begins."""
    raw = memory.read(token_index, INDEX_BYTES)
    index = [int.from_bytes(raw[at : at + 2], byte_order) for at in range(0, INDEX_BYTES, 2)]
    if index[0] or any(not 2 <= b - a <= TOKEN_MAX for a, b in pairwise(index)):
        return None
    shortest = index[-1] + 2
    for size in range(align_up(shortest, word), align_up(shortest + TOKEN_MAX, word), word):
        table = memory.read(token_index - size, size)
        if all(table[at - 1] == 0 and table[at] for at in index[1:]) and table.count(b"\0", 0, index[-1]) == 255:
            return token_index - size
    return None


def _markers(memory: KernelMemory, end: int, width: int, byte_order: ByteOrder) -> list[int]:
    """Return the rising offsets that end at ``end`` (there may be one word of padding), from their 0 on."""
    values: list[int] = []
    chunk = b""
    for at in range(SYMBOLS_MAX // NAMES_PER_MARKER):
        if at % 512 == 0:
            chunk = memory.read(end - width * (at + 512), width * 512)
        place = len(chunk) - width * (at % 512 + 1)
        value = int.from_bytes(chunk[place : place + width], byte_order)
        if at == 0 and value == 0 and width == 4:
            values.append(-1)  # padding
        elif values and values[-1] >= 0 and value >= values[-1]:
            return []
        else:
            values.append(value)
            if value == 0:
                return values[::-1]
    return []


def _names(
    memory: KernelMemory, markers_address: int, markers: list[int], byte_order: ByteOrder, word: int
) -> tuple[int, int] | None:
    """Return (kallsyms_names, number of symbols): the place from which the names fit the markers."""
    markers = [value for value in markers if value >= 0]
    if len(markers) < 2:
        return None
    last = (markers_address - markers[-1]) // word * word
    longest = NAMES_PER_MARKER * 256
    window = memory.read(last - longest, longest)
    for start in range(last, last - longest + word, -word):
        head = start - word - (last - longest)
        count = int.from_bytes(window[head : head + 4], byte_order)
        if -(-count // NAMES_PER_MARKER) == len(markers) and _fits(memory, start, markers):
            return start, count
    return None


def _fits(memory: KernelMemory, names: int, markers: list[int]) -> bool:
    """Tell whether the first 256 names end where the second marker says."""
    text = memory.read(names, markers[1])
    at = 0
    for _ in range(NAMES_PER_MARKER):
        if at >= len(text) or not text[at]:
            return False
        at += text[at] + 1
    return at == markers[1]

"""What a core has before its first page is never joined."""

from __future__ import annotations

import tracemalloc
from itertools import product
from pathlib import Path

import pytest

from tests.corefile.snapshots import elf_notes, snapshot, thread, write
from vmcore2core.corefile.head import Head
from vmcore2core.interfaces import Compression
from vmcore2core.process.model import RegSetData

REGSETS, REGSET_SIZE = 24, 1 << 20


@pytest.mark.parametrize("pieces", [(), (b"",), (b"abc",), (b"", b"ab", b"", b"cdef", b"g", b"hi", b"")])
def test_it_reads_as_if_it_were_joined(pieces: tuple[bytes, ...]) -> None:
    joined, head = b"".join(pieces), Head(pieces)
    assert head.size == len(joined)
    for offset, size in product(range(12), repeat=2):
        assert head.read(offset, size) == joined[offset : offset + size]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_notes_are_not_copied_as_a_whole(tmp_path: Path, compression: Compression | None) -> None:
    """Those of 5,000 threads have 18 MB."""
    sets = tuple(RegSetData("LINUX", 0x202, bytes([i]) * REGSET_SIZE, "test") for i in range(REGSETS))
    process, core = snapshot(threads=(thread(regsets=sets),)), tmp_path / "core"
    write(snapshot(), tmp_path / "first", compression=compression)  # which imports what is needed
    tracemalloc.start()
    try:
        write(process, core, compression=compression)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < REGSETS * REGSET_SIZE / 2
    if compression is None:
        assert [desc for _, n_type, desc in elf_notes(core) if n_type == 0x202] == [one.data for one in sets]

"""Bitmaps that are larger than memory: the same answers as from all bits at once, and little in memory."""

from __future__ import annotations

import errno
import itertools
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.builders.elfdump import page
from tests.builders.flat import build_flattened
from tests.builders.kdump import build_kdump, write_reaching
from tests.containers.contract import check_contract, read
from vmcore2core.containers import bitmap, open_container
from vmcore2core.containers.base import PageState
from vmcore2core.containers.bitmap import Bitmap, RankedBitmap
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.flattened import FlattenedFile
from vmcore2core.errors import FormatError

TIB = 1 << 40
AT = 4096 + 100
SIZE = 3 * (256 << 10) + 70
"""Three chunks, and a last block that is not whole."""


def bits_with_gaps() -> NDArray[np.uint8]:
    """Random bytes; all ones over a chunk and its borders; single bits beside the borders of blocks; zeros."""
    bits = np.zeros(SIZE, np.uint8)
    rng = np.random.default_rng(3)
    bits[:9000] = rng.integers(0, 256, 9000)
    bits[(250 << 10) + 1 : (520 << 10) + 3] = 0xFF
    bits[[600 << 10, (600 << 10) - 1, SIZE - 1]] = 0x81
    return bits


Make = Callable[[Path, bytes], DumpFile]

BITS = bits_with_gaps()
SET = np.unpackbits(BITS, bitorder="little")


def write_file(path: Path, bits: bytes) -> DumpFile:
    """Write a bitmap where the tests look for it, with holes for zeros."""
    with path.open("wb") as file:
        file.truncate(AT + len(bits) + 50)
        for at in range(0, len(bits), 512):
            if bits[at : at + 512].strip(b"\0"):
                file.seek(AT + at)
                file.write(bits[at : at + 512])
    return DumpFile(path)


def without_holes(path: Path, bits: bytes) -> DumpFile:
    path.write_bytes(bytes(AT) + bits + bytes(50))
    return DumpFile(path)


def flattened(path: Path, bits: bytes) -> DumpFile:
    pieces = [(AT + at, bits[at : at + 1000]) for at in range(0, len(bits), 1000)]
    path.write_bytes(build_flattened([piece for piece in pieces if piece[1].strip(b"\0")] + [(AT + len(bits), b"x")]))
    return FlattenedFile(DumpFile(path))


@pytest.mark.parametrize("kept", [3, 2048])
@pytest.mark.parametrize("make", [write_file, without_holes, flattened])
def test_answers_are_those_of_all_bits_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, kept: int
) -> None:
    monkeypatch.setattr(bitmap, "BLOCKS_KEPT", kept)
    found = RankedBitmap(make(tmp_path / "bits", BITS.tobytes()), AT, SIZE, "a bitmap")
    rng = np.random.default_rng(4)
    borders = np.arange(0, len(SET), 32768)
    pfns = np.concatenate([borders, borders[1:] - 1, [len(SET) - 1], rng.integers(0, len(SET), 1000)]).astype(np.uint64)
    rng.shuffle(pfns)
    below = np.concatenate(([0], np.cumsum(SET)))
    assert found.count == below[-1]
    assert (found.has(pfns) == SET[pfns.astype(np.intp)]).all()
    assert (found.rank(pfns) == below[pfns.astype(np.intp)]).all()
    for pfn in pfns[:200].tolist():
        assert found.has_one(pfn) == SET[pfn]
        assert found.rank_of(pfn) == found.count_below(pfn) == below[pfn]
    assert found.count_below(len(SET)) == found.count
    assert not len(found.has(pfns[:0]))
    assert not len(found.rank(pfns[:0]))


@pytest.mark.parametrize("make", [write_file, without_holes, flattened])
@pytest.mark.parametrize("nr_bits", [8 * SIZE, 8 * SIZE - 5, 8 * (300 << 10) + 5, 8 * (256 << 10), 1])
def test_runs_are_those_of_all_bits_at_once(tmp_path: Path, make: Make, nr_bits: int) -> None:
    found = Bitmap(make(tmp_path / "bits", BITS.tobytes()), AT, SIZE, "a bitmap")
    edges = np.flatnonzero(np.diff(SET[:nr_bits], prepend=0, append=0)).tolist()
    assert list(found.runs(nr_bits)) == list(zip(edges[::2], edges[1::2], strict=True))


def test_no_bit_is_outside_of_the_neighbourhoods(tmp_path: Path) -> None:
    found = RankedBitmap(write_file(tmp_path / "bits", BITS.tobytes()), AT, SIZE, "a bitmap")
    near = np.zeros_like(SET)
    for start, end in found.neighbourhoods(len(SET) - 3):
        near[start:end] = 1
    assert not (SET[:-3] & ~near[:-3]).any()
    assert near.sum() < len(SET) / 2
    assert not near[-3:].any()


@pytest.mark.parametrize("at", [0, 5, 300 << 10, 700 << 10, SIZE - 1])
def test_a_single_other_bit_makes_bitmaps_unequal(tmp_path: Path, at: int) -> None:
    other = BITS.copy()
    other[at] ^= 4
    files = [write_file(tmp_path / "a", BITS.tobytes()), without_holes(tmp_path / "b", BITS.tobytes())]
    same, equal = (Bitmap(file, AT, SIZE, "a bitmap") for file in files)
    assert same.equals(equal)
    different = Bitmap(write_file(tmp_path / "c", other.tobytes()), AT, SIZE, "a bitmap")
    assert not same.equals(different)
    assert not different.equals(same)


def test_the_states_of_a_large_process_take_little_memory(tmp_path: Path) -> None:
    """4 GiB of pages; their ranks alone would take 500 MB if they were looked up at once."""
    path = tmp_path / "vmcore"
    path.write_bytes(build_kdump({pfn: bytes(4096) for pfn in range(1 << 13)}))
    pfns = np.tile(np.arange(1 << 13, dtype=np.uint64), 128)
    with open_container([path]) as container:
        tracemalloc.start()
        try:
            assert (container.page_states(pfns) == PageState.PRESENT).all()
            assert tracemalloc.get_traced_memory()[1] < 40 << 20
        finally:
            tracemalloc.stop()


def test_a_file_system_that_knows_no_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_file(tmp_path / "bits", BITS.tobytes())
    assert len(list(file.data_ranges(AT, AT + SIZE))) > 1

    def lseek(_fd: int, _offset: int, _whence: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "lseek", lseek)
    assert list(file.data_ranges(AT, AT + SIZE)) == [(AT, AT + SIZE)]
    assert RankedBitmap(file, AT, SIZE, "a bitmap").count == SET.sum()


def test_a_bitmap_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    file = without_holes(tmp_path / "bits", bytes(10))
    with pytest.raises(FormatError, match="a bitmap is cut off by the end of the file at file offset 0x10a0"):
        Bitmap(file, AT, 61, "a bitmap")


PAGES = {pfn: page(pfn) for pfn in (1, 2, 7, 32767, 32768, 70000)}


@pytest.mark.parametrize("end", [6 * TIB, 105 * TIB, 128 * TIB])
def test_memory_at_high_addresses_takes_little_memory(tmp_path: Path, end: int) -> None:
    """The bitmaps of 128 TiB have 8 GiB."""
    path = tmp_path / "vmcore"
    write_reaching(build_kdump(PAGES, excluded=[3]), path, end)
    assert path.stat().st_blocks * 512 < 1 << 20
    tracemalloc.start()
    try:
        with open_container([path]) as container:
            assert container.warnings == []
            last = end // 4096 - 1
            check_contract(container, PAGES | {last: page(70000)})
            assert read(container, 3, last - 1, last, last + 1)[0] == [
                PageState.EXCLUDED,
                PageState.MISSING,
                PageState.PRESENT,
                PageState.MISSING,
            ]
            assert container.memory_ranges()[-1].end == container.dumped_ranges()[-1].end == end
            assert len(container.dumped_ranges()) == 2
            pairs = itertools.pairwise(container.dumped_ranges())
            assert all(a.end < b.start for a, b in pairs)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()

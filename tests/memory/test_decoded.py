"""Cached decompressed pages equal the dump's, whatever was read before."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.builders.paging import FlatContainer
from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers.base import PageState
from vmcore2core.memory.decoded import DecodedPages
from vmcore2core.memory.physical import PhysicalMemory

PAGES = 64
IMAGE = b"".join(number.to_bytes(2, "little") * 2048 for number in range(1, PAGES + 1))


class Counting(FlatContainer):
    compressed = "zlib"

    def __init__(self) -> None:
        states = {5: PageState.EXCLUDED, 6: PageState.DAMAGED, 7: PageState.ZERO}
        super().__init__(IMAGE, states)
        self.asked: list[int] = []

    def read_pages(self, pfns: U64Array, out: U8Array) -> U8Array:
        self.asked += pfns.tolist()
        return super().read_pages(pfns, out)


@pytest.mark.parametrize("kept", [1, 3, 16, 200])
def test_they_are_what_the_dump_has(kept: int) -> None:
    draw = random.Random(kept)
    container, plain = Counting(), Counting()
    decoded = DecodedPages(container, kept * 4096)
    for _ in range(300):
        pfns = np.array([draw.randrange(PAGES + 4) for _ in range(draw.randrange(1, 12))], np.uint64)
        out, expected = np.full((len(pfns), 4096), 0xAA, np.uint8), np.zeros((len(pfns), 4096), np.uint8)
        states = decoded.read_pages(pfns, out)
        assert states.tolist() == plain.read_pages(pfns, expected).tolist()
        usable = (states == PageState.PRESENT) | (states == PageState.ZERO)
        assert np.array_equal(out[usable], expected[usable])
        pfn = draw.randrange(PAGES + 4)
        page, state = decoded.read_page(pfn)
        assert state == plain.read_pages(np.array([pfn], np.uint64), expected[:1])[0]
        assert page == expected[0].tobytes() or state not in (PageState.PRESENT, PageState.ZERO)


def test_each_is_decoded_once_while_there_is_room() -> None:
    container = Counting()
    memory = PhysicalMemory(container)
    for start in (8, 20, 8, 15, 8):
        memory.read_blocks(np.arange(start, start + 20, dtype=np.uint64) * np.uint64(4096), 4096)
        memory.read(start * 4096, 8)
    assert sorted(container.asked) == list(range(8, 40))


def test_no_more_are_kept_than_there_is_room_for() -> None:
    container = Counting()
    decoded = DecodedPages(container, 4 * 4096)
    out = np.zeros((1, 4096), np.uint8)
    for pfn in (10, 11, 12, 13, 14, 11, 10):  # 10 went when 14 came
        decoded.read_pages(np.array([pfn], np.uint64), out)
    assert container.asked == [10, 11, 12, 13, 14, 10]

"""Pages: each kind of place goes in and out by its own way, and the reader reads each from where it is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.builders.paging import FlatContainer
from vmcore2core.addresses import PageIndices, PhysAddrs, SwapEntries, U8Array, U64Array
from vmcore2core.containers.base import PageState
from vmcore2core.memory.pages import PageReader, Pages, UserPageState
from vmcore2core.memory.physical import PhysicalMemory

PAGE = 4096
State = UserPageState


def u64(*values: int) -> U64Array:
    return np.array(values, np.uint64)


class Swap:
    """A swap space: page 1 is in memory at 0x2000, page 2 is stored, page 3 a marker, page 4 stored but broken."""

    def entries(self, ptes: U64Array, sizes: U64Array) -> SwapEntries:
        raise NotImplementedError

    def in_slots(self, ptes: U64Array, sizes: U64Array) -> NDArray[np.bool_] | None:
        raise NotImplementedError

    def locate(self, entries: SwapEntries) -> tuple[PhysAddrs, U8Array]:
        states = [State.SWAPPED, State.PRESENT, State.STORED, State.UNTOUCHED, State.STORED]
        paddrs = u64(0, 0x2000, 0, 0, 0)
        return PhysAddrs(paddrs[entries.astype(int)]), np.array(states, np.uint8)[entries.astype(int)]

    def read(self, entries: SwapEntries) -> tuple[U8Array, NDArray[np.bool_]]:
        return np.repeat(entries.astype(np.uint8)[:, None], PAGE, axis=1), entries != 4


class File:
    """A file whose page N is full of bytes 0x60 + N."""

    def has(self, indices: PageIndices) -> NDArray[np.bool_]:
        raise NotImplementedError

    def read(self, indices: PageIndices) -> tuple[U8Array, NDArray[np.bool_]]:
        return np.repeat((indices + np.uint64(0x60)).astype(np.uint8)[:, None], PAGE, axis=1), indices < 9


def reader() -> PageReader:
    data = b"".join(bytes([0x40 + i]) * PAGE for i in range(8))
    return PageReader(PhysicalMemory(FlatContainer(data, {5: PageState.EXCLUDED, 6: PageState.ZERO})), PAGE, Swap())


def test_pages_of_all_kinds_are_found_and_read() -> None:
    pages = Pages.joined(
        [
            Pages.in_swap(u64(0x5000, 0x6000, 0x7000, 0x8000, 0x9000), SwapEntries(u64(0, 1, 2, 3, 4))),
            Pages.in_memory(u64(0x1000, 0x2000, 0x3000, 0x4000), PhysAddrs(u64(0x3000, 0x5000, 0x6000, 0x8000))),
        ]
    )
    found = reader().locate(pages)
    assert dict(zip(found.at.tolist(), map(State, found.state.tolist()), strict=True)) == {
        0x1000: State.PRESENT,
        0x2000: State.EXCLUDED,
        0x3000: State.ZERO,
        0x4000: State.NOT_IN_DUMP,
        0x5000: State.SWAPPED,
        0x6000: State.PRESENT,
        0x7000: State.STORED,
        0x9000: State.STORED,
    }
    found = Pages.joined([found, Pages.in_file(u64(0, 0xA000), PageIndices(u64(9, 2)), File())])
    assert found.paddrs().tolist() == [0x3000, 0x2000]
    assert (found.stored().tolist(), found.indices().tolist()) == ([2, 4], [9, 2])
    rows, known = reader().read(found)
    assert {int(at): int(row[0]) for at, row in zip(found.at[known], rows[known], strict=True)} == {
        0x1000: 0x43,
        0x3000: 0,
        0x6000: 0x42,
        0x7000: 2,
        0xA000: 0x62,
    }


@pytest.mark.parametrize("rows", [np.array([False, True]), np.array([1])])
def test_pages_are_replaced_with_their_places_and_a_copy_stays(rows: NDArray[np.bool_] | NDArray[np.intp]) -> None:
    pages = Pages.in_memory(u64(0, 1), PhysAddrs(u64(0x1000, 0x2000)))
    before = pages[:].copy()
    pages.put(rows, Pages.in_swap(u64(1), SwapEntries(u64(7))))
    assert (pages.paddrs().tolist(), pages.swapped().tolist()) == ([0x1000], [7])
    assert before.paddrs().tolist() == [0x1000, 0x2000]

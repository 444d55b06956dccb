"""The contract of every container, checked on any open one."""

from __future__ import annotations

import itertools

import numpy as np

from vmcore2core.addresses import U8Array
from vmcore2core.containers.base import DumpContainer, PageState


def read(container: DumpContainer, *pfns: int) -> tuple[list[PageState], list[bytes]]:
    """Return states and pages; rows that are not to be used come as b""."""
    wanted = np.array(pfns, dtype=np.uint64)
    out: U8Array = np.full((len(pfns), container.page_size), 0xEE, dtype=np.uint8)
    states = [PageState(s) for s in container.read_pages(wanted, out).tolist()]
    for state, row in zip(states, out, strict=True):
        if state != PageState.PRESENT:
            assert not row.any(), f"{state.name} row is not zero"
    good = (PageState.PRESENT, PageState.ZERO)
    return states, [row.tobytes() if s in good else b"" for s, row in zip(states, out, strict=True)]


def check_contract(container: DumpContainer, pages: dict[int, bytes]) -> None:
    """Check order, repeats, foreign numbers and empty requests; ``pages`` are pages that the dump has."""
    pfns = sorted(pages)
    everything = [*pfns, *reversed(pfns), *pfns[:1] * 3, (1 << 64) - 1, 1 << 52]
    states, rows = read(container, *everything)
    for pfn, state, row in zip(everything, states, rows, strict=True):
        assert container.read_page(pfn) == (row or bytes(container.page_size), state), f"{pfn:#x} alone is another one"
        if pfn in pages:
            assert (state, row) == (PageState.PRESENT, pages[pfn]), hex(pfn)
        else:
            assert state == PageState.MISSING
    assert container.page_states(np.array(everything, dtype=np.uint64)).tolist() == states
    assert read(container) == ([], [])
    ranges = container.memory_ranges()
    assert all(a.end < b.start for a, b in itertools.pairwise(ranges))
    size = container.page_size
    assert all(any(pfn * size in r for r in ranges) for pfn in pages)

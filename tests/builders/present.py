"""The contents of a dump, to be written again in another format."""

from __future__ import annotations

import itertools

import numpy as np

from vmcore2core.containers.base import DumpContainer, PageState


def present_runs(container: DumpContainer) -> list[tuple[int, bytes]]:
    """Return the pages that the dump has, as runs of (physical address, bytes)."""
    size = container.page_size
    pfns = np.arange(container.memory_ranges()[-1].end // size, dtype=np.uint64)
    there = pfns[container.page_states(pfns) == PageState.PRESENT]
    out = np.zeros((len(there), size), np.uint8)
    assert (container.read_pages(there, out) == PageState.PRESENT).all()
    starts = [0, *(np.flatnonzero(np.diff(there) != 1) + 1).tolist(), len(there)]
    return [(int(there[a]) * size, out[a:b].tobytes()) for a, b in itertools.pairwise(starts)]

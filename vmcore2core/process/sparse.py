"""Mappings of terabytes that a process barely touched: which of their ranges get no bytes of their own in the core.

A core with an offset for each address would be larger than file systems let a file be (ext4: 16 TiB).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.model import Vma

SIZE_MAX = 1 << 40
"""If a process has less memory than this, each page has a place in the file."""
GAPS = (1 << 34, 1 << 30, 1 << 26)
"""Bytes of the shortest gap between touched pages to leave out; if that is not enough, the next is tried."""


def with_untouched(vmas: Sequence[Vma], memory: UserMemory) -> tuple[list[Vma], str | None]:
    """Return the mappings, with ``untouched`` filled in if together they are too large, and a sentence that says so.

    Args:
        vmas: of a process, with their absent pages.
        memory: the same process's.
    """
    page = memory.spec.page_size
    sizes = [vma.dump_end(page) - vma.start for vma in vmas]
    if sum(sizes) <= SIZE_MAX:
        return list(vmas), None
    regions = {region.start: region for region in memory.regions}
    gaps = {
        vma.start: list(_gaps(memory, regions[vma.start]._replace(end=vma.dump_end(page))))
        for vma, size in zip(vmas, sizes, strict=True)
        if size >= GAPS[-1]
    }
    for shortest in GAPS:
        left_out = sum(end - start for found in gaps.values() for start, end in found if end - start >= shortest)
        if sum(sizes) - left_out <= SIZE_MAX:
            break
    result = [
        vma._replace(untouched=tuple(gap for gap in gaps.get(vma.start, ()) if gap[1] - gap[0] >= shortest))
        for vma in vmas
    ]
    what = f"{left_out:#x} bytes of memory that the process never touched share one run of zeros in the core"
    return result, what if left_out else None


def _gaps(memory: UserMemory, region: Region) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a region between touched pages that are long enough for any of ``GAPS``."""
    at, page = int(region.start), memory.spec.page_size
    for pages in memory.known(region):
        edges = np.concatenate(([np.uint64(at)], pages.at + np.uint64(page)))
        wide = np.flatnonzero(pages.at - edges[:-1] >= GAPS[-1])
        yield from zip(edges[wide].tolist(), pages.at[wide].tolist(), strict=True)
        at = int(edges[-1])
    if region.end - at >= GAPS[-1]:
        yield at, int(region.end)

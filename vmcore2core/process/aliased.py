"""Check whether a process can really have all pages that its page tables map: tables may be aliases of one another.

A page may be mapped at several places, and a page of zeros at any number; but page tables that lead to each other map
more than any program could read. We leave out regions that we do not believe, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory

PAGES_ALWAYS = 1 << 24
PAGES_PER_FRAME = 16
"""A process may map ``PAGES_ALWAYS`` pages, plus this many for each page frame of the dump: garbage collectors map
their pages three times, as colours."""


def believed(memory: UserMemory, owner: StructView) -> tuple[list[Region], str | None]:
    """Return a process's regions, the unbelievable ones marked ``broken``, and a sentence if there are any of these.

    Args:
        memory: its memory.
        owner: its ``struct mm_struct``.
    """
    regions = list(memory.regions)
    most = PAGES_ALWAYS + PAGES_PER_FRAME * memory.memory.nr_frames
    page = memory.spec.page_size
    spanned = sum(region.end - region.start for region in regions) // page
    if spanned <= most or memory.mapped.count(regions, most) <= most:
        return regions, None
    broken = _largest(memory, regions, most)
    total = owner.find_uint("total_vm", size=owner.kernel.arch.pointer_size)
    told = "" if total is None else f"; mm_struct.total_vm says {total} pages in all"
    where = ", ".join(f"{region.start:#x}-{region.end:#x}" for region in regions if region.start in broken)
    sentence = (
        f"its page tables map more than {most} pages, expected {PAGES_PER_FRAME} times the {memory.memory.nr_frames} "
        f"of the dump and {PAGES_ALWAYS} more at most{told}: several entries lead to one table, so nothing of "
        f"{where} is taken"
    )
    return [region._replace(broken=region.start in broken) for region in regions], sentence


def _largest(memory: UserMemory, regions: Sequence[Region], most: int) -> set[int]:
    """Return the start addresses of the regions that map most; without them, the others are plausible."""
    counts = {int(region.start): memory.mapped.count([region], most) for region in regions}
    left, broken = sum(counts.values()), set()
    for start in sorted(counts, key=lambda start: -counts[start]):
        if left <= most:
            break
        left -= counts[start]
        broken.add(start)
    return broken

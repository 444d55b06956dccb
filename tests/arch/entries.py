"""What an entry of a page table reads as, for the tests of each architecture's decode function."""

from __future__ import annotations

import numpy as np

from vmcore2core.arch.spec import EntryKind, PageTableSpec

NONE, TABLE, LEAF, NOT_PRESENT, BAD = (
    EntryKind.NONE,
    EntryKind.TABLE,
    EntryKind.LEAF,
    EntryKind.NOT_PRESENT,
    EntryKind.BAD,
)


def read_entry(spec: PageTableSpec, level: str, entry: int) -> tuple[int, int]:
    """Return kind and physical address of one entry of the level of that name."""
    (index,) = (i for i, one in enumerate(spec.levels) if one.name == level)
    kinds, paddrs = spec.decode(np.array([entry], np.uint64), index)
    assert (str(kinds.dtype), str(paddrs.dtype)) == ("uint8", "uint64")
    return int(kinds[0]), int(paddrs[0])

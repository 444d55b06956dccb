"""Helpers for the tests of every machine: page-table entries, VMCOREINFO, registers on a kernel stack."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from tests.unwind.test_by_code import call_frames, reader
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import CodeFrame, EntryKind, PageTableSpec
from vmcore2core.interfaces import Memory
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo

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


def vmcoreinfo(text: str, without: Iterable[str], changed: Mapping[str, str]) -> VmcoreInfo:
    """Parse VMCOREINFO text, less the lines that have one of the words, with other values for keys."""
    lines = [line for line in text.splitlines(keepends=True) if not any(word in line for word in without)]
    return VmcoreInfo({**parse_vmcoreinfo("".join(lines).encode()).values, **changed})


def saved_user_regs(arch: Arch, task: int, stack: int, memory: Memory, source: LayoutSource) -> dict[str, int] | None:
    """Return the registers of a task in user mode that a kernel stack has, if it has them."""
    found = arch.registers.user_regs(KernelAddr(task), KernelAddr(stack), arch.view(memory, KernelLayout([source])))
    return None if found is None else dict(found)


def share_told_by_code(
    path: Path, register: str, number: int, pcs: Iterable[int], frames_by_code: Callable[..., Iterable[CodeFrame]]
) -> float:
    """Check the frames at some places against call frame information; return the share that instructions tell.

    Args:
        path: a library. A frame is what its compiler wrote down, or it is not told.
        register: name of the stack pointer in readelf's output.
        number: DWARF number of the stack pointer.
        pcs: where calls come back to; at least 50 of them have their frame above the stack pointer.
        frames_by_code: the machine's.
    """
    read, rows = reader(path), call_frames(path, register=register, size=0)
    starts, found, asked = sorted(rows), 0, 0
    for pc in pcs:
        base, offset = rows[starts[bisect_right(starts, pc - 1) - 1]]
        if base != register:
            continue
        asked += 1
        sizes = {one.size for one in frames_by_code(read, pc, None, exact=False) if one.base == number}
        if len(sizes) == 1:
            assert sizes == {offset}, hex(pc)
            found += 1
    assert asked > 50
    return found / asked

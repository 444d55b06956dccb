"""Helpers for the tests of every machine: page-table entries, VMCOREINFO, registers on a kernel stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import EntryKind, PageTableSpec
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

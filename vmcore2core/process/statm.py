"""What ps(1) shows of a process's memory: its sizes and its command line, by ``struct mm_struct`` alone.

That takes some dozens of reads a process; to walk its mappings and page tables takes thousands.

References: fs/proc/task_mmu.c: task_statm(); fs/proc/base.c: get_mm_cmdline().
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmcore2core.addresses import UserAddr
from vmcore2core.errors import MemoryFault, NotMapped
from vmcore2core.kernel.mm import get_mm_rss
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pagetable import translate
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.swapped import SwappedPages

ELF_PRARGSZ = 80


@dataclass(frozen=True, slots=True)
class Statm:
    """The sizes of a process in KiB, and the first strings of its command line; None where that is not known."""

    vsz_kib: int
    rss_kib: int
    args: bytes | None


def statm(owner: StructView, threads: Iterable[StructView], swap: SwappedPages) -> Statm | None:
    """Return what an mm says of itself, or None where the layout does not tell that much of it.

    Args:
        owner: ``struct mm_struct``.
        threads: ``struct task_struct`` of each thread that has it.
        swap: the machine's swapped pages.

    Raises:
        MemoryFault: the mm cannot be read.
    """
    word = owner.kernel.arch.pointer_size
    total, start, end = (owner.find_uint(name, word) for name in ("total_vm", "arg_start", "arg_end"))
    try:
        resident = get_mm_rss(owner, threads)
    except MemoryFault:
        return None
    if total is None or resident is None or start is None or end is None:
        return None
    page = owner.kernel.user_page_table(owner).page_size
    args = _read(owner, start, min(end - start, ELF_PRARGSZ - 1), swap) if 0 < start <= end else None
    return Statm(total * page >> 10, resident * page >> 10, args)


def _read(owner: StructView, address: int, size: int, swap: SwappedPages) -> bytes | None:
    """Return user memory of at most two pages, or None where any byte of it is not known."""
    memory, spec = owner.kernel.memory.physical, owner.kernel.user_page_table(owner)
    root, page = owner.kernel.memory.to_phys(owner.pointer("pgd")), spec.page_size

    def piece(at: int, length: int) -> bytes:
        base, span = translate(memory, spec, root, at)
        return memory.read(base + (at & (span - 1)), length)

    first = min(size, page - (address & (page - 1)))
    try:
        return piece(address, first) + (piece(address + first, size - first) if size > first else b"")
    except NotMapped:  # it may be swapped out
        region = Region(UserAddr(address & -page), UserAddr(-(-(address + size) // page) * page), zero_fill=False)
        return UserMemory(memory, spec, root, (region,), swap.space).read(address, size)
    except MemoryFault:
        return None

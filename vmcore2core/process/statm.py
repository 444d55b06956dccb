"""A process's memory sizes and command line as ps(1) shows them, from ``struct mm_struct`` alone.

This takes some dozens of reads a process; walking its mappings and page tables would take thousands.

References: fs/proc/task_mmu.c: task_statm(); fs/proc/base.c: get_mm_cmdline().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vmcore2core.addresses import UserAddr
from vmcore2core.errors import MemoryFault, NotMapped
from vmcore2core.kernel.mm import get_mm_rss
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pagetable import translate
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.swapped import SwappedPages

ELF_PRARGSZ = 80
ARGS_MAX = 1 << 20
"""Bytes of a command line that are shown; the kernel takes up to 6 MiB (fs/exec.c: bprm_stack_limits())."""


class Statm(NamedTuple):
    """The sizes of a process in KiB, and its command line.

    Attributes:
        args: the strings, each with its NUL, up to the first page that is not known; None if that is the first one.
        cut: whether the command line goes on after ``args``.
    """

    vsz_kib: int
    rss_kib: int
    args: bytes | None
    cut: bool = False


def statm(owner: StructView, threads: Iterable[StructView], swap: SwappedPages) -> Statm | None:
    """Return the sizes and command line of an mm, or None if the layout does not know the members.

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
    args, cut = _cmdline(owner, start, end, page, swap) if 0 < start <= end else (b"", False)
    return Statm(total * page >> 10, resident * page >> 10, args or None, cut)


def _cmdline(owner: StructView, start: int, end: int, page: int, swap: SwappedPages) -> tuple[bytes, bool]:
    """Return the arguments as /proc/PID/cmdline has them, and whether there is more.

    A process that writes a title over its arguments, as setproctitle() does, writes over the last NUL, too: then what
    counts is one string of at most a page, which may go on where the environment was.
    """
    if _read(owner, end - 1, 1, swap) in (None, b"\0", b""):
        args = b"".join(_pages(owner, start, min(end - start, ARGS_MAX), page, swap))
        return args, len(args) < end - start
    title, found, _ = b"".join(_pages(owner, start, page, page, swap)).partition(b"\0")
    return title, not found and len(title) < page


def _pages(owner: StructView, address: int, size: int, page: int, swap: SwappedPages) -> Iterator[bytes]:
    """Yield user memory, a page or its part at a time, up to the first one that is not known."""
    end = address + size
    while address < end:
        piece = _read(owner, address, min(end - address, page - address % page), swap)
        if piece is None:
            return
        yield piece
        address += len(piece)


def _read(owner: StructView, address: int, size: int, swap: SwappedPages) -> bytes | None:
    """Return user memory within one page, or None if it is not known."""
    memory, spec = owner.kernel.memory.physical, owner.kernel.user_page_table(owner)
    root = owner.kernel.memory.to_phys(owner.pointer("pgd"))
    try:
        base, span = translate(memory, spec, root, address)
        return memory.read(base + (address & (span - 1)), size)
    except NotMapped:  # it may be swapped out
        first = address & -spec.page_size
        region = Region(UserAddr(first), UserAddr(first + spec.page_size), zero_fill=False)
        return UserMemory(memory, spec, root, (region,), swap.space).read(address, size)
    except MemoryFault:
        return None

"""Circular doubly linked lists (include/linux/list.h)."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

MAX_ENTRIES = 1 << 22  # PID_MAX_LIMIT on 64-bit (include/linux/threads.h)


def list_for_each(
    kernel: Kernel, head: int, where: str, offset: int | None = None, source: str = ""
) -> Iterator[KernelAddr]:
    """Yield the address of each ``struct list_head`` after ``head``, until it comes back to ``head``.

    Args:
        head: kernel virtual address of the list's head.
        where: C type and member, for messages, likewise ``offset`` and ``source``, as ``CorruptStructure`` has them.

    Raises:
        CorruptStructure: after the good entries: an entry that cannot be read or does not point back, or a list that
            does not end.
    """
    size = kernel.arch.pointer_size
    seen: set[int] = set()
    at = head
    while True:
        try:
            entry = kernel.read_pointer(at)
            back = kernel.read_pointer(entry + size)
        except MemoryFault as fault:
            raise CorruptStructure(
                f"next leads to memory that cannot be read: {fault}", at, where, offset, source
            ) from None
        if entry == head:
            return
        if back != at:
            raise CorruptStructure(
                f"next is {entry:#x}, whose prev is {back:#x} and does not point back", at, where, offset, source
            )
        if entry in seen or len(seen) >= MAX_ENTRIES:
            raise CorruptStructure("the list does not come back to its head", at, where, offset, source)
        seen.add(entry)
        yield entry
        at = entry


def list_for_each_entry(kernel: Kernel, head: int, struct: str, member: str) -> Iterator[StructView]:
    """Yield each ``struct struct`` that is linked by ``member`` into the list at ``head``; see ``list_for_each``."""
    found = kernel.layout.member(struct, member)
    for entry in list_for_each(kernel, head, f"{struct}.{member}", found.offset, found.source):
        yield kernel.view(struct, entry - found.offset)

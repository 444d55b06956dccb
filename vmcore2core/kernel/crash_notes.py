"""The registers of each CPU that a crashing kernel saved (``crash_notes``; kernel/crash_core.c: crash_save_cpu())."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.elf.notes import Note, parse_notes
from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.percpu import per_cpu_ptrs
from vmcore2core.kernel.struct import Kernel

NHDR_SIZE = 12
NAME = 8  # "CORE" and its padding
DESC_SIZE_MAX = 4096


def crash_notes(kernel: Kernel) -> Iterator[tuple[int, Note]]:
    """Yield each CPU that saved its registers, and the first note, as in /proc/vmcore; none if it did not crash.

    A dump's own notes do not name their CPU, and a CPU that was offline has none.

    Args:
        kernel: the dumped kernel.
    """
    symbol, order = kernel.layout.find_symbol("crash_notes"), kernel.arch.byte_order
    try:
        buffers = kernel.read_pointer(symbol) if symbol is not None else 0
    except MemoryFault:
        return
    for cpu, address in per_cpu_ptrs(kernel, buffers) if buffers else ():
        try:
            header = kernel.memory.read(address, NHDR_SIZE)
            size = min(int.from_bytes(header[4:8], order), DESC_SIZE_MAX)
            found, _ = parse_notes(kernel.memory.read(address, NHDR_SIZE + NAME + size), order, 0)
        except MemoryFault:
            continue
        if found:
            yield cpu, found[0]

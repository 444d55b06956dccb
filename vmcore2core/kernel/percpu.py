"""Per-CPU variables (include/asm-generic/percpu.h: per_cpu_ptr(); include/linux/percpu_counter.h)."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

NR_CPUS_MAX = 8192  # CONFIG_NR_CPUS_RANGE_END, x86-64


def per_cpu_ptrs(kernel: Kernel, variable: int) -> Iterator[tuple[int, int]]:
    """Yield each possible CPU that can be read, and ``per_cpu_ptr(variable, cpu)``.

    Args:
        kernel: the dumped kernel.
        variable: address of the per-CPU variable, from a symbol or a pointer.
    """
    layout, word = kernel.layout, kernel.arch.pointer_size
    offsets, nr_cpu_ids = layout.find_symbol("__per_cpu_offset"), layout.find_symbol("nr_cpu_ids")
    if offsets is None:
        yield 0, variable  # no CONFIG_SMP
        return
    try:
        count = 1 if nr_cpu_ids is None else kernel.uint(nr_cpu_ids, 4)
    except MemoryFault:
        return
    for cpu in range(min(count, NR_CPUS_MAX)):
        try:
            yield cpu, (variable + kernel.read_pointer(offsets + cpu * word)) % (1 << 8 * word)
        except MemoryFault:
            continue


def per_cpu_ptr(kernel: Kernel, variable: int, cpu: int) -> int:
    """Return ``per_cpu_ptr(variable, cpu)``.

    Raises:
        MemoryFault: it cannot be read.
    """
    offsets, word = kernel.layout.find_symbol("__per_cpu_offset"), kernel.arch.pointer_size
    if offsets is None:
        return variable  # no CONFIG_SMP
    return (variable + kernel.read_pointer(offsets + cpu * word)) % (1 << 8 * word)


def percpu_counter_sum(counter: StructView) -> int:
    """Return ``percpu_counter_sum(counter)``: what all CPUs counted, exactly.

    Args:
        counter: ``struct percpu_counter``.

    Raises:
        MemoryFault: it cannot be read.
    """
    kernel, total = counter.kernel, counter.sint("count", size=8)
    if counter.has("counters"):
        for _, address in per_cpu_ptrs(kernel, counter.pointer("counters")):
            total += (kernel.uint(address, 4) ^ 1 << 31) - (1 << 31)
    return total

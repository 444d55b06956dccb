"""Per-CPU runqueues: what each CPU runs, and since when it counts (kernel/sched/sched.h: struct rq)."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

NR_CPUS_MAX = 8192  # CONFIG_NR_CPUS_RANGE_END, x86-64
CLOCK_SLACK = 10**10  # nanoseconds


def for_each_runqueue(kernel: Kernel) -> Iterator[StructView]:
    """Yield the ``struct rq`` of each possible CPU that can be read; none where the layout does not tell.

    Args:
        kernel: the dumped kernel.
    """
    layout, word = kernel.layout, kernel.arch.pointer_size
    runqueues, offsets = layout.find_symbol("runqueues"), layout.find_symbol("__per_cpu_offset")
    if runqueues is None or layout.find_member("rq", "curr") is None:
        return
    nr_cpu_ids = layout.find_symbol("nr_cpu_ids")
    try:
        count = 1 if nr_cpu_ids is None or offsets is None else kernel.read_uint(nr_cpu_ids, 4)
    except MemoryFault:
        return
    for cpu in range(min(count, NR_CPUS_MAX)):
        try:
            base = 0 if offsets is None else kernel.read_pointer(offsets + cpu * word)
            rq = kernel.view("rq", (runqueues + base) % (1 << 8 * word))
            if rq.find_uint("cpu", 4) in (None, cpu) and rq.pointer("curr"):
                yield rq
        except MemoryFault:
            continue


def running(kernel: Kernel) -> Iterator[StructView]:
    """Yield the ``struct task_struct`` that each CPU was running."""
    for rq in for_each_runqueue(kernel):
        try:
            task = rq.follow("curr", "task_struct")
        except MemoryFault:
            continue
        if task is not None:
            yield task


def cpu_time_max(kernel: Kernel) -> int | None:
    """Return nanoseconds that no task can have spent: all CPUs since boot, and as much again; None where not known."""
    clocks = []
    for rq in for_each_runqueue(kernel):
        try:
            clock = rq.find_uint("clock", 8)
        except MemoryFault:
            continue
        if clock is not None:
            clocks.append(clock)
    # An idle CPU's clock stands still.
    return 2 * (max(clocks) + CLOCK_SLACK) * len(clocks) if clocks else None

"""Per-CPU runqueues: the task that each CPU runs, and its clock (kernel/sched/sched.h: struct rq)."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.percpu import per_cpu_ptr, per_cpu_ptrs
from vmcore2core.kernel.struct import Kernel, StructView

CLOCK_SLACK = 10**10  # nanoseconds


def for_each_runqueue(kernel: Kernel) -> Iterator[StructView]:
    """Yield the ``struct rq`` of each possible CPU that can be read; none if the layout does not tell.

    Args:
        kernel: the dumped kernel.
    """
    runqueues = kernel.layout.find_symbol("runqueues")
    if runqueues is None or kernel.layout.find_member("rq", "curr") is None:
        return
    for cpu, address in per_cpu_ptrs(kernel, runqueues):
        try:
            rq = kernel.view("rq", address)
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


def curr(kernel: Kernel, cpu: int) -> KernelAddr | None:
    """Return ``cpu_rq(cpu)->curr``, the task that a CPU runs or is about to switch to; None if it is not known.

    Raises:
        MemoryFault: it cannot be read.
    """
    runqueues = kernel.layout.find_symbol("runqueues")
    if runqueues is None or kernel.layout.find_member("rq", "curr") is None:
        return None
    return kernel.view("rq", per_cpu_ptr(kernel, runqueues, cpu)).pointer("curr")


def current(kernel: Kernel, cpu: int) -> KernelAddr | None:
    """Return a CPU's current task from its own variable; None if that is not in memory (on x86, it is).

    arch/x86/include/asm/current.h. It was in ``pcpu_hot`` from Linux kernel commit e57ef2ed97c1 ("x86: Put hot per CPU
    variables into a struct") (in v6.2) to v6.14.

    Raises:
        MemoryFault: it cannot be read.
    """
    layout = kernel.layout
    hot, member = layout.find_symbol("pcpu_hot"), layout.find_member("pcpu_hot", "current_task")
    if hot is not None and member is not None:
        return kernel.read_pointer(per_cpu_ptr(kernel, hot, cpu) + member.offset)
    found = layout.find_symbol("current_task")
    return None if found is None else kernel.read_pointer(per_cpu_ptr(kernel, found, cpu))


def cpu_time_max(kernel: Kernel) -> int | None:
    """Return more nanoseconds than any task can have run: twice all CPUs' time since boot; None if not known."""
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

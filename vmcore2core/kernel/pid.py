"""Tasks: the list of thread-group leaders, the threads of a group, and finding one by PID.

References: include/linux/sched/signal.h: for_each_process(), for_each_thread(); kernel/fork.c: copy_process();
include/linux/pid.h: struct pid, struct upid; fs/proc/array.c: task_state().
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.sched import PID_MAX_LIMIT, is_kthread, task_comm
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.xarray import XArray

MAX_PID_NS_LEVEL = 32  # include/linux/pid_namespace.h

NSPID_NEEDED = (("task_struct", "thread_pid"), ("pid", "level"), ("pid", "numbers"))
"""Structures and members that ``task_nspids`` needs."""


def init_task(kernel: Kernel) -> StructView:
    """Return the idle task of CPU 0, head of the task list."""
    return kernel.view("task_struct", kernel.layout.symbol("init_task"))


def for_each_process(kernel: Kernel) -> Iterator[StructView]:
    """Yield the ``struct task_struct`` of each thread-group leader, without init_task.

    Raises:
        CorruptStructure: after the good ones, where the list is broken.
    """
    head = init_task(kernel).addr_of("tasks")
    yield from list_for_each_entry(kernel, head, "task_struct", "tasks")


def nr_cpus_seen(kernel: Kernel) -> int | None:
    """Return how many CPUs were ever online; None if the list of tasks does not tell.

    A CPU has a ``ksoftirqd/N`` from its first start on, parked while it is offline (kernel/softirq.c: softirq_threads).
    This serves layouts that do not know ``nr_cpu_ids``.
    """
    try:
        names = {task_comm(task) for task in for_each_process(kernel) if is_kthread(task)}
    except (CorruptStructure, MemoryFault):
        return None
    return sum(name.startswith(b"ksoftirqd/") for name in names) or None


def for_each_thread(leader: StructView) -> Iterator[StructView]:
    """Yield the ``struct task_struct`` of each thread in a leader's group; the leader comes first if it is linked.

    Raises:
        CorruptStructure: after the good ones: the list is broken or has threads of other groups.
    """
    kernel = leader.kernel
    signal = leader.follow("signal", "signal_struct")
    if signal is None:
        yield leader
        return
    # A released leader's list may be empty; nr_threads bounds it.
    limit = signal.find_uint("nr_threads", 4)
    threads = list_for_each_entry(kernel, signal.addr_of("thread_head"), "task_struct", "thread_node")
    count = 0
    for count, thread in enumerate(threads, 1):
        yield thread
        if limit is not None and count > limit:
            raise CorruptStructure(
                f"more threads than nr_threads = {limit}", signal.address, "signal_struct.thread_head"
            )
    if limit is not None and 0 < count < limit:
        raise signal.corrupt("nr_threads", f"{limit}, expected {count}: the threads in signal_struct.thread_head")


def task_nspids(task: StructView) -> tuple[int, ...]:
    """Return a thread's number in each PID namespace from the initial one to its own: NSpid in /proc/PID/status.

    Raises:
        LayoutUnknown: the layout does not tell (before Linux 4.19, there is no task_struct.thread_pid).
        CorruptStructure: the level is impossible.
    """
    kernel = task.kernel
    found = task.follow("thread_pid", "pid")
    if found is None:
        return ()  # it was released already
    level = found.uint("level", size=4)
    if level > MAX_PID_NS_LEVEL:
        raise CorruptStructure(f"level {level}, expected {MAX_PID_NS_LEVEL} at most", found.address, "pid.level")
    # struct upid: int nr, padding, struct pid_namespace *ns.
    numbers, sizeof_upid = found.addr_of("numbers"), 2 * kernel.arch.pointer_size
    return tuple(kernel.uint(numbers + i * sizeof_upid, 4) for i in range(level + 1))


def for_each_numbered(kernel: Kernel) -> Iterator[StructView]:
    """Yield the ``struct task_struct`` of each number in the initial PID namespace, threads too, in order of numbers.

    ``init_pid_ns.idr`` is a second way to the tasks besides their list, since Linux kernel commit 95846ecf9dac ("pid:
    replace pid bitmap implementation with IDR API") (in v4.15).

    Raises:
        LayoutUnknown: the layout does not tell.
        CorruptStructure: after the good ones: the table is broken; a pid whose task cannot be read is passed over.
    """
    layout = kernel.layout
    tasks, links = layout.member("pid", "tasks").offset, layout.member("task_struct", "pid_links").offset
    for run in _numbers(kernel).runs(0, PID_MAX_LIMIT):
        try:
            # hlist_head {first}, hlist_node {next, pprev}; PIDTYPE_PID is the first of each.
            node = 0 if run.is_value else kernel.read_pointer(run.entry + tasks)
            if node and kernel.read_pointer(node + kernel.arch.pointer_size) == run.entry + tasks:
                yield kernel.view("task_struct", node - links)
        except MemoryFault:
            continue


def find_pid(kernel: Kernel, number: int) -> int | None:
    """Return the address of the ``struct pid`` of a number in the initial PID namespace, or None.

    Raises:
        LayoutUnknown, CorruptStructure, MemoryFault: the table cannot be used.
    """
    return next((int(run.entry) for run in _numbers(kernel).runs(number, number) if not run.is_value), None)


def _numbers(kernel: Kernel) -> XArray:
    idr = kernel.view("pid_namespace", kernel.layout.symbol("init_pid_ns")).embedded("idr", "idr")
    # A radix tree's root and nodes are XArray's; an allocated number without a pid counts as an entry there.
    return XArray(idr.embedded("idr_rt", "xarray"), counted=False)

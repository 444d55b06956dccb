"""Tasks: the list of thread-group leaders, the threads of a group, and finding one by PID.

References: include/linux/sched/signal.h: for_each_process(), for_each_thread(); kernel/fork.c: copy_process();
include/linux/pid.h: struct pid, struct upid; fs/proc/array.c: task_state().
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import Kernel, StructView

MAX_PID_NS_LEVEL = 32  # include/linux/pid_namespace.h

NSPID_NEEDED = (("task_struct", "thread_pid"), ("pid", "level"), ("pid", "numbers"))
"""Structures and members that ``task_nspids`` cannot do without."""


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


def for_each_thread(leader: StructView) -> Iterator[StructView]:
    """Yield the ``struct task_struct`` of each thread in a leader's group, the leader first where it is linked.

    Raises:
        CorruptStructure: after the good ones, where the list is broken or has more threads than the group.
    """
    kernel = leader.kernel
    signal = leader.follow("signal", "signal_struct")
    if signal is None:
        yield leader
        return
    # A released leader's list may be empty; nr_threads bounds it.
    limit = signal.find_uint("nr_threads", 4)
    threads = list_for_each_entry(kernel, signal.addr_of("thread_head"), "task_struct", "thread_node")
    for count, thread in enumerate(threads):
        yield thread
        if limit is not None and count >= limit:
            raise CorruptStructure(
                f"more threads than nr_threads = {limit}", signal.address, "signal_struct.thread_head"
            )


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
    return tuple(kernel.read_uint(numbers + i * sizeof_upid, 4) for i in range(level + 1))

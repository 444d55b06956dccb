"""Tasks: the list of thread-group leaders, the threads of a group, and finding one by PID.

References: include/linux/sched/signal.h: for_each_process(), for_each_thread(); kernel/fork.c: copy_process().
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import Kernel, StructView


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

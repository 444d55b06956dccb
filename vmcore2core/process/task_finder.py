"""All ways to find tasks: the list of thread-group leaders, and if it is torn, the PID table, runqueues, a scan.

crash reads the PID table alone, and volatility scans: each finds tasks that another method misses. We cross-check tasks
that are found outside the list, and record how they were found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum

from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel import pid, runqueue, sched
from vmcore2core.kernel.struct import Kernel, StructView

log = logging.getLogger(__name__)

NAMED_MAX = 8  # processes named in a sentence
STACK_ALIGN = 4096


class FoundBy(Enum):
    """How a task was found."""

    TASK_LIST = "task list"
    THREAD_LIST = "thread list"
    PID_TABLE = "PID table"
    RUNQUEUE = "runqueue"
    SCAN = "scan"


Scan = Callable[[], Iterator[StructView]]
"""Yields structures in physical memory that look like thread-group leaders."""


class TaskFinder:
    """The tasks of a dump, found in all possible ways.

    Args:
        kernel: the dumped kernel.
        warn: takes sentences about what is broken.
        scan: if given, it is used whether the list is torn or not.
    """

    def __init__(self, kernel: Kernel, warn: Callable[[str], None], scan: Scan | None = None) -> None:
        self.kernel, self._warn, self._scan = kernel, warn, scan
        self._found_by: dict[int, FoundBy] = {}
        self._elsewhere: list[tuple[StructView, FoundBy]] | None = None

    def found_by(self, task: StructView) -> FoundBy:
        """Return how a task that this object yielded was found."""
        return self._found_by.get(int(task.address), FoundBy.TASK_LIST)

    def leaders(self) -> Iterator[StructView]:
        """Yield each thread group's leader: those in the list, then those found only in other ways, with a warning."""
        listed: set[int] = set()
        torn = False
        try:
            for leader in pid.for_each_process(self.kernel):
                listed.add(int(leader.address))
                yield leader
        except (CorruptStructure, MemoryFault) as error:
            self._warn(f"some tasks may be missing: {error}")
            torn = True
        if torn or self._scan is not None:
            yield from self._others(listed)

    def _others(self, listed: set[int]) -> Iterator[StructView]:
        """Yield the leaders that are not in the list."""
        more: list[StructView] = []
        for task, how in self.elsewhere():
            leader = _leader(task)
            if leader is None or int(leader.address) in listed:
                continue
            listed.add(int(leader.address))
            self._found_by[int(leader.address)] = how
            more.append(leader)
        if more:
            self._warn(f"not in the task list, but found elsewhere: {self._named(more)}")
        yield from more

    def threads(self, leader: StructView, broken: list[str] | None = None) -> Iterator[StructView]:
        """Yield a group's threads; if the list is torn, also threads found in other ways, with a warning.

        Args:
            leader: of the group.
            broken: also gets the warnings.
        """
        listed: set[int] = set()
        try:
            for thread in pid.for_each_thread(leader):
                listed.add(int(thread.address))
                yield thread
        except (CorruptStructure, MemoryFault) as error:
            self._tell(f"some tasks may be missing: {error}", broken)
        else:
            return
        signal = _pointer(leader, "signal")
        for task, how in self.elsewhere():
            if int(task.address) not in listed and signal and _pointer(task, "signal") == signal:
                listed.add(int(task.address))
                self._found_by.setdefault(int(task.address), how)
                self._tell(f"thread {self._named([task])} is not in its group's list, but found elsewhere", broken)
                yield task

    def look_again(self) -> None:
        """Forget what other ways found: the next request searches again, and repeats the warnings."""
        self._elsewhere = None

    def elsewhere(self) -> list[tuple[StructView, FoundBy]]:
        """Return each task that was found outside the lists, once, and how it was found."""
        if self._elsewhere is None:
            found: dict[int, tuple[StructView, FoundBy]] = {}
            ways: list[tuple[FoundBy, Callable[[], Iterator[StructView]]]] = [
                (FoundBy.PID_TABLE, lambda: pid.for_each_numbered(self.kernel)),
                (FoundBy.RUNQUEUE, lambda: runqueue.running(self.kernel)),
            ]
            if self._scan is not None:
                ways.append((FoundBy.SCAN, self._scan))
            for how, way in ways:
                for task in self._until_broken(how, way):
                    if looks_like_task(task):
                        found.setdefault(int(task.address), (task, how))
            self._elsewhere = list(found.values())
        return self._elsewhere

    def _until_broken(self, how: FoundBy, way: Callable[[], Iterator[StructView]]) -> Iterator[StructView]:
        try:
            yield from way()
        except LayoutError as error:
            log.info("the %s cannot be asked: %s", how.value, error)
        except (CorruptStructure, MemoryFault) as error:
            self._warn(f"the {how.value} does not tell all tasks: {error}")

    def _named(self, tasks: list[StructView]) -> str:
        names = [
            f"{sched.task_pid(task)} ({sched.task_comm(task).decode('utf-8', 'replace')}; {self.found_by(task).value})"
            for task in tasks[:NAMED_MAX]
        ]
        return ", ".join(names) + (f" and {len(tasks) - NAMED_MAX} more" if len(tasks) > NAMED_MAX else "")

    def _tell(self, sentence: str, broken: list[str] | None) -> None:
        self._warn(sentence)
        if broken is not None:
            broken.append(sentence)


def looks_like_task(task: StructView) -> bool:
    """Tell whether a structure is a plausible ``struct task_struct`` with a PID."""
    kernel = task.kernel
    try:
        number, group = sched.task_pid(task), sched.task_tgid(task)
        stack = task.pointer("stack")
        comm = task.bytes_of("comm", sched.TASK_COMM_LEN)
        if stack or not task.uint("exit_state", size=4):  # a zombie's stack is gone
            kernel.memory.to_phys(stack)
        kernel.memory.to_phys(task.pointer("signal"))
    except MemoryFault:
        return False
    page = kernel.memory.kernel_map.spec.page_size
    return (
        0 < number < sched.PID_MAX_LIMIT
        and 0 < group < sched.PID_MAX_LIMIT
        and stack % min(page, STACK_ALIGN) == 0
        and b"\0" in comm
    )


def _leader(task: StructView) -> StructView | None:
    """Return the leader of a task's group: the task, its ``group_leader``, or if that is broken, a substitute."""
    if not task.has("group_leader"):
        return task if sched.task_pid(task) == sched.task_tgid(task) else None
    try:
        leader = task.follow("group_leader", "task_struct")
        if leader is not None and looks_like_task(leader) and leader.pointer("signal") == task.pointer("signal"):
            return leader
    except MemoryFault:
        pass
    return task if sched.task_pid(task) == sched.task_tgid(task) else None


def _pointer(task: StructView, name: str) -> int:
    try:
        return int(task.pointer(name))
    except MemoryFault:
        return 0

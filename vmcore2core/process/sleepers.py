"""Why threads of a process sleep, and since when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmcore2core.errors import LayoutUnknown, MemoryFault
from vmcore2core.kernel import files, runqueue
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.process.kernelbt import KernelStack, NamedCall
from vmcore2core.process.openfiles import Ends
from vmcore2core.process.snapshot import Captured, Processes
from vmcore2core.process.waits import Sleeper, Wait, Waits

AWAKE = frozenset("RZX")
"""States of threads that do not sleep."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Why a thread sleeps; None is "not known".

    Attributes:
        since: seconds since it last ran, with nine decimals.
        wait: what it waits for; None if it is not in a system call.
    """

    since: str | None
    wait: Wait | None


class Sleepers:
    """Finds why threads of user processes sleep.

    Args:
        processes: the dump's processes.
        ends: the processes at the other ends of pipes and sockets, if the caller has found them already.

    Raises:
        LayoutUnknown: the layout of open files is not known.
    """

    def __init__(self, processes: Processes, ends: Ends | None = None) -> None:
        lacking = files.missing(processes.kernel)
        if lacking:
            raise LayoutUnknown(f"the layout of open files ({lacking[0]} and more)")
        self._waits = Waits(processes, Ends(processes) if ends is None else ends)
        self._now = _now(processes.kernel)

    def of(
        self,
        thread: tuple[StructView, StructView],
        captured: Captured,
        named: Callable[[int], str],
        stack: KernelStack,
        call: NamedCall | None,
    ) -> Sleep:
        """Return why a thread sleeps.

        Args:
            thread: ``struct task_struct`` of the thread and of its group's leader.
            captured: its process.
            named: describes an address of its memory in words (``unwind.process.UserSpace.named``).
            stack: its frames in the kernel.
            call: the system call that it is in.
        """
        task, leader = thread
        if call is None:
            return Sleep(self._since(task), None)
        functions = tuple(frame.function or "?" for frame in stack.frames)
        read, order = captured.memory.read, captured.snapshot.byte_order
        sleeper = Sleeper(task, leader, call, functions, read, named, order)
        return Sleep(self._since(task), self._waits.of(sleeper))

    def _since(self, task: StructView) -> str | None:
        """Return the seconds since a thread left its CPU; ``se.exec_start`` is set then, ``last_arrival`` earlier."""
        try:
            times = [task.find_uint(name, 8) for name in ("se.exec_start", "sched_info.last_arrival")]
        except MemoryFault:
            return None
        known = [time for time in times if time]
        if self._now is None or not known or max(known) > self._now:
            return None
        passed = self._now - max(known)
        return f"{passed // 10**9}.{passed % 10**9:09}"


def _now(kernel: Kernel) -> int | None:
    """Return the latest of the CPUs' clocks, in nanoseconds."""
    clocks = []
    for rq in runqueue.for_each_runqueue(kernel):
        try:
            clocks.append(rq.find_uint("clock", 8))
        except MemoryFault:
            continue
    return max((clock for clock in clocks if clock is not None), default=None)

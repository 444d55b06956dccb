"""What the machine was doing when it died, for the index: its messages, its CPUs, and its blocked tasks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from vmcore2core.errors import MemoryFault, Vmcore2coreError
from vmcore2core.kernel import printk, sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.kernelbt import KernelStacks
from vmcore2core.report import left_out
from vmcore2core.session import Session
from vmcore2core.tasks.info import cpus_of, crash_of, shown, unknown_of

MESSAGES_MAX = 200
BLOCKED_MAX = 1000
FRAMES_MAX = 64


def story(session: Session) -> dict[str, Any]:
    """Return the index's fields: "crash", "cpus", "messages", "blocked", "unknown", "left_out"."""
    lines, problem = printk.read_messages(session.kernel)
    cpus = list(cpus_of(session))
    crash = crash_of(session, lines, cpus)
    with session.processes.unheard():
        blocked = list(islice(_blocked(session), BLOCKED_MAX))
    return {
        "crash": crash,
        "cpus": cpus,
        "messages": [shown(line) for line in lines[-MESSAGES_MAX:]],
        "blocked": blocked,
        "unknown": list(unknown_of(session, problem, crashed=crash is not None)),
        "left_out": left_out(session.container.dump_level),
    }


def _blocked(session: Session) -> Iterator[dict[str, Any]]:
    """Yield the tasks in uninterruptible sleep, kernel threads included, with their kernel frames."""
    stacks: KernelStacks | None = None
    for leader in session.processes.leaders():
        for task in _readable(session, leader):
            try:
                if sched.task_state_char(task) != "D":
                    continue
                stacks = stacks or KernelStacks(session.kernel, session.processes.cpus, needed=False)
                frames = [frame.function or f"{frame.address:#x}" for frame in stacks.of(task, FRAMES_MAX).frames]
                pid, tid, comm = sched.task_tgid(task), sched.task_pid(task), text(sched.task_comm(task))
            except Vmcore2coreError:  # a command that selects this task reports it
                continue
            yield {"pid": pid, "tid": tid, "comm": comm, "frames": frames}


def _readable(session: Session, leader: StructView) -> list[StructView]:
    try:
        return list(session.processes.threads(leader))
    except MemoryFault:
        return []

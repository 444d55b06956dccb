"""What ``vmcore-tasks info`` shows: why the kernel died, what the dump holds, what is not known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from vmcore2core.containers.base import PageState
from vmcore2core.errors import MemoryFault
from vmcore2core.kernel import printk, runqueue, sched
from vmcore2core.kernel.message import Message
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.timekeeping import clock
from vmcore2core.printable import text
from vmcore2core.report import left_out
from vmcore2core.session import Session
from vmcore2core.tasks.crash import cause, panic_cpu
from vmcore2core.times import iso

COUNT_AT_ONCE = 1 << 22
DMESG_TAIL = 20


def info(session: Session) -> dict[str, Any]:
    """Return the facts about the dump and its kernel: "crash", "dump", "kernel", "cpus", "unknown", "messages".

    Times are UTC, as ISO 8601 writes them.
    """
    lines, problem = printk.read_messages(session.kernel)
    cpus = list(cpus_of(session))
    crash = crash_of(session, lines, cpus)
    return {
        "crash": crash,
        "dump": _dump(session),
        "kernel": _kernel(session),
        "cpus": cpus,
        "unknown": list(unknown_of(session, problem, crashed=crash is not None)),
        "messages": [shown(line) for line in lines[-DMESG_TAIL:]],
    }


def shown(line: Message) -> str:
    """Return a message as dmesg shows it."""
    return f"[{line.stamp()}] {text(line.text.encode())}"


def crash_of(session: Session, lines: list[Message], cpus: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return which task panicked, when and why; None if the kernel did not panic."""
    cpu, died, when = panic_cpu(session.kernel), cause(lines), session.boot.vmcoreinfo.crash_time
    if cpu is None and when is None and (died is None or died.panic is None):  # a kernel may survive an oops
        return None
    who = next((one for one in cpus if cpu is not None and one["cpu"] == cpu), {})
    return {
        "panic": None if died is None else died.panic,
        "oops": None if died is None else died.oops,
        "time": iso(when),
        "cpu": cpu,
        **{name: who.get(name) for name in ("pid", "comm", "process", "process_comm")},
        "trace": [] if died is None else list(died.trace),
    }


def _dump(session: Session) -> dict[str, Any]:
    container = session.container
    now = clock(session.kernel)
    return {
        "paths": [str(path) for path in container.paths],
        "format": container.DOC.name,
        "compressed": container.compressed,
        "clock": None if now is None else iso(now.now),
        "dump_level": container.dump_level,
        "user_pages_left_out": left_out(container.dump_level),
        "page_size": container.page_size,
        "pages": page_counts(session),
        "warnings": list(session.warnings),
    }


def _kernel(session: Session) -> dict[str, Any]:
    boot = session.boot
    return {
        "release": boot.utsname.release,
        "version": boot.utsname.version or None,
        "machine": boot.utsname.machine or None,
        "nodename": text(boot.utsname.nodename.encode()) or None,
        "build_id": boot.vmcoreinfo.build_id,
        "vmcoreinfo": boot.vmcoreinfo_origin,
        "sources": list(boot.layout.source_names),
    }


def unknown_of(session: Session, problem: str | None, *, crashed: bool) -> Iterator[str]:
    """Yield what is not known, and why."""
    if problem is not None:
        yield f"messages: {problem}"
    if session.boot.vmcoreinfo.crash_time is None:
        why = "" if crashed else " (the kernel did not panic)"
        yield f"crash time: VMCOREINFO has no CRASHTIME{why}"
    cut_off = session.boot.vmcoreinfo.truncated_line
    if cut_off is not None:
        yield f"VMCOREINFO is cut off in {cut_off!r}, and what should follow is not there"


def cpus_of(session: Session) -> Iterator[dict[str, Any]]:
    """Yield the task that each CPU was running: from its note or, without one, from its runqueue."""
    tasks: dict[tuple[str, int | None], StructView] = {}
    for task in runqueue.running(session.kernel):
        try:
            tasks["cpu", sched.task_cpu(task)] = task
            tasks["pid", sched.task_pid(task)] = task
        except MemoryFault:
            continue
    seen = session.processes.cpus.running
    for one in seen:
        on_cpu = tasks.get(("cpu", one.cpu)) if one.cpu is not None else None
        fits = on_cpu is not None and sched.task_pid(on_cpu) == one.pid
        named = on_cpu if fits else tasks.get(("pid", one.pid)) if one.pid else None
        yield {"cpu": one.cpu, "pid": one.pid, **_who(named), "user_mode": one.note.user_mode}
    for (kind, cpu), task in tasks.items() if not seen else ():
        if kind == "cpu":
            yield {"cpu": cpu, "pid": sched.task_pid(task), **_who(task), "user_mode": None}


def _who(task: StructView | None) -> dict[str, Any]:
    """Return a task's name and, for a thread that is not the leader, its process."""
    unknown = {"comm": None, "process": None, "process_comm": None}
    if task is None:
        return unknown
    try:
        leader = task.follow("group_leader", "task_struct") if task.has("group_leader") else None
        thread = leader is not None and leader.address != task.address
        return {
            "comm": text(sched.task_comm(task)),
            "process": sched.task_tgid(task) if thread else None,
            "process_comm": text(sched.task_comm(leader)) if thread and leader is not None else None,
        }
    except MemoryFault:
        return unknown


def page_counts(session: Session) -> dict[str, int]:
    """Count the dump's page frames by state."""
    container = session.container
    counts: Counter[str] = Counter()
    for memory_range in container.memory_ranges():
        first, last = memory_range.start // container.page_size, -(-memory_range.end // container.page_size)
        for pfn in range(first, last, COUNT_AT_ONCE):
            states = container.page_states(np.arange(pfn, min(pfn + COUNT_AT_ONCE, last), dtype=np.uint64))
            for state, n in enumerate(np.bincount(states, minlength=len(PageState)).tolist()):
                counts[PageState(state).name.lower()] += n
    return {name: n for name, n in counts.items() if n}

"""What ``vmcore-tasks ps`` shows: one row per process, or per thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Flag, auto

from vmcore2core.arch.capabilities import Gate
from vmcore2core.errors import (
    CorruptStructure,
    KernelThread,
    LayoutUnknown,
    MemoryFault,
    NoUserMemory,
    Vmcore2coreError,
)
from vmcore2core.kernel import sched
from vmcore2core.kernel.message import NSEC_PER_SEC
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.timekeeping import clock
from vmcore2core.printable import text
from vmcore2core.process.identity import Identity
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.statm import ELF_PRARGSZ, Statm, statm
from vmcore2core.session import Session


class Part(Flag):
    """Data of a task to look up outside its ``task_struct``."""

    MEMORY = auto()
    IDS = auto()
    TIMES = auto()
    PLACES = auto()


EVERYTHING = Part.MEMORY | Part.IDS | Part.TIMES | Part.PLACES


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One process, or one thread with its own state, CPU, name and times; None: not known, or not looked up.

    Attributes:
        pid: the process's PID, as in ps(1): the thread group's.
        tid: the thread's ID; in a process's row, the leader's.
        ppid: the parent's, 0 for none.
        state: one of ps(1)'s state letters.
        cpu: where it ran last.
        threads: how many the process has.
        comm: printable text, as ``command`` and ``exe`` are.
        command: the arguments in memory, which the process may have changed; "..." stands for unknown parts.
        found_by: the kernel's list that holds it.
        uid: the effective user ID; ``ruid`` is the real one. Likewise ``gid`` and ``rgid``.
        started: seconds since 1970.
        cpu_seconds: time on a CPU; a process's includes all its threads, even ended ones.
        exe: the program's path.
        cgroups: paths of the control groups, the unified hierarchy's first.
        containers: IDs, the innermost first.
    """

    pid: int
    tid: int
    ppid: int | None
    state: str
    cpu: int | None
    kernel_thread: bool
    threads: int
    vsz_kib: int | None
    rss_kib: int | None
    comm: str
    command: str | None
    found_by: str
    pgid: int | None = None
    sid: int | None = None
    uid: int | None = None
    ruid: int | None = None
    gid: int | None = None
    rgid: int | None = None
    nice: int | None = None
    started: float | None = None
    cpu_seconds: float | None = None
    exe: str | None = None
    cgroups: tuple[str, ...] | None = None
    containers: tuple[str, ...] | None = None


def processes(session: Session, chosen: Sequence[Identity], parts: Part = Part.MEMORY) -> Iterator[TaskRow]:
    """Yield a row for each process.

    Args:
        session: the dump.
        chosen: the processes.
        parts: what is looked up.
    """
    return _rows(session, chosen, parts, lambda row, _group: [row])


def threads(
    session: Session, chosen: Sequence[Identity], parts: Part = Part.MEMORY, states: Sequence[str] = ()
) -> Iterator[TaskRow]:
    """Yield a row for each thread of processes.

    Args:
        session: the dump.
        chosen: the processes.
        parts: what to look up.
        states: letters of which a thread must have one; empty for any.
    """
    return _rows(session, chosen, parts, lambda row, group: _thread_rows(session, row, group, states, parts))


def _rows(
    session: Session,
    chosen: Sequence[Identity],
    parts: Part,
    of: Callable[[TaskRow, list[StructView]], Iterable[TaskRow]],
) -> Iterator[TaskRow]:
    """Call ``of`` with each process's row and threads; yield the rows that it returns."""
    for leader in (one.leader for one in chosen):
        try:
            group = list(session.processes.threads(leader))
            yield from of(_with_parts(session, leader, group, parts, _row(session, leader, len(group))), group)
        except (MemoryFault, LayoutUnknown) as error:
            session.processes.warn(f"the task at {leader.address:#x} cannot be read: {error}")


def _row(session: Session, leader: StructView, threads: int) -> TaskRow:
    return TaskRow(
        pid=sched.task_tgid(leader),
        tid=sched.task_pid(leader),
        ppid=sched.real_parent_tgid(leader),
        state=sched.task_state_char(leader),
        cpu=sched.task_cpu(leader),
        kernel_thread=sched.is_kthread(leader),
        threads=threads,
        vsz_kib=None,
        rss_kib=None,
        comm=text(sched.task_comm(leader)),
        command=None,
        found_by=session.processes.task_finder.found_by(leader).value,
    )


def _thread_rows(
    session: Session, row: TaskRow, group: list[StructView], states: Sequence[str], parts: Part
) -> Iterator[TaskRow]:
    """Yield the rows of a process's threads; if states are given, only of threads in one of them."""
    for task in group:
        state = sched.task_state_char(task)
        if states and state not in states:
            continue
        own = replace(
            row,
            tid=sched.task_pid(task),
            state=state,
            cpu=sched.task_cpu(task),
            comm=text(sched.task_comm(task)),
        )
        own = _with_ids(task, own) if Part.IDS in parts else own
        yield _with_times(session, [task], None, own) if Part.TIMES in parts else own


def _with_parts(session: Session, leader: StructView, group: list[StructView], parts: Part, row: TaskRow) -> TaskRow:
    row = _with_memory(session, leader, group, row) if Part.MEMORY in parts else row
    row = _with_ids(leader, row) if Part.IDS in parts else row
    row = _with_times(session, group or [leader], leader, row) if Part.TIMES in parts else row
    return _with_places(session, leader, row) if Part.PLACES in parts else row


def _with_memory(session: Session, leader: StructView, group: list[StructView], row: TaskRow) -> TaskRow:
    processes = session.processes
    try:
        told = statm(processes.mm_of(leader), group, processes.swap)
        told = told or _walked(processes.capture(leader, with_absent=False), session.kernel.arch.gate)
    except (KernelThread, NoUserMemory):
        return replace(row, vsz_kib=0, rss_kib=0)
    except Vmcore2coreError as error:
        processes.warn(f"the memory of {row.pid} ({row.comm}) cannot be walked: {error}")
        return row
    command = None if told.args is None else text(told.args.replace(b"\0", b" ").removesuffix(b" ")) or None
    command = f"{command} ..." if command is not None and told.cut else command
    return replace(row, vsz_kib=told.vsz_kib, rss_kib=told.rss_kib, command=command)


def _walked(captured: Captured, gate: Gate | None) -> Statm:
    """Return a process's sizes and command line from its mappings, page tables and stack."""
    own = [vma for vma in captured.snapshot.vmas if gate is None or vma.name != gate.name]
    vsz_kib = sum(vma.end - vma.start for vma in own) >> 10
    args = captured.snapshot.psinfo.pr_psargs
    return Statm(vsz_kib, captured.rss_kib(), args, cut=len(args or b"") >= ELF_PRARGSZ - 1)


def _with_ids(task: StructView, row: TaskRow) -> TaskRow:
    try:
        ids = sched.task_ids(task)
        cred = task.follow("real_cred", "cred") if task.has("real_cred") else None
        return replace(
            row,
            pgid=ids["pr_pgrp"],
            sid=ids["pr_sid"],
            ruid=ids["pr_uid"],
            rgid=ids["pr_gid"],
            uid=cred.find_uint("euid", 4) if cred else None,
            gid=cred.find_uint("egid", 4) if cred else None,
            nice=sched.task_nice(task),
        )
    except (MemoryFault, CorruptStructure):
        return row


def _with_times(session: Session, tasks: list[StructView], leader: StructView | None, row: TaskRow) -> TaskRow:
    """Add a task's start time and its time on a CPU.

    Args:
        session: the dump.
        tasks: a thread, or all threads of a process.
        leader: the process's leader; None for a thread.
        row: the row to fill in.
    """
    try:
        time = clock(session.kernel)
        began = sched.task_start_boottime(leader or tasks[0])
        spent = sched.cpu_time(tasks, None if leader is None else leader.follow("signal", "signal_struct"))
        return replace(
            row,
            started=None if time is None or began is None else round(time.boottime + began / NSEC_PER_SEC, 2),
            cpu_seconds=None if spent is None else round(spent / NSEC_PER_SEC, 2),
        )
    except MemoryFault:
        return row


def _with_places(session: Session, leader: StructView, row: TaskRow) -> TaskRow:
    try:
        who = Identity(session.processes, leader)
    except MemoryFault:
        return row
    cgroups = None if who.cgroups is None else tuple(text(path) for path in who.cgroups)
    return replace(row, exe=text(who.exe), cgroups=cgroups, containers=None if cgroups is None else who.containers)

"""The stacks of threads as ``vmcore-tasks bt`` shows them: the kernel's frames, the system call, the user's frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from vmcore2core.errors import KernelThread, MemoryFault, NoUserMemory, Vmcore2coreError
from vmcore2core.kernel import runqueue, sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.identity import Identity
from vmcore2core.process.kernelbt import KernelStacks
from vmcore2core.process.threads import ThreadRow, thread_rows
from vmcore2core.session import Session
from vmcore2core.unwind.frames import LIMIT
from vmcore2core.unwind.originals import Files
from vmcore2core.unwind.stacks import StackRow, backtraces


@dataclass(frozen=True)
class ProcessStacks:
    """The stacks of one process's threads, and sentences about damage in the process."""

    stacks: tuple[StackRow, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Which stacks of the chosen processes are wanted, and how.

    Attributes:
        states: letters of which a thread must have one; empty for any.
        tid: the only thread.
        idle: with the kernel's frames, include the CPUs' idle tasks.
        limit: most frames of a thread.
        files: finds files that supply what memory lacks.
        kernel: include the kernel's frames.
    """

    states: tuple[str, ...] = ()
    tid: int | None = None
    idle: bool = False
    limit: int = LIMIT
    files: Files | None = None
    kernel: bool = False


def stacks(session: Session, chosen: Sequence[Identity], wanted: Wanted) -> Iterator[ProcessStacks]:
    """Yield the stacks of processes.

    Args:
        session: the dump.
        chosen: the processes.
        wanted: which of their stacks.

    Raises:
        LayoutUnknown, LayoutInvalid: kernel stacks are wanted, but the layout lacks what unwinding needs.
        TaskError, MemoryFault, LayoutError: the only process has no stacks.
    """
    kernel_stacks = KernelStacks(session.kernel, session.processes.cpus) if wanted.kernel else None
    for process in chosen:
        try:
            yield _stacks_of(session, process.leader, wanted, kernel_stacks)
        except Vmcore2coreError as error:
            if len(chosen) == 1:
                raise
            yield ProcessStacks((), (str(error),))
    if kernel_stacks is not None and wanted.idle:
        yield ProcessStacks(tuple(_of_idle_cpus(session, wanted, kernel_stacks)))


def _of_idle_cpus(session: Session, wanted: Wanted, kernel_stacks: KernelStacks) -> Iterator[StackRow]:
    """Yield the idle tasks that CPUs were running: they are on no task list, and all have PID 0."""
    for task in runqueue.running(session.kernel):
        try:
            if sched.task_pid(task) == 0:
                row = next(thread_rows([(task, "an idle task has no user memory")]))
                stack = _kernel_only(task, row, KernelThread(0, f"{row.comm} is an idle task: it has no user memory"))
                if _is_wanted(row, wanted):
                    yield replace(stack, kernel=kernel_stacks.of(task, wanted.limit))
        except MemoryFault as error:
            session.processes.warn(f"the idle task at {task.address:#x} cannot be read: {error}")


def _stacks_of(
    session: Session, leader: StructView, wanted: Wanted, kernel_stacks: KernelStacks | None
) -> ProcessStacks:
    tasks = {sched.task_pid(task): task for task in session.processes.threads(leader)}
    rows = [row for row in _thread_rows(session, leader, tasks.values(), kernel_stacks) if _is_wanted(row, wanted)]
    if not rows:
        return ProcessStacks(())
    try:
        captured = session.processes.capture(leader, with_absent=False)
        found = list(backtraces(captured, session.kernel.arch, rows, wanted.limit, wanted.files))
        warnings = captured.snapshot.warnings
    except Vmcore2coreError as error:
        if kernel_stacks is None:
            raise
        found = [_kernel_only(leader, row, error) for row in rows]
        warnings = ()
    if kernel_stacks is not None:
        pairs = [kernel_stacks.with_call(tasks[row.tid], row.registers, wanted.limit) for row in rows]
        found = [
            replace(stack, kernel=kernel, system_call=call) for stack, (kernel, call) in zip(found, pairs, strict=True)
        ]
    return ProcessStacks(tuple(found), warnings)


def _is_wanted(row: ThreadRow, wanted: Wanted) -> bool:
    return (wanted.tid is None or row.tid == wanted.tid) and (not wanted.states or row.state in wanted.states)


def _thread_rows(
    session: Session, leader: StructView, tasks: Iterable[StructView], kernel_stacks: KernelStacks | None
) -> Iterator[ThreadRow]:
    """Yield the threads of a process; without user memory, only if kernel stacks are wanted."""
    try:
        yield from thread_rows(session.processes.thread_registers(leader))
    except (KernelThread, NoUserMemory):
        if kernel_stacks is None:
            raise
        yield from thread_rows((task, "it has no user memory") for task in tasks)


def _kernel_only(leader: StructView, row: ThreadRow, error: Vmcore2coreError) -> StackRow:
    """Return a thread without user frames; it is complete if it has no user memory."""
    return StackRow(
        pid=sched.task_tgid(leader),
        tid=row.tid,
        comm=row.comm,
        state=row.state,
        source=row.source,
        frames=(),
        complete=isinstance(error, KernelThread | NoUserMemory),
        end=str(error),
    )

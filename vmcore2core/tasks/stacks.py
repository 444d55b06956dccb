"""The stacks of threads as ``vmcore-tasks bt`` shows them: the kernel's frames, the system call, the user's frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmcore2core.errors import KernelThread, MemoryFault, NoUserMemory, Vmcore2coreError
from vmcore2core.kernel import runqueue, sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.binaries import DEBUG_TREE, binaries
from vmcore2core.process.copies import Copies
from vmcore2core.process.debuginfod import debuginfod
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
class StackOptions:
    """Which stacks of processes are wanted, and where to look for files that supply what memory lacks.

    Attributes:
        states: letters of which a thread must have one; empty for any.
        tid: the only thread.
        idle: with the kernel's frames, include the CPUs' idle tasks.
        limit: most frames of a thread.
        kernel: include the kernel's frames.
        sysroots: folders with the machine's files at their paths.
        debug_directory: a folder laid out like /usr/lib/debug, searched if there is a sysroot or a server.
        debuginfod: ask the servers in $DEBUGINFOD_URLS.
    """

    states: tuple[str, ...] = ()
    tid: int | None = None
    idle: bool = False
    limit: int = LIMIT
    kernel: bool = False
    sysroots: tuple[Path, ...] = ()
    debug_directory: Path = DEBUG_TREE
    debuginfod: bool = False


class Stacks:
    """The stacks of processes, which are followed as they are iterated over.

    Args:
        session: the dump.
        chosen: the processes.
        options: which of their stacks.

    Raises:
        UsageError: a sysroot is not a directory, or servers are wanted and none is set.
    """

    def __init__(self, session: Session, chosen: Sequence[Identity], options: StackOptions) -> None:
        self._session, self._chosen, self._options = session, chosen, options
        self._kernel: KernelStacks | None = None
        servers = debuginfod() if options.debuginfod else None
        found = binaries(session.container.paths[0], options.sysroots, (options.debug_directory,), servers)
        self._files = Files(found, Copies(session.processes))

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about files that were used or rejected so far, and about missing tools or settings."""
        return tuple(self._files.notices)

    def __iter__(self) -> Iterator[ProcessStacks]:
        """Yield the stacks of each process.

        Raises:
            LayoutUnknown, LayoutInvalid: kernel stacks are wanted, but the layout lacks what unwinding needs.
            TaskError, MemoryFault, LayoutError: the only process has no stacks.
        """
        if self._options.kernel:
            self._kernel = KernelStacks(self._session.kernel, self._session.processes.cpus)
        for process in self._chosen:
            try:
                yield self._of(process.leader)
            except Vmcore2coreError as error:
                if len(self._chosen) == 1:
                    raise
                yield ProcessStacks((), (str(error),))
        if self._kernel is not None and self._options.idle:
            yield ProcessStacks(tuple(self._of_idle_cpus(self._kernel)))

    def _of_idle_cpus(self, kernel: KernelStacks) -> Iterator[StackRow]:
        """Yield the idle tasks that CPUs were running: they are on no task list, and all have PID 0."""
        for task in runqueue.running(self._session.kernel):
            try:
                if sched.task_pid(task) == 0:
                    row = next(thread_rows([(task, "an idle task has no user memory")]))
                    why = KernelThread(0, f"{row.comm} is an idle task: it has no user memory")
                    if self._is_wanted(row):
                        yield replace(_kernel_only(task, row, why), kernel=kernel.of(task, self._options.limit))
            except MemoryFault as error:
                self._session.processes.warn(f"the idle task at {task.address:#x} cannot be read: {error}")

    def _of(self, leader: StructView) -> ProcessStacks:
        session, limit = self._session, self._options.limit
        tasks = {sched.task_pid(task): task for task in session.processes.threads(leader)}
        rows = [row for row in self._thread_rows(leader, tasks.values()) if self._is_wanted(row)]
        if not rows:
            return ProcessStacks(())
        try:
            captured = session.processes.capture(leader, with_absent=False)
            found = list(backtraces(captured, session.kernel.arch, rows, limit, self._files))
            warnings = captured.snapshot.warnings
        except Vmcore2coreError as error:
            if self._kernel is None:
                raise
            found = [_kernel_only(leader, row, error) for row in rows]
            warnings = ()
        if self._kernel is not None:
            pairs = [self._kernel.with_call(tasks[row.tid], row.registers, limit) for row in rows]
            found = [
                replace(stack, kernel=kernel, system_call=call)
                for stack, (kernel, call) in zip(found, pairs, strict=True)
            ]
        return ProcessStacks(tuple(found), warnings)

    def _is_wanted(self, row: ThreadRow) -> bool:
        tid, states = self._options.tid, self._options.states
        return (tid is None or row.tid == tid) and (not states or row.state in states)

    def _thread_rows(self, leader: StructView, tasks: Iterable[StructView]) -> Iterator[ThreadRow]:
        """Yield the threads of a process; without user memory, only if kernel stacks are wanted."""
        try:
            yield from thread_rows(self._session.processes.thread_registers(leader))
        except (KernelThread, NoUserMemory):
            if self._kernel is None:
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

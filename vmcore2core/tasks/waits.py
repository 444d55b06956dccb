"""Why threads sleep, and which thread waits for which, as ``vmcore-tasks waits`` shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vmcore2core.choose import Choice, choose
from vmcore2core.errors import KernelThread, NoUserMemory, Vmcore2coreError
from vmcore2core.kernel import sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.deadlock import cycles
from vmcore2core.process.kernelbt import KernelStacks
from vmcore2core.process.sleepers import AWAKE, Sleepers
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.threads import ThreadRow, thread_rows
from vmcore2core.process.waits import Wait
from vmcore2core.session import Session
from vmcore2core.unwind.process import UserSpace


@dataclass(frozen=True, slots=True)
class WaitRow:
    """A sleeping thread; None means "not known".

    Attributes:
        since: seconds since it last ran, with nine decimals.
        system_call: its system call, with the arguments.
        wait: what it waits for; None outside of system calls.
    """

    pid: int
    tid: int
    comm: str
    state: str
    since: str | None
    system_call: str | None
    wait: Wait | None


@dataclass(frozen=True)
class WaitReport:
    """Why threads sleep, and the cycles of threads that wait for each other.

    Attributes:
        rows: the sleeping threads of the selected processes, and sleeping threads whose own name matches.
        deadlocks: cycles of TIDs in the whole dump: each waits for the next, and the last for the first.
        names: the comm of each sleeping thread in the whole dump, by its TID.
        warnings: sentences about processes that the report lacks.
        errors: why processes or threads are not found.
    """

    rows: tuple[WaitRow, ...]
    deadlocks: tuple[tuple[int, ...], ...]
    names: Mapping[int, str]
    warnings: tuple[str, ...] = ()
    errors: tuple[Vmcore2coreError, ...] = ()


def waits(session: Session, choice: Choice) -> WaitReport:
    """Return why the threads of user processes sleep, and which waits for which.

    Args:
        session: the dump.
        choice: the selection, by PID and name.

    Raises:
        LayoutUnknown: the layout of open files is not known.
    """
    found = _Found(session)
    rows: list[WaitRow] = []
    warnings: list[str] = []
    for leader in session.processes.leaders():
        try:
            rows += found.of(leader)
        except (KernelThread, NoUserMemory):
            continue
        except Vmcore2coreError as error:
            warnings.append(str(error))
    releasers = {row.tid: row.wait.holders for row in rows if row.wait is not None and row.wait.all_known}
    shown, errors = _selected(session, choice, rows)
    return WaitReport(
        rows=tuple(shown),
        deadlocks=tuple(map(tuple, cycles(releasers))),
        names={row.tid: row.comm for row in rows},
        warnings=tuple(warnings),
        errors=tuple(errors),
    )


def _selected(
    session: Session, choice: Choice, rows: Sequence[WaitRow]
) -> tuple[list[WaitRow], list[Vmcore2coreError]]:
    """Return the threads of the selected processes, and threads whose own name matches; and errors."""
    named, errors = choose(session.processes, Choice(pid=choice.pid), session.processes.leaders)
    whole = {one.pid: choice.takes(one) for one in named}
    shown = [row for row in rows if row.pid in whole and (whole[row.pid] or choice.names(row.comm))]
    if not shown:
        _, errors = choose(session.processes, choice, session.processes.leaders)
    return shown, [error for _, error in errors]


class _Found:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._stacks = KernelStacks(session.kernel, session.processes.cpus, needed=False)
        self._sleepers = Sleepers(session.processes)

    def of(self, leader: StructView) -> Iterator[WaitRow]:
        """Yield the sleeping threads of a process."""
        processes = self._session.processes
        tasks = {sched.task_pid(task): task for task in processes.threads(leader)}
        rows = [row for row in thread_rows(processes.thread_registers(leader)) if row.state not in AWAKE]
        captured = processes.capture(leader, with_absent=False) if rows else None
        space = None if captured is None else UserSpace(captured.snapshot, captured.memory)
        for row in rows:
            if captured is not None and space is not None:
                yield self._row(leader, tasks[row.tid], row, captured, space)

    def _row(
        self, leader: StructView, task: StructView, row: ThreadRow, captured: Captured, space: UserSpace
    ) -> WaitRow:
        stack, call = self._stacks.with_call(task, row.registers)
        sleep = self._sleepers.of((task, leader), captured, space.named, stack, call)
        return WaitRow(
            pid=sched.task_tgid(leader),
            tid=row.tid,
            comm=row.comm,
            state=row.state,
            since=sleep.since,
            system_call=None if call is None else str(call),
            wait=sleep.wait,
        )

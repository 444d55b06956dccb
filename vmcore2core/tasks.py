"""What ``vmcore-tasks`` shows of processes, as plain records: processes, threads, mappings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vmcore2core.errors import (
    MemoryFault,
    UsageError,
    Vmcore2coreError,
)
from vmcore2core.kernel import mm, sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.region import UserPageState
from vmcore2core.printable import text
from vmcore2core.process.capture import Captured
from vmcore2core.process.threads import ThreadRow, thread_rows
from vmcore2core.session import Session
from vmcore2core.unwind.frames import LIMIT
from vmcore2core.unwind.originals import Files
from vmcore2core.unwind.stacks import StackRow, backtraces


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks are wanted; an empty part does not restrict."""

    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


def threads(session: Session, leader: StructView) -> Iterator[ThreadRow]:
    """Yield the threads of a process."""
    yield from thread_rows(session.processes.thread_registers(leader))


@dataclass(frozen=True)
class ProcessStacks:
    """The stacks of one process's threads, and sentences about what is broken in it."""

    stacks: tuple[StackRow, ...]
    warnings: tuple[str, ...] = ()


def stacks(
    session: Session,
    wanted: Selection,
    *,
    tid: int | None = None,
    every: bool = False,
    limit: int = LIMIT,
    files: Files | None = None,
) -> Iterator[ProcessStacks]:
    """Yield the user stacks of processes, in the order of the task list.

    Args:
        session: the dump.
        wanted: which processes, by PID (of any thread) and name; and which of their threads, by state.
        tid: the only thread.
        every: all processes that have user memory.
        limit: most frames of a thread.
        files: where files are looked for that tell what memory does not.

    Raises:
        UsageError: nothing says which.
        TaskNotFound, TaskError, MemoryFault, LayoutError: the only process that was asked for has no stacks.
    """
    if tid is None and not every and not (wanted.pids or wanted.comms or wanted.states):
        raise UsageError("say which process: --pid PID, --tid TID, --comm PATTERN, --state LETTER or --all")
    numbers = (tid,) if tid is not None else wanted.pids
    if numbers:
        leaders = {leader.address: leader for leader in map(session.processes.find, numbers)}
        chosen = list(leaders.values())
    else:
        chosen = list(session.processes.with_mm())
    named = [leader for leader in chosen if _is_named(session, leader, wanted.comms)]
    for leader in named:
        try:
            yield _stacks_of(session, leader, wanted.states, tid, limit, files)
        except Vmcore2coreError as error:
            if len(named) == 1:
                raise
            yield ProcessStacks((), (str(error),))


def _is_named(session: Session, leader: StructView, patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return True
    try:
        comm = text(sched.task_comm(leader))
    except MemoryFault as error:
        session.processes.warn(f"the task at {leader.address:#x} cannot be read: {error}")
        return False
    return any(fnmatchcase(comm, pattern) for pattern in patterns)


def _stacks_of(
    session: Session,
    leader: StructView,
    states: tuple[str, ...],
    tid: int | None,
    limit: int,
    files: Files | None,
) -> ProcessStacks:
    rows = [
        row
        for row in threads(session, leader)
        if (tid is None or row.tid == tid) and (not states or row.state in states)
    ]
    if not rows:
        return ProcessStacks(())
    captured = session.processes.capture(leader, with_absent=False)
    found = tuple(backtraces(captured, session.kernel.arch, rows, limit, files))
    return ProcessStacks(found, captured.snapshot.warnings)


@dataclass(frozen=True, slots=True)
class MapRow:
    """One line of ``maps``; ``pages`` counts the mapping's pages by what they are."""

    start: int
    end: int
    permissions: str
    offset: int | None
    device: int | None
    inode: int | None
    name: str
    pages: dict[str, int]

    def line(self, word: int) -> str:
        """Return the line as fs/proc/task_mmu.c: show_map_vma() writes it; what is not known reads as zero.

        Args:
            word: bytes of a pointer of the kernel.
        """
        head = (
            f"{self.start:08x}-{self.end:08x} {self.permissions} {self.offset or 0:08x} "
            f"{self.device_name()} {self.inode or 0} "
        )
        return head.ljust(25 + 6 * word) + self.name if self.name else head

    def device_name(self) -> str:
        """Return the file's device as maps has it: MAJOR:MINOR, hexadecimal."""
        device = self.device or 0
        return f"{device >> 20:02x}:{device & 0xFFFFF:02x}"


def maps(session: Session, leader: StructView, *, pages: bool = False) -> tuple[list[MapRow], Captured]:
    """Return the mappings of a process as /proc/PID/maps lists them.

    Args:
        session: the dump.
        leader: the process.
        pages: count what each mapping's pages are.
    """
    captured = session.processes.capture(leader, with_absent=False)
    regions = {region.start: region for region in captured.memory.regions}
    rows = []
    for vma in captured.snapshot.vmas:
        counts: Counter[UserPageState] = Counter()
        if pages and vma.start in regions:
            counts = captured.memory.survey(regions[vma.start]).counts
        rows.append(
            MapRow(
                start=vma.start,
                end=vma.end,
                permissions=mm.vma_permissions(vma.vm_flags),
                offset=None if vma.pgoff is None else vma.pgoff * captured.snapshot.page_size,
                device=vma.device,
                inode=vma.inode,
                name=_map_name(vma.proc_path) if vma.proc_path is not None else vma.name,
                pages={state.name.lower(): n for state, n in counts.items() if n},
            )
        )
    return rows, captured


def _map_name(path: bytes) -> str:
    """Return a path as maps prints it: seq_path() escapes newlines."""
    return text(path.replace(b"\n", b"\\012")) or ""

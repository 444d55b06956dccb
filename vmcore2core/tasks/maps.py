"""What ``vmcore-tasks`` shows of processes, as plain records: processes, threads, mappings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from vmcore2core.choose import pattern_hint
from vmcore2core.errors import MemoryFault
from vmcore2core.kernel import mm, sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.region import UserPageState
from vmcore2core.printable import text
from vmcore2core.process.capture import Captured
from vmcore2core.process.model import Vma
from vmcore2core.process.threads import ThreadRow, thread_rows
from vmcore2core.session import Session


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks are wanted; an empty part does not restrict."""

    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    def fits_nothing(self) -> str:
        """Return the sentence for when nothing is as is wanted."""
        asked = [f"--pid {pid}" for pid in self.pids] + [f"--comm {comm}" for comm in self.comms]
        asked += [f"--state {''.join(self.states)}"] if self.states else []
        return f"nothing fits {' '.join(asked)}{pattern_hint('comm', self.comms)}"


def chosen_leaders(
    session: Session, pids: Sequence[int], comms: Sequence[str], every: Callable[[], Iterable[StructView]]
) -> Iterator[StructView]:
    """Yield the leader of each process that is wanted, once.

    Args:
        session: the dump.
        pids: of the processes, or of any of their threads; empty for all.
        comms: patterns, one of which the name matches; empty for any.
        every: yields all that there are, in the order of the task list.

    Raises:
        TaskNotFound: no task has one of the PIDs.
    """
    found = {leader.address: leader for leader in map(session.processes.find, pids)}.values() if pids else every()
    for leader in found:
        try:
            comm = text(sched.task_comm(leader)) if comms else ""
        except MemoryFault as error:
            session.processes.warn(f"the task at {leader.address:#x} cannot be read: {error}")
            continue
        if not comms or any(fnmatchcase(comm, pattern) for pattern in comms):
            yield leader


def threads(session: Session, leader: StructView) -> Iterator[ThreadRow]:
    """Yield the threads of a process."""
    yield from thread_rows(session.processes.thread_registers(leader))


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
        rows.append(map_row(vma, captured.snapshot.page_size, counts))
    return rows, captured


def map_row(vma: Vma, page_size: int, counts: Mapping[UserPageState, int] = MappingProxyType({})) -> MapRow:
    """Return the line of a mapping.

    Args:
        vma: the mapping.
        page_size: bytes of a page.
        counts: its pages by what they are.
    """
    return MapRow(
        start=vma.start,
        end=vma.end,
        permissions=mm.vma_permissions(vma.vm_flags),
        offset=None if vma.pgoff is None else vma.pgoff * page_size,
        device=vma.device,
        inode=vma.inode,
        name=_map_name(vma.proc_path) if vma.proc_path is not None else vma.name,
        pages={state.name.lower(): n for state, n in counts.items() if n},
    )


def _map_name(path: bytes) -> str:
    """Return a path as maps prints it: seq_path() escapes newlines."""
    return text(path.replace(b"\n", b"\\012")) or ""

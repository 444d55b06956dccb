"""The frames of each thread of a process, from its general registers and its other register notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.elf.notes import Note
from vmcore2core.errors import TaskError
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.threads import ThreadRow
from vmcore2core.unwind.frames import LIMIT, Backtrace
from vmcore2core.unwind.originals import Files
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.unwinder import Unwinder


def spec_of(snapshot: ProcessSnapshot, arch: Arch) -> UnwindSpec | None:
    """Return how a process's stacks unwind, or None if that is not known."""
    return arch.unwind.spec(CoreMachine(snapshot.e_machine, snapshot.elf_class, (), e_flags=snapshot.e_flags))


class ThreadUnwinder:
    """Unwinds the threads of one process.

    Args:
        spec: how its stacks unwind.
        space: its memory and images.
        arch: of the kernel.
    """

    def __init__(self, spec: UnwindSpec, space: UserSpace, arch: Arch) -> None:
        self._unwinder, self._arch = Unwinder(spec, space), arch
        self._notes = {
            thread.tid: [Note(note.note_name, note.note_type, note.data) for note in thread.regsets]
            for thread in space.snapshot.threads
        }

    def backtrace(self, tid: int, registers: Mapping[str, int], limit: int = LIMIT) -> Backtrace:
        """Return the frames of a thread.

        Args:
            tid: the thread's TID, to find its other register notes.
            registers: its general registers, by native name.
            limit: maximum number of frames.
        """
        more = self._arch.unwind.registers(self._notes.get(tid, ()))
        return self._unwinder.backtrace({**more, **registers}, limit)


@dataclass(frozen=True)
class Unwound:
    """The frames of threads of one process.

    Attributes:
        spec: how its stacks unwind.
        space: its memory and images.
        threads: each with its frames.
    """

    spec: UnwindSpec
    space: UserSpace
    threads: tuple[tuple[ThreadRow, Backtrace], ...]


def unwound(
    captured: Captured, arch: Arch, rows: Iterable[ThreadRow], files: Files | None = None, limit: int = LIMIT
) -> Unwound:
    """Return the frames of threads of one process.

    Args:
        captured: the process.
        arch: of the kernel.
        rows: the threads.
        files: where to search for files that supply what memory lacks; None for nowhere.
        limit: maximum number of frames per thread.

    Raises:
        TaskError: unwinding of its architecture is not supported.
    """
    snapshot = captured.snapshot
    spec = spec_of(snapshot, arch)
    if spec is None:
        raise TaskError(snapshot.tgid, f"how user stacks of {arch.name} unwind is not known yet")
    space = UserSpace(snapshot, _from_dump(captured.memory), files)
    return Unwound(spec, space, tuple(_each(ThreadUnwinder(spec, space, arch), rows, limit)))


def _each(unwinder: ThreadUnwinder, rows: Iterable[ThreadRow], limit: int) -> Iterator[tuple[ThreadRow, Backtrace]]:
    for row in rows:
        if row.registers is None:
            yield row, Backtrace((), complete=False, end=f"no registers: {row.source}")
        else:
            yield row, unwinder.backtrace(row.tid, row.registers, limit)


def _from_dump(memory: UserMemory) -> UserMemory:
    """Return a process's memory without pages recovered from files, so that each frame can say what came from files."""
    if all(region.original is None for region in memory.regions):
        return memory
    regions = tuple(region._replace(original=None) for region in memory.regions)
    found = UserMemory(memory.memory, memory.spec, memory.root, regions, memory.swap)
    found.damaged |= memory.damaged
    return found

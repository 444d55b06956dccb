"""A process of an open dump, as the public interface has it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import MemoryFault, UsageError
from vmcore2core.interfaces import Compression
from vmcore2core.kernel import sched
from vmcore2core.memory.user import READ_MAX
from vmcore2core.overrides import override
from vmcore2core.printable import text
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.identity import Identity
from vmcore2core.process.model import AbsentReason, AbsentRun, Vma
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.threads import ThreadRow, thread_rows
from vmcore2core.session import CoreResult, Session, absent_pages, core_name

if TYPE_CHECKING:
    from vmcore2core.tasks.maps import MapRow
    from vmcore2core.unwind.stacks import StackRow

PathLike = str | os.PathLike[str]
Thread = ThreadRow
"""A thread, with its user registers and where they come from."""


class Process:
    """A process of an open dump. Each property is looked up once, when it is first used; None means "not known".

    Attributes:
        identity: the package's own record of the process, which may change with any release.
    """

    def __init__(self, session: Session, identity: Identity) -> None:
        self._session, self.identity, self._leader = session, identity, identity.leader

    @override
    def __repr__(self) -> str:
        return f"<Process {self.pid} ({self.comm})>"

    @property
    def pid(self) -> int:
        """The PID in the initial PID namespace."""
        return self.identity.pid

    @property
    def comm(self) -> str:
        """The kernel's name for the process, at most 15 characters; unprintable characters are escaped."""
        return text(self.identity.comm)

    @property
    def state(self) -> str:
        """The state as one of ps(1)'s letters."""
        return sched.task_state_char(self._leader)

    @property
    def exe(self) -> str | None:
        """The program's path; unprintable characters are escaped."""
        return text(self.identity.exe)

    @property
    def uid(self) -> int | None:
        """The real user ID in the initial user namespace."""
        return self.identity.uid

    @property
    def containers(self) -> tuple[str, ...]:
        """IDs of the containers that it is in, the innermost first."""
        return self.identity.containers

    @cached_property
    def _captured(self) -> Captured:
        return self._session.processes.capture(self._leader)

    @cached_property
    def threads(self) -> tuple[Thread, ...]:
        """The threads with their user registers, and the registers' source.

        ``registers`` is None if they are not known; ``source`` says why.
        """
        return tuple(thread_rows(self._session.processes.thread_registers(self._leader)))

    @property
    def mappings(self) -> tuple[Vma, ...]:
        """The mappings, ascending; ``Vma.absent`` has the pages whose bytes are not known, with reasons."""
        return self._captured.snapshot.vmas

    @property
    def auxv(self) -> bytes | None:
        """The auxiliary vector, AT_NULL included."""
        return self._captured.snapshot.auxv

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about damage in this process."""
        return self._captured.snapshot.warnings

    @property
    def absent(self) -> Iterator[AbsentRun]:
        """Runs of pages that the process had but whose bytes are not known, ascending, with reasons."""
        return (run for vma in self.mappings for run in vma.absent)

    @property
    def absent_pages(self) -> Mapping[AbsentReason, int]:
        """The number of pages whose bytes are not known, by reason."""
        return MappingProxyType(absent_pages(self._captured.snapshot))

    def maps(self, *, pages: bool = False) -> list[MapRow]:
        """Return the lines of /proc/PID/maps.

        Args:
            pages: count each mapping's pages by state.
        """
        from vmcore2core.tasks.maps import maps

        return maps(self._session, self._leader, pages=pages)

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of the process's memory, at most 16 MiB.

        Raises:
            MemoryFault: a byte is not known; the message says why.
            UsageError: the size is out of range.
        """
        if not 0 <= size <= READ_MAX:
            raise UsageError(f"{size:#x} bytes, expected at most {READ_MAX:#x}")
        found = self._captured.memory.read(address, size)
        if found is None:
            raise self._fault(address, address + size)
        return found

    def _fault(self, address: int, end: int) -> MemoryFault:
        """Return why some bytes of a range are not known."""
        for vma in self.mappings:
            if address < vma.start:
                break
            for run in vma.absent:
                if run.start < end and address < run.end:
                    return MemoryFault(max(run.start, address), run.reason.value)
            if address < vma.end:
                address = min(vma.end, end)
        return MemoryFault(address, "the process has nothing there")

    def stacks(self, sysroots: Sequence[PathLike] = ()) -> tuple[StackRow, ...]:
        """Return the frames of each thread; ``Dump.stacks`` has more ways to find them.

        Args:
            sysroots: folders with the machine's files at their paths, used where memory lacks them.
        """
        from vmcore2core.tasks.stacks import StackOptions, Stacks

        options = StackOptions(sysroots=tuple(Path(folder) for folder in sysroots))
        return tuple(stack for one in Stacks(self._session, [self.identity], options) for stack in one.stacks)

    def write_core(
        self,
        path: PathLike,
        *,
        filter_bits: int | None = None,
        compression: Compression | None = None,
        force: bool = False,
    ) -> CoreResult:
        """Write the process's core; return what it holds and what is missing.

        Args:
            path: where the core goes.
            filter_bits: which memory to dump, as in core(5); None for the process's own coredump_filter.
            compression: how to compress the core; None to write it uncompressed.
            force: replace an existing file.

        Raises:
            OutputError: the core cannot be written.
            TaskError, MemoryFault, LayoutError: the process cannot be converted.
        """
        dump_filter = None if filter_bits is None else DumpFilter(filter_bits)
        options = CoreOptions(dump_filter=dump_filter, compression=compression, force=force)
        return self._session.extract(self._leader, Path(path), options)

    def write_stacks(self, path: PathLike | None = None, *, tid: int | None = None, force: bool = False) -> CoreResult:
        """Write a small core that holds only what backtraces need: registers, stacks, and headers of mapped files.

        Args:
            path: where the core goes; None for core.COMM.PID, or core.COMM.TID, in the working directory.
            tid: the only thread to write; None for all.
            force: replace an existing file.

        Raises:
            OutputError: the core cannot be written.
            TaskError, MemoryFault, LayoutError: the process cannot be converted.
        """
        from vmcore2core.tasks.minicore import mini_core

        target = Path(core_name(self._leader, tid) if path is None else path)
        return mini_core(self._session, self._leader, target, tid=tid, force=force)

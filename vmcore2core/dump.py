"""The public interface of vmcore2core: open a dump, look at its processes, write their cores.

``vmcore2core/docs/api.md`` has an example of each use. The names in this module, and the fields of the records that
they return, follow semantic versioning; the other modules may change with any release.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Self

from vmcore2core.containers.remote import located
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import MemoryFault, UsageError
from vmcore2core.interfaces import Compression
from vmcore2core.kernel import sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.user import READ_MAX
from vmcore2core.overrides import override
from vmcore2core.printable import text
from vmcore2core.process.binaries import Binaries
from vmcore2core.process.copies import Copies
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.model import AbsentReason, AbsentRun, Vma
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.sysroot import Sysroot
from vmcore2core.process.threads import ThreadRow, thread_rows
from vmcore2core.session import CoreResult, OpenOptions, Session, absent_pages
from vmcore2core.unwind.originals import Files
from vmcore2core.unwind.stacks import StackRow, backtraces

PathLike = str | os.PathLike[str]
Thread = ThreadRow
"""A thread, with its user registers and where they come from."""


def open_dump(
    *paths: PathLike,
    vmlinux: PathLike | None = None,
    vmcoreinfo: PathLike | None = None,
    memory_map: str | None = None,
    swap: Sequence[str] = (),
    sysroots: Sequence[PathLike] = (),
    scan: bool = False,
    remember: bool = False,
    zero_excluded: bool = False,
) -> Dump:
    """Open a dump; the options are the same as the command ``vmcore2core`` has.

    Args:
        paths: the dump's file or files, or one URL.
        vmlinux: the kernel's own ELF file with symbols, used where the dump lacks layout information.
        vmcoreinfo: VMCOREINFO text whose keys take precedence over the dump's.
        memory_map: where physical memory lies in a dump without a header: "START:SIZE@OFFSET,...", "raw", or a file.
        swap: the machine's swap files and partitions: "FILE" or "NUMBER=FILE".
        sysroots: folders with the machine's files, for pages that are not in memory.
        scan: search all memory for tasks as well.
        remember: cache the kernel's layout for the user, and use what is cached.
        zero_excluded: read pages that were left out of an ELF dump as zeros.

    Raises:
        DumpError, LayoutError: the dump cannot be used.
        UsageError: the options make no sense together, or with this dump.
    """
    options = OpenOptions(
        vmlinux=None if vmlinux is None else Path(vmlinux),
        vmcoreinfo=None if vmcoreinfo is None else Path(vmcoreinfo),
        swap=tuple(swap),
        memory_map=memory_map,
        sysroots=tuple(Path(folder) for folder in sysroots),
        remember=remember,
        scan=scan,
        zero_excluded=zero_excluded,
    )
    return Dump(Session([located(os.fspath(path)) for path in paths], options))


class Dump:
    """An open dump; a context manager. ``open_dump`` makes it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the dump's files; its processes can no longer be read."""
        self._session.__exit__()

    @property
    def release(self) -> str:
        """The kernel's release, as ``uname -r`` prints it."""
        return self._session.boot.utsname.release

    @property
    def machine(self) -> str:
        """The kernel's architecture, as ``uname -m`` prints it."""
        return self._session.kernel.arch.name

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about damage found so far; if there are any, all results from the dump may be incomplete."""
        return tuple(self._session.warnings)

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about things worth knowing that leave the results complete."""
        return tuple(self._session.notices)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Layout items looked up so far, such as "OFFSET(task_struct.mm)", each with the source that answered."""
        return MappingProxyType(self._session.boot.layout.provenance())

    def processes(self) -> Iterator[Process]:
        """Yield each process that has user memory, in the order of the kernel's list."""
        for leader in self._session.processes.with_mm():
            yield Process(self._session, leader)

    def process(self, pid: int) -> Process:
        """Return the process with a PID, or with a thread of that TID.

        Raises:
            TaskNotFound: no task has this PID.
            KernelThread, NoUserMemory: it has no user memory.
        """
        leader = self._session.processes.find(pid)
        self._session.processes.mm_of(leader)
        return Process(self._session, leader)


class Process:
    """A process of an open dump. Each property is looked up once, when it is first used."""

    def __init__(self, session: Session, leader: StructView) -> None:
        self._session, self._leader = session, leader

    @override
    def __repr__(self) -> str:
        return f"<Process {self.pid} ({self.comm})>"

    @property
    def pid(self) -> int:
        """The PID in the initial PID namespace."""
        return sched.task_tgid(self._leader)

    @property
    def comm(self) -> str:
        """The kernel's name for the process, at most 15 characters; unprintable characters are escaped."""
        return text(sched.task_comm(self._leader))

    @property
    def state(self) -> str:
        """The state as one of ps(1)'s letters."""
        return sched.task_state_char(self._leader)

    @cached_property
    def _captured(self) -> Captured:
        return self._session.processes.capture(self._leader)

    @cached_property
    def threads(self) -> tuple[Thread, ...]:
        """The threads with their user registers, and the registers' source.

        ``registers`` is None where they are not known; ``source`` then says why.
        """
        return tuple(thread_rows(self._session.processes.thread_registers(self._leader)))

    @property
    def mappings(self) -> tuple[Vma, ...]:
        """The mappings, ascending; ``Vma.absent`` has the pages whose bytes are not known, with reasons."""
        return self._captured.snapshot.vmas

    @property
    def auxv(self) -> bytes | None:
        """The auxiliary vector, AT_NULL included, or None where it is not known."""
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
        """Return the frames of each thread.

        Args:
            sysroots: folders with the machine's files at their paths, used where memory lacks them.
        """
        found = Binaries(tuple(Sysroot(Path(folder)) for folder in sysroots))
        files = Files(found, Copies(self._session.processes))
        return tuple(backtraces(self._captured, self._session.kernel.arch, self.threads, files=files))

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

"""The public interface of vmcore2core: open a dump, look at its processes, write their cores.

``vmcore2core/docs/api.md`` has an example of each use. The names that the package itself offers, and the fields of the
records that they return, follow semantic versioning; the modules may change with any release.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from vmcore2core.choose import Choice, choose
from vmcore2core.containers.cache import ProgressBar
from vmcore2core.containers.remote import located
from vmcore2core.corefile.writer import Progress
from vmcore2core.dumped_process import PathLike, Process
from vmcore2core.errors import Vmcore2coreError
from vmcore2core.printable import amount
from vmcore2core.process.identity import Identity
from vmcore2core.report import CoreReport, ErrorEntry, RunReport, core_report, excluded_sentence, left_out, summary
from vmcore2core.room import free_bytes
from vmcore2core.run.options import RunOptions
from vmcore2core.session import OpenOptions, Session

if TYPE_CHECKING:
    from vmcore2core.compare_with_dump import Comparison
    from vmcore2core.corefile.inspect import CoreFile
    from vmcore2core.process.openfiles import OpenFiles
    from vmcore2core.run.space import PlannedCore
    from vmcore2core.session import CoreResult
    from vmcore2core.tasks.messages import KernelLog
    from vmcore2core.tasks.ps import Part, TaskRow
    from vmcore2core.tasks.stacks import StackOptions, Stacks
    from vmcore2core.tasks.waits import WaitReport

Say = Callable[[str], None]
Bars = Callable[[int], AbstractContextManager[Callable[[str], Progress | None]]]
"""Called with the number of cores; gives a function that draws a bar with a label, and returns its ``Progress``."""


def open_dump(
    *paths: PathLike,
    vmlinux: PathLike | None = None,
    vmcoreinfo: PathLike | None = None,
    memory_map: str | None = None,
    swap: Sequence[str] = (),
    sysroots: Sequence[PathLike] = (),
    scan: bool = False,
    remember: bool = False,
    cache: bool = True,
    any_size: bool = False,
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
        cache: keep what is unpacked, or comes from a pipe or a URL, for later runs, and use what is kept.
        any_size: unpack a compressed file however large it gets.
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
        cache=cache,
        any_size=any_size,
        zero_excluded=zero_excluded,
    )
    return Dump.open([located(os.fspath(path)) for path in paths], options)


@dataclass(frozen=True)
class Selection:
    """The processes that were selected.

    Attributes:
        errors: PIDs without a task; or None with the sentence that no process matches.
    """

    processes: tuple[Process, ...]
    errors: tuple[tuple[int | None, Vmcore2coreError], ...] = ()

    def entries(self) -> list[ErrorEntry]:
        """Return the errors as reports have them."""
        return [{"pid": number, "error": str(error)} for number, error in self.errors]


@dataclass(frozen=True)
class Plan:
    """The cores that would be written, and the reasons why others would not.

    Attributes:
        cores: the cores.
        errors: the reasons.
        directory: where the cores would go.
        free: bytes that its file system has left, or None if it does not tell.
        companions: most bytes of the programs and libraries that would be written beside the cores, as far as known.
    """

    cores: tuple[PlannedCore, ...]
    errors: list[ErrorEntry]
    directory: Path
    free: int | None
    companions: int = 0

    @property
    def needed(self) -> int:
        """Most bytes on disk of all cores and companions; zero pages take none, so it may be less."""
        return sum(core.on_disk for core in self.cores) + self.companions

    def line(self) -> str:
        """Return a sentence on the room that the cores need and the room there is."""
        free = "does not tell how much is free" if self.free is None else f"has {amount(self.free)} free"
        short = ": they may not fit" if self.free is not None and self.needed > self.free else ""
        beside = f" ({amount(self.companions)} of it programs and libraries)" if self.companions else ""
        return f"{amount(self.needed)} at most in all{beside}; {self.directory} {free}{short}"


def _no_bars(_count: int) -> AbstractContextManager[Callable[[str], Progress | None]]:
    return nullcontext(lambda _label: None)


def _silent(_sentence: str) -> None:
    """Say nothing."""


class Dump:
    """An open dump; a context manager. ``open_dump`` makes it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @classmethod
    def open(cls, paths: Sequence[Path], options: OpenOptions, progress: ProgressBar | None = None) -> Self:
        """Open a dump with all options in one record.

        Args:
            paths: the dump's file or files, from ``named_dump``.
            options: how to open it.
            progress: draws a bar while a file is unpacked or received, or memory is searched.

        Raises:
            DumpError, LayoutError, UsageError: see ``open_dump``.
        """
        return cls(Session(paths, options, progress))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the dump's files; its processes can no longer be read."""
        self._session.__exit__()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The dump's files."""
        return tuple(self._session.container.paths)

    @property
    def release(self) -> str:
        """The kernel's release, as ``uname -r`` prints it."""
        return self._session.boot.utsname.release

    @property
    def machine(self) -> str:
        """The kernel's architecture, as ``uname -m`` prints it."""
        return self._session.kernel.arch.name

    @property
    def pointer_size(self) -> int:
        """Bytes of a kernel pointer."""
        return self._session.kernel.arch.pointer_size

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about damage found so far; if there are any, all results from the dump may be incomplete."""
        return tuple(self._session.warnings)

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about things worth knowing that leave the results complete."""
        return tuple(self._session.notices)

    @property
    def filtered(self) -> str | None:
        """What the dump's filter (makedumpfile -d) left out of processes, as a sentence; None if nothing is known."""
        container = self._session.container
        return excluded_sentence(container.dump_level, container.DOC.name) if left_out(container.dump_level) else None

    @property
    def mounts_known(self) -> bool:
        """Whether paths begin at the root of the system; else they begin at the root of their file system."""
        return self._session.processes.mounts.known

    @property
    def provenance(self) -> Mapping[str, str]:
        """Layout items looked up so far, such as "OFFSET(task_struct.mm)", each with the source that answered."""
        return MappingProxyType(self._session.boot.layout.provenance())

    def check_unchanged(self) -> None:
        """Check that the input files, the dump and the swap files, have not changed since they were opened.

        Raises:
            DumpError: one has changed.
        """
        self._session.check_unchanged()

    def processes(self) -> Iterator[Process]:
        """Yield each process that has user memory, in the order of the kernel's list."""
        yield from self.select(Choice()).processes

    def process(self, pid: int) -> Process:
        """Return the process with a PID, or with a thread of that TID.

        Raises:
            TaskNotFound: no task has this PID.
            KernelThread, NoUserMemory: it has no user memory.
        """
        leader = self._session.processes.find(pid)
        self._session.processes.mm_of(leader)
        return Process(self._session, Identity(self._session.processes, leader))

    def select(self, choice: Choice, *, kernel_threads: bool = False) -> Selection:
        """Return the processes that meet all conditions, in the dump's order.

        A process named by its PID is returned even if it has no user memory.

        Args:
            choice: the conditions.
            kernel_threads: search all tasks, not only those with user memory.

        Raises:
            LayoutError: the layout lacks a member that the conditions need.
        """
        processes = self._session.processes
        found, errors = choose(processes, choice, processes.leaders if kernel_threads else None)
        return Selection(tuple(Process(self._session, one) for one in found), tuple(errors))

    def tasks(self, processes: Iterable[Process], parts: Part) -> Iterator[TaskRow]:
        """Yield a row of ps(1) for each process.

        Args:
            processes: from ``select``.
            parts: the data to look up outside the task itself.
        """
        from vmcore2core.tasks import ps

        return ps.processes(self._session, _identities(processes), parts)

    def threads(self, processes: Iterable[Process], parts: Part, states: Sequence[str] = ()) -> Iterator[TaskRow]:
        """Yield a row of ps(1) for each thread of processes.

        Args:
            processes: from ``select``.
            parts: the data to look up outside the task itself.
            states: ps(1)'s letters of which a thread must have one; empty for any.
        """
        from vmcore2core.tasks import ps

        return ps.threads(self._session, _identities(processes), parts, states)

    def stacks(self, processes: Iterable[Process], options: StackOptions) -> Stacks:
        """Return the stacks of processes, which are followed as they are iterated over.

        Raises:
            UsageError: a sysroot is not a directory, or servers are wanted and none is set.
        """
        from vmcore2core.tasks.stacks import Stacks

        return Stacks(self._session, _identities(processes), options)

    def open_files(self, processes: Iterable[Process], *, without_any: bool = False) -> Iterator[OpenFiles]:
        """Yield the open files of processes.

        Args:
            processes: from ``select``.
            without_any: include processes without open files.

        Raises:
            LayoutUnknown: the layout lacks the members for open files.
        """
        from vmcore2core.tasks.openfiles import open_files

        return open_files(self._session, _identities(processes), without_any=without_any)

    def waits(self, choice: Choice) -> WaitReport:
        """Return what the threads of the selected processes wait for; a thread's own name may match, too.

        Raises:
            LayoutUnknown: the layout of open files is not known.
        """
        from vmcore2core.tasks.waits import waits

        return waits(self._session, choice)

    def info(self) -> dict[str, Any]:
        """Return why the kernel died, and what the dump holds: the document of ``vmcore-tasks info --json``."""
        from vmcore2core.tasks.info import info

        return info(self._session)

    def log(self) -> KernelLog:
        """Return the kernel's messages."""
        from vmcore2core.tasks.messages import KernelLog

        return KernelLog(self._session.kernel, self._session.boot.vmcoreinfo)

    def layout_text(self, source: str = "dump") -> Iterator[str]:
        """Yield the layout that conversion needs as lines of VMCOREINFO text.

        Args:
            source: "dump" for all that the dump has, "BTF" for that alone, or "vmlinux".

        Raises:
            LayoutError: the source has no layout.
        """
        from vmcore2core.tasks.layout import layout_text

        return layout_text(self._session, source)

    def compare(self, core: CoreFile) -> Comparison:
        """Compare each page and note of a finished core with the dump.

        Raises:
            TaskError, MemoryFault, LayoutError: the dump does not have the core's process.
        """
        from vmcore2core.compare_with_dump import compare

        return compare(core, self._session)

    def write_cores(
        self,
        selected: Selection,
        options: RunOptions,
        *,
        say: Say = _silent,
        bars: Bars = _no_bars,
    ) -> RunReport:
        """Write the cores of processes; a failure does not stop the others.

        Args:
            selected: the processes; its errors are the report's first.
            options: where the cores go, how they are written, and what goes beside them.
            say: takes each error as it happens.
            bars: draws bars.

        Raises:
            OutputError: the directory cannot be used, or lacks space.
        """
        chosen = _identities(selected.processes)
        if len(chosen) == 1 and not options.core.indexed and options.cluster is None:
            from vmcore2core.convert import convert_one

            with bars(1) as bar:
                report = convert_one(
                    self._session,
                    chosen[0],
                    options.target(chosen[0].leader),
                    options.core,
                    bar,
                    in_directory=not options.is_file,
                )
            for error in report.errors:
                say(error["error"])
            report.errors[:0] = selected.entries()
            return report
        from vmcore2core.run.run import Run

        run = Run(self._session, options, say, selected.entries())
        run.run(chosen, bars)
        return run.report()

    def write_for_debugger(
        self, process: Process, folder: Path, *, bars: Bars = _no_bars, verbose: bool = False
    ) -> RunReport:
        """Write one core, its programs and libraries and its start scripts, but no index: for a debugger to start now.

        Args:
            process: the process.
            folder: where they go; it is there.
            bars: draws bars.
            verbose: report more.

        Raises:
            OutputError: the core, or a start script, cannot be written.
        """
        from vmcore2core.run.for_debugger import write_for_debugger

        with bars(1) as bar:
            return write_for_debugger(self._session, _identities([process])[0], folder, bar, verbose=verbose)

    def plan_cores(self, selected: Selection, options: RunOptions, *, say: Say = _silent) -> Plan:
        """Return what ``write_cores`` would write with the same arguments."""
        from vmcore2core.run.run import Run

        run = Run(self._session, options, say, selected.entries())
        cores = tuple(run.plan(_identities(selected.processes)))
        return Plan(cores, run.errors, run.directory, free_bytes(run.directory), run.files_size)

    def report(self, process: Process, result: CoreResult, *, verbose: bool = False) -> CoreReport:
        """Return the report on a finished core: sentences, and a part of a JSON document.

        Args:
            process: whose core it is.
            result: from ``Process.write_core`` or ``Process.write_stacks``.
            verbose: add sentences about things that leave the core complete.
        """
        return core_report(self._session, process.identity.leader, result, verbose=verbose)

    def summary(self, report: RunReport) -> dict[str, Any]:
        """Return the document of ``vmcore2core --json`` for a report of ``write_cores``."""
        return summary(self._session, report)


def _identities(processes: Iterable[Process]) -> list[Identity]:
    return [process.identity for process in processes]

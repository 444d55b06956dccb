"""The work of a job: write a core, its entry in the index, and the files beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcore2core.convert import failure, write_process
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Progress
from vmcore2core.errors import LayoutUnknown, MemoryFault, Vmcore2coreError
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.binaries import DEBUG_TREE, Binaries, binaries
from vmcore2core.process.dump_filter import EVERYTHING
from vmcore2core.process.snapshot import Captured
from vmcore2core.report import core_report
from vmcore2core.run.index_entries import core_entry, described, if_known, kernel_stacks_of, stacks_of
from vmcore2core.run.jobs import DoJob, Job, JobResult, Stage
from vmcore2core.run.space import core_size
from vmcore2core.session import CoreResult, Session

if TYPE_CHECKING:
    from vmcore2core.handover.callers import WithoutCfi
    from vmcore2core.handover.entry import KernelReaders
    from vmcore2core.handover.index import EntryText
    from vmcore2core.handover.mapped import Finder, MappedFiles
    from vmcore2core.handover.written import FileWriter
    from vmcore2core.unwind.originals import Files
    from vmcore2core.unwind.threads import Unwound

KEPT_VMAS = 1 << 16
"""Most mappings of cached processes: about 64 MiB."""
KEPT_PAGES = 1 << 18
"""Most pages of cached processes whose walked page tables are kept, too: about 8 MiB."""

OF_INDEX = ("handover.entry", "handover.index")
OF_FILES = ("handover.callers", "handover.images", "handover.mapped", "handover.written", "handover.scripts")
"""Modules that each job needs, and a single core does not."""

log = logging.getLogger(__name__)


class CaptureCache:
    """Cache of processes captured for the size estimate; the conversion uses each once.

    It holds at most ``KEPT_VMAS`` mappings in all, and the pages that the page tables map of small processes.
    """

    def __init__(self) -> None:
        self._captured: dict[int, Captured] = {}
        self._room, self._room_for_pages = KEPT_VMAS, KEPT_PAGES

    def add(self, task: int, captured: Captured) -> None:
        """Cache a process, if there is room."""
        nr_vmas = len(captured.snapshot.vmas)
        if task not in self._captured and nr_vmas <= self._room:
            if not self._takes_pages(captured):
                captured.memory.forget_walks()
            self._captured[task] = captured
            self._room -= nr_vmas

    def _takes_pages(self, captured: Captured) -> bool:
        """Take the room for what is known of a process's pages, if there is any; a run measures all processes first."""
        nr_pages = captured.mm_rss
        if nr_pages is None or nr_pages > self._room_for_pages:
            return False
        self._room_for_pages -= nr_pages
        return True

    def take(self, task: int) -> Captured | None:
        """Remove a process from the cache and return it."""
        captured = self._captured.pop(task, None)
        self._room += 0 if captured is None else len(captured.snapshot.vmas)
        return captured


@dataclass(frozen=True)
class Converter:
    """Does the jobs of a run, on an open dump.

    Attributes:
        session: the dump.
        options: how to write cores.
        folder: the folder that a job's target is relative to.
        bar: draws a bar for each core.
        again: replace cores that are there, as a job may be done again after its worker died.
        with_entries: make the processes' entries in the index, if the options ask for an index.
    """

    session: Session
    options: CoreOptions
    folder: Path = Path()
    bar: Callable[[str], Progress | None] = lambda _label: None
    again: bool = False
    with_entries: bool = True
    _cache: CaptureCache = field(default_factory=CaptureCache)

    def stages(self) -> Mapping[Stage, DoJob]:
        """Return the function for each stage of a job."""
        return {
            Stage.MEASURE: self.measure,
            Stage.MAP_FILES: self.map_files,
            Stage.CONVERT: self.convert,
            Stage.FIND_FILES: self.find_files,
            Stage.WRITE_FILE: self.write_file,
            Stage.WRITE_SCRIPTS: self.write_scripts,
        }

    def prepare(self, job: Job) -> None:
        """Import the modules that every worker needs, so that forked workers share them."""
        with_files = self.options.indexed and self.options.companions
        for name in ("corefile.verify", *(OF_INDEX if self.options.indexed else ()), *(OF_FILES if with_files else ())):
            import_module(f"vmcore2core.{name}")
        if self.options.indexed:
            _ = self._kernel_readers
        self.measure(job)

    def measure(self, job: Job) -> JobResult:
        """Return how large a core will be."""
        try:
            captured = self._captured(job)
            size = core_size(captured)
        except Vmcore2coreError as error:
            return self._result(job, error=str(error))
        self._cache.add(job.task, captured)
        redaction = self.options.redaction
        unmatched = () if redaction is None else redaction.unmatched(captured.snapshot)
        return self._result(job, size=size, unmatched=unmatched)

    def map_files(self, job: Job) -> JobResult:
        """Return the files that a process has mapped, from which their size follows."""
        try:
            captured = self._captured(job)
        except Vmcore2coreError as error:
            return self._result(job, files=str(error))
        files = self._mapped(self._leader(job), captured)
        self._cache.add(job.task, captured)
        return self._result(job, files=files)

    def convert(self, job: Job) -> JobResult:
        """Convert one process; the result holds every error that concerns only this process."""
        session, options = self.session, replace(self.options, force=self.options.force or self.again)
        leader, target = self._leader(job), Path(job.target)
        try:
            captured = self._captured(job)
            result = write_process(session, leader, self.folder / target, options, captured, self.bar(target.name))
            stacks = stacks_of(session, result.captured, self._stack_files) if options.indexed else ""
            entry = self._index_entry(leader, result, stacks) if options.indexed and self.with_entries else None
        except Exception as error:  # even a bug of ours must not cost the other processes their cores
            return self._result(job, error=failure(job.pid, job.comm, error, options))
        beside = self._files(job, captured, stacks) if options.indexed and options.companions else {}
        report = core_report(session, leader, replace(result, path=target), verbose=options.verbose)
        return self._result(job, entry=entry, report=report, **beside)

    def _index_entry(self, leader: StructView, result: CoreResult, stacks: Unwound | str) -> EntryText:
        """Return the index entry of a process whose core was written, without secrets."""
        from vmcore2core.handover.index import entry_text

        said = described(self.session, leader, result.captured, stacks, self._kernel_readers)
        entry = {**said, "core": core_entry(result)}
        return entry_text(entry if result.secrets is None else result.secrets.hide(entry))

    def find_files(self, job: Job) -> JobResult:
        """Return the files that a process has mapped, if an earlier run wrote its core."""
        return self._result(job, **self._files(job))

    def write_file(self, job: Job) -> JobResult:
        """Write a program or library of a process."""
        assert job.file is not None  # noqa: S101 - for mypy
        return self._result(job, written=self._file_writer.write(job.file))

    def write_scripts(self, job: Job) -> JobResult:
        """Write the start scripts of a core."""
        from vmcore2core.handover.scripts import write_scripts

        try:
            paths = write_scripts(
                self.folder / job.target,
                job.recovered,
                job.images,
                job.without_cfi,
                force=self.options.force,
                secrets=self.options.secrets,
            )
        except Vmcore2coreError as error:
            return self._result(job, error=str(error))
        return self._result(job, scripts=tuple(path.name for path in paths))

    def _leader(self, job: Job) -> StructView:
        return self.session.kernel.view("task_struct", job.task)

    def _captured(self, job: Job) -> Captured:
        """Return a captured process: from the cache, if an earlier stage put it there."""
        return self._cache.take(job.task) or self.session.capture(self._leader(job), self.options)

    def _files(self, job: Job, captured: Captured | None = None, stacks: Unwound | str = "") -> dict[str, Any]:
        """Return a ``JobResult``'s files, images and missing call frame information."""
        from vmcore2core.handover.images import images_of

        leader = self._leader(job)
        try:
            captured = captured or self.session.processes.capture(leader, dump_filter=EVERYTHING, with_absent=False)
            images = images_of(captured)
            # Stacks contain register values; a script must not show values that the core leaves out.
            without = self._without_cfi(captured, stacks) if self.options.redaction is None else None
        except Vmcore2coreError as error:
            return {"files": str(error)}
        return {"files": self._mapped(leader, captured), "images": images, "without_cfi": without}

    def _mapped(self, leader: StructView, captured: Captured) -> MappedFiles | str | None:
        """Return the files that a process has mapped, or why they are not known; None if the run collects none."""
        if self._finder is None:
            return None
        try:
            return self._finder.find(leader, captured)
        except Vmcore2coreError as error:
            return str(error)

    def _without_cfi(self, captured: Captured, stacks: Unwound | str) -> WithoutCfi:
        """Return the places without call frame information in the directory, which only gets files of --sysroot."""
        from vmcore2core.handover.callers import WithoutCfi, led_by_files, stacks_without_cfi

        given = self.session.processes.sysroots
        if isinstance(stacks, str) or not all(
            any(path.is_relative_to(sysroot.folder) for sysroot in given) for path in led_by_files(stacks)
        ):
            stacks = stacks_of(self.session, captured, replace(self._stack_files, binaries=Binaries(given)))
        return WithoutCfi() if isinstance(stacks, str) else stacks_without_cfi(stacks)

    @cached_property
    def _file_writer(self) -> FileWriter:
        from vmcore2core.handover.written import FileWriter

        return FileWriter(self.session.processes, self.options.force, self.options.secrets, self.folder)

    @cached_property
    def _finder(self) -> Finder | None:
        from vmcore2core.handover.mapped import Finder  # a single core does not need it

        try:
            return Finder(self.session.processes)
        except (LayoutUnknown, MemoryFault):
            return None  # ``Companions`` says it, once

    @cached_property
    def _kernel_readers(self) -> KernelReaders:
        """The kernel's view of processes, for the index: all processes of a run share the unwind tables."""
        from vmcore2core.handover.entry import KernelReaders
        from vmcore2core.process.openfiles import FileTables
        from vmcore2core.process.sleepers import Sleepers

        processes = self.session.processes
        tables = if_known("open files", lambda: FileTables(processes))
        with processes.unheard():
            sleepers = None if tables is None else if_known("waits", lambda: Sleepers(processes, tables.ends))
        return KernelReaders(kernel_stacks_of(self.session), sleepers, tables)

    def _result(self, job: Job, **found: Any) -> JobResult:  # noqa: ANN401 - the fields of a JobResult
        """Return a job's result, with all that is known so far about the dump as a whole."""
        session = self.session
        return JobResult(
            job,
            **found,
            warnings=tuple(session.warnings),
            notices=(*session.notices, *self._file_notices()),
            provenance=session.boot.layout.provenance() if self.options.verbose else {},
            answers=session.remembered.news() if session.remembered is not None else {},
        )

    def _file_notices(self) -> list[str]:
        """Return sentences about the files that unwinding searched for; none if nothing was unwound."""
        return self._stack_files.notices if "_stack_files" in self.__dict__ else []

    @cached_property
    def _stack_files(self) -> Files:
        """The files that supply what memory lacks, for the stacks in the index."""
        from vmcore2core.process.copies import Copies
        from vmcore2core.process.debuginfod import debuginfod
        from vmcore2core.unwind.originals import Files

        folders = [sysroot.folder for sysroot in self.session.processes.sysroots]
        servers = debuginfod() if self.options.debuginfod else None
        debug = Path(self.options.debug_directory or DEBUG_TREE)
        found = binaries(self.session.container.paths[0], folders, (debug,), servers)
        return Files(found, Copies(self.session.processes))

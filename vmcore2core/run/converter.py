"""The jobs of a run, step by step: a process becomes a core, what the index says of it, and what lies beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from vmcore2core.corefile.writer import Progress, Writer, write_core
from vmcore2core.errors import LayoutUnknown, MemoryFault, Vmcore2coreError, sentence_of
from vmcore2core.interfaces import Compression
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.binaries import DEBUG_TREE, Binaries, binaries
from vmcore2core.process.capture import Captured
from vmcore2core.process.dump_filter import EVERYTHING, DumpFilter
from vmcore2core.process.identity import Identity
from vmcore2core.process.redact import Redaction
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.threads import thread_rows
from vmcore2core.report import core_sentences, core_summary, one_line
from vmcore2core.run.jobs import Convert, Job, Outcome, Step
from vmcore2core.run.space import core_size
from vmcore2core.session import CoreResult, Session

if TYPE_CHECKING:
    from vmcore2core.handover.callers import WithoutCfi
    from vmcore2core.handover.entry import KernelView
    from vmcore2core.handover.images import Image
    from vmcore2core.handover.mapped import Finder, MappedFiles
    from vmcore2core.process.kernelbt import KernelStacks
    from vmcore2core.unwind.originals import Files
    from vmcore2core.unwind.threads import Unwound

KEPT_VMAS = 1 << 16
"""Mappings of the processes that are kept: some 64 MiB."""

log = logging.getLogger(__name__)
T = TypeVar("T")

_Files: TypeAlias = "tuple[MappedFiles | str | None, tuple[Image, ...], WithoutCfi | None]"


@dataclass(frozen=True, slots=True)
class Manner:
    """How each core is written.

    Attributes:
        dump_filter: which memory belongs into it; None for what the process's coredump_filter says.
        redaction: what is left out of it on purpose.
        compression: of the core.
        force: replace what is there.
        indexed: what the index says of the process is wanted.
        companions: which files it has mapped is wanted.
        debug_directory: debug packages' tree, for the stacks in the index.
        debuginfod: ask the servers in $DEBUGINFOD_URLS for files, likewise.
        verbose: say more.
        minidump: write minidumps in place of cores.
        copiers: how many processes copy the pages of a core.
    """

    dump_filter: DumpFilter | None = None
    redaction: Redaction | None = None
    compression: Compression | None = None
    force: bool = False
    indexed: bool = False
    companions: bool = False
    debug_directory: str = str(DEBUG_TREE)
    debuginfod: bool = False
    verbose: bool = False
    minidump: bool = False
    copiers: int = 1

    @property
    def torn_text(self) -> bool:
        """Whether cores have text of files that are not whole: where nobody says what they have, and files go along."""
        return self.dump_filter is None and self.indexed and self.companions

    @property
    def secrets(self) -> Secrets | None:
        """What is looked for and blanked, without what a process's own environment adds."""
        return None if self.redaction is None else self.redaction.secrets

    @property
    def hide(self) -> Callable[[Any], Any]:
        """What blanks secrets in what is said or listed."""
        return _as_it_is if self.secrets is None else self.secrets.hide


def _as_it_is(value: Any) -> Any:  # noqa: ANN401 - what JSON has
    return value


class Kept:
    """Processes that were captured to know how large their cores will be, for their conversion: each once.

    As many are kept as have ``KEPT_VMAS`` mappings together.
    """

    def __init__(self) -> None:
        self._captured: dict[int, Captured] = {}
        self._room = KEPT_VMAS

    def add(self, task: int, captured: Captured) -> None:
        """Keep one, if there is room."""
        nr_vmas = len(captured.snapshot.vmas)
        if task not in self._captured and nr_vmas <= self._room:
            captured.memory.forget_walks()
            self._captured[task] = captured
            self._room -= nr_vmas

    def take(self, task: int) -> Captured | None:
        """Return one that is kept, and let it go."""
        captured = self._captured.pop(task, None)
        self._room += 0 if captured is None else len(captured.snapshot.vmas)
        return captured


@dataclass(frozen=True)
class Conversion:
    """Converts processes of an open dump.

    Attributes:
        session: the dump.
        manner: how cores are written.
        folder: what a job's target is relative to.
        bar: draws a bar for each core.
    """

    session: Session
    manner: Manner
    folder: Path = Path()
    bar: Callable[[str], Progress | None] = lambda _label: None
    _kept: Kept = field(default_factory=Kept)

    def steps(self) -> Mapping[Step, Convert]:
        """Return what workers do."""
        return {
            Step.MEASURE: self.measure,
            Step.CONVERT: self.convert,
            Step.LOOK_UP: self.look_up,
            Step.ACCOMPANY: self.accompany,
        }

    def prepare(self, job: Job) -> None:
        """Load what each worker would load: it is to be shared with those that are forked from this process."""
        if self.manner.indexed:
            import vmcore2core.handover.entry  # noqa: F401

            _ = self._kernel_view
        self.measure(job)

    def measure(self, job: Job) -> Outcome:
        """Return how large a core will be."""
        try:
            captured = self._captured(job)
            size = core_size(captured)
        except Vmcore2coreError as error:
            return self._told(Outcome(job, error=str(error)))
        self._kept.add(job.task, captured)
        redaction = self.manner.redaction
        unmatched = () if redaction is None else redaction.unmatched(captured.snapshot)
        return self._told(Outcome(job, size=size, unmatched=unmatched))

    def convert(self, job: Job) -> Outcome:
        """Convert one process; every error that is its own is in the outcome."""
        session, manner = self.session, self.manner
        leader = self._leader(job)
        target = self.folder / job.target
        try:
            captured = self._captured(job)
            result = session.extract(
                leader,
                target,
                captured=captured,
                dump_filter=manner.dump_filter,
                redaction=manner.redaction,
                force=manner.force,
                progress=self.bar(Path(job.target).name),
                compression=manner.compression,
                write=self._writer(leader, captured),
            )
            stacks = stacks_of(session, result.captured, self._stack_files) if manner.indexed else ""
            entry = self._index_entry(leader, result, stacks) if manner.indexed else None
        except Exception as error:  # even a fault of ours must not cost the other processes their cores
            log.debug("%d (%s) is not converted", job.pid, job.comm, exc_info=True)
            who = "" if isinstance(error, Vmcore2coreError) else f"{job.pid} ({job.comm}): "
            return self._told(Outcome(job, error=self.manner.hide(who + sentence_of(error))))
        beside = manner.indexed and manner.companions
        files, images, without = self._files(job, captured, stacks) if beside else (None, (), None)
        result = replace(result, path=Path(job.target))  # as whoever began the run calls it
        hide = result.secrets.hide if result.secrets is not None else _as_it_is
        outcome = Outcome(
            job,
            entry=hide(entry),
            files=files,
            images=images,
            without_cfi=without,
            line=one_line(result),
            summary=hide({**core_summary(result), "found_by": session.processes.roster.found_by(leader).value}),
            sentences=hide(tuple(self._sentences(result))),
            complete=result.complete,
        )
        return self._told(outcome)

    def _index_entry(self, leader: StructView, result: CoreResult, stacks: Unwound | str) -> dict[str, Any]:
        """Return what the index says of a process whose core was written."""
        said = described(self.session, leader, result.captured, stacks, self._kernel_view)
        return {**said, "core": core_entry(result)}

    def _writer(self, leader: StructView, captured: Captured) -> Writer:
        if not self.manner.minidump:
            return partial(write_core, processes=self.manner.copiers)
        from vmcore2core.run.minidump import minidump_writer

        return minidump_writer(self.session, leader, captured)

    def _sentences(self, result: CoreResult) -> list[str]:
        container = self.session.container
        return core_sentences(result, container.dump_level, container.DOC.name, verbose=self.manner.verbose)

    def look_up(self, job: Job) -> Outcome:
        """Return which files the process has mapped, whose core an earlier run wrote."""
        files, images, without = self._files(job)
        return self._told(Outcome(job, files=files, images=images, without_cfi=without))

    def accompany(self, job: Job) -> Outcome:
        """Write the start scripts of a core."""
        from vmcore2core.handover.scripts import write_scripts

        try:
            paths = write_scripts(
                self.folder / job.target,
                job.recovered,
                job.images,
                job.without_cfi,
                force=self.manner.force,
                secrets=self.manner.secrets,
            )
        except Vmcore2coreError as error:
            return self._told(Outcome(job, error=str(error)))
        return self._told(Outcome(job, scripts=tuple(path.name for path in paths)))

    def _leader(self, job: Job) -> StructView:
        return self.session.kernel.view("task_struct", job.task)

    def _captured(self, job: Job) -> Captured:
        """Return a process: as an earlier step kept it, if it did."""
        kept = self._kept.take(job.task)
        manner = self.manner
        return kept or self.session.processes.capture(
            self._leader(job), dump_filter=manner.dump_filter, torn_text=manner.torn_text
        )

    def _files(self, job: Job, captured: Captured | None = None, stacks: Unwound | str = "") -> _Files:
        """Return what ``Outcome`` has of files, images and call frame information."""
        from vmcore2core.handover.images import images_of

        leader = self._leader(job)
        try:
            captured = captured or self.session.processes.capture(leader, dump_filter=EVERYTHING, with_absent=False)
            images = images_of(captured)
            # Registers' values are in stacks, and what is left out of a core is not to be in its script.
            without = self._without_cfi(captured, stacks) if self.manner.redaction is None else None
        except Vmcore2coreError as error:
            return str(error), (), None
        if self._finder is None:
            return None, images, without
        try:
            return self._finder.find(leader, captured), images, without
        except Vmcore2coreError as error:
            return str(error), images, without

    def _without_cfi(self, captured: Captured, stacks: Unwound | str) -> WithoutCfi:
        """Return what lacks call frame information in the directory, which gets files of --sysroot alone."""
        from vmcore2core.handover.callers import WithoutCfi, led_by_files, stacks_without_cfi

        given = self.session.processes.sysroots
        if isinstance(stacks, str) or not all(
            any(path.is_relative_to(sysroot.folder) for sysroot in given) for path in led_by_files(stacks)
        ):
            stacks = stacks_of(self.session, captured, replace(self._stack_files, binaries=Binaries(given)))
        return WithoutCfi() if isinstance(stacks, str) else stacks_without_cfi(stacks)

    @cached_property
    def _finder(self) -> Finder | None:
        from vmcore2core.handover.mapped import Finder  # a single core needs none of it

        try:
            return Finder(self.session.processes)
        except (LayoutUnknown, MemoryFault):
            return None  # ``Companions`` says it, once

    @cached_property
    def _kernel_view(self) -> KernelView:
        """What the kernel has of processes, for the index: a run's processes share the tables that they unwind by."""
        from vmcore2core.handover.entry import KernelView
        from vmcore2core.handover.sleepers import Sleepers
        from vmcore2core.process.openfiles import FileTables

        processes = self.session.processes
        tables = _if_known("open files", lambda: FileTables(processes))
        with processes.unheard():
            sleepers = None if tables is None else _if_known("waits", lambda: Sleepers(processes, tables.ends))
        return KernelView(kernel_stacks_of(self.session), sleepers, tables)

    def _told(self, outcome: Outcome) -> Outcome:
        """Return what came of a job, with what is known of the dump as a whole by now."""
        session = self.session
        return replace(
            outcome,
            warnings=tuple(session.warnings),
            notices=(*session.notices, *self._file_notices()),
            provenance=session.boot.layout.provenance() if self.manner.verbose else {},
            answers=session.remembered.news() if session.remembered is not None else {},
        )

    def _file_notices(self) -> list[str]:
        """Return sentences about the files that stacks looked for; none where there were no stacks."""
        return self._stack_files.notices if "_stack_files" in self.__dict__ else []

    @cached_property
    def _stack_files(self) -> Files:
        """Where the stacks in the index look for what memory does not have."""
        from vmcore2core.process.copies import Copies
        from vmcore2core.process.debuginfod import debuginfod
        from vmcore2core.unwind.originals import Files

        folders = [sysroot.folder for sysroot in self.session.processes.sysroots]
        servers = debuginfod() if self.manner.debuginfod else None
        found = binaries(self.session.container.paths[0], folders, (Path(self.manner.debug_directory),), servers)
        return Files(found, Copies(self.session.processes))


def stacks_of(session: Session, captured: Captured, files: Files) -> Unwound | str:
    """Return the frames of a process's threads; or why there are none, as a sentence.

    Args:
        session: the dump.
        captured: the process.
        files: where files are looked for that tell what memory does not.
    """
    from vmcore2core.unwind.threads import unwound  # which a single core does without

    try:
        return unwound(captured, session.kernel.arch, thread_rows(captured.answers), files)
    except Vmcore2coreError as error:
        return str(error)


def kernel_stacks_of(session: Session) -> KernelStacks | None:
    """Return the kernel's stacks of threads; None where there can be none."""
    from vmcore2core.process.kernelbt import KernelStacks  # likewise

    return _if_known("kernel stacks", lambda: KernelStacks(session.kernel, session.processes.cpus, needed=False))


def _if_known(what: str, made: Callable[[], T]) -> T | None:
    """Return what the layout tells, or None where it does not."""
    try:
        return made()
    except Vmcore2coreError as error:
        log.info("the index has no %s: %s", what, error)
        return None


def described(
    session: Session,
    leader: StructView,
    captured: Captured,
    stacks: Unwound | str,
    kernel: KernelView,
) -> dict[str, Any]:
    """Return what an index says of a process, without its core.

    Args:
        session: the dump.
        leader: ``struct task_struct`` of its thread group's leader.
        captured: the same process.
        stacks: see ``stacks_of``.
        kernel: what the kernel has of it.
    """
    from vmcore2core.handover.entry import process_entry  # likewise

    return process_entry(Identity(session.processes, leader), captured, stacks, kernel)


def core_entry(result: CoreResult) -> dict[str, Any]:
    """Return what the index says of a core."""
    status = result.path.stat()
    return {
        "file": result.path.name,
        "size": result.report.file_size,
        "file_size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "complete": result.complete,
        "pages": result.report.present_pages,
        "missing": result.missing_pages,
        "absent": {reason.name.lower(): n for reason, n in result.absent_pages.items()},
        "blanked": [[f"{start:#x}", f"{end:#x}"] for start, end in result.snapshot.blanked],
        "threads_left_out": [
            {"tid": left.tid, "comm": text(left.comm), "reason": left.reason}
            for left in result.snapshot.threads_left_out
        ],
        "warnings": list(result.snapshot.warnings),
        "notices": list(result.snapshot.notices),
    }

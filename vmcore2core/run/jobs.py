"""The jobs of a run, and their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from vmcore2core.printable import text

if TYPE_CHECKING:
    from vmcore2core.handover.callers import WithoutCfi
    from vmcore2core.handover.images import Image
    from vmcore2core.handover.index import EntryText
    from vmcore2core.handover.mapped import MappedFiles
    from vmcore2core.handover.recovered import RecoveredFiles
    from vmcore2core.handover.written import FileToWrite, WrittenFile
    from vmcore2core.report import CoreReport
    from vmcore2core.run.space import CoreSize


@dataclass(frozen=True, slots=True)
class Job:
    """One process to convert, or one of its files to write.

    Attributes:
        pid: PID of its thread group.
        comm: its name, printable.
        task: kernel virtual address of its leader's ``struct task_struct``.
        target: the core's path.
        size: estimated bytes of the core on disk; 0 until it is known.
        recovered: its programs and libraries, once they are written.
        images: where they are loaded, once that is known.
        without_cfi: the places without call frame information for gdb, once they are known.
        file: the program or library, of a job that writes one; then ``task`` is its ``struct address_space``.
    """

    pid: int
    comm: str
    task: int
    target: str
    size: int = 0
    recovered: RecoveredFiles | None = None
    images: tuple[Image, ...] = ()
    without_cfi: WithoutCfi | None = None
    file: FileToWrite | None = None

    @property
    def who(self) -> str:
        """Whose job it is, for messages."""
        return self.comm if self.file is not None else f"{self.pid} ({self.comm})"


def file_job(file: FileToWrite) -> Job:
    """Return the job of WRITE_FILE for a program or library."""
    return Job(0, text(file.path), file.mapping, "", size=file.size, file=file)


class Stage(Enum):
    """The stages of a job, in order."""

    MEASURE = auto()
    """How large will the core be?"""
    MAP_FILES = auto()
    """Which files has the process mapped? CONVERT and FIND_FILES answer this as well."""
    CONVERT = auto()
    """Write it."""
    FIND_FILES = auto()
    """Which files has the process mapped, and where are they loaded? CONVERT answers this as well."""
    WRITE_FILE = auto()
    """Write one of the process's programs and libraries, which may be that of others, too."""
    WRITE_SCRIPTS = auto()
    """Write its start scripts."""


@dataclass(frozen=True)
class JobResult:
    """The result of one stage of a job.

    Attributes:
        job: the job.
        error: why there is no core, or no answer, as a sentence; or None.
        size: the size that the core will have.
        unmatched: patterns of ``--redact`` that match none of its mappings; set together with the size.
        files: the files that the process has mapped, or why they are not known; None if the run collects none.
        images: where the process's program and libraries are loaded.
        without_cfi: the parts of its stacks that were found without call frame information.
        written: the program or library that was written, or why it was not.
        scripts: names of its start scripts.
        entry: its entry in the index (``handover.entry``).
        report: the report on its core, once that is written.
        warnings: sentences about the dump as a whole that its worker has collected so far.
        notices: likewise, about data from outside the dump.
        provenance: the layout source of each item so far.
        answers: layout items that its worker has learned since its last job (``LayoutMemory.news``).
    """

    job: Job
    error: str | None = None
    size: CoreSize | None = None
    unmatched: tuple[str, ...] = ()
    files: MappedFiles | str | None = None
    images: tuple[Image, ...] = ()
    without_cfi: WithoutCfi | None = None
    written: WrittenFile | None = None
    scripts: tuple[str, ...] = ()
    entry: EntryText | None = None
    report: CoreReport | None = None
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    answers: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)


DoJob = Callable[[Job], JobResult]
"""Does one stage of one job; the result holds every error that concerns only this process."""


def largest_first(jobs: Sequence[Job]) -> list[Job]:
    """Order jobs so that the last ones to end are short."""
    return sorted(jobs, key=lambda job: -job.size)

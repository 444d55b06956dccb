"""The jobs of a run, and what comes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmcore2core.handover.callers import WithoutCfi
    from vmcore2core.handover.images import Image
    from vmcore2core.handover.mapped import MappedFiles
    from vmcore2core.handover.recovered import RecoveredFiles
    from vmcore2core.report import CoreReport
    from vmcore2core.run.space import CoreSize


@dataclass(frozen=True, slots=True)
class Job:
    """One process to convert.

    Attributes:
        pid: of its thread group.
        comm: printable.
        task: kernel virtual address of its leader's ``struct task_struct``.
        target: the core's path.
        size: bytes that the core will take on disk, about; 0 as long as it is not known.
        recovered: its programs and libraries, once they are there.
        images: where they are loaded, once that is known.
        without_cfi: what gdb lacks call frame information for, likewise.
    """

    pid: int
    comm: str
    task: int
    target: str
    size: int = 0
    recovered: RecoveredFiles | None = None
    images: tuple[Image, ...] = ()
    without_cfi: WithoutCfi | None = None


class Stage(Enum):
    """What is done with a job, one after the other."""

    MEASURE = auto()
    """How large will the core be?"""
    CONVERT = auto()
    """Write it."""
    FIND_FILES = auto()
    """Which files has the process mapped? CONVERT tells as well."""
    WRITE_SCRIPTS = auto()
    """Write its start scripts."""


@dataclass(frozen=True)
class JobResult:
    """What came of a stage of a job.

    Attributes:
        job: the job.
        error: why there is no core, or no answer, as a sentence; or None.
        size: of the core, which is not yet there.
        unmatched: patterns of ``--redact`` that match none of its mappings; told with the size.
        files: which files the process has mapped, or why that is not known; None where there are none to be had.
        images: where the process's program and libraries are loaded.
        without_cfi: what of its stacks was found without call frame information.
        scripts: names of its start scripts.
        entry: what the index says of it (``handover.entry``).
        report: what is said of its core, once that is written.
        warnings: sentences about the dump as a whole that its worker has met so far.
        notices: likewise, about what came from elsewhere than the dump.
        provenance: which layout source answered what, so far.
        answers: what its worker has learned of the layout since its last job (``LayoutMemory.news``).
    """

    job: Job
    error: str | None = None
    size: CoreSize | None = None
    unmatched: tuple[str, ...] = ()
    files: MappedFiles | str | None = None
    images: tuple[Image, ...] = ()
    without_cfi: WithoutCfi | None = None
    scripts: tuple[str, ...] = ()
    entry: dict[str, Any] | None = None
    report: CoreReport | None = None
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    answers: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)


DoJob = Callable[[Job], JobResult]
"""Does one stage of one job; every error that is the process's own is in the result."""


def largest_first(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs so that the last ones to end take little time."""
    return sorted(jobs, key=lambda job: -job.size)

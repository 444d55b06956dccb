"""What a run does with the chosen processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmcore2core.convert import core_path
from vmcore2core.corefile.options import PLAIN, CoreOptions
from vmcore2core.errors import UsageError
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.redact import GIVEN

if TYPE_CHECKING:
    from vmcore2core.run.cluster import WorkerDump
    from vmcore2core.run.pool import Cluster


@dataclass(frozen=True)
class RunOptions:
    """What a run does with the chosen processes.

    Attributes:
        core: how to write each core; ``indexed`` asks for an index even for one process.
        output: the core, or a directory for ``core.COMM.PID`` files; None for the working directory.
        one_pid: the user named one process by its PID, so ``output`` may be the core's own name.
        resume: keep the cores that the directory's index says are finished.
        check: keep them only if their pages and notes equal the dump's.
        jobs: number of worker processes.
        cluster: workers on other machines and how they open the dump, or None.

    Raises:
        UsageError: ``resume`` is asked for together with secrets that the index does not record.
    """

    core: CoreOptions = PLAIN
    output: Path | None = None
    one_pid: bool = False
    resume: bool = False
    check: bool = False
    jobs: int = 1
    cluster: tuple[Cluster, WorkerDump] | None = None

    def __post_init__(self) -> None:
        if self.resume and self.core.redaction is not None and GIVEN in self.core.redaction.words:
            raise UsageError(
                f"--resume cannot be used with --redact {GIVEN}: the index does not keep which secrets were blanked"
            )

    @property
    def directory(self) -> Path:
        """Where the cores go."""
        return self.output or Path()

    @property
    def is_file(self) -> bool:
        """Whether ``output`` is the core's own name."""
        return self.one_pid and self.output is not None and not self.output.is_dir()

    def target(self, leader: StructView) -> Path:
        """Return the path of a process's core."""
        return self.directory if self.is_file else core_path(self.directory, leader, self.core)

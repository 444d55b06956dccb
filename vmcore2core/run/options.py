"""What a run does with the chosen processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcore2core.convert import core_path
from vmcore2core.corefile.options import PLAIN, CoreOptions
from vmcore2core.kernel.struct import StructView

if TYPE_CHECKING:
    from vmcore2core.run.cluster import WorkerDump
    from vmcore2core.run.pool import Cluster


@dataclass(frozen=True)
class RunOptions:
    """What a run does with the chosen processes.

    Attributes:
        core: how each core is written; ``indexed`` asks for an index even if there is one process.
        output: the core, or a directory for ``core.COMM.PID`` files; None for the working directory.
        one_pid: one process is named by its PID, and ``output`` may be the core's own name.
        resume: keep what an index there says is finished.
        check: of this, only cores whose pages and notes are the dump's.
        jobs: number of worker processes.
        words: what changes the cores, as the index remembers it.
        cluster: workers on other machines and how they open the dump, or None.
    """

    core: CoreOptions = PLAIN
    output: Path | None = None
    one_pid: bool = False
    resume: bool = False
    check: bool = False
    jobs: int = 1
    words: dict[str, Any] = field(default_factory=dict)
    cluster: tuple[Cluster, WorkerDump] | None = None

    @property
    def directory(self) -> Path:
        """Where the cores go."""
        return self.output or Path()

    @property
    def is_file(self) -> bool:
        """Whether ``output`` is the core's own name."""
        return self.one_pid and self.output is not None and not self.output.is_dir()

    def target(self, leader: StructView) -> Path:
        """Return where a process's core goes."""
        return self.directory if self.is_file else core_path(self.directory, leader, self.core)

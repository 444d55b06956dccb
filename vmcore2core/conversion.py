"""One job of a run: a process becomes a core, and what the index says of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmcore2core.corefile.writer import Progress
from vmcore2core.errors import Vmcore2coreError, sentence_of
from vmcore2core.handover.bulk import Job, Outcome
from vmcore2core.handover.identity import identify
from vmcore2core.interfaces import Compression
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.capture import Captured
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.redact import Redaction
from vmcore2core.process.threads import thread_rows
from vmcore2core.report import core_sentences, core_summary, one_line
from vmcore2core.session import CoreResult, Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Manner:
    """How each core is written.

    Attributes:
        dump_filter: which memory belongs into it; None for what the process's coredump_filter says.
        redaction: what is left out of it on purpose.
        compression: of the core.
        force: replace what is there.
        indexed: what the index says of the process is wanted.
        verbose: say more.
    """

    dump_filter: DumpFilter | None = None
    redaction: Redaction | None = None
    compression: Compression | None = None
    force: bool = False
    indexed: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class Conversion:
    """Converts processes of an open dump.

    Attributes:
        session: the dump.
        manner: how cores are written.
        captured: processes that were captured already, by the address of their leader.
        folder: what a job's target is relative to.
    """

    session: Session
    manner: Manner
    captured: dict[int, Captured] = field(default_factory=dict)
    folder: Path = Path()

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        """Convert one process; every error that is its own is in the outcome."""
        session, manner = self.session, self.manner
        leader = session.kernel.view("task_struct", job.task)
        target = self.folder / job.target
        try:
            result = session.extract(
                leader,
                target,
                captured=self.captured.get(job.task),
                dump_filter=manner.dump_filter,
                redaction=manner.redaction,
                force=manner.force,
                progress=progress,
                compression=manner.compression,
            )
            entry = self._entry(leader, result) if manner.indexed else None
            result.captured.memory.forget_walks()
        except Exception as error:  # even a fault of ours must not cost the other processes their cores
            log.debug("%d (%s) is not converted", job.pid, job.comm, exc_info=True)
            who = "" if isinstance(error, Vmcore2coreError) else f"{job.pid} ({job.comm}): "
            return Outcome(job, error=who + sentence_of(error), warnings=tuple(session.warnings))
        result = replace(result, path=Path(job.target))  # as whoever began the run calls it
        return Outcome(
            job,
            entry=entry,
            line=one_line(result),
            summary={**core_summary(result), "found_by": session.processes.roster.found_by(leader).value},
            sentences=tuple(core_sentences(result, session.container.dump_level, verbose=manner.verbose)),
            complete=result.complete,
            warnings=tuple(session.warnings),
            notices=tuple(session.notices),
            provenance=session.boot.layout.provenance() if manner.verbose else {},
        )

    def _entry(self, leader: StructView, result: CoreResult) -> dict[str, Any]:
        from vmcore2core.handover.entry import process_entry  # unwinding, which a single core does without

        rows = list(thread_rows(result.captured.answers))
        who = identify(self.session.processes, leader)
        return {**process_entry(who, result.captured, self.session.kernel.arch, rows), "core": _core(result)}


def _core(result: CoreResult) -> dict[str, Any]:
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

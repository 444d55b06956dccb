"""One core with its companions, for a debugger that is started at once: without an index and its page."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmcore2core.convert import core_path
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Progress
from vmcore2core.errors import OutputError
from vmcore2core.handover.companions import Companions
from vmcore2core.printable import text
from vmcore2core.process.identity import Identity
from vmcore2core.report import RunReport
from vmcore2core.run.converter import Converter
from vmcore2core.run.jobs import Job, JobResult
from vmcore2core.session import Session


def write_for_debugger(
    session: Session,
    process: Identity,
    folder: Path,
    bar: Callable[[str], Progress | None] = lambda _label: None,
    *,
    verbose: bool = False,
) -> RunReport:
    """Write the core of a process, its programs and libraries, and its start scripts.

    Args:
        session: the dump.
        process: the process.
        folder: where they go; it is there.
        bar: returns the progress callback for a label.
        verbose: report more.

    Returns:
        The report on the core; its notices also tell of the files beside it.

    Raises:
        OutputError: the core, or a start script, cannot be written.
    """
    options = CoreOptions(indexed=True, companions=True, verbose=verbose, copiers=len(os.sched_getaffinity(0)))
    options = replace(options, copiers=session.copiers(options))
    converter = Converter(session, options, bar=bar, with_entries=False)
    target = core_path(folder, process.leader, options)
    job = Job(process.pid, text(process.comm), int(process.leader.address), os.fspath(target))
    done = _good(converter.convert(job))
    companions = Companions(session.processes, folder)
    companions.learn(done.files)
    recovered, sentences = companions.add(done.files)
    scripts = replace(job, recovered=recovered, images=done.images, without_cfi=done.without_cfi)
    _good(converter.write_scripts(scripts))
    report = RunReport(cores=[] if done.report is None else [done.report]).with_dump(session)
    report.notices = [*report.notices, *filter(None, [companions.problem]), *sentences]
    return report


def _good(result: JobResult) -> JobResult:
    """Return a result without an error."""
    if result.error is not None:
        raise OutputError(result.error)
    return result

"""Convert one process of an open dump to a core: alone, or as one job of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Progress, Writer
from vmcore2core.errors import OutputError, Vmcore2coreError, sentence_of
from vmcore2core.folders import opened_folder
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.identity import Identity
from vmcore2core.process.snapshot import Captured
from vmcore2core.report import RunReport, core_report
from vmcore2core.session import CoreResult, Session, core_name

log = logging.getLogger(__name__)


def convert_one(
    session: Session,
    process: Identity,
    target: Path,
    options: CoreOptions,
    bar: Callable[[str], Progress | None] = lambda _label: None,
    *,
    in_directory: bool = False,
) -> RunReport:
    """Write the core of the only selected process; if that fails, the report says why.

    Args:
        session: the dump.
        process: the process.
        target: path of the core.
        options: how to write it.
        bar: returns the progress callback for a label.
        in_directory: make the core's directory if it is missing.

    Raises:
        OutputError: a pattern of ``--redact`` matches none of its mappings, or the directory cannot be made.
    """
    report = RunReport()
    options = replace(options, copiers=session.copiers(options))
    captured = None
    with _failures(report, process, options):
        captured = session.capture(process.leader, options)
    if captured is not None:
        _check_patterns(captured, options)
        if in_directory:
            make_directory(target.parent)
        with _failures(report, process, options):
            result = write_process(session, process.leader, target, options, captured, bar(target.name))
            report.cores.append(core_report(session, process.leader, result, verbose=options.verbose))
    return report.with_dump(session)


def write_process(
    session: Session,
    leader: StructView,
    target: Path,
    options: CoreOptions,
    captured: Captured,
    progress: Progress | None = None,
) -> CoreResult:
    """Write the core of a captured process, or its minidump.

    Raises:
        TaskError, MemoryFault, LayoutError: the process cannot be converted.
        OutputError: the file cannot be written.
    """
    write: Writer | None = None
    if options.minidump:
        from vmcore2core.minidump import minidump_writer

        write = minidump_writer(session, leader, captured)
    return session.extract(leader, target, options, captured=captured, progress=progress, write=write)


def failure(pid: int, comm: str, error: Exception, options: CoreOptions) -> str:
    """Return why a process has no core, without secrets; for a bug of ours, add the process's name."""
    who = "" if isinstance(error, Vmcore2coreError) else f"{pid} ({comm}): "
    sentence = str(options.hide(who + sentence_of(error)))
    # An exception's own words, and those of its causes, may have secrets.
    shown = error if options.secrets is None else Vmcore2coreError(sentence).with_traceback(error.__traceback__)
    log.debug("%d (%s) is not converted", pid, comm, exc_info=shown)
    return sentence


@contextmanager
def _failures(report: RunReport, process: Identity, options: CoreOptions) -> Iterator[None]:
    """Put an error of the block into the report."""
    try:
        yield
    except Exception as error:  # even a bug of ours is reported as one sentence
        report.errors.append({"pid": process.pid, "error": failure(process.pid, text(process.comm), error, options)})


def _check_patterns(captured: Captured, options: CoreOptions) -> None:
    """Raise ``OutputError`` if a pattern of ``--redact`` matches no mapping, before anything is written."""
    unmatched = () if options.redaction is None else options.redaction.unmatched(captured.snapshot)
    if unmatched:
        raise OutputError(matches_nothing(unmatched[0]))


def matches_nothing(pattern: str) -> str:
    """Return the sentence for a pattern of ``--redact`` that matches nothing at all."""
    return (
        f"--redact {pattern!r} matches no mapping of any process, so nothing is written; vmcore-tasks maps "
        "shows what they are called"
    )


def core_path(directory: Path, leader: StructView, options: CoreOptions) -> Path:
    """Return the path of a process's core in a directory."""
    return directory / (core_name(leader) + options.suffix)


def make_directory(directory: Path) -> None:
    """Make the directory for cores if it is missing.

    Raises:
        OutputError: it cannot be made, or is not a directory.
    """
    try:
        with opened_folder(directory, make=True):
            pass
    except OSError as error:
        raise OutputError(f"{directory}: {error.strerror}, expected a directory for the cores") from error

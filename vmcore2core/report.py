"""The report of a run: sentences for stderr, and one JSON document for ``--json``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypedDict

from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import counted, text
from vmcore2core.process.model import NOT_MISSING, AbsentReason, AbsentRun, OnDisk, ProcessSnapshot
from vmcore2core.session import CoreResult, Session

RANGES_SHOWN = 8
FILES_SHOWN = 8


class ErrorEntry(TypedDict):
    """One error: a thing that could not be done."""

    pid: int | None
    error: str


_USER_PAGES = 2 | 4 | 8
"""makedumpfile's -d bits for pages that a process may map: cache, private cache, user data."""
_USER_DATA = 8
_LEVEL_BITS = {2: "page cache", 4: "private page cache", 8: "user data", 16: "free pages", 1: "zero pages"}


@dataclass(frozen=True, slots=True)
class CoreReport:
    """The report on one core.

    Attributes:
        line: its line on stdout.
        summary: its part of ``--json``.
        sentences: its sentences on stderr.
        complete: whether the core lacks nothing.
    """

    line: str
    summary: dict[str, Any]
    sentences: tuple[str, ...] = ()
    complete: bool = False


@dataclass
class RunReport:
    """The report at the end of a run.

    Attributes:
        cores: the reports on the cores, in the dump's order.
        errors: the things that could not be done.
        warnings: sentences about the dump as a whole; any makes all results incomplete.
        notices: sentences about data that came from outside the dump.
        unmatched: sentences about patterns of ``--redact`` that match nothing in some processes.
        provenance: the layout source of each item.
    """

    cores: list[CoreReport] = field(default_factory=list)
    errors: list[ErrorEntry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)

    def with_dump(self, session: Session) -> RunReport:
        """Add what is known so far about the dump as a whole; return the same report."""
        self.warnings, self.notices = session.warnings, session.notices
        self.provenance = session.boot.layout.provenance()
        return self

    @property
    def complete(self) -> bool:
        """Whether no core lacks anything and no damage was found."""
        return all(core.complete for core in self.cores) and not (self.warnings or self.unmatched)


def core_report(session: Session, leader: StructView, result: CoreResult, *, verbose: bool) -> CoreReport:
    """Return the report on a finished core, without the secrets that were searched for."""
    container = session.container
    sentences = _sentences(result, container.dump_level, container.DOC.name, verbose=verbose)
    summary = {**_summary(result), "found_by": session.processes.task_finder.found_by(leader).value}
    secrets = result.secrets
    if secrets is not None:
        sentences, summary = secrets.hide(sentences), secrets.hide(summary)
    return CoreReport(_line(result), summary, tuple(sentences), result.complete)


def _line(result: CoreResult) -> str:
    """Return a core's line on stdout."""
    snapshot, pages = result.snapshot, result.report.present_pages
    return core_line(str(result.path), result.missing_pages, len(snapshot.threads), pages, complete=result.complete)


def core_line(path: str, missing: int, threads: int, pages: int, *, complete: bool) -> str:
    """Return a core's line on stdout, from its numbers."""
    lost = f", {counted(missing, 'page')} missing" if missing else ""
    state = "complete" if complete else f"incomplete{lost}"
    return f"{path}: {state}, {counted(threads, 'thread')}, {counted(pages, 'page')}"


def _sentences(result: CoreResult, dump_level: int | None, dump_format: str, *, verbose: bool) -> list[str]:
    """Return the sentences about one core, for people.

    Args:
        result: the core.
        dump_level: makedumpfile's -d bits, or None if the file does not tell.
        dump_format: the name of the dump's format.
        verbose: add sentences about things that leave the core complete.
    """
    snapshot = result.snapshot
    who = f"{snapshot.tgid} ({text(snapshot.comm)})"
    sentences = [f"{who}: {sentence}" for sentence in snapshot.warnings]
    sentences += [
        f"{who}: thread {left.tid} ({text(left.comm)}) is left out: {left.reason}" for left in snapshot.threads_left_out
    ]
    if result.missing_pages:
        filtered = bool((dump_level or 0) & _USER_DATA)
        total = sum((v.dump_end(snapshot.page_size) - v.start) // snapshot.page_size for v in snapshot.vmas)
        reasons = "; ".join(f"{n} {reason.value}" for reason, n in result.absent_pages.items() if _counts(reason))
        ranges = missing_ranges(snapshot)
        shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in ranges[:RANGES_SHOWN])
        rest = len(ranges) - RANGES_SHOWN
        more = f" and {counted(rest, 'more range')} (--json lists all)" if rest > 0 else ""
        are = "is" if result.missing_pages == 1 else "are"
        sentences += [
            f"{who}: {result.missing_pages} of {counted(total, 'page')} {are} missing: {reasons}",
            f"{who}: {_left_of(result)}" if filtered else f"{who}: missing: {shown}{more}",
        ]
        if result.absent_pages[AbsentReason.EXCLUDED]:
            sentences.append(excluded_sentence(dump_level, dump_format))
    if snapshot.on_disk:
        sentences.append(f"{who}: {_left_to_files(snapshot.on_disk)}")
    if verbose:
        sentences += [f"{who}: {notice}" for notice in snapshot.notices]
        sentences += [
            f"{who}: thread {t.tid} ({text(t.comm)}): registers from {t.gregs_source}" for t in snapshot.threads
        ]
    return sentences


def _left_of(result: CoreResult) -> str:
    """Say what a dump without user data still holds of a process."""
    snapshot = result.snapshot
    threads, vmas, pages = len(snapshot.threads), len(snapshot.vmas), result.report.present_pages
    of_threads = "1 thread's" if threads == 1 else f"{threads} threads'"
    there = f"{of_threads} registers, {counted(vmas, 'mapping')}, {counted(pages, 'page')}"
    return f"there are {there}; a debugger that has its files names at least the function that each thread is in"


def _left_to_files(files: Sequence[OnDisk]) -> str:
    """Say which files have pages that are not in the dump's memory."""
    named = [f"{text(file.path)} ({_identity(file)})" for file in files[:FILES_SHOWN]]
    pages, rest = sum(file.pages for file in files), len(files) - FILES_SHOWN
    more = f" and {counted(rest, 'more file')} (--json lists all)" if rest > 0 else ""
    are, whose = ("is", "its file") if pages == 1 else ("are", "their files")
    left = f"{counted(pages, 'page')} {are} not in memory, and left to {whose}, unchanged there"
    return f"{left}: {', '.join(named)}{more}"


def _identity(file: OnDisk) -> str:
    if file.build_id is not None:
        return f"build ID {file.build_id}"
    known = [] if file.size is None else [f"{file.size} bytes"]
    if file.mtime is not None:
        with contextlib.suppress(ValueError, OverflowError, OSError):  # a dump may hold any number there
            known.append(f"of {datetime.fromtimestamp(file.mtime, UTC):%Y-%m-%d %H:%M:%S} UTC")
    return " ".join(known) or "size not known"


def missing_ranges(snapshot: ProcessSnapshot) -> list[tuple[int, int]]:
    """Return the longest address ranges of missing pages; a range may span adjacent mappings."""
    ranges: list[tuple[int, int]] = []
    for run in (run for vma in snapshot.vmas for run in vma.absent if _counts(run.reason)):
        if ranges and ranges[-1][1] == run.start:
            ranges[-1] = ranges[-1][0], run.end
        else:
            ranges.append((run.start, run.end))
    return ranges


def _counts(reason: AbsentReason) -> bool:
    return reason not in NOT_MISSING


def excluded_sentence(dump_level: int | None, dump_format: str) -> str:
    """Say what left pages out of a dump, and which setting would have kept them.

    Args:
        dump_level: makedumpfile's -d bits, or None if the file does not tell.
        dump_format: the name of the dump's format.
    """
    if dump_level is None:
        is_elf = dump_format == "ELF"  # ELF does not distinguish zero pages from other pages that were left out
        zeros = "; if only zero pages were left out, --zero-excluded reads them so" if is_elf else ""
        keeps = f"makedumpfile -d {16 if is_elf else 17} keeps all memory of processes"
        return f"the dump was filtered when it was written; {keeps}{zeros}"
    if not dump_level & _USER_PAGES:
        return (
            f"the dump was written with makedumpfile -d {dump_level}, which keeps all memory of processes; whether "
            "makedumpfile --eppic or --extension left out more, the file does not tell"
        )
    bits = ", ".join(name for bit, name in sorted(_LEVEL_BITS.items()) if dump_level & bit)
    stacks = "; its extension userstack (version 1.8) keeps stacks" if dump_level & _USER_DATA else ""
    return (
        f"the dump was written with makedumpfile -d {dump_level}, which leaves out {bits}; "
        f"-d {dump_level & ~_USER_PAGES} would have kept all memory of processes{stacks}"
    )


def left_out(dump_level: int | None) -> list[str] | None:
    """Return which process pages a dump of this level lacks, in makedumpfile's words; None if that is unknown.

    Args:
        dump_level: makedumpfile's -d bits, or None if the file does not tell.
    """
    if dump_level is None:
        return None
    return [_LEVEL_BITS[bit] for bit in sorted(_LEVEL_BITS) if bit & dump_level & _USER_PAGES]


def summary(session: Session, report: RunReport) -> dict[str, Any]:
    """Return the machine-readable summary of a run (``--json``)."""
    container, boot = session.container, session.boot
    return {
        "format": "vmcore2core-summary",
        "version": 1,
        "dump": {
            "paths": [str(path) for path in container.paths],
            "format": container.DOC.name,
            "compressed": container.compressed,
            "dump_level": container.dump_level,
            "warnings": report.warnings,
        },
        "kernel": {
            "release": boot.utsname.release,
            "machine": boot.utsname.machine,
            "nodename": text(boot.utsname.nodename.encode()),
            "build_id": boot.vmcoreinfo.build_id,
        },
        "layout": {"vmcoreinfo": boot.vmcoreinfo_origin, "answers": report.provenance},
        "cores": [core.summary for core in report.cores],
        "errors": report.errors,
    }


def _summary(result: CoreResult) -> dict[str, Any]:
    """Return one core's part of the summary."""
    snapshot = result.snapshot
    return {
        "pid": snapshot.tgid,
        "comm": text(snapshot.comm),
        "path": str(result.path),
        "complete": result.complete,
        "size": result.report.file_size,
        "pages": {
            "present": result.report.present_pages,
            "missing": result.missing_pages,
            "absent": {reason.name.lower(): n for reason, n in result.absent_pages.items()},
        },
        "on_disk": [file.as_json() for file in snapshot.on_disk],
        "threads": [
            {
                "tid": thread.tid,
                "comm": text(thread.comm),
                "registers": thread.gregs_source,
                "unknown": list(thread.gregs_unknown),
            }
            for thread in snapshot.threads
        ],
        "threads_left_out": [
            {"tid": left.tid, "comm": text(left.comm), "reason": left.reason} for left in snapshot.threads_left_out
        ],
        "absent": [_run(snapshot, vma.path, run) for vma in snapshot.vmas for run in vma.absent],
        "blanked": [{"start": f"{start:#x}", "end": f"{end:#x}"} for start, end in snapshot.blanked],
        "warnings": list(snapshot.warnings),
        "notices": list(snapshot.notices),
    }


def _run(snapshot: ProcessSnapshot, path: bytes | None, run: AbsentRun) -> dict[str, Any]:
    return {
        "start": f"{run.start:#x}",
        "end": f"{run.end:#x}",
        "pages": (run.end - run.start) // snapshot.page_size,
        "reason": run.reason.name.lower(),
        "file": text(path),
    }

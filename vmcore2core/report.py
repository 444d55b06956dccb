"""What a run has to say: sentences for stderr, and one JSON document for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from vmcore2core.printable import text
from vmcore2core.process.model import NOT_MISSING, AbsentReason, AbsentRun, ProcessSnapshot
from vmcore2core.session import CoreResult, Session

RANGES_SHOWN = 8


class ErrorEntry(TypedDict):
    """One thing that could not be done."""

    pid: int | None
    error: str


_LEVEL_BITS = {2: "page cache", 4: "private page cache", 8: "user data", 16: "free pages", 1: "zero pages"}


def one_line(result: CoreResult) -> str:
    """Return what stdout says of a core."""
    snapshot, pages = result.snapshot, result.report.present_pages
    return core_line(str(result.path), result.missing_pages, len(snapshot.threads), pages, complete=result.complete)


def core_line(path: str, missing: int, threads: int, pages: int, *, complete: bool) -> str:
    """Return what stdout says of a core, by numbers."""
    state = "complete" if complete else f"incomplete, {missing} pages missing"
    return f"{path}: {state}, {threads} thread{'' if threads == 1 else 's'}, {pages} pages"


def core_sentences(result: CoreResult, dump_level: int | None, *, verbose: bool) -> list[str]:
    """Return what is to be said of one core, for people; ``verbose`` adds what leaves it complete."""
    snapshot = result.snapshot
    who = f"{snapshot.tgid} ({text(snapshot.comm)})"
    sentences = [f"{who}: {sentence}" for sentence in snapshot.warnings]
    sentences += [
        f"{who}: thread {left.tid} ({text(left.comm)}) is left out: {left.reason}" for left in snapshot.threads_left_out
    ]
    if result.missing_pages:
        total = sum((v.dump_end(snapshot.page_size) - v.start) // snapshot.page_size for v in snapshot.vmas)
        reasons = "; ".join(f"{n} {reason.value}" for reason, n in result.absent_pages.items() if _counts(reason))
        ranges = missing_ranges(snapshot)
        shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in ranges[:RANGES_SHOWN])
        more = f" and {len(ranges) - RANGES_SHOWN} more ranges (--json lists all)" if len(ranges) > RANGES_SHOWN else ""
        sentences += [
            f"{who}: {result.missing_pages} of {total} pages are missing: {reasons}",
            f"{who}: missing: {shown}{more}",
        ]
        if result.absent_pages[AbsentReason.EXCLUDED]:
            sentences.append(f"{who}: {_excluded(dump_level)}")
    if verbose:
        sentences += [f"{who}: {notice}" for notice in snapshot.notices]
        sentences += [
            f"{who}: thread {t.tid} ({text(t.comm)}): registers from {t.gregs_source}" for t in snapshot.threads
        ]
    return sentences


def missing_ranges(snapshot: ProcessSnapshot) -> list[tuple[int, int]]:
    """Return the maximal address ranges of missing pages, over mappings that touch."""
    ranges: list[tuple[int, int]] = []
    for run in (run for vma in snapshot.vmas for run in vma.absent if _counts(run.reason)):
        if ranges and ranges[-1][1] == run.start:
            ranges[-1] = ranges[-1][0], run.end
        else:
            ranges.append((run.start, run.end))
    return ranges


def _counts(reason: AbsentReason) -> bool:
    return reason not in NOT_MISSING


def _excluded(dump_level: int | None) -> str:
    """Say which makedumpfile level would have kept the pages."""
    if dump_level is None:
        return "the dump was filtered when it was written; makedumpfile -d 17 keeps all memory of processes"
    bits = ", ".join(name for bit, name in sorted(_LEVEL_BITS.items()) if dump_level & bit)
    keep = dump_level & 0x11
    return (
        f"the dump was written with makedumpfile -d {dump_level}, which leaves out {bits}; "
        f"-d {keep} would have kept all memory of processes"
    )


def summary(
    session: Session,
    cores: list[dict[str, Any]],
    warnings: Sequence[str],
    provenance: dict[str, str],
    errors: list[ErrorEntry],
) -> dict[str, Any]:
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
            "warnings": list(warnings),
        },
        "kernel": {
            "release": boot.utsname.release,
            "machine": boot.utsname.machine,
            "nodename": text(boot.utsname.nodename.encode()),
            "build_id": boot.vmcoreinfo.build_id,
        },
        "layout": {"vmcoreinfo": boot.vmcoreinfo_origin, "answers": provenance},
        "cores": cores,
        "errors": errors,
    }


def core_summary(result: CoreResult) -> dict[str, Any]:
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

"""``vmcore-tasks waits``."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import hexadecimal, print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.terminal import Exit, say

if TYPE_CHECKING:
    from vmcore2core import WaitReport, WaitRow


@takes_dump
def waits(
    *,
    pid: options.Pids = None,
    comm: options.Comms = None,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Show what threads wait for, since when, and which threads wait for each other.

    --comm also matches the names of threads.
    """
    with opened(dump) as vmcore:
        from vmcore2core import Choice

        report = vmcore.waits(Choice(pid=tuple(pid or ()), comm=tuple(comm or ())))
        for sentence in (*report.warnings, *map(str, report.errors)):
            say(sentence)
        if as_json:
            shown = [_document(row) for row in report.rows]
            print_document("vmcore-tasks-waits", threads=shown, deadlocks=report.deadlocks)
        else:
            _print(report)
    if report.errors:
        raise typer.Exit(Exit.ERROR)
    if report.warnings:
        raise typer.Exit(Exit.INCOMPLETE)


def _print(report: "WaitReport") -> None:
    print(f"{'PID':>7} {'TID':>7} {'COMM':<15} S {'SINCE':>12} WAITS FOR")
    for row in report.rows:
        since = "-" if row.since is None else row.since[:-6]
        print(f"{row.pid:>7} {row.tid:>7} {row.comm:<15} {row.state} {since:>12} {_what(row)}")
    for circle in report.deadlocks:
        way = " -> ".join(f"{tid} ({report.names[tid]})" for tid in (*circle, circle[0]))
        print(f"deadlock: each waits for the next: {way}")


def _what(row: "WaitRow") -> str:
    call = f"  {row.system_call}" if row.system_call is not None else ""
    return ("-" if row.wait is None else row.wait.what) + call


def _document(row: "WaitRow") -> dict[str, Any]:
    """Return a thread for JSON."""
    document = asdict(row)
    if row.wait is not None:
        document["wait"]["address"] = hexadecimal(row.wait.address)
    return document

"""``vmcore-tasks files``."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.tasks.shown import chosen
from vmcore2core.commands.terminal import Exit, say

if TYPE_CHECKING:
    from vmcore2core import OpenFiles


@takes_dump
def files(
    *,
    pid: options.Pids = None,
    comm: options.Comms = None,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Show the open files of processes, like /proc/PID/fd and fdinfo, and their sockets, like ss(8)."""
    with opened(dump) as vmcore:
        from vmcore2core import Choice

        found, all_found = chosen(vmcore, Choice(pid=tuple(pid or ()), comm=tuple(comm or ())))
        tables = list(vmcore.open_files(found, without_any=bool(pid or comm)))
        if not found:
            raise typer.Exit(Exit.ERROR)
        if not vmcore.mounts_known:
            say("mounts are not known: paths begin at the root of their file system")
        warnings = [warning for table in tables for warning in table.warnings]
        for warning in warnings:
            say(warning)
        if as_json:
            print_document("vmcore-tasks-files", processes=[table.as_json(all_ends=bool(pid)) for table in tables])
        else:
            _print(tables)
    if not all_found:
        raise typer.Exit(Exit.ERROR)
    if warnings:
        raise typer.Exit(Exit.INCOMPLETE)


def _print(tables: "Iterable[OpenFiles]") -> None:
    for number, table in enumerate(tables):
        thread = "" if table.tid == table.pid else f", of thread {table.tid} alone"
        print(f"{chr(10) if number else ''}{table.pid} {table.comm}{thread}")
        print(f"cwd {table.cwd or '?'}  root {table.root or '?'}")
        print(f"{'FD':>5} {'OPEN':<4} {'POS':>10} {'FLAGS':>8} {'TYPE':<4} PATH")
        for row in table.files:
            print(row.line())

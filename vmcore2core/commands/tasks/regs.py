"""``vmcore-tasks regs``."""

from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.tasks.shown import Tid, thread_document
from vmcore2core.errors import UsageError

if TYPE_CHECKING:
    from vmcore2core import Dump, Thread


@takes_dump
def regs(
    *,
    pid: Annotated[
        int | None,
        typer.Option("--pid", "-p", metavar="PID", help="All threads of this process.", rich_help_panel=options.WHICH),
    ] = None,
    tid: Tid = None,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Show the user registers of threads, and where they were found."""
    with opened(dump) as vmcore:
        rows = _chosen(vmcore, pid, tid)
        if as_json:
            print_document("vmcore-tasks-regs", threads=[thread_document(row) for row in rows])
            return
        digits = 2 * vmcore.pointer_size
        for row in rows:
            print(f"{row.tid} ({row.comm}): {row.source}")
            registers = list((row.registers or {}).items())
            for i in range(0, len(registers), 3):
                print("  " + "  ".join(f"{name:>8} {value:0{digits}x}" for name, value in registers[i : i + 3]))
            if row.unknown:
                print(f"  not known: {' '.join(row.unknown)}")


def _chosen(vmcore: "Dump", pid: int | None, tid: int | None) -> "list[Thread]":
    """Return the threads that --pid and --tid name."""
    number = tid if tid is not None else pid
    if number is None:
        raise UsageError("no process is named: expected --pid PID or --tid TID")
    return [row for row in vmcore.process(number).threads if tid is None or row.tid == tid]

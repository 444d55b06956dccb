"""``vmcore-tasks ps``."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.terminal import say

if TYPE_CHECKING:
    from vmcore2core.tasks import TaskRow


@takes_dump
def ps(
    *,
    pid: Annotated[list[int] | None, typer.Option("--pid", "-p", help="Only these; may repeat.")] = None,
    comm: Annotated[list[str] | None, typer.Option(help="Only names that match this pattern; may repeat.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Only tasks in this state (R S D T t Z X I); may repeat.")
    ] = None,
    tree: Annotated[bool, typer.Option(help="Children below their parents.")] = False,
    scan: options.Scan = False,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """List the processes and kernel threads."""
    with opened(replace(dump, scan=scan)) as session:
        from vmcore2core.tasks import Selection, processes, tree_order

        selection = Selection(tuple(pid or ()), tuple(comm or ()), tuple(state or ()))
        rows = list(processes(session, selection))
        if as_json:
            print_document("vmcore-tasks-ps", tasks=[asdict(row) for row in rows])
            return
        if tree and all(row.ppid is None for row in rows):
            say("no parents are known: this kernel's layout has no task_struct.real_parent; listed without a tree")
        print(f"{'PID':>7} {'PPID':>7} S {'CPU':>3} {'THR':>4} {'VSZ':>9} {'RSS':>8} COMMAND")
        for depth, row in tree_order(rows) if tree else [(0, row) for row in rows]:
            print(ps_line(row, depth))


def ps_line(row: "TaskRow", depth: int) -> str:
    """Return a line of ``ps``; "-" is what is not known."""
    numbers = [
        f"{'-' if value is None else value:>{width}}"
        for value, width in ((row.cpu, 3), (row.threads, 4), (row.vsz_kib, 9), (row.rss_kib, 8))
    ]
    command = f"[{row.comm}]" if row.kernel_thread or row.command is None else row.command
    ppid = "-" if row.ppid is None else row.ppid
    return f"{row.pid:>7} {ppid:>7} {row.state} {' '.join(numbers)} {'  ' * depth}{command}"

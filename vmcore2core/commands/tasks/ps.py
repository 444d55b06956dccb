"""``vmcore-tasks ps``."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.tasks.columns import COLUMNS, Column, columns, parts
from vmcore2core.commands.tasks.shown import chosen
from vmcore2core.commands.terminal import Exit, say
from vmcore2core.times import iso

if TYPE_CHECKING:
    from vmcore2core import TaskRow


@takes_dump
def ps(
    *,
    pid: options.Pids = None,
    comm: options.Comms = None,
    state: options.State = None,
    threads: Annotated[bool, typer.Option("--threads", "-L", help="Show a line for each thread.")] = False,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-o",
            metavar="COLUMNS",
            help=f"Columns to show, separated by commas; may repeat: {', '.join(COLUMNS)}.",
        ),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="Show children below their parents.")] = False,
    scan: options.Scan = False,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """List processes and kernel threads, like the command ps.

    As with ps, the exit status is 1 if none is found.
    """
    shown, letters = columns(output, threads=threads), options.states(state)
    if tree and threads:
        raise typer.BadParameter("--tree shows processes, and --threads shows threads: expected only one of the two")
    with opened(replace(dump, scan=scan)) as vmcore:
        from vmcore2core import Choice, Part

        found, all_found = chosen(vmcore, Choice(pid=tuple(pid or ()), comm=tuple(comm or ()), state=letters))
        looked_up = ~Part(0) if as_json else parts(shown)
        rows = list(vmcore.threads(found, looked_up, letters) if threads else vmcore.tasks(found, looked_up))
        if tree and rows and all(row.ppid is None for row in rows):
            say("no parents are known: this kernel's layout has no task_struct.real_parent; listed without a tree")
        if as_json:
            print_document("vmcore-tasks-ps", tasks=[_document(row) for row in rows])
        for line in () if as_json else _lines(_tree_order(rows) if tree else [(0, row) for row in rows], shown):
            print(line)
    if not rows or not all_found:
        raise typer.Exit(Exit.ERROR)


def _lines(rows: "Sequence[tuple[int, TaskRow]]", shown: list[Column]) -> Iterator[str]:
    """Yield the heading, and a line for each row; a row comes with the depth of its last column."""
    *first, last = shown
    # As of ps(1), a line is cut at the edge of a terminal, and whole where anything else takes it.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    yield " ".join([*(column.cell(column.head) for column in first), last.cell(last.head)]).rstrip()[:width]
    for depth, row in rows:
        cells = [column.text(row) for column in first]
        yield " ".join([*cells, f"{'  ' * depth}{last.text(row)}"]).rstrip()[:width]


def _document(row: "TaskRow") -> dict[str, object]:
    """Return a row for JSON."""
    return {**asdict(row), "started": iso(row.started)}


def _tree_order(rows: "list[TaskRow]") -> "list[tuple[int, TaskRow]]":
    """Return rows with their depth, children below their parents, in order of PID."""
    known = {row.pid for row in rows}
    children: dict[int | None, list[TaskRow]] = {}
    for row in rows:
        children.setdefault(row.ppid if row.ppid in known and row.ppid != row.pid else None, []).append(row)
    ordered: list[tuple[int, TaskRow]] = []
    waiting = [(0, row) for row in reversed(children.get(None, []))]
    while waiting:
        depth, row = waiting.pop()
        ordered.append((depth, row))
        waiting += [(depth + 1, child) for child in reversed(children.pop(row.pid, []))]
    return ordered

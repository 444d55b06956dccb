"""Shared by the commands of ``vmcore-tasks``: the selection of processes, and a thread in JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import hexadecimal
from vmcore2core.commands.terminal import say

if TYPE_CHECKING:
    from vmcore2core import Choice, Dump, Process, Thread

Pid = Annotated[
    int,
    typer.Option(
        "--pid",
        "-p",
        metavar="PID",
        help="The process with this PID, or with a thread that has it.",
        rich_help_panel=options.WHICH,
    ),
]
Tid = Annotated[
    int | None,
    typer.Option("--tid", "-t", metavar="TID", help="The thread with this ID.", rich_help_panel=options.WHICH),
]


def chosen(vmcore: "Dump", choice: "Choice") -> "tuple[tuple[Process, ...], bool]":
    """Return the selected processes, kernel threads included, and whether all were found.

    Those that were not found are reported on stderr.
    """
    found = vmcore.select(choice, kernel_threads=True)
    for _, error in found.errors:
        say(str(error))
    return found.processes, not found.errors


def thread_document(row: "Thread") -> dict[str, Any]:
    """Return a thread for JSON."""
    registers = {name: hexadecimal(value) for name, value in (row.registers or {}).items()}
    return {**asdict(row), "registers": registers or None}

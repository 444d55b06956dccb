"""What the commands of ``vmcore-tasks`` share: which processes, and a thread in JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import hexadecimal
from vmcore2core.commands.terminal import say

if TYPE_CHECKING:
    from vmcore2core.choose import Choice
    from vmcore2core.process.identity import Identity
    from vmcore2core.process.threads import ThreadRow
    from vmcore2core.session import Session

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


def chosen(session: "Session", choice: "Choice") -> "tuple[list[Identity], bool]":
    """Return the processes that are asked for, kernel threads among them, and whether all were found.

    Those that were not found are reported on stderr.
    """
    from vmcore2core.choose import choose

    found, errors = choose(session.processes, choice, session.processes.leaders)
    for _, error in errors:
        say(str(error))
    return found, not errors


def thread_document(row: "ThreadRow") -> dict[str, Any]:
    """Return a thread for JSON."""
    registers = {name: hexadecimal(value) for name, value in (row.registers or {}).items()}
    return {**asdict(row), "registers": registers or None}

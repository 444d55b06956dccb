"""What the commands of ``vmcore-tasks`` share: which process, and a thread in JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import hexadecimal

if TYPE_CHECKING:
    from vmcore2core.process.threads import ThreadRow

Pid = Annotated[
    int,
    typer.Option(
        "--pid", "-p", help="The process, by its PID or that of any of its threads.", rich_help_panel=options.WHICH
    ),
]
Tid = Annotated[
    int | None, typer.Option("--tid", "-t", help="Only the thread with this ID.", rich_help_panel=options.WHICH)
]


def thread_document(row: "ThreadRow") -> dict[str, Any]:
    """Return a thread for JSON."""
    registers = {name: hexadecimal(value) for name, value in (row.registers or {}).items()}
    return {**asdict(row), "registers": registers or None}

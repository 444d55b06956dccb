"""What the commands of ``vmcore-tasks`` share: which process, and JSON."""

from typing import Annotated, Any

import typer

from vmcore2core.printable import to_json

Pid = Annotated[int, typer.Option("--pid", "-p", help="The process, by its PID or that of any of its threads.")]
Tid = Annotated[int | None, typer.Option("--tid", "-t", help="Only the thread with this ID.")]


def print_json(document: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print a document on stdout."""
    print(to_json(document, indent=1, default=str))

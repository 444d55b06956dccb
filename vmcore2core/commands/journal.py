"""``vmcore2core journal``: captured cores in systemd's journal."""

from pathlib import Path
from typing import Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.terminal import begin, catch_interrupts, run_command

app = options.new_app("vmcore2core")


@app.command()
def journal(
    directories: Annotated[
        list[Path], typer.Argument(help="Directories of captured cores; with --new, kdump's directory.")
    ],
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="Take each DIRECTORY/*/cores without entries in the journal, and move it beside its dump."
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Add captured cores to systemd's journal, so that coredumpctl lists, dumps and debugs them.

    Exit status: 0 the journal has an entry for each core; 1 error; 2 wrong usage.
    """
    begin(0, debug=debug)
    from vmcore2core.capture.journal import beside_the_dump, new_directories, tell

    catch_interrupts()
    found = (
        [beside_the_dump(cores) for crash in directories for cores in new_directories(crash)] if new else directories
    )
    for cores in found:
        count = tell(cores)
        print(f"{cores}: {count} {'entry' if count == 1 else 'entries'} in the journal")


def main() -> None:
    """Run ``vmcore2core journal``; the word has been taken from the command line."""
    run_command(app, "vmcore2core journal")

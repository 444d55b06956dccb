"""``vmcore-tasks dump``."""

from pathlib import Path
from typing import Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.tasks.shown import Tid
from vmcore2core.commands.terminal import Exit, say
from vmcore2core.errors import UsageError


@takes_dump
def dump(
    *,
    pid: Annotated[
        int | None,
        typer.Option(
            "--pid",
            "-p",
            metavar="PID",
            help="All threads of the process with this PID, or with a thread that has it.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    tid: Tid = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The core file. Default: core.COMM.PID; with --tid, PID is the thread's.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    as_json: options.AsJson = False,
    dump_options: DumpOptions,
) -> None:
    """Write a small core for backtraces: registers, stacks, and the ELF headers of mapped files.

    It is the core that vmcore2core --redact stacks writes, some 100 KiB; with --tid, it has only one thread.
    """
    if (number := tid if tid is not None else pid) is None:
        raise UsageError("no process is named: expected --pid PID or --tid TID")
    with opened(dump_options) as vmcore:
        process = vmcore.process(number)
        result = process.write_stacks(output, tid=tid, force=force)
        report = vmcore.report(process, result, verbose=bool(dump_options.verbose))
        for sentence in report.sentences:
            say(sentence)
        if as_json:
            print_document("vmcore-tasks-dump", core=report.summary)
        else:
            print(report.line)
    if not report.complete:
        raise typer.Exit(Exit.INCOMPLETE)

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
    vmcore: DumpOptions,
) -> None:
    """Write a small core for backtraces: registers, stacks, and the ELF headers of mapped files.

    It is the core that vmcore2core --redact stacks writes, some 100 KiB; with --tid, it has only one thread.
    """
    if (number := tid if tid is not None else pid) is None:
        raise UsageError("no process is named: expected --pid PID or --tid TID")
    with opened(vmcore) as session:
        from vmcore2core.report import core_sentences, core_summary, one_line
        from vmcore2core.session import core_name
        from vmcore2core.tasks.minicore import mini_core

        leader = session.processes.find(number)
        target = output or Path(core_name(leader, tid))
        result = mini_core(session, leader, target, tid=tid, force=force)
        container = session.container
        for sentence in core_sentences(result, container.dump_level, container.DOC.name, verbose=bool(vmcore.verbose)):
            say(sentence)
        if as_json:
            print_document("vmcore-tasks-dump", core=core_summary(result))
        else:
            print(one_line(result))
    if not result.complete:
        raise typer.Exit(Exit.INCOMPLETE)

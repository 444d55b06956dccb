"""The ``vmcore2core`` command: arguments, messages, exit statuses; no logic."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcore2core import __version__
from vmcore2core.errors import Vmcore2coreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from vmcore2core.kernel.struct import StructView
    from vmcore2core.session import CoreResult, Session

PROGRESS_FROM_PAGES = 1024


class Exit(IntEnum):
    """Exit statuses."""

    COMPLETE = 0
    ERROR = 1
    USAGE = 2
    INCOMPLETE = 3


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _print_version(value: bool) -> None:
    if value:
        print(f"vmcore2core {__version__}")
        raise typer.Exit


@app.command()
def vmcore2core(
    vmcore: Annotated[
        list[Path] | None,
        typer.Argument(help="The dump. Without it: $VMCORE, else /proc/vmcore, else the newest below /var/crash."),
    ] = None,
    pid: Annotated[
        list[int] | None,
        typer.Option("--pid", "-p", help="Process to convert: its PID or that of any of its threads; may repeat."),
    ] = None,
    comm: Annotated[
        list[str] | None, typer.Option(help="Convert processes whose name matches this pattern; may repeat.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Convert every process that has user memory.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The core file for one --pid; else a directory for core.COMM.PID files. Default: here.",
        ),
    ] = None,
    vmlinux: Annotated[
        Path | None, typer.Option(help="The kernel's vmlinux, for what the dump itself does not tell.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a machine-readable summary on stdout.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say which source answered what.")] = 0,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Write ordinary ELF cores of processes in a Linux kernel crash dump, for gdb and lldb.

    Exit status: 0 complete, 1 error, 2 usage, 3 written, but pages or threads are missing (stderr says which and why).
    """
    if not (pid or comm or everything):
        raise typer.BadParameter("say which process: --pid PID, --comm PATTERN or --all")
    logging.basicConfig(
        level=(logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)],
        format="vmcore2core: %(message)s",
        stream=sys.stderr,
    )
    from vmcore2core.session import Session, find_dump

    paths = vmcore or []
    if not paths:
        path, why = find_dump(os.environ.get("VMCORE"))
        say(f"taking {path} ({why})")
        paths = [path]
    with Session(paths, vmlinux) as session:
        raise typer.Exit(
            _run(session, pid or [], comm or [], everything, output, force=force, as_json=as_json, verbose=verbose)
        )


def _run(
    session: Session,
    pids: list[int],
    comms: list[str],
    everything: bool,
    output: Path | None,
    *,
    force: bool,
    as_json: bool,
    verbose: int,
) -> Exit:
    from vmcore2core.report import core_sentences, summary

    for warning in session.warnings:
        say(f"{session.container.paths[0]}: {warning}")
    results: list[CoreResult] = []
    errors: list[dict[str, Any]] = []

    def failed(error: Vmcore2coreError, number: int | None) -> None:
        say(str(error))
        errors.append({"pid": number, "error": str(error)})

    leaders = _selected(session, pids, comms, everything, failed)
    single = len(pids) == 1 and not (comms or everything)
    with _progress() as bar:
        for leader in leaders:
            from vmcore2core.kernel.sched import task_tgid

            try:
                target = _target(leader, output, single=single)
                result = session.extract(leader, target, force=force, progress=bar(f"{target.name}"))
            except Vmcore2coreError as error:
                failed(error, task_tgid(leader))
                continue
            results.append(result)
            for sentence in core_sentences(result, session.container.dump_level):
                say(sentence)
            if verbose:
                for notice in result.snapshot.notices:
                    say(f"{result.snapshot.tgid}: {notice}")
    if not leaders and not errors:
        failed(Vmcore2coreError("no process of this dump matches"), None)
    if verbose:
        for item, source in session.boot.layout.provenance().items():
            say(f"{item}: {source}")
    if as_json:
        print(json.dumps(summary(session, results, errors), indent=1))
    else:
        for result in results:
            print(
                f"{result.path}: {'complete' if result.complete else 'incomplete'}, {len(result.snapshot.threads)} threads"
            )
    if errors:
        return Exit.ERROR
    return Exit.COMPLETE if all(r.complete for r in results) and not session.warnings else Exit.INCOMPLETE


def _selected(session: Session, pids: list[int], comms: list[str], everything: bool, failed: Any) -> list[StructView]:
    leaders: list[StructView] = []
    for number in pids:
        try:
            leaders += session.select([number], [], everything=False)
        except Vmcore2coreError as error:
            failed(error, number)
    leaders += session.select([], comms, everything=everything)
    return list({leader.address: leader for leader in leaders}.values())


def _target(leader: StructView, output: Path | None, *, single: bool) -> Path:
    """Return where a process's core goes; a directory that is needed is made."""
    from vmcore2core.errors import OutputError
    from vmcore2core.session import core_name

    if single and output is not None and not output.is_dir():
        return output
    directory = output or Path()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory}: {error.strerror}, expected a directory for the cores") from error
    return directory / core_name(leader)


@contextmanager
def _progress() -> Iterator[Any]:
    """Give a function label -> progress callback; a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _label: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:

        def bar(label: str) -> Any:
            task = bars.add_task(label, total=None)

            def update(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total, visible=done < total)

            return update

        yield bar


def say(sentence: str) -> None:
    """Print one sentence on stderr."""
    print(f"vmcore2core: {sentence}", file=sys.stderr)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; every error is one sentence and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name="vmcore2core")
    except Vmcore2coreError as error:
        say(str(error))
        sys.exit(Exit.ERROR)
    except KeyboardInterrupt:
        say("interrupted; nothing half-written was left behind")
        sys.exit(Exit.ERROR)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(Exit.ERROR)

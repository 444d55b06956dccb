"""The ``vmcore2core`` command: arguments, messages, exit statuses; no logic."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vmcore2core import __version__
from vmcore2core.errors import OutputError, TaskError, UsageError, Vmcore2coreError
from vmcore2core.progress import one_bar, progress_bars

# numpy and the layers that use it are imported when there is work: --help and usage errors come at once.
if TYPE_CHECKING:
    from types import FrameType

    from vmcore2core.kernel.struct import StructView
    from vmcore2core.process.dump_filter import DumpFilter
    from vmcore2core.report import ErrorEntry
    from vmcore2core.session import CoreResult, Session


FILTER_MAX = 0x1FF

VMCORE_HELP = (
    "The dump: its file or files, a URL, or - for standard input. Without it: $VMCORE, else /proc/vmcore, else the "
    "newest below /var/crash."
)

_program = "vmcore2core"


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
        list[str] | None,
        typer.Argument(help=VMCORE_HELP),
    ] = None,
    pid: Annotated[
        list[int] | None,
        typer.Option("--pid", "-p", help="Process to convert, by its PID or that of any of its threads; may repeat."),
    ] = None,
    comm: Annotated[
        list[str] | None, typer.Option(help="Convert processes whose name matches this shell pattern; may repeat.")
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
    vmcoreinfo: Annotated[
        Path | None,
        typer.Option(help="VMCOREINFO text whose keys go before the dump's (vmcore-tasks layout writes one)."),
    ] = None,
    memory_map: Annotated[
        str | None,
        typer.Option(
            "--map",
            metavar="START:SIZE@OFFSET,...",
            help="What physical memory is where in a dump without a header; raw: all from address 0 on; or a file.",
        ),
    ] = None,
    dump_filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="MASK",
            help="Memory to write, as core(5)'s coredump_filter; 0x1ff: all. Default: each process's own.",
        ),
    ] = None,
    swap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NUMBER=]FILE",
            help="A swap file or partition of the machine, or a copy of it; NUMBER where several are of one size.",
        ),
    ] = None,
    sysroot: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Take pages of programs and libraries that are not in memory from the files below DIR, if these have "
            "the same build ID.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a machine-readable summary on stdout.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say which source answered what.", show_default=False)
    ] = 0,
    version: Annotated[  # noqa: ARG001 - typer's callback has printed it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Write ordinary ELF cores of processes in a Linux kernel crash dump, for gdb and lldb.

    Exit status: 0 complete, 1 error, 2 usage, 3 written, but pages or threads are missing (stderr says which and why).
    """
    pids, comms = pid or [], comm or []
    if not (pids or comms or everything):
        raise typer.BadParameter("say which process: --pid PID, --comm PATTERN or --all")
    mask = _filter_mask(dump_filter)
    set_up_logging(verbose)
    from vmcore2core.containers.remote import located
    from vmcore2core.session import Session, find_dump

    paths = [located(word) for word in vmcore or ()]
    if not paths:
        path, why = find_dump(os.environ.get("VMCORE"))
        say(f"taking {path} ({why})")
        paths = [path]
    with Session(paths, vmlinux, vmcoreinfo, swap or (), memory_map, one_bar, sysroot) as session:
        run = _Run(session, output, mask, force=force, single=len(pids) == 1 and not (comms or everything))
        run.extract(run.selected(pids, comms, everything=everything))
        raise typer.Exit(run.finish(as_json=as_json, verbose=bool(verbose)))


def _filter_mask(text: str | None) -> DumpFilter | None:
    """Return a coredump_filter as core(5) writes it: hexadecimal with 0x, octal with 0, else decimal."""
    if text is None:
        return None
    from vmcore2core.process.dump_filter import DumpFilter

    try:
        octal = text.startswith("0") and text.isdigit() and len(text) > 1
        value = int(text, 8 if octal else 0)
    except ValueError:
        value = -1
    if not 0 <= value <= FILTER_MAX:
        raise typer.BadParameter(f"--filter {text}: expected a number from 0 to {FILTER_MAX:#x}, such as 0x33")
    return DumpFilter(value)


@dataclass
class _Run:
    """One run of the command: what was asked for, and what came of it."""

    session: Session
    output: Path | None
    dump_filter: DumpFilter | None
    force: bool
    single: bool
    results: list[CoreResult] = field(default_factory=list)
    errors: list[ErrorEntry] = field(default_factory=list)

    def selected(self, pids: list[int], comms: list[str], *, everything: bool) -> list[StructView]:
        """Return the leaders of the processes asked for; each PID that is none is an error by itself."""
        leaders: dict[int, StructView] = {}
        for number in pids:
            try:
                leader = self.session.processes.find(number)
                leaders[int(leader.address)] = leader
            except Vmcore2coreError as error:
                self.failed(error, number)
        if comms or everything:
            matching = {int(leader.address): leader for leader in self.session.matching(None if everything else comms)}
            if not matching:
                self.failed(TaskError(0, "no process with user memory matches"), None)
            leaders |= matching
        return list(leaders.values())

    def extract(self, leaders: list[StructView]) -> None:
        """Write the cores; one that fails does not stop the others."""
        from vmcore2core.kernel.sched import task_tgid

        with progress_bars(len(leaders)) as bar:
            for leader in leaders:
                try:
                    target = self._target(leader)
                    result = self.session.extract(
                        leader, target, dump_filter=self.dump_filter, force=self.force, progress=bar(target.name)
                    )
                except Vmcore2coreError as error:
                    self.failed(error, task_tgid(leader))
                else:
                    self.results.append(result)

    def failed(self, error: Vmcore2coreError, number: int | None) -> None:
        """Say an error and remember it for the summary."""
        say(str(error))
        self.errors.append({"pid": number, "error": str(error)})

    def finish(self, *, as_json: bool, verbose: bool) -> Exit:
        """Say what there is to say of the cores, and return the exit status."""
        from vmcore2core.report import core_sentences, one_line, summary

        session = self.session
        for warning in session.warnings:
            say(f"{session.container.paths[0]}: {warning}")
        for notice in session.notices:
            say(notice)
        for result in self.results:
            for sentence in core_sentences(result, session.container.dump_level, verbose=verbose):
                say(sentence)
        if verbose:
            for item, source in session.boot.layout.provenance().items():
                say(f"{item}: {source}")
        if as_json:
            print(json.dumps(summary(session, self.results, self.errors), indent=1))
        else:
            for result in self.results:
                print(one_line(result))
        if self.errors:
            return Exit.ERROR
        complete = all(result.complete for result in self.results) and not session.warnings
        return Exit.COMPLETE if complete else Exit.INCOMPLETE

    def _target(self, leader: StructView) -> Path:
        """Return where a process's core goes; a directory that is needed is made."""
        from vmcore2core.session import core_name

        if self.single and self.output is not None and not self.output.is_dir():
            return self.output
        directory = self.output or Path()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{directory}: {error.strerror}, expected a directory for the cores") from error
        return directory / core_name(leader)


def say(sentence: str) -> None:
    """Print one sentence on stderr."""
    print(f"{_program}: {sentence}", file=sys.stderr)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what cleans up is short, and a second one must not end it halfway
    raise KeyboardInterrupt


def set_up_logging(verbose: int) -> None:
    """Let -v tell the decisions, and -vv more."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format=f"{_program}: %(message)s", stream=sys.stderr)


def run_command(command: typer.Typer, program: str) -> None:
    """Run a command; every error is one sentence and an exit status."""
    global _program
    _program = program
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        command(prog_name=program)
    except UsageError as error:
        say(str(error))
        sys.exit(Exit.USAGE)
    except Vmcore2coreError as error:
        say(str(error))
        sys.exit(Exit.ERROR)
    except KeyboardInterrupt:
        say("interrupted; nothing half-written is left behind")
        sys.exit(Exit.ERROR)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(Exit.ERROR)


def main() -> None:
    """Run ``vmcore2core``."""
    run_command(app, "vmcore2core")

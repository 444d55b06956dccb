"""``vmcore2core debug``: a process of a dump in a debugger, as ``coredumpctl debug`` does it."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.opening import DumpOptions, dump_files, open_dump, takes_dump
from vmcore2core.commands.progress import progress_bars
from vmcore2core.commands.terminal import begin, catch_interrupts, run_command, say
from vmcore2core.errors import DebuggerError, OutputError, TaskError
from vmcore2core.signals import ENDING, blocked

if TYPE_CHECKING:
    from vmcore2core import Dump, Selection

app = options.new_app("vmcore2core")

SYSROOTS = "VMCORE2CORE_SYSROOT"
"""Variable with the folders in which start scripts look for files."""
BY_SIGNAL = 128
"""Exit status if a signal ended the debugger: this plus the signal's number, as in shells."""
GRACE = 5
"""Seconds that a debugger has for its end."""


@app.command()
@takes_dump
def debug(
    *,
    pid: Annotated[
        list[int] | None,
        typer.Option(
            "--pid",
            "-p",
            metavar="PID",
            help="The process with this PID, or with a thread that has it.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    comm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="The process whose name matches this shell pattern.", rich_help_panel=options.WHICH
        ),
    ] = None,
    debugger: Annotated[
        str, typer.Option(metavar="PROGRAM", help="The debugger: gdb, lldb, or the path of one of them.")
    ] = "gdb",
    arguments: Annotated[
        str,
        typer.Option(
            "--debugger-arguments",
            "-A",
            metavar="ARGS",
            help="Further arguments for the debugger, quoted as for a shell.",
        ),
    ] = "",
    swap: options.Swap = None,
    sysroot: options.Sysroot = None,
    scan: options.Scan = False,
    dump: DumpOptions,
) -> None:
    """Start a debugger on a process of a dump, with a temporary core and its programs, libraries and start scripts.

    These are in a new directory below $TMPDIR (default: /var/tmp), which is removed when the debugger ends.

    Exit status: the debugger's; 1 if it could not be started; 2 wrong usage.
    """
    if not pid and not comm:
        raise typer.BadParameter("no process is named: expected --pid PID or --comm PATTERN")
    if pid and comm:
        raise typer.BadParameter("both --pid and --comm are given, expected one of them")
    words = _words(arguments)
    begin(dump.verbose, debug=dump.debug)
    program = found_debugger(debugger)
    from vmcore2core import Choice

    catch_interrupts(signal.SIGHUP)
    dump = replace(dump, scan=scan, swap=tuple(swap or ()), sysroots=tuple(sysroot or ()))
    files = dump_files(dump)
    choice = Choice(pid=tuple(pid or ()), comm=tuple(comm or ()))
    with temporary_folder() as folder:
        with open_dump(dump, files) as vmcore:
            only = _only(vmcore.select(choice))
            script = _convert(vmcore, only, folder, verbose=bool(dump.verbose), lldb=is_lldb(debugger))
        line = command(program, script, words, lldb=is_lldb(debugger))
        status = run_debugger(line, folder, _environment(dump.sysroots))
    raise typer.Exit(status)


def _words(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise typer.BadParameter(f"--debugger-arguments {arguments}: {error}") from error


def found_debugger(debugger: str) -> str:
    """Return the path of a debugger.

    Raises:
        DebuggerError: it is not there.
    """
    found = shutil.which(debugger)
    if found is None:
        others = [name for name in ("gdb", "lldb") if name != debugger and shutil.which(name)]
        hint = f"; {others[0]} is there (--debugger {others[0]})" if others else ""
        raise DebuggerError(f"{debugger} is not installed, expected a debugger in $PATH{hint}")
    return str(Path(found).absolute())  # it is started in another directory


def is_lldb(debugger: str) -> bool:
    """Tell whether a debugger takes lldb's start script, by its name: lldb-19 does, gdb-multiarch takes gdb's."""
    return Path(debugger).name.startswith("lldb")


def command(program: str, script: Path, words: Sequence[str], *, lldb: bool) -> list[str]:
    """Return the debugger's command line: it runs the start script first, and then what the user's words ask for."""
    return [program, "-s" if lldb else "-x", script.name if lldb else str(script), *words]


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a directory of mode 0700, which is removed at the end.

    Raises:
        OutputError: it cannot be made.
    """
    # As coredumpctl has it: cores are large, and /tmp may be in memory.
    usual = None if "TMPDIR" in os.environ or not os.access("/var/tmp", os.W_OK | os.X_OK) else "/var/tmp"  # noqa: S108
    with ExitStack() as stack:
        with blocked(*ENDING, signal.SIGHUP):
            try:
                made = tempfile.TemporaryDirectory(prefix="vmcore2core-debug-", dir=usual)
            except OSError as error:
                raise OutputError(f"no temporary directory can be made: {error.strerror}") from error
            stack.callback(_remove, made)
        yield Path(made.name)


def _remove(folder: "tempfile.TemporaryDirectory[str]") -> None:
    """Remove a directory, with signals blocked."""
    with blocked(*ENDING, signal.SIGHUP):
        folder.cleanup()


def _only(selected: "Selection") -> "Selection":
    """Return the selection if it has one process.

    Raises:
        Vmcore2coreError: it has none, or several.
    """
    if selected.errors:
        raise selected.errors[0][1]
    if len(selected.processes) > 1:
        pids = ", ".join(str(one.pid) for one in selected.processes)
        raise TaskError(0, f"{len(selected.processes)} processes fit, expected one: --pid takes one of {pids}")
    return selected


def _convert(vmcore: "Dump", only: "Selection", folder: Path, *, verbose: bool, lldb: bool) -> Path:
    """Write the core with its companions, and return the start script.

    Raises:
        OutputError: there is none.
    """
    report = vmcore.write_for_debugger(only.processes[0], folder, bars=progress_bars, verbose=verbose)
    sentences = [*report.warnings, *(sentence for one in report.cores for sentence in one.sentences)]
    for sentence in sentences + (report.notices if verbose else []):
        say(sentence)
    script = next(folder.glob("core.*.lldb" if lldb else "core.*.gdb"), None)
    if script is None:
        raise OutputError(f"{only.processes[0].pid} has no start script, expected one in {folder}")
    return script


def _environment(sysroots: Sequence[Path]) -> dict[str, str]:
    """Return the debugger's environment, in which start scripts look below the same folders as the conversion."""
    given = os.environ.get(SYSROOTS, "").split(":") if SYSROOTS in os.environ else map(str, sysroots)
    folders = ":".join(str(Path(folder).absolute()) for folder in given if folder)
    return {**os.environ, SYSROOTS: folders} if folders else dict(os.environ)


def run_debugger(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a debugger in a folder, and return its exit status; the terminal's signals are left to the debugger.

    Raises:
        DebuggerError: it cannot be started.
    """
    signal.signal(signal.SIGINT, _leave_to_debugger)  # SIG_IGN would be inherited; what is left to do is short
    try:
        process = subprocess.Popen(words, cwd=folder, env=environment)  # noqa: S603 - whom the user named
        try:
            status = process.wait()
        except BaseException:
            _end(process)
            raise
    except OSError as error:
        raise DebuggerError(f"{words[0]} cannot be started: {error.strerror}") from error
    return BY_SIGNAL - status if status < 0 else status


def _leave_to_debugger(_number: int, _frame: object) -> None:
    """Do nothing."""


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a debugger, at the latest after ``GRACE`` seconds."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Run ``vmcore2core debug``; the word has been taken from the command line."""
    run_command(app, "vmcore2core debug")

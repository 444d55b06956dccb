"""A command's output: results on stdout, sentences on stderr, and the exit status.

Whatever a process of the dump, or a file's name, has in it reaches no terminal: control characters are escaped here,
once for all that is printed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from vmcore2core.errors import OutputError, UsageError, sentence_of
from vmcore2core.overrides import override
from vmcore2core.printable import lines

if TYPE_CHECKING:
    from types import FrameType

    import typer

_ENDING = (signal.SIGINT, signal.SIGTERM)

_program = "vmcore2core"
_debug = False


class Exit(IntEnum):
    """Exit statuses."""

    COMPLETE = 0
    ERROR = 1
    USAGE = 2
    INCOMPLETE = 3


class Interrupted(BaseException):
    """SIGINT or SIGTERM came; not a KeyboardInterrupt, for which typer has an exit status of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Stdout(io.TextIOWrapper):
    """Standard output; characters that its encoding lacks are escaped as control characters are.

    Raises:
        OutputError: it cannot be written, such as to a full disk.
    """

    def __init__(self, plain: io.TextIOWrapper) -> None:
        super().__init__(plain.buffer, plain.encoding, "backslashreplace", write_through=plain.write_through)
        self._plain = plain  # which closes the buffer when it goes

    @override
    def write(self, shown: str, /) -> int:
        with _refusals():
            return super().write(lines(shown))

    @override
    def flush(self) -> None:
        with _refusals():
            super().flush()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


class _Formatter(logging.Formatter):
    """Formats log records as ``say`` prints sentences; tracebacks are for --debug."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        if not _debug:
            record.exc_info = None
        return lines(super().format(record))


def say(sentence: str) -> None:
    """Print one sentence on stderr."""
    print(f"{_program}: {lines(sentence)}", file=sys.stderr)


def completes(program: str) -> bool:
    """Tell whether a shell asks for completions: only then, typer loads the code for them."""
    return _complete_var(program) in os.environ


def _complete_var(program: str) -> str:
    """Return the variable by which a shell asks for completions; for ``vmcore2core verify``, it is vmcore2core's."""
    return f"_{program.split()[0].replace('-', '_').upper()}_COMPLETE"


def catch_interrupts(*more: signal.Signals) -> None:
    """Clean up on SIGINT and SIGTERM from now on; only once numpy is loaded, as an exception would break its start.

    Args:
        more: other signals that end the command, unless they are ignored already, as nohup(1) makes them.
    """
    ignored = {number for number in more if signal.getsignal(number) is signal.SIG_IGN}
    for number in {*_ENDING, *more} - ignored:
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    for other in (*_ENDING, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)  # cleanup is short, and a second signal must not interrupt it
    raise Interrupted(number)


def begin(verbose: int, *, debug: bool) -> None:
    """Begin to work; typer has reported usage errors and printed help before.

    Args:
        verbose: 1 reports decisions, 2 more.
        debug: show where an error occurred.
    """
    global _debug
    _debug = debug
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Stdout(sys.stdout)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"{_program}: %(message)s"))
    logging.basicConfig(handlers=[handler])
    # From other packages, only warnings: the records of fsspec and aiohttp have the passwords of URLs.
    logging.getLogger("vmcore2core").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    if debug:
        logging.getLogger("vmcore2core.convert").setLevel(logging.DEBUG)  # has the errors that end one process's alone


def run_command(command: typer.Typer, program: str) -> NoReturn:
    """Run a command; every error is one sentence and an exit status."""
    global _program
    _program = program
    status: object = Exit.ERROR
    try:
        try:
            status = (
                command(prog_name=program, complete_var=_complete_var(program), standalone_mode=False) or Exit.COMPLETE
            )
        except SystemExit as ended:
            status = ended.code
        sys.stdout.flush()  # output that cannot be written is an error; later, nobody would report it
    except BaseException as error:
        _flush_or_give_up(sys.stdout)
        with contextlib.suppress(OSError):
            status = _end(error)
    _flush_or_give_up(sys.stderr)
    sys.exit(status)  # type: ignore[arg-type]


def _end(error: BaseException) -> Exit:
    """Report why the command ends, and return the exit status."""
    if hasattr(error, "format_message"):  # click's errors of the command line
        return _end_of_usage(error)
    if type(error).__name__ == "Abort":  # likewise: a question was not answered
        say("aborted")
        return Exit.ERROR
    if _debug:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        return Exit.ERROR  # the reader has enough
    if isinstance(error, Interrupted):
        say("interrupted; nothing half-written is left behind")
        signal.signal(error.number, signal.SIG_DFL)  # so that a shell's loop ends, too
        os.kill(os.getpid(), error.number)
    status = Exit.USAGE if isinstance(error, UsageError) else Exit.ERROR
    say(sentence_of(error))
    return status


def _end_of_usage(error: Any) -> Exit:  # noqa: ANN401 - typer may have a click of its own, so no class can be named
    """Say what is wrong with the command line; without any word on it, show the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        # format_message() would put "Invalid value:" before our own sentences.
        say(error.format_message() if getattr(error, "param", None) is not None or not error.message else error.message)
    return Exit.USAGE


def _flush_or_give_up(stream: TextIO) -> None:
    """Write the rest, or drop it: at its end, Python would fail to write it again, and exit with its own status."""
    try:
        stream.flush()
    except (OSError, OutputError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

"""``vmcore-tasks dmesg``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core import FACILITIES, LEVELS
from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, dump_files, open_options, opened, takes_dump
from vmcore2core.commands.progress import one_bar
from vmcore2core.commands.terminal import Exit, say
from vmcore2core.errors import LayoutUnknown
from vmcore2core.printable import text
from vmcore2core.times import ctime

if TYPE_CHECKING:
    from vmcore2core import KernelLog, Message


@takes_dump
def dmesg(
    *,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            "-l",
            metavar="LIST",
            help="Only messages of these levels, separated by commas: emerg, alert, crit, err, warn, notice, info, "
            "debug. err+ means err and more urgent ones.",
        ),
    ] = None,
    ctime: Annotated[
        bool, typer.Option("--ctime", "-T", help="Show the time of day (UTC) instead of seconds since boot.")
    ] = False,
    decode: Annotated[bool, typer.Option("--decode", "-x", help="Show each message's facility and level.")] = False,
    caller: Annotated[
        bool, typer.Option("--caller", help="Show who printed each message: T812 means thread 812, C3 means CPU 3.")
    ] = False,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Show the kernel's messages, like the command dmesg.

    This needs only VMCOREINFO, so it works even if processes cannot be shown without --vmlinux.
    """
    levels = _levels(level)
    with _opened(dump) as log:
        boot = _boot(log) if ctime or as_json else None
        shown = [message for message in log.messages if levels is None or message.level in levels]
        if as_json:
            print_document("vmcore-tasks-dmesg", boot_time=boot, messages=[_document(message) for message in shown])
        for message in () if as_json else shown:
            print(_line(message, boot if ctime else None, decode=decode, caller=caller))
    if log.problem is not None:
        say(f"messages are missing: {log.problem}")
        raise typer.Exit(Exit.INCOMPLETE if log.messages else Exit.ERROR)


@contextmanager
def _opened(dump: DumpOptions) -> Iterator["KernelLog"]:
    """Open the dump; if its types are not known, for its messages alone."""
    with ExitStack() as stack:
        try:
            vmcore = stack.enter_context(opened(dump))
        except LayoutUnknown:
            log = stack.enter_context(_without_types(dump))
        else:
            log = vmcore.log()
        yield log


@contextmanager
def _without_types(dump: DumpOptions) -> Iterator["KernelLog"]:
    from vmcore2core import open_log

    files = dump_files(dump)
    with open_log(files.paths, open_options(dump, files), one_bar) as log:
        yield log
        for warning in log.warnings:
            say(f"{files.paths[0]}: {warning}")
        if log.warnings:
            raise typer.Exit(Exit.INCOMPLETE)


def _levels(words: str | None) -> set[int] | None:
    """Return the levels that --level names, in dmesg(1)'s form: names with commas, NAME+ and +NAME."""
    if words is None:
        return None
    found: set[int] = set()
    for word in words.split(","):
        name = word.strip("+")
        if name not in LEVELS:
            raise typer.BadParameter(f"--level {word}: expected {', '.join(LEVELS)}, or such as err+")
        at = LEVELS.index(name)
        first, last = 0 if word.endswith("+") else at, len(LEVELS) - 1 if word.startswith("+") else at
        found |= set(range(first, last + 1))
    return found


def _boot(log: "KernelLog") -> float | None:
    """Return the start of the messages' clock, in seconds since 1970; say if it is not exact or not known."""
    if log.boot_time_doubt is not None:
        say(log.boot_time_doubt)
    return log.boot_time


def _line(message: "Message", boot: float | None, *, decode: bool, caller: bool) -> str:
    time = message.stamp() if boot is None else ctime(boot + message.seconds) or "?"
    head = f"{_decoded(message)}: " if decode else ""
    who = f"[{message.caller or '-':>7}] " if caller else ""
    return f"{head}[{time}] {who}{_text(message).expandtabs()}"


def _text(message: "Message") -> str:
    """Return the text without control characters, except for tabs."""
    return "\t".join(text(part.encode()) for part in message.text.split("\t"))


def _decoded(message: "Message") -> str:
    """Return "kern  :info  ", as dmesg(1) prints it."""
    number, level = message.facility, message.level
    facility = "-" if number is None else FACILITIES[number] if number < len(FACILITIES) else str(number)
    return f"{facility:<6}:{'-' if level is None else LEVELS[level]:<6}"


def _document(message: "Message") -> dict[str, object]:
    return {
        "seconds": float(message.stamp()),
        "level": None if message.level is None else LEVELS[message.level],
        "facility": message.facility,
        "caller": message.caller,
        "text": _text(message),
    }

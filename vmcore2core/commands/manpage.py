"""The commands' manual pages, made of what the commands themselves declare.

``python -m vmcore2core.commands.manpage OUTDIR`` writes them.

References: man-pages(7), groff_man(7).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from vmcore2core import __version__
from vmcore2core.commands import capture, convert, debug, journal, verify
from vmcore2core.commands.tasks import app as tasks

DATE = "2026-11-26"
"""Of the pages' last change that is not of a command's: of what is below."""

INTERRUPTED = ("130, 143", "SIGINT or SIGTERM ended it, and nothing half-written is left")
USAGE = ("2", "the command line makes no sense")
DUMP = ("VMCORE", "The dump, where none is named.")
CACHE = ("XDG_CACHE_HOME", "Where dumps are kept that have to be unpacked or come through a pipe; ~/.cache without it.")
DUMPS = [
    ("/proc/vmcore", "The dump in a capture kernel, taken where none is named."),
    ("/var/crash", "The newest dump below it is taken where there is no other."),
]
KEPT = (
    "$XDG_CACHE_HOME/vmcore2core",
    "Dumps that were unpacked or received, 64 GiB of each, and layouts; all may be deleted.",
)
VMLINUX = (
    "/usr/lib/debug/boot/vmlinux-RELEASE and the like",
    "The kernel's debug package, taken where the dump does not tell enough and the build ID is the dump's.",
)


CAPTURE_EXAMPLE = """\
[limits]
seconds = 60
keep_free = "10 %"

[[process]]
comm = ["postgres"]

[[process]]
comm = ["*"]
stacks_only = true"""


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: of the command.
        app: its declaration.
        status: exit statuses and what they mean.
        environment: variables and what they do.
        files: what it reads and writes.
        examples: what it is for, and the line.
        see_also: other pages.
    """

    name: str
    app: typer.Typer
    status: Sequence[tuple[str, str]]
    environment: Sequence[tuple[str, str]]
    files: Sequence[tuple[str, str]]
    examples: Sequence[tuple[str, str]]
    see_also: Sequence[str]


PAGES = (
    Page(
        "vmcore2core",
        convert.app,
        (
            ("0", "everything that was asked for is written and complete"),
            ("1", "an error; what could be written is written"),
            USAGE,
            ("3", "written, but pages or threads are missing: stderr and the summary say how many, which, and why"),
            INTERRUPTED,
        ),
        (DUMP, CACHE),
        (
            *DUMPS,
            KEPT,
            VMLINUX,
            (
                "core.COMM.PID",
                "A core in the directory that --output names; --all also writes the following beside it.",
            ),
            ("index.json", "What the directory has, for machines."),
            ("index.html, index.data", "The same for a browser: the page, and what it loads of each process."),
            ("sysroot", "Programs and libraries as far as they are whole in the dump."),
            ("core.COMM.PID.gdb, core.COMM.PID.lldb", "Start scripts for debuggers."),
            (
                ".NAME.RANDOM.part",
                "An unfinished file of a run that was killed, on file systems such as NFS; --resume removes it.",
            ),
        ),
        (
            ("One process", "vmcore2core vmcore --pid 812 -o app.core"),
            ("All whose name matches, into a directory", "vmcore2core vmcore --comm 'postgres*' -o cores"),
            ("Everything, with four workers", "vmcore2core vmcore --all -o cores --jobs 4"),
            ("A dump that comes through a pipe", "ssh machine cat /var/crash/vmcore.flat | vmcore2core - --pid 812"),
        ),
        (
            "vmcore2core-debug(1)",
            "vmcore2core-verify(1)",
            "vmcore-tasks(1)",
            "gdb(1)",
            "lldb(1)",
            "makedumpfile(8)",
            "core(5)",
        ),
    ),
    Page(
        "vmcore2core debug",
        debug.app,
        (
            ("0", "the debugger ended with it; any other status is the debugger's as well, but for these"),
            ("1", "an error: the debugger was not started"),
            USAGE,
            ("128 and more", "a signal ended the debugger: 128 and its number"),
            ("129, 130, 143", "SIGHUP, SIGINT or SIGTERM ended it, and the debugger, and nothing is left"),
        ),
        (
            DUMP,
            CACHE,
            ("TMPDIR", "Where the temporary directory is made; /var/tmp without it."),
            (
                "VMCORE2CORE_SYSROOT",
                "Where the start scripts look for files; --sysroot without it.",
            ),
        ),
        (*DUMPS, KEPT, VMLINUX, ("vmcore2core-debug-*", "The temporary directory, in $TMPDIR.")),
        (
            ("gdb on a process", "vmcore2core debug vmcore --pid 812"),
            (
                "lldb, with the machine's files",
                "vmcore2core debug vmcore --comm nginx --debugger lldb --sysroot /srv/machine",
            ),
            (
                "All stacks, and nothing to type",
                "vmcore2core debug vmcore --pid 812 -A '-batch -ex \"thread apply all bt\"'",
            ),
        ),
        ("vmcore2core(1)", "coredumpctl(1)", "gdb(1)", "lldb(1)"),
    ),
    Page(
        "vmcore2core verify",
        verify.app,
        (
            ("0", "nothing is wrong or missing"),
            ("1", "something is wrong"),
            USAGE,
            ("3", "something is missing"),
            INTERRUPTED,
        ),
        (CACHE,),
        (KEPT,),
        (
            (
                "What is wrong with a core, what is missing, and which files a debugger needs",
                "vmcore2core verify app.core",
            ),
            ("Each page and note against the dump", "vmcore2core verify app.core --against vmcore"),
            ("All cores of a directory, a line each", "vmcore2core verify cores"),
        ),
        ("vmcore2core(1)", "eu-readelf(1)"),
    ),
    Page(
        "vmcore2core capture",
        capture.app,
        (
            ("0", "all cores are whole, as far as they were wanted whole; or there is no configuration"),
            ("1", "an error"),
            USAGE,
            ("3", "some cores hold stacks alone, or are missing: index.json says which, and why"),
            INTERRUPTED,
        ),
        (("XDG_CACHE_HOME", "Where the layout that --check learned is kept; /var/cache for the service."),),
        (
            ("/etc/vmcore2core/capture.toml", "What is to be captured; without it, nothing is."),
            ("/var/crash/DATE/cores", "The cores, index.json and capture.log."),
            ("/etc/systemd/system/vmcore2core-*.service", "What --install makes for kdump-tools (Debian, Ubuntu)."),
            ("/etc/kdump/pre.d/vmcore2core.sh", "What --install makes for kdump-utils (RHEL, Fedora)."),
        ),
        (
            (
                "A configuration for a database server",
                CAPTURE_EXAMPLE,
            ),
            ("What it would capture now", "vmcore2core capture --check"),
            ("From the next crash on", "vmcore2core capture --install"),
        ),
        ("vmcore2core(1)", "vmcore2core-journal(1)", "kdump-config(8)", "kdump.conf(5)", "makedumpfile(8)", "core(5)"),
    ),
    Page(
        "vmcore2core journal",
        journal.app,
        (("0", "the journal has an entry for each core"), ("1", "an error"), USAGE, INTERRUPTED),
        (),
        (
            ("/var/crash/DATE/cores", "Captured cores."),
            ("journal.sent", "In such a directory: the journal has its entries."),
        ),
        (
            (
                "After a crash; the service that vmcore2core capture installs does it",
                "vmcore2core journal --new /var/crash",
            ),
            ("Then", "coredumpctl debug 812"),
        ),
        ("vmcore2core-capture(1)", "coredumpctl(1)", "systemd.journal-fields(7)"),
    ),
    Page(
        "vmcore-tasks",
        tasks.app,
        (
            ("0", "everything that was asked for is shown"),
            ("1", "an error; or ps found nothing"),
            USAGE,
            ("3", "shown, but the dump is not whole, or a stack could not be followed to its end"),
            INTERRUPTED,
        ),
        (DUMP, CACHE),
        (*DUMPS, KEPT, VMLINUX),
        (
            ("All tasks, children below their parents", "vmcore-tasks ps vmcore --tree"),
            ("The stacks of one process's threads", "vmcore-tasks bt vmcore --pid 812"),
            ("The layout of the kernel's structures, for --vmcoreinfo", "vmcore-tasks layout vmcore > layout.txt"),
        ),
        ("vmcore2core(1)", "ps(1)", "proc(5)", "crash(8)"),
    ),
)


def pages() -> Iterator[tuple[str, str]]:
    """Yield each page's file name and its roff."""
    for page in PAGES:
        yield f"{page.name.replace(' ', '-')}.1", "\n".join(_lines(page)) + "\n"


def _lines(page: Page) -> Iterator[str]:
    commands = _commands(page.app)
    first, *rest = _paragraphs(page.app.info.help if len(commands) > 1 else inspect.getdoc(commands[0][1]))
    dashed = page.name.replace(" ", "-")
    yield f'.TH {dashed.upper()} 1 {DATE} "vmcore2core {__version__}" "User Commands"'
    yield from (".SH NAME", f"{roff(dashed)} \\- {roff(first.rstrip('.'))}", ".SH SYNOPSIS")
    if len(commands) > 1:
        yield from (f".B {roff(page.name)}", r"\fICOMMAND\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]...")
        yield from (".SH DESCRIPTION", roff(first))
        before = page.app.registered_callback
        if before is not None and before.callback is not None:
            yield ".SH OPTIONS"
            yield from _options(before.callback)
        yield ".SH COMMANDS"
        for name, command in commands:
            yield f".SS {_synopsis(name, command)}"
            yield from _body(_paragraphs(inspect.getdoc(command)))
            yield from _options(command)
    else:
        yield from (_synopsis(page.name, commands[0][1]), ".SH DESCRIPTION")
        yield from _body([first, *(part for part in rest if not part.startswith("Exit status:"))])
        yield ".SH OPTIONS"
        yield from _options(commands[0][1])
    for title, entries in (("EXIT STATUS", page.status), ("ENVIRONMENT", page.environment), ("FILES", page.files)):
        yield f".SH {title}"
        for term, text in entries:
            yield from (".TP", f".B {roff(term)}", roff(text))
    yield ".SH EXAMPLES"
    for what, line in page.examples:
        yield from (".TP", roff(f"{what}:"), f".EX\n{roff(line)}\n.EE")
    yield from (".SH SEE ALSO", ",\n".join(f".BR {roff(name[:-3])} {name[-3:]}" for name in page.see_also))


def _commands(app: typer.Typer) -> list[tuple[str, Callable[..., Any]]]:
    return [(info.callback.__name__, info.callback) for info in app.registered_commands if info.callback is not None]


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in (text or "").split("\n\n")]


def _body(paragraphs: Sequence[str]) -> Iterator[str]:
    for number, part in enumerate(paragraphs):
        yield from ([".PP"] if number else [])
        yield roff(part)


def _parameters(command: Callable[..., Any]) -> Iterator[tuple[str, OptionInfo | ArgumentInfo, Any, bool]]:
    """Yield (name, what typer is told of it, its type, whether it must be given)."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, declared = get_args(hints[name])
        if not declared.hidden:
            yield name, declared, kind, parameter.default is parameter.empty


def _synopsis(name: str, command: Callable[..., Any]) -> str:
    words = [rf"\fB{roff(name)}\fR", r"[\fIOPTION\fR]..."]
    for parameter, declared, kind, needed in _parameters(command):
        if isinstance(declared, ArgumentInfo):
            shown = rf"\fI{roff(parameter.upper())}\fR"
            words.append(shown if needed else f"[{shown}]{'...' if _is_list(kind) else ''}")
        elif needed:
            words.append(rf"\fB{roff(_flags(parameter, declared, kind)[0])}\fR \fI{_metavar(declared, kind)}\fR")
    return " ".join(words)


def _options(command: Callable[..., Any]) -> Iterator[str]:
    # Arguments come first, as in --help.
    for name, declared, kind, _ in sorted(_parameters(command), key=lambda one: isinstance(one[1], OptionInfo)):
        shown = [name.upper()] if isinstance(declared, ArgumentInfo) else _flags(name, declared, kind)
        terms = ", ".join(rf"\fB{roff(flag)}\fR" for flag in shown)
        if isinstance(declared, ArgumentInfo):
            terms = rf"\fI{roff(name.upper())}\fR"
        elif kind is not bool and not declared.count:
            terms += rf" \fI{roff(_metavar(declared, kind))}\fR"
        yield from (".TP", terms, roff(declared.help or ""))
    yield from (".TP", r"\fB\-h\fR, \fB\-\-help\fR", "Show a summary of the options.")


def _flags(name: str, declared: OptionInfo | ArgumentInfo, kind: object) -> list[str]:
    """Return an option's names; where none are declared, typer makes them of the parameter's."""
    # In an annotation, typer takes what is in the default's place for the first name.
    given = [word for word in (declared.default, *(declared.param_decls or ())) if isinstance(word, str)]
    plain = name.replace("_", "-")
    made = f"--{plain}/--no-{plain}" if kind is bool else f"--{plain}"
    return [flag for word in given or [made] for flag in word.split("/")]


def _metavar(declared: OptionInfo | ArgumentInfo, kind: Any) -> str:  # noqa: ANN401 - a type or what typing makes of several
    if declared.metavar:
        return declared.metavar
    while get_origin(kind) in (UnionType, list):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    if issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return {int: "NUMBER", str: "TEXT"}.get(kind, "PATH")


def _is_list(kind: Any) -> bool:  # noqa: ANN401 - likewise
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def roff(text: str) -> str:
    """Return text that groff shows as it is."""
    text = re.sub(r"(?<![A-Za-z0-9])-|-(?=-)", r"\-", text.replace("\\", r"\e"))
    return rf"\&{text}" if text.startswith((".", "'")) else text


def main() -> None:
    """Write the pages into the directory that is named."""
    for name, text in pages():
        Path(sys.argv[1], name).write_text(text)


if __name__ == "__main__":
    main()

"""The commands' manual pages, generated from the commands' own declarations.

``python -m vmcore2core.commands.manpage OUTDIR`` writes them.

References: man-pages(7), groff_man(7).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vmcore2core import __version__
from vmcore2core.commands import capture, convert, debug, journal, verify
from vmcore2core.commands.tasks import app as tasks

DATE = "2026-11-30"
"""Date of the last change of this module's texts."""

INTERRUPTED = ("130, 143", "SIGINT or SIGTERM ended it; no half-written file is left")
USAGE = ("2", "the command line makes no sense")
DUMP = ("VMCORE", "The dump, if none is named.")
CACHE = ("XDG_CACHE_HOME", "Folder for dumps that must be unpacked or come through a pipe. Default: ~/.cache.")
DUMPS = [
    ("/proc/vmcore", "The dump in a capture kernel, used if none is named."),
    ("/var/crash", "The newest dump below it is used if there is no other."),
]
KEPT = (
    "$XDG_CACHE_HOME/vmcore2core",
    "Unpacked and received dumps, at most 64 GiB of each kind, and layouts; all may be deleted.",
)
VMLINUX = (
    "/usr/lib/debug/boot/vmlinux-RELEASE and the like",
    "The kernel's debug package, used if it has the dump's build ID and the dump does not tell enough.",
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
        status: exit statuses and their meaning.
        environment: variables and their meaning.
        files: files that it reads or writes.
        examples: purpose and command line of each.
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
            ("index.json", "The contents of the directory, for programs."),
            ("index.html, index.data", "The same for a browser: the page, and its data on each process."),
            ("sysroot", "Programs and libraries that are whole in the dump."),
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
            ("0", "the debugger's exit status; all others are the debugger's, too, except these"),
            ("1", "an error: the debugger was not started"),
            USAGE,
            ("128 and more", "a signal ended the debugger: 128 plus its number"),
            ("129, 130, 143", "SIGHUP, SIGINT or SIGTERM ended it and the debugger; no file is left"),
        ),
        (
            DUMP,
            CACHE,
            ("TMPDIR", "Folder for the temporary directory. Default: /var/tmp."),
            (
                "VMCORE2CORE_SYSROOT",
                "Folders in which the start scripts look for files. Default: those of --sysroot.",
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
                "All stacks, without a prompt",
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
            ("0", "all cores that were to be whole are whole; or there is no configuration"),
            ("1", "an error"),
            USAGE,
            ("3", "some cores have only stacks, or are missing: index.json says which, and why"),
            INTERRUPTED,
        ),
        (("XDG_CACHE_HOME", "Folder for the layout that --check found. The service uses /var/cache."),),
        (
            ("/etc/vmcore2core/capture.toml", "What to capture. Without this file, nothing is captured."),
            ("/var/crash/DATE/cores", "The cores, index.json and capture.log."),
            ("/etc/systemd/system/vmcore2core-*.service", "Made by --install for kdump-tools (Debian, Ubuntu)."),
            ("/etc/kdump/pre.d/vmcore2core.sh", "Made by --install for kdump-utils (RHEL, Fedora)."),
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
            ("journal.sent", "A mark in such a directory: the journal has its entries."),
        ),
        (
            (
                "After a crash (the service that vmcore2core capture installs does this)",
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
            ("3", "shown, but the dump is incomplete, or a stack could not be followed to its end"),
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
    command = typer.main.get_command(page.app)
    group = getattr(command, "commands", {})
    first, *rest = _paragraphs(command.help)
    dashed = page.name.replace(" ", "-")
    yield f'.TH {dashed.upper()} 1 {DATE} "vmcore2core {__version__}" "User Commands"'
    yield from (".SH NAME", f"{roff(dashed)} \\- {roff(first.rstrip('.'))}", ".SH SYNOPSIS")
    if group:
        yield from (f".B {roff(page.name)}", r"\fICOMMAND\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]...")
        yield from (".SH DESCRIPTION", roff(first), ".SH OPTIONS")
        yield from _options(command)
        yield ".SH COMMANDS"
        for name, one in group.items():
            yield f".SS {_synopsis(name, one)}"
            yield from _body(_paragraphs(one.help))
            yield from _options(one)
    else:
        yield from (_synopsis(page.name, command), ".SH DESCRIPTION")
        yield from _body([first, *(part for part in rest if not part.startswith("Exit status:"))])
        yield ".SH OPTIONS"
        yield from _options(command)
    for title, entries in (("EXIT STATUS", page.status), ("ENVIRONMENT", page.environment), ("FILES", page.files)):
        yield f".SH {title}"
        for term, text in entries:
            yield from (".TP", f".B {roff(term)}", roff(text))
    yield ".SH EXAMPLES"
    for what, line in page.examples:
        yield from (".TP", roff(f"{what}:"), f".EX\n{roff(line)}\n.EE")
    yield from (".SH SEE ALSO", ",\n".join(f".BR {roff(name[:-3])} {name[-3:]}" for name in page.see_also))


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in (text or "").split("\n\n")]


def _body(paragraphs: Sequence[str]) -> Iterator[str]:
    for number, part in enumerate(paragraphs):
        yield from ([".PP"] if number else [])
        yield roff(part)


def _parameters(command: Any) -> Iterator[tuple[Any, bool]]:  # noqa: ANN401 - a click command; its parameters
    """Yield each parameter that --help shows, and whether it is an argument; arguments come first, as in --help."""
    shown = [(one, one.param_type_name == "argument") for one in command.params if not one.hidden]
    yield from sorted(shown, key=lambda pair: not pair[1])


def _synopsis(name: str, command: Any) -> str:  # noqa: ANN401 - likewise
    words = [rf"\fB{roff(name)}\fR", r"[\fIOPTION\fR]..."]
    parameters = list(_parameters(command))
    for one, is_argument in parameters:
        if one.required and not is_argument:
            words.append(rf"\fB{roff(one.opts[0])}\fR \fI{_metavar(one)}\fR")
    for one, is_argument in parameters:
        if is_argument:
            text = rf"\fI{roff(one.name.upper())}\fR"
            words.append((text if one.required else f"[{text}]") + ("..." if one.nargs == -1 else ""))
    return " ".join(words)


def _options(command: Any) -> Iterator[str]:  # noqa: ANN401 - likewise
    for one, is_argument in _parameters(command):
        if is_argument:
            terms = rf"\fI{roff(one.name.upper())}\fR"
        else:
            terms = ", ".join(rf"\fB{roff(flag)}\fR" for flag in (*one.opts, *one.secondary_opts))
            if not (one.is_flag or one.count):
                terms += rf" \fI{roff(_metavar(one))}\fR"
        yield from (".TP", terms, roff(one.help or ""))
    yield from (".TP", r"\fB\-h\fR, \fB\-\-help\fR", "Show a summary of the options.")


def _metavar(one: Any) -> str:  # noqa: ANN401 - a click option
    if one.metavar:
        return str(one.metavar)
    choices = getattr(one.type, "choices", None)
    if choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in choices)
    return {"integer": "NUMBER", "integer range": "NUMBER", "text": "TEXT"}.get(one.type.name, "PATH")


def roff(text: str) -> str:
    """Return text, escaped for groff."""
    text = re.sub(r"(?<![A-Za-z0-9])-|-(?=-)", r"\-", text.replace("\\", r"\e"))
    return rf"\&{text}" if text.startswith((".", "'")) else text


def main() -> None:
    """Write the pages into the directory that the command line names."""
    for name, text in pages():
        Path(sys.argv[1], name).write_text(text)


if __name__ == "__main__":
    main()

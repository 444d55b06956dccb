"""The options that several commands have, each declared once.

Neither here nor in the commands are annotations strings: typer would compile each of them again, at every start.
"""

from pathlib import Path
from typing import Annotated

import typer

from vmcore2core import __version__
from vmcore2core.commands.terminal import completes

DEBUG_DIRECTORY = Path("/usr/lib/debug")

STATES = "RSDTtXZPI"
"""Letters of ps(1) for the states that Linux tells (fs/proc/array.c: task_state_array)."""

WHICH, WRITTEN, MANY = "Which processes", "What is written", "Many processes"
OPENING, LAYOUT, FILES = "How the dump is opened", "Where the kernel's layout comes from", "Files of the machine"
"""Parts of --help."""


def new_app(program: str, about: str | None = None) -> typer.Typer:
    """Return a new program for typer.

    Args:
        program: its name.
        about: its description, if it is to have several commands.
    """
    return typer.Typer(
        add_completion=completes(program),
        pretty_exceptions_enable=False,
        no_args_is_help=about is not None,
        help=about,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


Vmcore = Annotated[
    list[str] | None,
    typer.Argument(
        help="The dump: one or more files, a URL, or - for standard input. Default: $VMCORE, else /proc/vmcore, else "
        "the newest dump below /var/crash."
    ),
]
Vmlinux = Annotated[
    Path | None,
    typer.Option(
        readable=False,  # so that what cannot be read is an error like others, and no matter of usage
        metavar="FILE",
        help="The kernel's vmlinux, used for what the dump does not tell.",
        rich_help_panel=LAYOUT,
    ),
]
Vmcoreinfo = Annotated[
    Path | None,
    typer.Option(
        readable=False,
        metavar="FILE",
        help="VMCOREINFO text whose keys override the dump's (vmcore-tasks layout writes such a file); or 0xADDRESS of "
        "a text in memory.",
        rich_help_panel=LAYOUT,
    ),
]
MemoryMap = Annotated[
    str | None,
    typer.Option(
        "--map",
        metavar="MAP",
        help="Where physical memory lies in a dump without a header: START:SIZE@OFFSET,..., or a file with such "
        "ranges, or raw (all from address 0 on). For a saved machine (QEMU's migrate, virsh save) of an unknown type: "
        "offsets in its main memory.",
        rich_help_panel=OPENING,
    ),
]
Swap = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NUMBER=]FILE",
        help="A swap file or partition of the machine, or a copy of it; NUMBER chooses among those of the same size; "
        "may repeat.",
        rich_help_panel=FILES,
    ),
]
Sysroot = Annotated[
    list[Path] | None,
    typer.Option(
        readable=False,
        metavar="DIR",
        help="Take pages of programs and libraries that memory lacks from the files below DIR that have the same build "
        "ID; may repeat, the first DIR that has a file counts.",
        rich_help_panel=FILES,
    ),
]
DebugDirectory = Annotated[
    Path,
    typer.Option(
        readable=False,
        metavar="DIR",
        help="The tree of debug packages. With --sysroot or --debuginfod, names and source lines come from there.",
        rich_help_panel=FILES,
    ),
]
Debuginfod = Annotated[
    bool,
    typer.Option(
        "--debuginfod",
        help="Ask the servers in $DEBUGINFOD_URLS for files that stacks need and memory lacks. Only build IDs are "
        "sent.",
        rich_help_panel=FILES,
    ),
]
ZeroExcluded = Annotated[
    bool,
    typer.Option(
        "--zero-excluded",
        help="Read pages that were left out of an ELF dump as zeros. Use it only if you know that they were zero.",
        rich_help_panel=OPENING,
    ),
]
Scan = Annotated[
    bool,
    typer.Option(
        "--scan",
        help="Also search all memory for tasks that the kernel's lists have lost.",
        rich_help_panel=OPENING,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Do not use the cache. A compressed dump may be unpacked each time.",
        rich_help_panel=OPENING,
    ),
]
AnySize = Annotated[
    bool,
    typer.Option(
        "--unpack-any-size",
        help="Unpack a dump to any size. Otherwise the limit is 1 GiB or 256 times its packed size, at most 16 TiB.",
        rich_help_panel=OPENING,
    ),
]
Pids = Annotated[
    list[int] | None,
    typer.Option(
        "--pid",
        "-p",
        metavar="PID",
        help="The process with this PID, or with a thread that has it; may repeat.",
        rich_help_panel=WHICH,
    ),
]
Comms = Annotated[
    list[str] | None,
    typer.Option(
        "--comm",
        metavar="PATTERN",
        help="Processes whose name matches this shell pattern; may repeat.",
        rich_help_panel=WHICH,
    ),
]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say which source gave each answer.", show_default=False)
]
Debug = Annotated[bool, typer.Option("--debug", help="With an error, show where in this program it occurred.")]
State = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LETTERS",
        help=f"Processes with a thread in one of these states, such as RD (all: {' '.join(STATES)}); may repeat.",
        rich_help_panel=WHICH,
    ),
]


def _print_version(context: typer.Context, value: bool) -> None:
    if value:
        print(f"{context.info_name} {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def states(words: list[str] | None) -> tuple[str, ...]:
    """Return the letters that --state names, several in a word or each in its own.

    Raises:
        typer.BadParameter: no task is ever in such a state.
    """
    letters = "".join(words or ()).replace(",", "")
    for letter in letters:
        if letter not in STATES:
            raise typer.BadParameter(f"--state {letter}: expected letters of {' '.join(STATES)}")
    return tuple(letters)

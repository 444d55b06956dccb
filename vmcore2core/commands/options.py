"""The options that several commands have, each declared once.

Neither here nor in the commands are annotations strings: typer would compile each of them again, at every start.
"""

from pathlib import Path
from typing import Annotated

import typer

from vmcore2core import __version__

DEBUG_DIRECTORY = Path("/usr/lib/debug")

STATES = "RSDTtXZPI"
"""Letters of ps(1) for the states that Linux tells (fs/proc/array.c: task_state_array)."""

WHICH, OPENING = "Which processes", "How the dump is opened"
"""Parts of --help."""

CONTEXT = {"help_option_names": ["-h", "--help"]}

Vmcore = Annotated[
    list[str] | None,
    typer.Argument(
        help="The dump: its file or files, a URL, or - for standard input. Without it: $VMCORE, else /proc/vmcore, "
        "else the newest below /var/crash."
    ),
]
Vmlinux = Annotated[
    Path | None,
    typer.Option(help="The kernel's vmlinux, for what the dump itself does not tell.", rich_help_panel=OPENING),
]
Vmcoreinfo = Annotated[
    Path | None,
    typer.Option(
        help="VMCOREINFO text whose keys go before the dump's (vmcore-tasks layout writes one).",
        rich_help_panel=OPENING,
    ),
]
MemoryMap = Annotated[
    str | None,
    typer.Option(
        "--map",
        metavar="START:SIZE@OFFSET,...",
        help="What physical memory is where in a dump without a header; raw: all from address 0 on; or a file. Of a "
        "saved machine (QEMU's migrate, virsh save): what is where in its main memory, if its type does not tell.",
        rich_help_panel=OPENING,
    ),
]
Swap = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NUMBER=]FILE",
        help="A swap file or partition of the machine, or a copy of it; NUMBER where several are of one size.",
        rich_help_panel=OPENING,
    ),
]
Sysroot = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="Take pages of programs and libraries that are not in memory from the files below DIR, if these have "
        "the same build ID; may repeat, the first that has a file is taken.",
        rich_help_panel=OPENING,
    ),
]
DebugDirectory = Annotated[
    Path,
    typer.Option(help="Debug packages' tree: with --sysroot or --debuginfod, names and source lines come from there."),
]
Debuginfod = Annotated[
    bool,
    typer.Option(
        "--debuginfod",
        help="Ask the servers in $DEBUGINFOD_URLS for files that stacks need and memory lacks; they learn build IDs "
        "alone.",
    ),
]
ZeroExcluded = Annotated[
    bool,
    typer.Option(
        "--zero-excluded",
        help="Read pages that were left out of an ELF dump as zeros: for those who know that only zero pages were.",
        rich_help_panel=OPENING,
    ),
]
Scan = Annotated[
    bool,
    typer.Option(
        "--scan",
        help="Search all memory for tasks as well, for those that the kernel's lists have lost.",
        rich_help_panel=OPENING,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Keep nothing in the cache, and use nothing that is there; a compressed dump may be unpacked each time.",
        rich_help_panel=OPENING,
    ),
]
AnySize = Annotated[
    bool,
    typer.Option(
        "--unpack-any-size",
        help="Unpack a dump whatever its size. Without this: up to 1 GiB or 256 times its packed size, 16 TiB at most.",
        rich_help_panel=OPENING,
    ),
]
Pids = Annotated[
    list[int] | None,
    typer.Option(
        "--pid",
        "-p",
        help="The process with this PID, or with a thread that has it; may repeat.",
        rich_help_panel=WHICH,
    ),
]
Comms = Annotated[
    list[str] | None,
    typer.Option("--comm", help="Processes whose name matches this shell pattern; may repeat.", rich_help_panel=WHICH),
]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say which source answered what.", show_default=False)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in this program an error came from.")]
State = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LETTERS",
        help=f"Only processes with a thread in one of these states, such as RD ({' '.join(STATES)}); may repeat.",
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

"""``vmcore2core verify``: what a finished core is worth; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmcore2core.cli import ANY_SIZE_HELP, DEBUG_HELP, NO_CACHE_HELP
from vmcore2core.printable import counted, to_json
from vmcore2core.progress import one_bar
from vmcore2core.terminal import Exit, begin, catch_interrupts, completes, run_command, say

app = typer.Typer(
    add_completion=completes("vmcore2core"),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def verify(
    core: Annotated[Path, typer.Argument(help="The core.")],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="VMCORE", help="Compare each page and note with this dump; repeat for a split one."),
    ] = None,
    vmlinux: Annotated[Path | None, typer.Option(help="The kernel's vmlinux, as when the core was made.")] = None,
    vmcoreinfo: Annotated[Path | None, typer.Option(help="VMCOREINFO text, likewise.")] = None,
    memory_map: Annotated[str | None, typer.Option("--map", help="What memory is where, likewise.")] = None,
    swap: Annotated[list[str] | None, typer.Option(help="Swap files, likewise.")] = None,
    sysroot: Annotated[Path | None, typer.Option(help="Original files, likewise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more.", show_default=False)] = 0,
    no_cache: Annotated[bool, typer.Option("--no-cache", help=NO_CACHE_HELP)] = False,
    unpack_any_size: Annotated[bool, typer.Option("--unpack-any-size", help=ANY_SIZE_HELP)] = False,
    debug: Annotated[bool, typer.Option("--debug", help=DEBUG_HELP)] = False,
) -> None:
    """Read a finished core again, and say what a debugger will find missing.

    Exit status: 0 nothing is wrong or missing, 1 something is wrong, 2 usage, 3 something is missing.
    """
    begin(verbose, debug=debug)
    from vmcore2core.arguments import named
    from vmcore2core.corefile.inspect import also, files_needed, missing, problems
    from vmcore2core.session import Session
    from vmcore2core.verification import compare, open_core

    catch_interrupts()
    with open_core(core) as found:
        wrong, lacking = list(problems(found)), list(missing(found))
        files, more = list(files_needed(found)), list(also(found))
        compared = None
        if against and not wrong:
            words = named(against, vmlinux, memory_map)
            how = words.vmlinux, vmcoreinfo, swap or (), words.memory_map, one_bar, sysroot
            with Session(words.paths, *how, cache=not no_cache, any_size=unpack_any_size) as session:
                compared = compare(found, session)
                wrong += compared.sentences()
        threads = found.tids
        document = {
            "core": str(core),
            "pid": found.pid,
            "threads": threads,
            "wrong": wrong,
            "missing": lacking,
            "files_needed": files,
            "also": more,
            "pages_same": None if compared is None else compared.same,
            "pages_differing": None if compared is None else len(compared.differing),
        }
    if as_json:
        print(to_json(document, indent=1))
    else:
        for sentence in wrong:
            say(f"{core}: wrong: {sentence}")
        for sentence in lacking:
            print(f"missing: {sentence}")
        for sentence in files:
            print(f"needs {sentence}")
        for sentence in more:
            print(f"note: {sentence}")
        pages = f", {counted(compared.same, 'page')} equal to the dump's" if compared is not None else ""
        state = "wrong" if wrong else "incomplete" if lacking else "good"
        print(f"{core}: {state}, {counted(len(threads), 'thread')}{pages}")
    raise typer.Exit(Exit.ERROR if wrong else Exit.INCOMPLETE if lacking else Exit.COMPLETE)


def main() -> None:
    """Run ``vmcore2core verify``; the word has been taken from the command line."""
    run_command(app, "vmcore2core verify")

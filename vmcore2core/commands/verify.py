"""``vmcore2core verify``: what a finished core is worth."""

from pathlib import Path
from typing import Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, dump_files, open_dump
from vmcore2core.commands.terminal import Exit, begin, catch_interrupts, completes, run_command, say
from vmcore2core.printable import counted

app = typer.Typer(
    add_completion=completes("vmcore2core"),
    pretty_exceptions_enable=False,
    context_settings=options.CONTEXT,
)


@app.command()
def verify(
    core: Annotated[Path, typer.Argument(help="The core.")],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="VMCORE", help="Compare each page and note with this dump; repeat for a split one."),
    ] = None,
    vmlinux: options.Vmlinux = None,
    vmcoreinfo: options.Vmcoreinfo = None,
    memory_map: options.MemoryMap = None,
    swap: options.Swap = None,
    sysroot: options.Sysroot = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
    no_cache: options.NoCache = False,
    any_size: options.AnySize = False,
    debug: options.Debug = False,
) -> None:
    """Read a finished core again, and say what a debugger will find missing.

    Exit status: 0 nothing is wrong or missing, 1 something is wrong, 2 usage, 3 something is missing.
    """
    begin(verbose, debug=debug)
    from vmcore2core.corefile.inspect import also, files_needed, missing, problems
    from vmcore2core.verification import compare, open_core

    catch_interrupts()
    with open_core(core) as found:
        wrong, lacking = list(problems(found)), list(missing(found))
        files, more = list(files_needed(found)), list(also(found))
        compared = None
        if against and not wrong:
            dump = DumpOptions(
                against,
                vmlinux,
                vmcoreinfo,
                memory_map,
                no_cache=no_cache,
                any_size=any_size,
                swap=tuple(swap or ()),
                sysroots=tuple(sysroot or ()),
                remember=False,
            )
            with open_dump(dump, dump_files(dump)) as session:
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
        print_document("vmcore2core-verify", **document)
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

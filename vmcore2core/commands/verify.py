"""``vmcore2core verify``: whether finished cores are right, and what they lack."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, dump_files, open_dump
from vmcore2core.commands.terminal import Exit, begin, catch_interrupts, run_command, say
from vmcore2core.errors import DumpError, Vmcore2coreError
from vmcore2core.printable import counted

if TYPE_CHECKING:
    from vmcore2core import CoreFile, Dump

app = options.new_app("vmcore2core")


@dataclass
class Verdict:
    """The result for one core.

    Attributes:
        core: its name.
        pid: of its process, or None.
        threads: IDs of its threads.
        wrong: sentences on its defects, and on differences from the dump.
        missing: sentences on what a debugger will not find in it.
        files_needed: sentences on files whose code is mapped and is not in it.
        also: sentences on other facts.
        pages_same: number of pages equal to the dump's, or None if they were not compared.
        pages_differing: number of pages that differ, or None.
    """

    core: str
    pid: int | None = None
    threads: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    files_needed: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    pages_same: int | None = None
    pages_differing: int | None = None

    @property
    def status(self) -> Exit:
        """The exit status for it."""
        return Exit.ERROR if self.wrong else Exit.INCOMPLETE if self.missing else Exit.COMPLETE

    def line(self) -> str:
        """Return its line for stdout, without a reason."""
        pages = "" if self.pages_same is None else f", {counted(self.pages_same, 'page')} equal to the dump's"
        if self.wrong and not self.threads:
            return f"{self.core}: wrong"
        state = "wrong" if self.wrong else "incomplete" if self.missing else "good"
        return f"{self.core}: {state}, {counted(len(self.threads), 'thread')}{pages}"

    def reason(self) -> str:
        """Return the first reason why it is not good, to append to its line."""
        found = self.wrong or self.missing
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f": {found[0]}{more}" if found else ""


@app.command()
def verify(
    core: Annotated[list[Path], typer.Argument(readable=False, help="One or more cores, or directories of cores.")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VMCORE", help="Compare each page and note with this dump; repeat it for the parts of a split dump."
        ),
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
    """Check finished cores, and say what a debugger will find missing.

    If there are several cores, or a directory of them, each gets one line, and --verbose shows all of it. The worst
    core decides the exit status.

    Exit status: 0 nothing is wrong or missing; 1 something is wrong; 2 wrong usage; 3 something is missing.
    """
    begin(verbose, debug=debug)
    from vmcore2core import cores_of

    catch_interrupts()
    paths = [path for given in core for path in (cores_of(given) if given.is_dir() else [given])]
    alone = not core[0].is_dir() and len(core) == 1
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
    verdicts = []
    for verdict in _verdicts(paths, dump, alone=alone):
        verdicts.append(verdict)
        if not as_json:
            _show(verdict, in_full=alone or bool(verbose))
    if as_json and alone:
        print_document("vmcore2core-verify", **vars(verdicts[0]))
    elif as_json:
        print_document("vmcore2core-verify-cores", cores=[vars(verdict) for verdict in verdicts])
    raise typer.Exit(max((verdict.status for verdict in verdicts), key=_badness))


def _badness(status: Exit) -> int:
    """Return how bad a status is: an error is worse than missing memory."""
    return (Exit.COMPLETE, Exit.INCOMPLETE, Exit.ERROR).index(status)


def _show(verdict: Verdict, *, in_full: bool) -> None:
    if not in_full:
        print(verdict.line() + verdict.reason())
        return
    for sentence in verdict.wrong:
        say(f"{verdict.core}: wrong: {sentence}")
    for word, sentences in (("missing:", verdict.missing), ("needs", verdict.files_needed), ("note:", verdict.also)):
        for sentence in sentences:
            print(f"{word} {sentence}")
    print(verdict.line())


def _verdicts(paths: Sequence[Path], dump: DumpOptions, *, alone: bool) -> Iterator[Verdict]:
    """Yield the verdict on each core; if ``alone``, raise the error that keeps it from being read.

    Raises:
        DumpError, LayoutError, UsageError: the dump cannot be opened.
    """
    from vmcore2core import open_core

    with ExitStack() as stack:
        # Open the dump only for the first core that has no other defect.
        vmcore = cache(lambda: stack.enter_context(open_dump(dump, dump_files(dump))))
        for path in paths:
            try:
                core = open_core(path)
            except DumpError as error:
                if alone:
                    raise
                yield Verdict(str(path), wrong=[str(error).removeprefix(f"{path} ")])
                continue
            with core:
                verdict = _verdict(core)
                if dump.vmcore and not verdict.wrong:
                    _compare(core, vmcore(), verdict, alone=alone)
            yield verdict


def _verdict(core: "CoreFile") -> Verdict:
    """Return the verdict on a core, without its dump."""
    from vmcore2core import check_core

    found = check_core(core)
    return Verdict(
        core=str(core.path),
        pid=core.pid,
        threads=core.tids,
        wrong=found.problems,
        missing=found.missing,
        files_needed=found.files_needed,
        also=found.also,
    )


def _compare(core: "CoreFile", vmcore: "Dump", verdict: Verdict, *, alone: bool) -> None:
    """Add the comparison with the dump to a verdict."""
    try:
        compared = vmcore.compare(core)
    except Vmcore2coreError as error:
        if alone:
            raise
        verdict.wrong.append(str(error))
        return
    verdict.wrong += compared.sentences()
    verdict.pages_same, verdict.pages_differing = compared.same, len(compared.differing)


def main() -> None:
    """Run ``vmcore2core verify``; the word has been taken from the command line."""
    run_command(app, "vmcore2core verify")

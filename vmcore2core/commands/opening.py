"""How a command opens the dump that its command line names."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer

from vmcore2core.commands import options
from vmcore2core.commands.progress import one_bar
from vmcore2core.commands.terminal import Exit, begin, catch_interrupts, say

# numpy and the layers that use it are imported when there is work: --help and usage errors come at once.
if TYPE_CHECKING:
    from vmcore2core import Dump, NamedDump, OpenOptions


@dataclass(frozen=True)
class DumpOptions:
    """How the dump is opened: an option of the command for each annotated field, see ``options``.

    Attributes:
        scan: search all memory for tasks as well.
        swap: swap files and partitions.
        sysroots: folders with the machine's files.
        remember: keep what the dump tells of its kernel in the cache, and use what is there.
    """

    vmcore: options.Vmcore = None
    vmlinux: options.Vmlinux = None
    vmcoreinfo: options.Vmcoreinfo = None
    memory_map: options.MemoryMap = None
    zero_excluded: options.ZeroExcluded = False
    verbose: options.Verbose = 0
    no_cache: options.NoCache = False
    any_size: options.AnySize = False
    debug: options.Debug = False
    scan: bool = False
    swap: tuple[str, ...] = ()
    sysroots: tuple[Path, ...] = ()
    remember: bool = True


def takes_dump(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's ``DumpOptions`` parameter by one option for each annotated field."""
    fields = [p for p in inspect.signature(DumpOptions).parameters.values() if get_origin(p.annotation) is Annotated]
    names = {field.name for field in fields}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.annotation is DumpOptions:
            taker = parameter.name
        parameters += fields if parameter.annotation is DumpOptions else [parameter]

    @wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401 - as typer passes them
        dump = DumpOptions(**{name: value for name, value in given.items() if name in names})
        command(**{taker: dump}, **{name: value for name, value in given.items() if name not in names})

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return run


def dump_files(dump: DumpOptions) -> "NamedDump":
    """Return the named files, else the dump in a usual place; say how the words were understood.

    Raises:
        UsageError, DumpError: see ``named_dump`` and ``find_dump``.
    """
    from vmcore2core import NamedDump, find_dump, named_dump

    words = named_dump(dump.vmcore or (), dump.vmlinux, dump.memory_map)
    for sentence in words.said:
        say(sentence)
    if words.paths:
        return words
    path, why = find_dump(os.environ.get("VMCORE"))
    say(f"taking {path} ({why})")
    return NamedDump([path], words.vmlinux, words.memory_map)


def open_options(dump: DumpOptions, files: "NamedDump") -> "OpenOptions":
    """Return how to open the dump, from the options and from the words that name it."""
    from vmcore2core import OpenOptions

    return OpenOptions(
        vmlinux=files.vmlinux,
        vmcoreinfo=dump.vmcoreinfo,
        swap=dump.swap,
        memory_map=files.memory_map,
        sysroots=dump.sysroots,
        remember=dump.remember,
        scan=dump.scan,
        cache=not dump.no_cache,
        any_size=dump.any_size,
        zero_excluded=dump.zero_excluded,
    )


def open_dump(dump: DumpOptions, files: "NamedDump") -> "Dump":
    """Return an open dump, a context manager.

    Args:
        dump: the options.
        files: from ``dump_files``.

    Raises:
        DumpError, LayoutError, UsageError: see ``vmcore2core.open_dump``.
    """
    from vmcore2core import Dump

    return Dump.open(files.paths, open_options(dump, files), one_bar)


@contextmanager
def opened(dump: DumpOptions) -> Iterator["Dump"]:
    """Open the dump for a command that shows something; at the end report damage, and exit with its status."""
    begin(dump.verbose, debug=dump.debug)
    files = dump_files(dump)
    catch_interrupts()
    with open_dump(dump, files) as vmcore:
        yield vmcore
        vmcore.check_unchanged()
        for warning in vmcore.warnings:
            say(f"{vmcore.paths[0]}: {warning}")
        if dump.verbose:
            for item, source in vmcore.provenance.items():
                say(f"{item}: {source}")
        if vmcore.warnings:
            raise typer.Exit(Exit.INCOMPLETE)

"""The ``vmcore-tasks`` command: what was running on the machine, from its dump; no logic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcore2core.cli import (
    ANY_SIZE_HELP,
    DEBUG_DIRECTORY,
    DEBUG_DIRECTORY_HELP,
    DEBUG_HELP,
    DEBUGINFOD_HELP,
    NO_CACHE_HELP,
    SCAN_HELP,
    VMCORE_HELP,
)
from vmcore2core.errors import LayoutUnknown, UsageError
from vmcore2core.printable import to_json
from vmcore2core.progress import one_bar
from vmcore2core.terminal import Exit, begin, catch_interrupts, completes, run_command, say

if TYPE_CHECKING:
    from vmcore2core.kernel.struct import StructView
    from vmcore2core.process.threads import ThreadRow
    from vmcore2core.session import Session
    from vmcore2core.tasks import TaskRow

app = typer.Typer(
    add_completion=completes("vmcore-tasks"),
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Show the processes in a Linux kernel crash dump, without kernel debug information.",
)

Vmcore = Annotated[
    list[str] | None,
    typer.Argument(help=VMCORE_HELP),
]
Vmlinux = Annotated[Path | None, typer.Option(help="The kernel's vmlinux, for what the dump itself does not tell.")]
Vmcoreinfo = Annotated[Path | None, typer.Option(help="VMCOREINFO text whose keys go before the dump's.")]
MemoryMap = Annotated[
    str | None,
    typer.Option(
        "--map",
        metavar="START:SIZE@OFFSET,...",
        help="What physical memory is where in a dump without a header; raw: all from address 0 on; or a file.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more.", show_default=False)]
NoCache = Annotated[bool, typer.Option("--no-cache", help=NO_CACHE_HELP)]
AnySize = Annotated[bool, typer.Option("--unpack-any-size", help=ANY_SIZE_HELP)]
Debug = Annotated[bool, typer.Option("--debug", help=DEBUG_HELP)]
Pid = Annotated[int, typer.Option("--pid", "-p", help="The process, by its PID or that of any of its threads.")]
Tid = Annotated[int | None, typer.Option("--tid", "-t", help="Only the thread with this ID.")]


DebugDirectory = Annotated[Path, typer.Option(help=DEBUG_DIRECTORY_HELP)]
AskDebuginfod = Annotated[bool, typer.Option("--debuginfod", help=DEBUGINFOD_HELP)]


class LayoutFrom(Enum):
    """Which source ``layout`` asks."""

    DUMP = "dump"
    BTF = "BTF"
    VMLINUX = "vmlinux"


@contextmanager
def opened(
    vmcore: list[str] | None,
    vmlinux: Path | None,
    vmcoreinfo: Path | None,
    memory_map: str | None,
    verbose: int,
    cache: bool,
    any_size: bool,
    *,
    debug: bool,
    scan: bool = False,
) -> Iterator[Session]:
    """Open the dump; what is odd about it is said at the end."""
    begin(verbose, debug=debug)
    from vmcore2core.arguments import named
    from vmcore2core.session import Session, find_dump

    catch_interrupts()
    words = named(vmcore or (), vmlinux, memory_map)
    paths, vmlinux, memory_map = words.paths, words.vmlinux, words.memory_map
    for sentence in words.said:
        say(sentence)
    if not paths:
        path, why = find_dump(os.environ.get("VMCORE"))
        say(f"taking {path} ({why})")
        paths = [path]
    with Session(
        paths,
        vmlinux,
        vmcoreinfo,
        memory_map=memory_map,
        progress=one_bar,
        scan=scan,
        remember=True,
        cache=cache,
        any_size=any_size,
    ) as session:
        yield session
        session.check_unchanged()
        for warning in session.warnings:
            say(f"{session.container.paths[0]}: {warning}")
        if verbose:
            for item, source in session.boot.layout.provenance().items():
                say(f"{item}: {source}")
        if session.warnings:
            raise typer.Exit(Exit.INCOMPLETE)


def _print_json(document: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    print(to_json(document, indent=1, default=str))


@app.command()
def ps(
    vmcore: Vmcore = None,
    pid: Annotated[list[int] | None, typer.Option("--pid", "-p", help="Only these; may repeat.")] = None,
    comm: Annotated[list[str] | None, typer.Option(help="Only names that match this pattern; may repeat.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Only tasks in this state (R S D T t Z X I); may repeat.")
    ] = None,
    tree: Annotated[bool, typer.Option(help="Children below their parents.")] = False,
    scan: Annotated[bool, typer.Option("--scan", help=SCAN_HELP)] = False,
    vmlinux: Vmlinux = None,
    vmcoreinfo: Vmcoreinfo = None,
    memory_map: MemoryMap = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    no_cache: NoCache = False,
    any_size: AnySize = False,
    debug: Debug = False,
) -> None:
    """List the processes and kernel threads."""
    with opened(
        vmcore, vmlinux, vmcoreinfo, memory_map, verbose, not no_cache, any_size, debug=debug, scan=scan
    ) as session:
        from vmcore2core.tasks import Selection, processes, tree_order

        selection = Selection(tuple(pid or ()), tuple(comm or ()), tuple(state or ()))
        rows = list(processes(session, selection))
        if as_json:
            _print_json([asdict(row) for row in rows])
            return
        if tree and all(row.ppid is None for row in rows):
            say("no parents are known: this kernel's layout has no task_struct.real_parent; listed without a tree")
        print(f"{'PID':>7} {'PPID':>7} S {'CPU':>3} {'THR':>4} {'VSZ':>9} {'RSS':>8} COMMAND")
        for depth, row in tree_order(rows) if tree else [(0, row) for row in rows]:
            print(ps_line(row, depth))


def ps_line(row: TaskRow, depth: int) -> str:
    """Return a line of ``ps``; "-" is what is not known."""
    numbers = [
        f"{'-' if value is None else value:>{width}}"
        for value, width in ((row.cpu, 3), (row.threads, 4), (row.vsz_kib, 9), (row.rss_kib, 8))
    ]
    command = f"[{row.comm}]" if row.kernel_thread or row.command is None else row.command
    ppid = "-" if row.ppid is None else row.ppid
    return f"{row.pid:>7} {ppid:>7} {row.state} {' '.join(numbers)} {'  ' * depth}{command}"


@app.command()
def threads(
    pid: Pid,
    vmcore: Vmcore = None,
    vmlinux: Vmlinux = None,
    vmcoreinfo: Vmcoreinfo = None,
    memory_map: MemoryMap = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    no_cache: NoCache = False,
    any_size: AnySize = False,
    debug: Debug = False,
) -> None:
    """List the threads of a process."""
    with opened(vmcore, vmlinux, vmcoreinfo, memory_map, verbose, not no_cache, any_size, debug=debug) as session:
        rows = list(_threads(session, session.processes.find(pid)))
        if as_json:
            _print_json([asdict(row) for row in rows])
            return
        print(f"{'TID':>7} S {'CPU':>3} {'NAME':<16} REGISTERS FROM")
        for row in rows:
            print(f"{row.tid:>7} {row.state} {'-' if row.cpu is None else row.cpu:>3} {row.comm:<16} {row.source}")


def _threads(session: Session, leader: StructView) -> Iterator[ThreadRow]:
    from vmcore2core import tasks

    yield from tasks.threads(session, leader)


def _chosen(session: Session, pid: int | None, tid: int | None) -> tuple[StructView, list[ThreadRow]]:
    """Return the threads that --pid and --tid name, and the leader of their process."""
    number = tid if tid is not None else pid
    if number is None:
        raise UsageError("say which process: --pid PID or --tid TID")
    leader = session.processes.find(number)
    return leader, [row for row in _threads(session, leader) if tid is None or row.tid == tid]


@app.command()
def regs(
    vmcore: Vmcore = None,
    pid: Annotated[int | None, typer.Option("--pid", "-p", help="All threads of this process.")] = None,
    tid: Tid = None,
    vmlinux: Vmlinux = None,
    vmcoreinfo: Vmcoreinfo = None,
    memory_map: MemoryMap = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    no_cache: NoCache = False,
    any_size: AnySize = False,
    debug: Debug = False,
) -> None:
    """Show the user registers of threads, and where they come from."""
    with opened(vmcore, vmlinux, vmcoreinfo, memory_map, verbose, not no_cache, any_size, debug=debug) as session:
        _, rows = _chosen(session, pid, tid)
        if as_json:
            _print_json(
                [
                    {
                        **asdict(row),
                        "registers": {k: f"{v:#x}" for k, v in row.registers.items()} if row.registers else None,
                    }
                    for row in rows
                ]
            )
            return
        digits = 2 * session.kernel.arch.pointer_size
        for row in rows:
            print(f"{row.tid} ({row.comm}): {row.source}")
            registers = list((row.registers or {}).items())
            for i in range(0, len(registers), 3):
                print("  " + "  ".join(f"{name:>8} {value:0{digits}x}" for name, value in registers[i : i + 3]))
            if row.unknown:
                print(f"  not known: {' '.join(row.unknown)}")


@app.command()
def bt(
    vmcore: Vmcore = None,
    pid: Annotated[
        list[int] | None, typer.Option("--pid", "-p", help="All threads of this process; may repeat.")
    ] = None,
    tid: Tid = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="The threads of all processes.")] = False,
    comm: Annotated[
        list[str] | None, typer.Option(help="Those of processes whose name matches this pattern; may repeat.")
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Only threads in this state (R S D T t Z X I); may repeat.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most frames of a thread.")] = 256,
    sysroot: Annotated[
        Path | None,
        typer.Option(help="Folder with the machine's files at their paths, for what is not in memory; by build ID."),
    ] = None,
    debug_directory: DebugDirectory = DEBUG_DIRECTORY,
    debuginfod: AskDebuginfod = False,
    vmlinux: Vmlinux = None,
    vmcoreinfo: Vmcoreinfo = None,
    memory_map: MemoryMap = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    no_cache: NoCache = False,
    any_size: AnySize = False,
    debug: Debug = False,
) -> None:
    """Show the user stacks of threads: from what is in memory, and from the programs' files where these are given."""
    with opened(vmcore, vmlinux, vmcoreinfo, memory_map, verbose, not no_cache, any_size, debug=debug) as session:
        from vmcore2core import tasks
        from vmcore2core.process import binaries
        from vmcore2core.process import debuginfod as client
        from vmcore2core.stack_output import show_stacks
        from vmcore2core.unwind.originals import Files

        servers = client.debuginfod() if debuginfod else None
        files = Files(binaries.binaries(session.container.paths[0], sysroot, (debug_directory,), servers))
        wanted = tasks.Selection(tuple(pid or ()), tuple(comm or ()), tuple(state or ()))
        chosen = tasks.stacks(session, wanted, tid=tid, every=every, limit=limit, files=files)
        complete = show_stacks(chosen, as_json=as_json)
        for notice in files.notices:
            say(notice)
    if not complete:
        raise typer.Exit(Exit.INCOMPLETE)


@app.command()
def maps(
    pid: Pid,
    vmcore: Vmcore = None,
    vmlinux: Vmlinux = None,
    vmcoreinfo: Vmcoreinfo = None,
    memory_map: MemoryMap = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    no_cache: NoCache = False,
    any_size: AnySize = False,
    debug: Debug = False,
) -> None:
    """Show the mappings of a process as /proc/PID/maps does; -v counts their pages by what they are."""
    with opened(vmcore, vmlinux, vmcoreinfo, memory_map, verbose, not no_cache, any_size, debug=debug) as session:
        from vmcore2core import tasks

        rows, _ = tasks.maps(session, session.processes.find(pid), pages=bool(verbose) or as_json)
        if not session.processes.mounts.known:
            say("mounts are not known: paths begin at the root of their file system")
        if as_json:
            _print_json([{**asdict(row), "start": f"{row.start:#x}", "end": f"{row.end:#x}"} for row in rows])
            return
        for row in rows:
            print(row.line(session.kernel.arch.pointer_size))
            if verbose:
                print("    " + (", ".join(f"{n} {what}" for what, n in row.pages.items()) or "nothing"))


@app.command()
def info(
    vmcore: Vmcore = None,
    vmlinux: Vmlinux = None,
    vmcoreinfo: Vmcoreinfo = None,
    memory_map: MemoryMap = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    no_cache: NoCache = False,
    any_size: AnySize = False,
    debug: Debug = False,
) -> None:
    """Say what the dump is, why the kernel died, and what is not known."""
    with opened(vmcore, vmlinux, vmcoreinfo, memory_map, verbose, not no_cache, any_size, debug=debug) as session:
        from vmcore2core import tasks

        document = tasks.info(session)
        if as_json:
            _print_json(document)
            return
        for key, value in document.items():
            if value is None or value == []:
                continue
            if isinstance(value, list):
                print(f"{key.replace('_', ' ')}:")
                for item in value:
                    print(f"  {_in_words(item) if isinstance(item, dict) else item}")
            elif isinstance(value, dict):
                print(f"{key}: {', '.join(f'{n} {name}' for name, n in value.items())}")
            else:
                print(f"{key.replace('_', ' ')}: {value}")


def _in_words(item: dict[str, Any]) -> str:
    """Return what is known of an item on one line: "cpu 1, pid 812, user mode yes"."""
    yes_or_no = {True: "yes", False: "no"}
    known = {key: value for key, value in item.items() if value is not None}
    words = {k: yes_or_no[value] if isinstance(value, bool) else value for k, value in known.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in words.items())


@app.command()
def layout(
    vmcore: Vmcore = None,
    source: Annotated[
        LayoutFrom, typer.Option("--from", help="Who answers: everything the dump has, its BTF alone, or the vmlinux.")
    ] = LayoutFrom.DUMP,
    vmlinux: Vmlinux = None,
    vmcoreinfo: Vmcoreinfo = None,
    memory_map: MemoryMap = None,
    verbose: Verbose = 0,
    no_cache: NoCache = False,
    any_size: AnySize = False,
    debug: Debug = False,
) -> None:
    """Write the layout that conversion needs as VMCOREINFO text, to be given as --vmcoreinfo."""
    with opened(vmcore, vmlinux, vmcoreinfo, memory_map, verbose, not no_cache, any_size, debug=debug) as session:
        from vmcore2core.layout.export import export_layout
        from vmcore2core.layout.resolver import KernelLayout
        from vmcore2core.layout.vmlinux import vmlinux_sources

        if source is LayoutFrom.VMLINUX:
            layout_asked = KernelLayout(vmlinux_sources(vmlinux, session.boot.vmcoreinfo))
        else:
            layout_asked = session.boot.layout.only("BTF" if source is LayoutFrom.BTF else "")
        if layout_asked.find_member("task_struct", "pid") is None:
            raise LayoutUnknown(f"a layout from {source.value}", session.boot.layout.source_names)
        for line in export_layout(
            layout_asked, session.boot.layout, session.boot.vmcoreinfo, session.boot.arch.layout_keys
        ):
            print(line)


def main() -> None:
    """Run the command; every error is one sentence and an exit status."""
    run_command(app, "vmcore-tasks")

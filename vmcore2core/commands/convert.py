"""``vmcore2core``: write cores of the processes in a dump."""

import os
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, dump_files, open_dump, open_options, takes_dump
from vmcore2core.commands.progress import progress_bars
from vmcore2core.commands.terminal import Exit, begin, catch_interrupts, run_command, say
from vmcore2core.errors import UsageError
from vmcore2core.printable import to_json

# numpy and the layers that use it are imported when there is work: --help and usage errors come at once.
if TYPE_CHECKING:
    from vmcore2core import Dump, DumpFilter, Plan, RunReport


FILTER_MAX = 0x1FF


class Compress(Enum):
    """How cores may be compressed: ``interfaces.Compression``."""

    ZSTD = "zstd"


app = options.new_app("vmcore2core")


@app.command()
@takes_dump
def vmcore2core(
    *,
    pid: options.Pids = None,
    comm: options.Comms = None,
    everything: Annotated[
        bool,
        typer.Option("--all", "-a", help="Every process that has user memory.", rich_help_panel=options.WHICH),
    ] = False,
    exe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Processes whose program's path matches this shell pattern; may repeat.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    uid: Annotated[
        list[int] | None,
        typer.Option(
            metavar="UID", help="Processes with this real user ID; may repeat.", rich_help_panel=options.WHICH
        ),
    ] = None,
    cgroup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Processes whose control group's path matches this shell pattern; may repeat.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    container: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Processes of the container whose ID begins with this; may repeat.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    nspid: Annotated[
        list[int] | None,
        typer.Option(
            metavar="PID",
            help="Processes that have this PID in their container; may repeat.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    state: options.State = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Skip processes whose name matches this shell pattern; may repeat.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            "-n",
            help="Write nothing; say what would be written, how large, and how much room there is.",
            rich_help_panel=options.WRITTEN,
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The core file, for one --pid; else, or if it ends with /, a directory for core.COMM.PID files. "
            "Default: the current directory.",
            rich_help_panel=options.WRITTEN,
        ),
    ] = None,
    dump_filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="MASK",
            help="Which memory to write, as a coredump_filter (core(5)); 0x1ff: all. Default: each process's own.",
            rich_help_panel=options.WRITTEN,
        ),
    ] = None,
    swap: options.Swap = None,
    sysroot: options.Sysroot = None,
    debug_directory: options.DebugDirectory = options.DEBUG_DIRECTORY,
    debuginfod: options.Debuginfod = False,
    scan: options.Scan = False,
    compress: Annotated[
        Compress | None,
        typer.Option(
            help="Write compressed cores, in zstd's seekable format. Debuggers need them unpacked.",
            rich_help_panel=options.WRITTEN,
        ),
    ] = None,
    minidump: Annotated[
        bool,
        typer.Option(
            "--minidump",
            help="Write minidumps (core.COMM.PID.dmp) instead of cores, for the tools of breakpad and rust-minidump. "
            "For processes of x86-64, i386, arm64 and arm.",
            rich_help_panel=options.WRITTEN,
        ),
    ] = False,
    companions: Annotated[
        bool | None,
        typer.Option(
            "--companions/--no-companions",
            help="Also write, into a directory of cores, an index, programs and libraries that are in memory, and "
            "start scripts for gdb, lldb and VS Code. Default: with --all, and for several processes.",
            rich_help_panel=options.WRITTEN,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=1,
            max=256,
            help="Number of worker processes. Default: 1; for one core from a compressed dump, one per processor.",
            rich_help_panel=options.MANY,
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="dask:ADDRESS",
            help="Convert on the workers of a Dask cluster. They must see the dump and the output at the same paths.",
            rich_help_panel=options.MANY,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep the cores that an earlier run into the same directory finished.",
            rich_help_panel=options.MANY,
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="With --resume: compare the kept cores with the dump, page by page.",
            rich_help_panel=options.MANY,
        ),
    ] = False,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Leave memory out on purpose: stacks (keep only these), no-files, no-anon, no-env, or a shell pattern "
            "for the path or name of mappings, such as '/dev/shm/*'. Or blank secrets: secrets (keys and tokens of "
            "known forms), secret:FILE (one a line) or secret:REGEX. May repeat.",
            rich_help_panel=options.WRITTEN,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace existing files.", rich_help_panel=options.WRITTEN)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON.", rich_help_panel=options.WRITTEN)
    ] = False,
    dump: DumpOptions,
    silent: Annotated[bool, typer.Option("-s", hidden=True)] = False,  # noqa: ARG001 - a habit of crash's users
    version: options.Version = False,  # noqa: ARG001 - typer's callback has printed it
) -> None:
    """Write ordinary ELF cores of the processes in a Linux kernel crash dump, for gdb and lldb.

    Exit status: 0 complete; 1 error; 2 wrong usage; 3 written, but pages or threads are missing (see stderr).

    vmcore2core debug starts a debugger on a process. vmcore2core verify CORE checks a finished core.

    vmcore-tasks shows processes without converting them.
    """
    if not (pid or comm or exe or uid or cgroup or container or nspid or state or everything):
        raise typer.BadParameter("no process is named: expected --pid PID, --comm PATTERN, --all or another condition")
    if output == "-":
        raise typer.BadParameter(
            "--output -: a core appears complete or not at all, so it cannot go to a pipe; write a file and send that"
        )
    if force and resume:
        raise typer.BadParameter(
            "--resume keeps existing cores, and --force replaces them: expected only one of the two"
        )
    if check and not resume:
        raise typer.BadParameter("--check requires --resume")
    if executor is not None and (jobs or 1) > 1:
        raise typer.BadParameter(
            "--jobs starts workers here, and --executor uses those of a cluster: expected only one of the two"
        )
    if minidump and (resume or companions or compress is not None):
        raise typer.BadParameter("--minidump cannot be used with --resume, --companions or --compress")
    mask, letters = _filter_mask(dump_filter), options.states(state)
    begin(dump.verbose, debug=dump.debug)
    from vmcore2core import Choice, CoreOptions, RunOptions, parse_redaction

    catch_interrupts()
    choice = Choice(
        pid=tuple(pid or ()),
        comm=tuple(comm or ()),
        exe=tuple(exe or ()),
        uid=tuple(uid or ()),
        cgroup=tuple(cgroup or ()),
        container=tuple(container or ()),
        nspid=tuple(nspid or ()),
        state=letters,
        exclude=tuple(exclude or ()),
    )
    single = choice.by_pid_alone and len(choice.pid) == 1 and not everything and not (output or "").endswith("/")
    if companions and single and output is not None and not Path(output).is_dir():
        raise UsageError(f"--companions writes a directory: expected --output {output}/, or one that is there")
    if debuginfod:
        from vmcore2core import debuginfod as servers

        servers()  # which there must be
    dump = replace(dump, scan=scan, swap=tuple(swap or ()), sysroots=tuple(sysroot or ()))
    files = dump_files(dump)
    core = CoreOptions(
        dump_filter=mask,
        redaction=parse_redaction(redact or ()),
        compression=None if compress is None else compress.value,
        force=force,
        minidump=minidump,
        indexed=everything or bool(companions),
        companions=companions is not False,
        debug_directory=str(debug_directory.absolute()),
        debuginfod=debuginfod,
        verbose=bool(dump.verbose),
        copiers=jobs or len(os.sched_getaffinity(0)),
    )
    how = RunOptions(
        core,
        output=None if output is None else Path(output),
        one_pid=single,
        resume=resume,
        check=check,
        jobs=jobs or 1,
    )
    with ExitStack() as stack:
        if executor is not None:
            from vmcore2core import cluster_workers, worker_dump

            opened = worker_dump(files.paths, open_options(dump, files))
            how = replace(how, cluster=stack.enter_context(cluster_workers(executor, opened)))
        vmcore = stack.enter_context(open_dump(dump, files))
        selected = vmcore.select(choice)
        for _, error in selected.errors:
            say(str(error))
        if dry_run:
            plan = vmcore.plan_cores(selected, how, say=say)
            _show_plan(vmcore, plan, as_json=as_json)
            raise typer.Exit(Exit.ERROR if plan.errors else Exit.COMPLETE)
        report = vmcore.write_cores(selected, how, say=say, bars=progress_bars)
        raise typer.Exit(_finish(vmcore, report, verbose=core.verbose, as_json=as_json))


def _show_plan(vmcore: "Dump", plan: "Plan", *, as_json: bool) -> None:
    """Print what would be written."""
    if vmcore.filtered is not None:
        say(vmcore.filtered)
    if as_json:
        room = {
            "directory": str(plan.directory),
            "needed": plan.needed,
            "companions": plan.companions,
            "free": plan.free,
        }
        print_document("vmcore2core-plan", cores=[core._asdict() for core in plan.cores], room=room)
        return
    for core in plan.cores:
        print(core.line())
    say(plan.line())


def _filter_mask(text: str | None) -> "DumpFilter | None":
    """Return a coredump_filter as core(5) writes it: hexadecimal with 0x, octal with 0, else decimal."""
    if text is None:
        return None
    from vmcore2core import DumpFilter

    try:
        octal = text.startswith("0") and text.isdigit() and len(text) > 1
        value = int(text, 8 if octal else 0)
    except ValueError:
        value = -1
    if not 0 <= value <= FILTER_MAX:
        raise typer.BadParameter(f"--filter {text}: expected a number from 0 to {FILTER_MAX:#x}, such as 0x33")
    return DumpFilter(value)


def _finish(vmcore: "Dump", report: "RunReport", *, verbose: bool, as_json: bool) -> Exit:
    """Report on the cores, and return the exit status."""
    for warning in report.warnings:
        say(f"{vmcore.paths[0]}: {warning}")
    for notice in (*report.notices, *report.unmatched):
        say(notice)
    # What is of the dump as a whole, each core's sentences have.
    for sentence in dict.fromkeys(sentence for core in report.cores for sentence in core.sentences):
        say(sentence)
    for item, source in report.provenance.items() if verbose else ():
        say(f"{item}: {source}")
    if as_json:
        print(to_json(vmcore.summary(report), indent=1))
    for core in () if as_json else report.cores:
        print(core.line)
    if report.errors:
        return Exit.ERROR
    return Exit.COMPLETE if report.complete else Exit.INCOMPLETE


def main() -> None:
    """Run ``vmcore2core``."""
    run_command(app, "vmcore2core")

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
from vmcore2core.commands.opening import DumpOptions, dump_files, open_dump, takes_dump
from vmcore2core.commands.progress import progress_bars
from vmcore2core.commands.terminal import Exit, begin, catch_interrupts, completes, run_command, say
from vmcore2core.errors import UsageError
from vmcore2core.printable import to_json

# numpy and the layers that use it are imported when there is work: --help and usage errors come at once.
if TYPE_CHECKING:
    from vmcore2core.process.dump_filter import DumpFilter
    from vmcore2core.run.run import Extraction


FILTER_MAX = 0x1FF


class Compress(Enum):
    """How cores may be compressed: ``interfaces.Compression``."""

    ZSTD = "zstd"


app = typer.Typer(
    add_completion=completes("vmcore2core"),
    pretty_exceptions_enable=False,
    context_settings=options.CONTEXT,
)


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
            help="Write nothing; say what would be written, and how large.",
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

    See also: vmcore2core debug starts a debugger on a process; vmcore2core verify CORE checks a finished core;
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
    from vmcore2core.choose import Choice
    from vmcore2core.containers.remote import located
    from vmcore2core.process.redact import parse_redaction
    from vmcore2core.process.secrets import ONE
    from vmcore2core.report import excluded_sentence, left_out
    from vmcore2core.run.run import Extraction, Request, planned_line, planned_summary

    catch_interrupts()
    if resume and any(word.startswith(ONE) for word in redact or ()):
        raise UsageError(
            f"--resume cannot go on with --redact {ONE}...: the index does not keep which secrets were blanked"
        )
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
        from vmcore2core.process.debuginfod import debuginfod as servers

        servers()  # which there must be
    dump = replace(dump, scan=scan, swap=tuple(swap or ()), sysroots=tuple(sysroot or ()))
    files = dump_files(dump)
    request = Request(
        output=None if output is None else Path(output),
        dump_filter=mask,
        redaction=parse_redaction(redact or ()),
        force=force,
        resume=resume,
        check=check,
        jobs=jobs or 1,
        copiers=jobs or len(os.sched_getaffinity(0)),
        compression=None if compress is None else compress.value,
        single=single,
        indexed=everything or bool(companions),
        companions=companions is not False,
        debug_directory=str(debug_directory.absolute()),
        debuginfod=debuginfod,
        verbose=bool(dump.verbose),
        minidump=minidump,
        options={
            "filter": None if mask is None else f"{mask:#x}",
            # What is secret is not to stand in the index.
            "redact": sorted(f"{ONE}..." if word.startswith(ONE) else word for word in redact or ()),
            "compress": None if compress is None else compress.value,
            "map": files.memory_map,
            "zero_excluded": dump.zero_excluded,
            "swap": [located(given).name for given in dump.swap],
            "debuginfod": debuginfod,
            "sysroot": [given.name for given in dump.sysroots],
            **{
                name: None if given is None else given.name
                for name, given in (("vmlinux", files.vmlinux), ("vmcoreinfo", dump.vmcoreinfo))
            },
        },
    )
    with ExitStack() as stack:
        if executor is not None:
            from vmcore2core.run.cluster import opening, workers_elsewhere

            how = opening(files.paths, files.vmlinux, dump.vmcoreinfo, dump.swap, files.memory_map, dump.sysroots)
            how = replace(how, cache=not dump.no_cache, any_size=dump.any_size, zero_excluded=dump.zero_excluded)
            request = replace(request, elsewhere=stack.enter_context(workers_elsewhere(executor, how)))
        session = stack.enter_context(open_dump(dump, files))
        extraction = Extraction(session, request, say)
        chosen = extraction.choose(choice)
        if dry_run:
            planned = list(extraction.plan(chosen))
            level = session.container.dump_level
            if left_out(level):
                say(excluded_sentence(level, session.container.DOC.name))
            if as_json:
                print_document("vmcore2core-plan", cores=[planned_summary(job, size) for job, size in planned])
            for job, size in () if as_json else planned:
                print(planned_line(job, size))
            raise typer.Exit(Exit.ERROR if extraction.errors else Exit.COMPLETE)
        extraction.run(chosen, progress_bars)
        raise typer.Exit(_finish(extraction, as_json=as_json))


def _filter_mask(text: str | None) -> "DumpFilter | None":
    """Return a coredump_filter as core(5) writes it: hexadecimal with 0x, octal with 0, else decimal."""
    if text is None:
        return None
    from vmcore2core.process.dump_filter import DumpFilter

    try:
        octal = text.startswith("0") and text.isdigit() and len(text) > 1
        value = int(text, 8 if octal else 0)
    except ValueError:
        value = -1
    if not 0 <= value <= FILTER_MAX:
        raise typer.BadParameter(f"--filter {text}: expected a number from 0 to {FILTER_MAX:#x}, such as 0x33")
    return DumpFilter(value)


def _finish(extraction: "Extraction", *, as_json: bool) -> Exit:
    """Say what there is to say of the cores, and return the exit status."""
    from vmcore2core.report import summary

    session, verbose = extraction.session, extraction.request.verbose
    for warning in extraction.warnings:
        say(f"{session.container.paths[0]}: {warning}")
    for notice in (*extraction.notices, *extraction.unmatched):
        say(notice)
    provenance = session.boot.layout.provenance()
    # What is of the dump as a whole, each core's sentences have.
    for sentence in dict.fromkeys(sentence for outcome in extraction.outcomes for sentence in outcome.sentences):
        say(sentence)
    for outcome in extraction.outcomes:
        provenance |= outcome.provenance
    if verbose:
        for item, source in provenance.items():
            say(f"{item}: {source}")
    if as_json:
        cores = [outcome.summary for outcome in extraction.outcomes if outcome.summary is not None]
        print(to_json(summary(session, cores, extraction.warnings, provenance, extraction.errors), indent=1))
    else:
        for outcome in extraction.outcomes:
            print(outcome.line)
    if extraction.errors:
        return Exit.ERROR
    complete = all(outcome.complete for outcome in extraction.outcomes) and not (
        extraction.warnings or extraction.unmatched
    )
    return Exit.COMPLETE if complete else Exit.INCOMPLETE


def main() -> None:
    """Run ``vmcore2core``."""
    run_command(app, "vmcore2core")

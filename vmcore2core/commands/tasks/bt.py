"""``vmcore-tasks bt``."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcore2core.commands import options
from vmcore2core.commands.document import hexadecimal, print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.tasks.shown import Tid
from vmcore2core.commands.terminal import Exit, say
from vmcore2core.errors import UsageError
from vmcore2core.printable import to_json

if TYPE_CHECKING:
    from vmcore2core import FrameRow, KernelFrameRow, KernelStack, ProcessStacks, StackRow, WantedFile
    from vmcore2core.commands.tasks.stack_groups import Group


@takes_dump
def bt(
    *,
    pid: options.Pids = None,
    tid: Tid = None,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="The threads of all processes.", rich_help_panel=options.WHICH)
    ] = False,
    comm: options.Comms = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LETTERS",
            help=f"Threads in one of these states, such as RD (all: {' '.join(options.STATES)}); may repeat.",
            rich_help_panel=options.WHICH,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Show at most N frames of a thread.")] = 256,
    sysroot: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Take data that stacks need and memory lacks from the files below DIR that have the same build ID; "
            "may repeat, the first DIR that has a file counts.",
            rich_help_panel=options.FILES,
        ),
    ] = None,
    debug_directory: options.DebugDirectory = options.DEBUG_DIRECTORY,
    debuginfod: options.Debuginfod = False,
    kernel: Annotated[
        bool,
        typer.Option(
            "--kernel", "-k", help="Also show the kernel's frames and the system call; also show kernel threads."
        ),
    ] = False,
    group: Annotated[
        bool, typer.Option("--group", "-g", help="Show threads with equal stacks together, the largest group first.")
    ] = False,
    folded: Annotated[
        bool, typer.Option("--folded", help="Print a line for each group of equal stacks, as flamegraph.pl reads it.")
    ] = False,
    speedscope: Annotated[
        bool, typer.Option("--speedscope", help="Print a file for speedscope.app; each thread has weight 1.")
    ] = False,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Show the user stacks of threads, from the dump's memory and, if you give them, the programs' files."""
    show = _form(group=group, folded=folded, speedscope=speedscope, as_json=as_json)
    letters = options.states(state)
    if tid is None and not (every or pid or comm or letters):
        raise UsageError("no process is named: expected --pid PID, --tid TID, --comm PATTERN, --state LETTERS or --all")
    choice_pids = (tid,) if tid is not None else tuple(pid or ())
    with opened(dump) as vmcore:
        from vmcore2core import Choice, StackOptions

        wanted = StackOptions(
            letters,
            tid=tid,
            idle=every and tid is None,
            limit=limit,
            kernel=kernel,
            sysroots=tuple(sysroot or ()),
            debug_directory=debug_directory,
            debuginfod=debuginfod,
        )
        selected = vmcore.select(Choice(choice_pids, tuple(comm or ()), state=letters), kernel_threads=kernel)
        stacks = vmcore.stacks(selected.processes, wanted)
        complete = _show_stacks(stacks, show)
        for notice in stacks.notices:
            say(notice)
        for number, error in selected.errors:
            if complete is None or number is not None:  # where no process fits, a CPU's idle task may
                say(str(error))
        if complete is None and not selected.errors:
            say(f"no thread fits --tid {tid} --state {''.join(letters)}")
        if complete is None or any(number is not None for number, _ in selected.errors):
            raise typer.Exit(Exit.ERROR)
    if complete is False:
        raise typer.Exit(Exit.INCOMPLETE)


def _form(*, group: bool, folded: bool, speedscope: bool, as_json: bool) -> "Callable[[list[StackRow]], None] | None":
    """Return the function that prints all stacks at once; None if they are printed one by one.

    Raises:
        UsageError: more than one form is asked for.
    """
    if group + folded + speedscope + (as_json and not group) > 1:
        raise UsageError(
            "--group, --folded, --speedscope and --json are different forms: expected only one, or --group --json"
        )
    if group:
        return _print_groups_document if as_json else _print_groups
    if folded:
        return _print_folded
    if speedscope:
        return _print_speedscope
    return _print_document if as_json else None


def _show_stacks(processes: "Iterable[ProcessStacks]", show: "Callable[[list[StackRow]], None] | None") -> bool | None:
    """Print the stacks of processes; return whether all are complete, or None if there are none.

    Args:
        processes: as they come.
        show: prints all of them; None: they are printed as they come.
    """
    complete, count = True, 0
    stacks: list[StackRow] = []
    missing: dict[WantedFile, None] = {}
    for number, process in enumerate(processes):
        for warning in process.warnings:
            say(warning)
        if show is not None:
            stacks += process.stacks
        else:
            print("\n" if number and process.stacks else "", end="")
            _print_stacks(process.stacks)
        missing.update(dict.fromkeys(file for stack in process.stacks for file in stack.wanted))
        count += len(process.stacks)
        complete &= not process.warnings and all(map(_is_complete, process.stacks))
    if show is not None:
        show(stacks)
    if missing:
        say(f"--sysroot DIR or --debuginfod would tell more, with these files: {'; '.join(map(str, missing))}")
    return complete if count or not complete else None


def _print_document(stacks: "list[StackRow]") -> None:
    print_document("vmcore-tasks-bt", stacks=[_stack_document(stack) for stack in stacks])


def _print_groups(stacks: "list[StackRow]") -> None:
    from vmcore2core.commands.tasks.stack_groups import groups

    for number, group in enumerate(groups(stacks)):
        print(f"{chr(10) if number else ''}{group.heading()}")
        for at, step in enumerate(reversed(group.steps)):
            print(f"#{at:<3}{step}{' [kernel]' if step.kind == 'kernel' else ''}")


def _print_groups_document(stacks: "list[StackRow]") -> None:
    from vmcore2core.commands.tasks.stack_groups import groups

    print_document("vmcore-tasks-bt-groups", groups=[_group_document(group) for group in groups(stacks)])


def _group_document(group: "Group") -> dict[str, Any]:
    """Return a group for JSON; its functions begin with the innermost, as frames do elsewhere."""
    names = ("pid", "tid", "comm", "state")
    threads = [{name: getattr(stack, name) for name in names} for stack in group.stacks]
    return {"threads": threads, "functions": [asdict(step) for step in reversed(group.steps)]}


def _print_folded(stacks: "list[StackRow]") -> None:
    from vmcore2core.commands.tasks.stack_groups import folded

    for line in folded(stacks):
        print(line)


def _print_speedscope(stacks: "list[StackRow]") -> None:
    from vmcore2core.commands.tasks.stack_groups import speedscope

    print(to_json(speedscope(stacks, "threads in the dump")))


def _print_stacks(stacks: "Iterable[StackRow]") -> None:
    for number, stack in enumerate(stacks):
        print(f"{chr(10) if number else ''}{stack.pid} {stack.tid} {stack.comm} {stack.state}")
        if stack.kernel is not None:
            _print_frames(stack.kernel.frames, stack.kernel, "kernel")
            if stack.system_call is not None:
                print(f"system call {stack.system_call}")
        _print_frames(stack.frames, stack, "")


def _print_frames(frames: "Iterable[FrameRow | KernelFrameRow]", stack: "StackRow | KernelStack", whose: str) -> None:
    for frame in frames:
        print(frame.line())
    print(f"{whose}{' ' if whose else ''}{'complete' if stack.complete else 'stopped'}: {stack.end}")


def _is_complete(stack: "StackRow") -> bool:
    return stack.complete and (stack.kernel is None or stack.kernel.complete)


def _stack_document(stack: "StackRow") -> dict[str, Any]:
    """Return a stack for JSON, addresses in hexadecimal."""
    document = asdict(stack)
    for frame in (*document["frames"], *(document["kernel"]["frames"] if stack.kernel is not None else ())):
        del frame["width"]
        for key in ("address", "offset", "size", "file_address", "file_offset"):
            if key in frame:
                frame[key] = hexadecimal(frame[key])
    for argument in document["system_call"]["arguments"] if stack.system_call is not None else ():
        argument["value"] = hexadecimal(argument["value"])
    return document

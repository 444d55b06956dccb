"""User stacks as ``vmcore-tasks bt`` prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from vmcore2core.printable import to_json
from vmcore2core.tasks import ProcessStacks
from vmcore2core.terminal import say
from vmcore2core.unwind.stacks import StackRow, WantedFile


def show_stacks(processes: Iterable[ProcessStacks], *, as_json: bool) -> bool:
    """Print the stacks of processes as they come, and tell whether all of all is there."""
    complete, documents = True, []
    missing: dict[WantedFile, None] = {}
    for number, process in enumerate(processes):
        for warning in process.warnings:
            say(warning)
        if as_json:
            documents += [_stack_document(stack) for stack in process.stacks]
        else:
            print("\n" if number and process.stacks else "", end="")
            _print_stacks(process.stacks)
        missing.update(dict.fromkeys(file for stack in process.stacks for file in stack.wanted))
        complete &= not process.warnings and all(stack.complete for stack in process.stacks)
    if as_json:
        print(to_json(documents, indent=1))
    if missing:
        say(f"--sysroot DIR or --debuginfod would tell more, with these files: {'; '.join(map(str, missing))}")
    return complete


def _print_stacks(stacks: Iterable[StackRow]) -> None:
    for number, stack in enumerate(stacks):
        print(f"{chr(10) if number else ''}{stack.pid} {stack.tid} {stack.comm} {stack.state}")
        for frame in stack.frames:
            print(frame.line())
        print(f"{'complete' if stack.complete else 'stopped'}: {stack.end}")


def _stack_document(stack: StackRow) -> dict[str, Any]:
    """Return a stack for JSON, addresses in hexadecimal."""
    document = asdict(stack)
    for frame in document["frames"]:
        del frame["width"]
        for key in ("address", "offset", "file_address", "file_offset"):
            frame[key] = f"{frame[key]:#x}" if frame[key] is not None else None
    return document

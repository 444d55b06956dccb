"""Stacks of many threads: groups of equal ones, folded text for flame graphs, and speedscope's format.

References: the folded stacks of Brendan Gregg's FlameGraph (stackcollapse-perf.pl: ``_[k]`` behind functions of the
kernel, ``_[i]`` behind inlined ones); speedscope's file format (https://www.speedscope.app/file-format-schema.json).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmcore2core.overrides import override

if TYPE_CHECKING:
    from vmcore2core import FrameRow, KernelFrameRow, StackRow

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
NAMED_MAX = 16
"""Most threads of one process that a group's heading lists."""


@dataclass(frozen=True, slots=True)
class Step:
    """One function of a stack.

    Attributes:
        name: the function; if it has no name, its place in the file, or its address.
        file: the file or module that contains it; None if that is not known, and for the kernel itself.
        kind: "user", "inlined" or "kernel".
    """

    name: str
    file: str | None
    kind: str

    @override
    def __str__(self) -> str:
        return f"{self.name} ({self.file})" if self.file and self.kind != "inlined" else self.name


@dataclass(frozen=True, slots=True)
class Group:
    """Threads with equal stacks.

    Attributes:
        steps: outermost first.
        stacks: the stack of each thread.
    """

    steps: tuple[Step, ...]
    stacks: tuple[StackRow, ...]

    def heading(self) -> str:
        """Return the number of threads, and their processes with the TIDs."""
        of: dict[tuple[int, str], list[int]] = {}
        for stack in self.stacks:
            of.setdefault((stack.pid, stack.comm), []).append(stack.tid)
        count = len(self.stacks)
        names = [f"{comm} {_numbers(pid, tids)}" for (pid, comm), tids in of.items()]
        return f"{count} thread{'' if count == 1 else 's'}: {'; '.join(names)}"


def _numbers(pid: int, tids: list[int]) -> str:
    """Return a process with its threads; without them if the only thread is the leader."""
    if tids == [pid]:
        return str(pid)
    more = f" and {len(tids) - NAMED_MAX} more" if len(tids) > NAMED_MAX else ""
    return f"{pid} ({', '.join(map(str, tids[:NAMED_MAX]))}{more})"


def groups(stacks: Iterable[StackRow]) -> list[Group]:
    """Group the threads whose stacks have the same functions; the largest group is first."""
    found: dict[tuple[Step, ...], list[StackRow]] = {}
    for stack in stacks:
        found.setdefault(steps(stack), []).append(stack)
    made = [Group(way, tuple(members)) for way, members in found.items()]
    return sorted(made, key=lambda group: -len(group.stacks))


def steps(stack: StackRow) -> tuple[Step, ...]:
    """Return the functions of a stack, the outermost first: the user's, then the kernel's."""
    user = [step for frame in reversed(stack.frames) for step in _user_steps(frame)]
    kernel = () if stack.kernel is None else map(_kernel_step, reversed(stack.kernel.frames))
    return (*user, *kernel)


def _user_steps(frame: FrameRow) -> Iterator[Step]:
    name = frame.function
    if name is None and frame.signal_trampoline:
        name = "<signal trampoline>"
    if name is None:
        place = frame.file_address if frame.file_address is not None else frame.file_offset
        name = f"{frame.address:#x}" if place is None or frame.file is None else f"+{place:#x}"
    yield Step(name, frame.file, "user")
    for one in reversed(frame.inlined):
        yield Step(one.function or "??", frame.file, "inlined")


def _kernel_step(frame: KernelFrameRow) -> Step:
    return Step(frame.function or f"{frame.address:#x}", frame.module, "kernel")


def folded(stacks: Iterable[StackRow]) -> Iterator[str]:
    """Yield a line for each group: "comm;outermost;...;innermost COUNT", as flamegraph.pl reads it."""
    counts: dict[str, int] = {}
    for stack in stacks:
        line = ";".join(map(_word, (stack.comm, *map(_annotated, steps(stack)))))
        counts[line] = counts.get(line, 0) + 1
    for line, count in counts.items():
        yield f"{line} {count}"


def _annotated(step: Step) -> str:
    if step.kind == "kernel":
        return f"{step.name}_[k]"
    if step.kind == "inlined":
        return f"{step.name}_[i]"
    # A place without a function name needs its file.
    return f"{step.file or ''}{step.name}" if step.name.startswith("+") else step.name


def _word(name: str) -> str:
    """Return a name without the characters that end it in folded text."""
    return name.replace(";", ":").replace("\n", " ")


def speedscope(stacks: Iterable[StackRow], name: str) -> dict[str, Any]:
    """Return speedscope's document: one profile, in which each thread weighs 1.

    Args:
        stacks: of the threads.
        name: of the profile.
    """
    frames: dict[tuple[str, str | None], int] = {}
    samples = []
    for stack in stacks:
        ways = [(f"{stack.comm} {stack.pid}", None), *((_annotated(step), step.file) for step in steps(stack))]
        samples.append([frames.setdefault(way, len(frames)) for way in ways])
    return {
        "$schema": SPEEDSCOPE_SCHEMA,
        "shared": {"frames": [{"name": way} | ({"file": file} if file else {}) for way, file in frames]},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "none",
                "startValue": 0,
                "endValue": len(samples),
                "samples": samples,
                "weights": [1] * len(samples),
            }
        ],
        "name": name,
        "activeProfileIndex": 0,
        "exporter": "vmcore2core",
    }

"""The selection of processes: a process must meet every condition, by any of its words, as in pgrep(1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase

from vmcore2core.errors import LayoutError, LayoutUnknown, MemoryFault, TaskError, Vmcore2coreError
from vmcore2core.interfaces import Layout
from vmcore2core.kernel.cgroup import NEEDED as CGROUP_NEEDED
from vmcore2core.kernel.pid import NSPID_NEEDED
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.identity import Identity
from vmcore2core.process.snapshot import Processes

COMM_LEN = 15
"""TASK_COMM_LEN without its NUL."""
WILDCARDS = frozenset("*?[")

_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "exe": (("mm_struct", "exe_file"),),
    "uid": (("task_struct", "real_cred"), ("cred", "uid")),
    "cgroup": CGROUP_NEEDED,
    "container": CGROUP_NEEDED,
    "nspid": NSPID_NEEDED,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The conditions that select processes; an empty one selects all.

    Attributes:
        pid: PIDs of processes or of any of their threads.
        comm: shell patterns.
        exe: shell patterns of the program's path.
        uid: real user IDs.
        cgroup: shell patterns of a control group's path; ``*`` matches "/", too.
        container: container IDs, or their beginnings.
        nspid: PIDs in any PID namespace other than the initial one.
        state: ps(1)'s state letters; one thread in such a state is enough.
        exclude: shell patterns of comm that must not match.
    """

    pid: tuple[int, ...] = ()
    comm: tuple[str, ...] = ()
    exe: tuple[str, ...] = ()
    uid: tuple[int, ...] = ()
    cgroup: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    nspid: tuple[int, ...] = ()
    state: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def by_pid_alone(self) -> bool:
        """Whether every wanted process is named by its PID."""
        return bool(self.pid) and self == Choice(pid=self.pid)

    @property
    def positive(self) -> bool:
        """Whether any condition selects processes, rather than only excluding some."""
        return self != Choice(exclude=self.exclude)

    def check(self, layout: Layout) -> None:
        """Check that the layout has the members that the conditions need.

        Raises:
            LayoutError: it lacks one.
        """
        for kind, members in _NEEDED.items():
            if not getattr(self, kind):
                continue
            try:
                for struct, *names in members:
                    layout.member(struct, *names)
            except LayoutUnknown as error:
                raise LayoutError(f"--{kind} cannot be answered: {error}") from error

    def takes(self, identity: Identity) -> bool:
        """Tell whether a process is wanted; the caller has already checked its PID."""
        comm = text(identity.comm)
        return (
            self.names(comm)
            and (not self.exe or (identity.exe is not None and _matches(text(identity.exe), self.exe)))
            and (not self.uid or identity.uid in self.uid)
            and (not self.cgroup or any(_matches(text(path), self.cgroup) for path in identity.cgroups or ()))
            and (not self.container or any(c.startswith(tuple(self.container)) for c in identity.containers))
            and (not self.nspid or any(n in self.nspid for n in (identity.nspids or ())[1:]))
            and (not self.state or any(letter in self.state for letter in identity.states))
            and not _matches(comm, self.exclude)
        )

    def names(self, comm: str) -> bool:
        """Tell whether a printable name is among the wanted ones."""
        return not self.comm or _matches(comm, self.comm)


def _matches(shown: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(shown, pattern) for pattern in patterns)


def choose(
    processes: Processes, choice: Choice, among: Callable[[], Iterable[StructView]] | None = None
) -> tuple[list[Identity], list[tuple[int | None, Vmcore2coreError]]]:
    """Return the wanted processes in the dump's order, and errors: PIDs without a task, or that no process matches.

    A process named by its PID is returned even if it has no user memory, so that its conversion reports why.

    Args:
        processes: the dump's processes.
        choice: the conditions.
        among: yields the leaders to examine where no PID is named; None for all processes with user memory.

    Raises:
        LayoutError: the layout lacks a member that the conditions need.
    """
    choice.check(processes.kernel.layout)
    errors: list[tuple[int | None, Vmcore2coreError]] = []
    leaders: dict[int, StructView] = {}
    for number in choice.pid:
        try:
            leader = processes.find(number)
            leaders[int(leader.address)] = leader
        except Vmcore2coreError as error:
            errors.append((number, error))
    candidates = leaders.values() if choice.pid else (among or processes.with_mm)()
    everybody = list(_readable(processes, choice, candidates))
    found = everybody if choice.by_pid_alone else [one for one in everybody if choice.takes(one)]
    if not found and not (choice.pid and errors):
        what = "process with user memory" if among is None else "process"
        errors.append((None, TaskError(0, f"no {what} matches{_why_none(choice, everybody)}")))
    return found, errors


def _why_none(choice: Choice, identities: Sequence[Identity]) -> str:
    """Return the condition that no process meets, as the end of a sentence."""
    for kind in (field.name for field in fields(choice) if field.name not in ("pid", "exclude")):
        asked = getattr(choice, kind)
        if asked and not any(replace(Choice(), **{kind: asked}).takes(identity) for identity in identities):
            return f": --{kind} {f' --{kind} '.join(map(str, asked))} fits none{pattern_hint(kind, asked)}"
    if choice.exclude and any(replace(choice, exclude=()).takes(identity) for identity in identities):
        return f": --exclude {' --exclude '.join(choice.exclude)} leaves out all that would"
    return ": each condition fits some process, and none fits all of them" if choice.positive else ""


def pattern_hint(kind: str, patterns: Sequence[str]) -> str:
    """Return why patterns of one kind may match nothing, as the end of a sentence."""
    if kind == "comm" and any(len(pattern) > COMM_LEN and not WILDCARDS & set(pattern) for pattern in patterns):
        return f"; the kernel keeps {COMM_LEN} characters of a name"
    if kind in ("comm", "exe", "cgroup") and not all(WILDCARDS & set(pattern) for pattern in patterns):
        whole = "name" if kind == "comm" else "path"
        return f"; a pattern is of the whole {whole}: '*{patterns[0]}*' fits a part of it"
    return ""


def _readable(processes: Processes, choice: Choice, leaders: Iterable[StructView]) -> Iterator[Identity]:
    """Yield the identities of the processes; add a warning for each that cannot be read."""
    for leader in leaders:
        try:
            one = Identity(processes, leader)
            _ = choice.state and one.states
        except MemoryFault as fault:
            processes.warn(f"the task at {leader.address:#x} cannot be read: {fault}")
            continue
        yield one

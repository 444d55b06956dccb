"""Who a process is: the facts by which users select it, and which the index shows before its memory is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import TypeVar

from vmcore2core.errors import CorruptStructure, KernelThread, LayoutUnknown, MemoryFault, NoUserMemory
from vmcore2core.kernel import fs, pid, sched
from vmcore2core.kernel.cgroup import task_cgroup_paths
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.snapshot import Processes

T = TypeVar("T")

# docker: /docker/ID, docker-ID.scope; podman: libpod-ID.scope, libpod-payload-ID; containerd: cri-containerd-ID.scope,
# /kubepods/.../ID; CRI-O: crio-ID.scope. A container's helper (libpod-conmon-ID.scope) runs outside it.
_CONTAINER_ID = re.compile(rb"(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?")
# runc and crun alone take any name as an ID: runc-ID.scope, or ID below a slice, where systemd's own units have a
# suffix.
_NAMED_SCOPE = re.compile(rb"(?:runc|crun)-([\w+.-]+)\.scope")
_NAMED_GROUP = re.compile(rb"[\w+.-]+(?<!\.slice)(?<!\.scope)(?<!\.service)(?<!\.mount)(?<!\.socket)(?<!\.swap)")
_BESIDE = re.compile(rb"(?:libpod|crio)-conmon-")


class Identity:
    """Who a process is; each property is looked up once, and None means "not known".

    Args:
        processes: of the dump.
        leader: ``struct task_struct`` of its thread group's leader.

    Attributes:
        leader: as given.
        pid: of the thread group, in the initial PID namespace.
        comm: the leader's.

    Raises:
        MemoryFault: the leader itself cannot be read.
    """

    def __init__(self, processes: Processes, leader: StructView) -> None:
        self._processes, self.leader = processes, leader
        self.pid = sched.task_tgid(leader)
        self.comm = sched.task_comm(leader)

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The state letters of its threads, the leader's first.

        Raises:
            MemoryFault: the leader's state cannot be read.
        """
        letters = [sched.task_state_char(self.leader)]
        threads = self._processes.threads(self.leader)
        letters += [letter for task in threads if (letter := _known(sched.task_state_char, task))]
        return tuple(dict.fromkeys(letters))

    @cached_property
    def uid(self) -> int | None:
        """Real user ID in the initial user namespace."""
        ids = _known(sched.task_ids, self.leader)
        return ids["pr_uid"] if ids is not None else None

    @cached_property
    def exe(self) -> bytes | None:
        """Path of ``mm->exe_file``, as /proc/PID/exe shows it outside a chroot."""
        return _known(partial(_exe, self._processes), self.leader)

    @cached_property
    def cgroups(self) -> tuple[bytes, ...] | None:
        """Paths of its control groups, the unified hierarchy's first."""
        return _known(task_cgroup_paths, self.leader)

    @cached_property
    def nspids(self) -> tuple[int, ...] | None:
        """Its PID in each PID namespace, from the initial one to its own."""
        return _known(pid.task_nspids, self.leader)

    @property
    def containers(self) -> tuple[str, ...]:
        """IDs of the containers that it is in, the innermost first."""
        return container_ids(self.cgroups or ())


def container_ids(cgroups: Sequence[bytes]) -> tuple[str, ...]:
    """Return the IDs of the containers that control groups belong to, the innermost first.

    Args:
        cgroups: their paths.
    """
    found: dict[str, None] = {}
    for path in cgroups:
        names = path.split(b"/")
        for above, name in reversed(list(pairwise(names))):
            container_id = _container_id(above, name)
            if container_id is not None:
                found.setdefault(container_id.decode())
    return tuple(found)


def _container_id(above: bytes, name: bytes) -> bytes | None:
    """Return the ID of the container with the control group ``name`` below ``above``; None if no container has it."""
    if _BESIDE.match(name):
        return None
    match = _CONTAINER_ID.fullmatch(name) or _NAMED_SCOPE.fullmatch(name)
    if match is not None:
        return match[1]
    return name if above.endswith(b".slice") and _NAMED_GROUP.fullmatch(name) else None


def _known(ask: Callable[[StructView], T], task: StructView) -> T | None:
    try:
        return ask(task)
    except (LayoutUnknown, MemoryFault, CorruptStructure):
        return None


def _exe(processes: Processes, leader: StructView) -> bytes | None:
    try:
        owner = processes.mm_of(leader)
    except (KernelThread, NoUserMemory):
        return None
    file = owner.follow("exe_file", "file")
    return fs.file_path(leader.kernel, file, processes.mounts) if file is not None else None

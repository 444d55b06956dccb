"""Who a process is: what it is chosen by, and what the index says of it before its memory is looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, TypeVar

from vmcore2core.errors import CorruptStructure, KernelThread, LayoutUnknown, MemoryFault, NoUserMemory
from vmcore2core.kernel import fs, pid, sched
from vmcore2core.kernel.cgroup import task_cgroup_paths
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.capture import Processes

T = TypeVar("T")

# docker: /docker/ID, docker-ID.scope; podman: libpod-ID.scope, libpod-payload-ID; containerd: cri-containerd-ID.scope,
# /kubepods/.../ID; CRI-O: crio-ID.scope. What is beside a container (libpod-conmon-ID.scope) runs outside it.
_CONTAINER_ID = re.compile(rb"(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?")
# runc and crun by themselves take any name as an ID: runc-ID.scope, or ID below a slice, where systemd's own have a
# suffix.
_NAMED_SCOPE = re.compile(rb"(?:runc|crun)-([\w+.-]+)\.scope")
_NAMED_GROUP = re.compile(rb"[\w+.-]+(?<!\.slice)(?<!\.scope)(?<!\.service)(?<!\.mount)(?<!\.socket)(?<!\.swap)")
_BESIDE = re.compile(rb"(?:libpod|crio)-conmon-")


class Identity(NamedTuple):
    """Who a process is; None is "not known".

    Attributes:
        pid: of the thread group, in the initial PID namespace.
        comm: the leader's.
        states: the letters of its threads, the leader's first.
        uid: real user ID, as the initial user namespace numbers it.
        exe: path of ``mm->exe_file``, as /proc/PID/exe has it outside a chroot.
        cgroups: paths of its control groups, the unified hierarchy's first.
        nspids: its number in each PID namespace, from the initial one to its own.
    """

    pid: int
    comm: bytes
    states: tuple[str, ...]
    uid: int | None = None
    exe: bytes | None = None
    cgroups: tuple[bytes, ...] | None = None
    nspids: tuple[int, ...] | None = None

    @property
    def containers(self) -> tuple[str, ...]:
        """IDs of the containers that it is in, the innermost first."""
        found: dict[str, None] = {}
        for path in self.cgroups or ():
            names = path.split(b"/")
            for above, name in reversed(list(pairwise(names))):
                container_id = _container_id(above, name)
                if container_id is not None:
                    found.setdefault(container_id.decode())
        return tuple(found)


def _container_id(above: bytes, name: bytes) -> bytes | None:
    """Return the ID of the container whose control group ``name`` is, below ``above``; None where it is of none."""
    if _BESIDE.match(name):
        return None
    match = _CONTAINER_ID.fullmatch(name) or _NAMED_SCOPE.fullmatch(name)
    if match is not None:
        return match[1]
    return name if above.endswith(b".slice") and _NAMED_GROUP.fullmatch(name) else None


def identify(processes: Processes, leader: StructView) -> Identity:
    """Return who a process is.

    Args:
        processes: of the dump.
        leader: ``struct task_struct`` of its thread group's leader.

    Raises:
        MemoryFault: the leader itself cannot be read.
    """
    states = [sched.task_state_char(leader)]
    states += [letter for task in processes.threads(leader) if (letter := _known(sched.task_state_char, task))]
    ids = _known(sched.task_ids, leader)
    return Identity(
        pid=sched.task_tgid(leader),
        comm=sched.task_comm(leader),
        states=tuple(dict.fromkeys(states)),
        uid=ids["pr_uid"] if ids is not None else None,
        exe=_known(lambda task: _exe(processes, task), leader),
        cgroups=_known(task_cgroup_paths, leader),
        nspids=_known(pid.task_nspids, leader),
    )


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

"""Selecting processes: one condition of each kind must hold.

Tests process/identity.py.
"""

from __future__ import annotations

import pytest

from tests.process.scene import CODE, VM_EXEC, VM_READ, Scene, simple
from vmcore2core.choose import Choice, choose
from vmcore2core.errors import LayoutError
from vmcore2core.process.identity import Identity, container_ids

ID = "0123456789abcdef" * 4


def identity(**known: object) -> Identity:
    """Return who a process is, without a dump."""
    found = object.__new__(Identity)
    vars(found).update(known)
    return found


APP = identity(
    pid=812,
    comm=b"postgres",
    states=("S", "D"),
    uid=70,
    exe=b"/usr/lib/postgresql/15/bin/postgres",
    cgroups=(b"/system.slice/docker-%s.scope" % ID.encode(),),
    nspids=(812, 1),
)


@pytest.mark.parametrize(
    "choice",
    [
        Choice(),
        Choice(comm=("post*",)),
        Choice(comm=("other", "post*")),
        Choice(exe=("*/bin/postgres",)),
        Choice(uid=(0, 70)),
        Choice(cgroup=("/system.slice/*",)),
        Choice(container=("0123456",)),
        Choice(container=(ID,)),
        Choice(nspid=(1,)),
        Choice(state=("D",)),
        Choice(exclude=("mysql*",)),
        Choice(comm=("post*",), uid=(70,), container=(ID[:12],), nspid=(1,), state=("Z", "S")),
    ],
    ids=repr,
)
def test_taken(choice: Choice) -> None:
    assert choice.takes(APP)


@pytest.mark.parametrize(
    "choice",
    [
        Choice(comm=("postgre",)),
        Choice(exe=("postgres",)),
        Choice(uid=(7,)),
        Choice(cgroup=("/system.slice",)),
        Choice(container=("123456",)),
        Choice(nspid=(812,)),
        Choice(state=("Z",)),
        Choice(exclude=("post*",)),
        Choice(comm=("post*",), uid=(71,)),
        Choice(comm=("post*",), exclude=("*gres",)),
    ],
    ids=repr,
)
def test_not_taken(choice: Choice) -> None:
    assert not choice.takes(APP)


@pytest.mark.parametrize(
    ("path", "containers"),
    [
        ("/docker/" + ID, (ID,)),
        (f"/system.slice/docker-{ID}.scope", (ID,)),
        (f"/machine.slice/libpod-{ID}.scope/container", (ID,)),
        (f"/machine.slice/libpod-conmon-{ID}.scope", ()),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", (ID,)),
        (f"/kubepods/burstable/pod7/{ID}", (ID,)),
        (f"/kubepods.slice/crio-{ID}.scope", (ID,)),
        (f"/docker/{ID}/docker/{ID[::-1]}", (ID[::-1], ID)),
        (f"/kubepods/besteffort/pod7/crio-{ID}", (ID,)),
        (f"/system.slice/containerd.service/kubepods-burstable-pod7.slice:cri-containerd:{ID}", (ID,)),
        ("/system.slice/runc-web.scope", ("web",)),
        ("/user.slice/user-0.slice/user@0.service/user.slice/crun-my.app_1.scope", ("my.app_1",)),
        ("/system.slice/ctr1", ("ctr1",)),
        ("/system.slice/ctr1/init.scope", ("ctr1",)),
        ("/system.slice/lab.service", ()),
        ("/system.slice/lab.service/worker", ()),
        ("/system.slice/system-getty.slice/getty@tty1.service", ()),
        ("/system.slice/system-serial\\x2dgetty.slice/serial-getty@ttyS0.service", ()),
        ("/user.slice/user-0.slice/session-1.scope", ()),
        ("/user.slice/user-0.slice/user@0.service/app.slice/dbus.socket", ()),
        ("/init.scope", ()),
        ("/", ()),
        ("/user.slice/user-0.slice", ()),
        ("/" + ID[:-1], ()),
        ("/" + ID + "0", ()),
    ],
)
def test_container_ids_in_paths(path: str, containers: tuple[str, ...]) -> None:
    assert container_ids([path.encode()]) == containers


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(exe=("*",)), r"--exe cannot be answered: OFFSET\(mm_struct.exe_file\) of this kernel is not known"),
        (Choice(cgroup=("*",)), r"--cgroup cannot be answered: OFFSET\(task_struct.cgroups\)"),
        (Choice(container=("0",)), r"--container cannot be answered"),
        (Choice(nspid=(1,)), r"--nspid cannot be answered: OFFSET\(task_struct.thread_pid\)"),
    ],
)
def test_what_the_layout_does_not_tell_is_said(choice: Choice, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        choose(simple().processes(), choice)


def scene() -> Scene:
    """Return processes 100 and 200, the second of two threads."""
    found = Scene()
    for pid in (100, 200):
        mm = found.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC))
        tasks = [found.task(pid)] + ([found.task(pid + 1, pid)] if pid == 200 else [])
        found.group(*tasks, mm=mm)
    return found


def test_a_thread_stands_for_its_process_and_two_of_one_are_one() -> None:
    chosen, errors = choose(scene().processes(), Choice(pid=(201, 200)))
    assert ([one.pid for one in chosen], errors) == ([200], [])


def test_pids_and_patterns_must_both_fit() -> None:
    chosen, _ = choose(scene().processes(), Choice(pid=(100, 200), comm=("task2*",)))
    assert [one.pid for one in chosen] == [200]


def test_a_pid_that_there_is_not_is_an_error_beside_the_others() -> None:
    chosen, errors = choose(scene().processes(), Choice(pid=(100, 4000)))
    assert [one.pid for one in chosen] == [100]
    assert [(number, "no task has PID 4000" in str(error)) for number, error in errors] == [(4000, True)]


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (Choice(comm=("task",)), ": --comm task fits none; a pattern is of the whole name: '*task*' fits a part of it"),
        (
            Choice(comm=("systemd-journald",)),
            ": --comm systemd-journald fits none; the kernel keeps 15 characters of a name",
        ),
        (Choice(comm=("x*", "y*"), state=("R",)), ": --comm x* --comm y* fits none"),
        (Choice(comm=("task*",), state=("Z",)), ": --state Z fits none"),
        (Choice(comm=("task1*",), exclude=("task1*",)), ": --exclude task1* leaves out all that would"),
        (
            Choice(pid=(100,), comm=("task200",)),
            ": --comm task200 fits none; a pattern is of the whole name: '*task200*' fits a part of it",
        ),
    ],
    ids=repr,
)
def test_nothing_that_fits_is_an_error_that_says_which_condition(choice: Choice, why: str) -> None:
    chosen, errors = choose(scene().processes(), choice)
    assert (chosen, [str(error) for _, error in errors]) == ([], ["no process with user memory matches" + why])


def test_conditions_that_fit_different_processes_are_an_error() -> None:
    found = scene()
    found.image.set("task_struct", found.leaders[0], __state=2)
    chosen, errors = choose(found.processes(), Choice(comm=("task200",), state=("D",)))
    said = "no process with user memory matches: each condition fits some process, and none fits all of them"
    assert (chosen, [str(error) for _, error in errors]) == ([], [said])

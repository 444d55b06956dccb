"""Threads read together equal threads read one by one, whatever a word of their structures says.

Tests kernel/tasks.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import bundled
from tests.fuzz.poke import DUMP
from tests.process.test_torn import GARBAGE, STATIC, with_words
from vmcore2core.arch.x86_64 import registers
from vmcore2core.corefile.notes import prstatuses
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.kernel import sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.tasks import INTS, LONGS, POINTERS, SIGSETS
from vmcore2core.process import kernelstack, threadgroup
from vmcore2core.process.model import ProcessSnapshot, ThreadSnapshot
from vmcore2core.process.threadgroup import ThreadGroup
from vmcore2core.session import Session

VALUES = (0, 1, GARBAGE, (1 << 64) - 1)
FRAME = 21 * 8  # struct pt_regs
MEMBERS = (
    *(*POINTERS, *SIGSETS, *INTS, *LONGS, "comm"),
    *(f"thread.{name}" for name in "sp fsbase gsbase ds es fsindex gsindex io_bitmap pkru".split()),
)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session([DUMP]) as opened:
        yield opened


@pytest.fixture
def threads(session: Session) -> list[StructView]:
    """The threads of a process besides its leader; they were off the CPU."""
    processes = session.processes
    return list(processes.threads(processes.find(STATIC)))[1:]


def captured(
    session: Session, monkeypatch: pytest.MonkeyPatch, many: int, leader: StructView | None = None
) -> ProcessSnapshot:
    monkeypatch.setattr(threadgroup, "MANY", many)
    processes = session.processes
    return processes.capture(leader or processes.find(STATIC), with_absent=False).snapshot


def places(thread: StructView) -> dict[str, int]:
    """Return the addresses of the words that make a thread, by what they are."""
    kernel = thread.kernel
    found = {name: int(thread.addr_of(name)) for name in MEMBERS if thread.has(name)}
    top = thread.pointer("stack") + (kernel.layout.find_size("thread_union") or 0x4000)
    found |= {name: top - FRAME + 8 * i for i, name in ((0, "r15"), (16, "rip"), (17, "cs"), (18, "flags"))}
    found |= {name: top - FRAME + 8 * i for i, name in ((19, "rsp"), (20, "ss"))}
    for name, struct, member in (("thread_pid", "pid", "numbers"), ("stack_vm_area", "vm_struct", "addr")):
        pointed = thread.follow(name, struct)
        assert pointed is not None
        found[f"{struct}.{member}"] = pointed.addr_of(member)
    fpu = thread.addr_of("thread.fpu.fpstate") - kernel.layout.member("fpu", "fpstate").offset
    state = fpu + kernel.layout.member("fpu", "__fpstate").offset
    regs = state + kernel.layout.member("fpstate", "regs").offset
    found |= {f"fpstate.{name}": state + kernel.layout.member("fpstate", name).offset for name in ("size", "regs")}
    found["user_xfeatures"] = state + kernel.layout.member("fpstate", "user_xfeatures").offset
    return found | {"xfeatures": regs + 512, "xcomp_bv": regs + 520, "fpstate": fpu + 16}


def test_only_the_leader_is_looked_at_alone(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ThreadSnapshot | None] = []
    snapshots = ThreadGroup.snapshots

    def seen(*asked: Any) -> list[ThreadSnapshot | None]:
        made[:] = snapshots(*asked)
        return made

    one_by_one = captured(session, monkeypatch, 1 << 30)
    monkeypatch.setattr(ThreadGroup, "snapshots", seen)
    assert captured(session, monkeypatch, 1) == one_by_one
    assert [thread is None for thread in made] == [True, *[False] * (len(made) - 1)]


def test_a_word_of_any_structure_may_be_wrong(
    session: Session, threads: list[StructView], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [places(thread) for thread in threads[1:]]  # their state is compared with the first one's
    for name in others[0]:
        changed = with_words(session, {own[name]: value for own, value in zip(others, VALUES, strict=True)})
        one_by_one, together = (captured(changed, monkeypatch, many) for many in (1 << 30, 1))
        assert together == one_by_one, name
        assert len(list(prstatuses(together))) == len(together.threads), name


def test_times_add_up_as_in_the_kernel(session: Session, threads: list[StructView]) -> None:
    """thread_group_cputime() adds u64, so a wrong time wraps the sum, and its core can still be written."""
    time = threads[0].uint("utime", size=8)
    changed = with_words(session, {int(threads[0].addr_of("utime")): (1 << 64) - 1})
    before, after = (one.processes.capture(one.processes.find(STATIC)).snapshot for one in (session, changed))
    usual, wrapped = (snapshot.threads[0].pr_utime or 0 for snapshot in (before, after))
    assert usual - wrapped == time + 1
    assert [len(status) for status in prstatuses(after)] == [len(status) for status in prstatuses(before)]


@pytest.mark.parametrize("value", VALUES)
def test_a_leader_may_have_any_number(session: Session, monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    leader = session.processes.find(STATIC)
    changed = with_words(session, {int(leader.addr_of("pid")): value & 0xFFFF_FFFF}, 4)
    view = changed.kernel.view("task_struct", leader.address)
    one_by_one, together = (captured(changed, monkeypatch, many, view) for many in (1 << 30, 1))
    assert together == one_by_one


@pytest.mark.parametrize("many", [1 << 30, 1])
def test_a_thread_with_a_negative_number_is_left_out(
    session: Session, threads: list[StructView], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, many: int
) -> None:
    """Debuggers take -1 for all threads."""
    monkeypatch.setattr(threadgroup, "MANY", many)
    changed = with_words(session, {int(threads[1].addr_of("pid")): 0xFFFF_FFFF}, 4)
    result = changed.extract(changed.processes.find(STATIC), tmp_path / "core", CoreOptions())
    (left,) = result.snapshot.threads_left_out
    assert (left.tid, left.comm) == (-1, sched.task_comm(threads[1]))
    assert left.reason == f"task_struct.pid at {threads[1].addr_of('pid'):#x}: -1, expected at least 0"
    assert len(result.snapshot.threads) == len(threads)  # and the leader
    assert not result.complete


@pytest.mark.parametrize("size", [-1, 8, 1 << 63, 1 << 64])
def test_a_layout_may_have_any_size_of_a_stack(session: Session, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (registers, kernelstack):
        monkeypatch.setattr(module, "stack_sizes", lambda *_: (size,))
    one_by_one, together = (captured(session, monkeypatch, many) for many in (1 << 30, 1))
    assert together == one_by_one


@pytest.mark.parametrize("guest", ["debian-5.10-amd64", "debian-7.2-amd64"])
def test_other_kernels_keep_the_state_elsewhere(guest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.16 it is in ``thread_struct``, since 6.16 behind ``task_struct``."""
    made: list[ThreadSnapshot] = []
    snapshots = ThreadGroup.snapshots

    def seen(*asked: Any) -> list[ThreadSnapshot | None]:
        found = snapshots(*asked)
        made.extend(thread for thread in found if thread is not None)
        return found

    monkeypatch.setattr(ThreadGroup, "snapshots", seen)
    with Session([bundled(guest, tmp_path)]) as session:
        for leader in session.processes.with_mm():
            one_by_one, together = (captured(session, monkeypatch, many, leader) for many in (1 << 30, 1))
            assert together == one_by_one
    assert len(made) > 4
    assert all(len(thread.regsets) == 2 for thread in made)

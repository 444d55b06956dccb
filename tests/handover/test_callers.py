"""Stacks for the index and for start scripts, unwound only once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.e2e.guests import FIXTURES
from vmcore2core.arch.arm64.unwind import Arm64Unwind
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.formats.elf import EM_AARCH64
from vmcore2core.handover.callers import Caller, LastFrame, WithoutCfi, stacks_without_cfi
from vmcore2core.process.threads import ThreadRow
from vmcore2core.run.converter import Converter
from vmcore2core.run.jobs import Job
from vmcore2core.session import OpenOptions, Session
from vmcore2core.unwind.frames import LIMIT, Backtrace, Found, Frame
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.threads import ThreadUnwinder, Unwound

SPEC = cast("UnwindSpec", Arm64Unwind().spec(CoreMachine(EM_AARCH64, 64, ())))
PATH, CODE, STACK = b"/bin/app", 0x1000, 0x7F0000


def frame(pc: int, sp: int, found: Found, /, **registers: int) -> Frame:
    """Return a frame on arm64; its registers by name."""
    numbers = {SPEC.registers.index(name): value for name, value in registers.items()}
    return Frame(pc, sp, found, found is Found.REGISTERS, False, numbers)


def callers_of(*frames: Frame) -> WithoutCfi:
    """Return what the start script of a process with one thread, 7, gets."""
    image = SimpleNamespace(ends_stack=lambda _pc: False, fde=lambda _pc: None, symbol=lambda _pc: None)
    snapshot = SimpleNamespace(vmas=(SimpleNamespace(start=CODE, end=CODE + 0x1000, path=PATH),))
    space = cast("UserSpace", SimpleNamespace(snapshot=snapshot, image=lambda _pc: image))
    thread = cast("ThreadRow", SimpleNamespace(tid=7))
    return stacks_without_cfi(Unwound(SPEC, space, ((thread, Backtrace(frames, True, "")),)))


def test_the_program_counter_comes_first_and_the_link_register_has_it() -> None:
    """A return leaves its address there; the outermost frame returns to 0, and its stack pointer does not move."""
    inner = frame(CODE, STACK, Found.REGISTERS, sp=STACK, pc=CODE)
    outer = frame(CODE + 8, STACK + 32, Found.CODE, sp=STACK + 32, pc=CODE + 8, x19=5)
    assert callers_of(inner, outer) == WithoutCfi(
        (
            Caller(
                PATH, CODE, STACK, (("pc", CODE + 8), ("sp", STACK + 32), ("x19", 5), ("x30", CODE + 8)), "instructions"
            ),
            Caller(PATH, CODE + 8, STACK + 32, (("pc", 0), ("sp", STACK + 32), ("x30", 0)), "instructions"),
        )
    )


def test_a_caller_whose_stack_pointer_is_not_known_is_not_handed_over() -> None:
    """Debuggers take a stack pointer; the frame pointer of arm64 tells none."""
    inner = frame(CODE, STACK, Found.REGISTERS, sp=STACK, pc=CODE)
    outer = frame(CODE + 8, STACK + 32, Found.FRAME_POINTER, x29=STACK + 64)
    assert callers_of(inner, outer) == WithoutCfi((), (LastFrame(PATH, CODE, 7),))


DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
SYSROOT = FIXTURES / "sysroot"


@pytest.fixture
def unwound(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that were unwound, one after the other."""
    tids, backtrace = list[int](), ThreadUnwinder.backtrace

    def counted(self: ThreadUnwinder, tid: int, registers: Mapping[str, int], limit: int = LIMIT) -> Backtrace:
        tids.append(tid)
        return backtrace(self, tid, registers, limit)

    monkeypatch.setattr(ThreadUnwinder, "backtrace", counted)
    return tids


@pytest.mark.parametrize("sysroots", [(), (SYSROOT,)], ids=["dump alone", "with --sysroot"])
def test_each_thread_is_unwound_once(unwound: list[int], sysroots: tuple[Path, ...], tmp_path: Path) -> None:
    with Session([DUMP], OpenOptions(sysroots=sysroots)) as session:
        leader = session.processes.find(86)
        job = Job(86, "lab-static", int(leader.address), str(tmp_path / "core"))
        options = CoreOptions(indexed=True, companions=True, debug_directory="/nonexistent")
        outcome = Converter(session, options).convert(job)
        assert outcome.error is None
        assert outcome.entry is not None
        assert outcome.without_cfi is not None
        assert sorted(unwound) == [thread["tid"] for thread in json.loads(outcome.entry.json)["threads"]]

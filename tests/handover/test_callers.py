"""Stacks for the index and for start scripts, unwound only once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.run.converter import Converter
from vmcore2core.run.jobs import Job
from vmcore2core.session import OpenOptions, Session
from vmcore2core.unwind.frames import LIMIT, Backtrace
from vmcore2core.unwind.threads import ThreadUnwinder

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

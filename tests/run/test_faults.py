"""A directory of cores under every fault: whatever fails, in whatever order, no core is lost, no file half-written.

Tests run/run.py, run/options.py, run/space.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.builders.faults import Faults, Killed
from tests.corefile.snapshots import PAGE, changed, snapshot, vma, write
from tests.needs import memory_folder
from vmcore2core import convert
from vmcore2core.commands.terminal import Interrupted
from vmcore2core.corefile.atomic import atomic_file
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import OutputError, sentence_of
from vmcore2core.handover.index import entry_text
from vmcore2core.handover.tree import Tree
from vmcore2core.run import run as run_module
from vmcore2core.run.jobs import DoJob, Job, JobResult, Stage
from vmcore2core.run.options import RunOptions
from vmcore2core.run.run import Run
from vmcore2core.run.space import CoreSize
from vmcore2core.session import DEFAULTS

BASE = 0x7F00_0000_0000
PIDS = (1, 2, 3)
PROCESSES = {pid: changed(snapshot(vma(BASE, BASE + 8 * PAGE)), tgid=pid) for pid in PIDS}
PAGES = {BASE + i * PAGE: bytes([i]) * PAGE for i in (1, 2, 5)}
FOREIGN = b"somebody's own file"
LIBRARY = b"\x7fELF" + bytes(5000)
HEAD: dict[str, Any] = {"dump": {"files": []}, "kernel": {}, "options": {}}


def reference() -> dict[str, bytes]:
    """Return the files of a run that nothing disturbs, the indexes aside."""
    files = {"sysroot/lib/libx.so": LIBRARY}
    with tempfile.TemporaryDirectory() as folder:
        for pid in PIDS:
            core = Path(folder) / f"core.p.{pid}"
            write(PROCESSES[pid], core, PAGES)
            files[core.name] = core.read_bytes()
            files[f"{core.name}.gdb"] = core.name.encode()
    return files


WHOLE = reference()


class HandMade(Run):
    """A run over hand-made processes, in everything else the real one."""

    def _stages(self, _first: Job | None) -> Mapping[Stage, DoJob]:
        return {Stage.MEASURE: lambda job: JobResult(job, size=CoreSize(1, 1)), Stage.CONVERT: self._convert}

    def _convert(self, job: Job) -> JobResult:
        path = Path(job.target)
        try:
            write(PROCESSES[job.pid], path, PAGES, force=self._replace, verify=False)
            status = path.stat()
        except Exception as error:
            return JobResult(job, error=sentence_of(error))
        core = {"file": path.name, "file_size": status.st_size, "mtime_ns": status.st_mtime_ns}
        entry = {"pid": job.pid, "comm": job.comm, "threads": []}
        whole = {**entry, "core": {**core, "missing": 0, "pages": 3, "complete": True}}
        return JobResult(job, entry=entry_text(whole))

    def _write_beside(self, _workers: Any, jobs: Sequence[Job]) -> None:
        for job in jobs:
            with Tree(self.directory / "sysroot", force=self._replace).create(b"/lib/libx.so") as fd:
                os.write(fd, LIBRARY)
            core = Path(job.target)
            with atomic_file(core.with_name(f"{core.name}.gdb"), force=self._replace) as fd:
                os.write(fd, core.name.encode())


def run(directory: Path, pids: Sequence[int], mode: str) -> HandMade:
    """Convert processes into a directory."""
    container = SimpleNamespace(memory_ranges=list)
    session: Any = SimpleNamespace(
        warnings=[], options=DEFAULTS, notices=[], inputs=(), remembered=None, container=container
    )
    core = CoreOptions(indexed=True, companions=True, force=mode == "--force")
    options = RunOptions(core, output=directory, resume=mode == "--resume")
    chosen: list[Any] = [SimpleNamespace(pid=pid, comm=b"p", leader=SimpleNamespace(address=pid)) for pid in pids]
    with (
        mock.patch.object(run_module, "index_head", return_value=HEAD),
        mock.patch("vmcore2core.run.story.story", return_value={}),
        mock.patch.object(convert, "core_name", lambda leader: f"core.p.{leader.address}"),
    ):
        made = HandMade(session, options, lambda _sentence: None)
        made.run(chosen, lambda _count: mock.MagicMock())
    return made


with tempfile.TemporaryDirectory() as once:
    run(Path(once) / "cores", PIDS, "")  # what is read only once in a process must not count among a later run's calls

FAULTS = st.sampled_from(
    [
        None,
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOENT, "No such file or directory"),
        Interrupted(2),
        MemoryError(),
        Killed(),
    ]
)
NAMES = st.sampled_from([f"core.p.{pid}" for pid in PIDS])


class Directory(RuleBasedStateMachine):
    """One directory, and what users, disks and signals do to it."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(dir=memory_folder()))
        self.directory = self.top / "cores"
        self.foreign: dict[str, bytes] = {}
        self.killed = False

    def teardown(self) -> None:
        shutil.rmtree(self.top)

    @rule(
        pids=st.sets(st.sampled_from(PIDS), min_size=1),
        mode=st.sampled_from(["", "--force", "--resume", "--resume"]),
        error=FAULTS,
        at=st.integers(1, 140),
        after=st.booleans(),
    )
    def convert(self, pids: set[int], mode: str, error: BaseException | None, at: int, after: bool) -> None:
        before = self.files()
        replaces = mode == "--force" or (mode == "--resume" and "index.json" in before)
        raised: BaseException | None = None
        done: Run | None = None
        with Faults(error, at, after=after and not isinstance(error, OSError)) as faults:
            try:
                done = run(self.directory, sorted(pids), mode)
            except (OutputError, Interrupted, Killed, MemoryError) as caught:
                raised = caught
        self.killed = self.killed or isinstance(raised, Killed)
        there = self.files()
        # The page has no data of processes that a new index does not have.
        listed = {entry["pid"] for entry in json.loads(there.get("index.json", b'{"processes": []}'))["processes"]}
        others = {f"index.data/{pid}.js" for pid in PIDS if pid not in listed}
        assert before.keys() - there.keys() <= others, "what was there is gone"
        if not replaces:
            assert all(there[name] == content for name, content in before.items() if name.startswith("core."))
        for name in [name for name in self.foreign if there.get(name) != self.foreign[name]]:
            del self.foreign[name]
        if isinstance(raised, OutputError):
            assert str(self.directory) in str(raised)
        if not faults.raised:
            self.undisturbed(pids, mode, before, there, raised, done)

    def undisturbed(
        self,
        pids: set[int],
        mode: str,
        before: dict[str, bytes],
        there: dict[str, bytes],
        raised: BaseException | None,
        done: Run | None,
    ) -> None:
        """What a run that met no fault has to have done."""
        if mode != "--force" and not (mode == "--resume" and "index.json" in before):
            if {"index.json", "index.html"} & before.keys():
                assert isinstance(raised, OutputError)
                assert there == before
                return
            if any(name.split("/")[0].startswith(("core.", "sysroot")) for name in before):
                return  # some are refused, each by itself
        assert raised is None
        assert done is not None
        assert done.errors == []
        assert all(there[f"core.p.{pid}"] == WHOLE[f"core.p.{pid}"] for pid in pids)
        assert json.loads(there["index.json"])["finished"] is not None
        if mode == "--resume" and "index.json" in before:
            self.killed = False  # and with it what it left

    @rule(name=NAMES)
    def somebody_puts_a_file_there(self, name: str) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / name).write_bytes(FOREIGN)
        self.foreign[name] = FOREIGN

    @rule(name=NAMES)
    def somebody_deletes_a_core(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)
        self.foreign.pop(name, None)

    @rule(name=NAMES, size=st.integers(0, 30000))
    def a_core_is_cut(self, name: str, size: int) -> None:
        path = self.directory / name
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)
            self.foreign[name] = path.read_bytes()

    @rule()
    def the_directory_vanishes(self) -> None:
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.foreign, self.killed = {}, False

    @invariant()
    def every_file_is_whole(self) -> None:
        for name, content in self.files().items():
            if not name.startswith("index."):
                assert content == WHOLE[name] or content == self.foreign.get(name), name

    @invariant()
    def the_index_is_whole_and_says_what_is_there(self) -> None:
        path = self.directory / "index.json"
        if not path.exists():
            return
        for entry in json.loads(path.read_bytes())["processes"]:
            core = self.directory / entry["core"]["file"]
            if core.exists() and core.name not in self.foreign:
                assert core.read_bytes() == WHOLE[core.name]

    @invariant()
    def nothing_half_is_left_but_by_a_kill(self) -> None:
        parts = [path.name for path in self.directory.rglob("*.part")]
        assert self.killed or not parts, parts
        assert all(name.startswith(".") for name in parts), "what is partial can be told by its name"

    def files(self) -> dict[str, bytes]:
        """Return the files that have their names."""
        return {
            path.relative_to(self.directory).as_posix(): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file() and not path.name.endswith(".part")
        }


@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device"), Interrupted(2)], ids=repr
)
def test_a_run_that_ends_at_any_call_is_finished_by_resume(error: BaseException, tmp_path: Path) -> None:
    at, faults = 0, None
    while faults is None or faults.raised:
        at += 1
        directory = tmp_path / f"{at}"
        with Faults(error, at) as faults, contextlib.suppress(OutputError, Interrupted, Killed):
            run(directory, PIDS[:2], "")
        if not isinstance(error, Killed):
            assert list(directory.rglob("*.part")) == [], faults.calls[-3:]
        with Faults():  # for its fsync alone
            again = run(directory, PIDS[:2], "--resume")
        assert again.errors == []
        files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        assert {name: path.read_bytes() for name, path in files.items() if not name.startswith("index.")} == {
            name: content for name, content in WHOLE.items() if "core.p.3" not in name
        }, faults.calls[-3:]
    assert at > 80


Directory.TestCase.settings = settings(
    max_examples=60, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestDirectory = Directory.TestCase

"""A run by the workers of a Dask cluster gives the same cores as a local run, whichever worker dies on the way.

Tests run/cluster.py, run/converter.py, run/samefile.py.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client

from tests.e2e.guests import FIXTURES, convert
from tests.e2e.test_handover import contents, index_of, without_times
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import UsageError
from vmcore2core.run import cluster
from vmcore2core.run.jobs import Job, Stage
from vmcore2core.session import OpenOptions

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"

DIES = """
import os, signal
from pathlib import Path
from vmcore2core.run import converter
from vmcore2core.corefile import writer

def die_once(*arguments, plain=writer.write_pages):
    try:
        Path("die").unlink()
    except FileNotFoundError:
        return plain(*arguments)
    Path("died").touch()
    os.kill(os.getpid(), signal.SIGKILL)

def die_of_one(self, job, plain=converter.Converter.convert):
    if Path("deadly").exists() and job.comm == Path("deadly").read_text():
        with Path("deaths").open("a") as file:
            file.write(f"{job.pid}\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, job)

writer.write_pages = die_once
converter.Converter.convert = die_of_one
"""


@contextmanager
def dask_workers(folder: Path, allowed_failures: int) -> Iterator[str]:
    """Give the address of a scheduler with two workers; none of them is replaced."""
    preload = folder / "dies.py"
    preload.write_text(DIES)
    where = folder / "scheduler.json"
    environment = {
        **os.environ,
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures),
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    }
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", where]
    worker = ["worker", "--scheduler-file", where, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny"]
    worker += ["--no-dashboard", "--preload", preload, "--memory-limit", "0", "--death-timeout", "60"]
    with ExitStack() as stack:
        for arguments in [scheduler, *[worker] * 2]:
            log = stack.enter_context((folder / "log").open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, arguments)],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait, 60)
            stack.callback(process.kill)
        client = Client(scheduler_file=str(where), timeout=120, set_as_default=False)
        client.wait_for_workers(2, timeout=120)
        address = str(client.scheduler.address)
        client.close()
        yield address


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "cores"
    assert convert(DUMP, "--all", "-o", folder).returncode == 0
    return folder


def test_a_worker_that_is_killed_in_the_middle_of_a_core_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    with dask_workers(tmp_path, allowed_failures=3) as address:
        executor = ["--executor", f"dask:{address}"]
        result = convert(DUMP, "--all", "-o", tmp_path / "cores", *executor)
        precious = convert(DUMP, "--pid", "1", "-o", tmp_path / "cores/core.init.1", *executor)
        assert (precious.returncode, "core.init.1 exists already" in precious.stderr) == (1, True)
        single = convert(DUMP, "--pid", "1", "-o", tmp_path / "init.core", *executor)
        assert (single.returncode, single.stderr) == (0, "")
        assert (tmp_path / "init.core").read_bytes() == (undisturbed / "core.init.1").read_bytes()
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "died").exists()
    assert contents(tmp_path / "cores") == contents(undisturbed)
    assert without_times(tmp_path / "cores") == without_times(undisturbed)
    assert [path.name for path in (tmp_path / "cores").glob(".*")] == [".vscode"]


def test_a_process_that_ends_its_workers_fails_alone(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "deadly").write_text("lab-static")
    folder = tmp_path / "cores"
    with dask_workers(tmp_path, allowed_failures=0) as address:
        result = convert(DUMP, "--all", "-o", folder, "--executor", f"dask:{address}")
        sentence = "86 (lab-static): each worker that began to convert it died"
        assert (result.returncode, result.stderr) == (1, f"vmcore2core: {sentence}\n")
        assert index_of(folder)["errors"] == [{"pid": 86, "comm": "lab-static", "error": sentence}]
        assert {path.name for path in folder.glob("core.*[0-9]")} == {"core.init.1", "core.lab-dynamic.92"}
        for path in folder.glob("core.*[0-9]"):
            assert path.read_bytes() == (undisturbed / path.name).read_bytes()
        assert (tmp_path / "deaths").read_text() == "86\n" * 2  # once beside others, once by itself


def another_size(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def another_time(path: Path) -> None:
    os.utime(path, (0, 0))


def other_bytes(path: Path) -> None:
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_size, f"bytes, expected {DUMP.stat().st_size:#x}: it sees another file there"),
        (another_time, "is of 0, expected"),
        (other_bytes, "begins with other bytes: it sees another file there"),
        (Path.unlink, "cannot be read: No such file"),
    ],
)
def test_a_worker_that_sees_another_file_says_so(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    dump = shutil.copyfile(DUMP, tmp_path / "vmcore")
    with cluster.beacon(tmp_path) as seen:
        work = cluster.DoOnCluster(cluster.worker_dump([dump], OpenOptions()), seen, CoreOptions(), str(tmp_path))
        change(dump)
        outcome = pickle.loads(pickle.dumps(work))(Stage.CONVERT, Job(1, "init", 0, "core"))
    assert outcome.error is not None
    assert outcome.error.startswith("1 (init): the worker on ")
    assert words in outcome.error


def test_a_worker_that_sees_another_folder_writes_nothing(tmp_path: Path) -> None:
    with cluster.beacon(tmp_path) as seen:
        pass
    work = cluster.DoOnCluster(cluster.worker_dump([DUMP], OpenOptions()), seen, CoreOptions(), str(tmp_path))
    outcome = work(Stage.CONVERT, Job(1, "init", 0, "core"))
    assert f"its {tmp_path} is not the folder for the cores" in (outcome.error or "")
    assert list(tmp_path.iterdir()) == []


def test_a_worker_of_another_version_says_so(tmp_path: Path) -> None:
    with cluster.beacon(tmp_path) as seen:
        how = replace(cluster.worker_dump([DUMP], OpenOptions()), version="0.0.7")
        outcome = cluster.DoOnCluster(how, seen, CoreOptions(), str(tmp_path))(Stage.CONVERT, Job(1, "init", 0, "core"))
    assert "expected 0.0.7" in (outcome.error or "")


def test_what_a_job_sends_is_small(tmp_path: Path) -> None:
    how = cluster.worker_dump([DUMP], OpenOptions(vmcoreinfo=DUMP, swap=(f"1={DUMP}",), memory_map="0:1G@0"))
    assert how.options.swap == (f"1={DUMP}",)
    assert len(pickle.dumps(cluster.DoOnCluster(how, str(tmp_path), CoreOptions(), str(tmp_path)))) < 2048


def test_a_pipe_is_refused() -> None:
    with pytest.raises(UsageError, match="keep it in a file"):
        cluster.worker_dump([Path("-")], OpenOptions())

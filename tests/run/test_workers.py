"""Worker processes return their results, and one that dies loses only its own job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmcore2core.run.jobs import Job, JobResult, Stage
from vmcore2core.run.workers import Workers

JOBS = [Job(pid, f"p{pid}", 0, "", size=pid) for pid in range(1, 8)]


def convert(job: Job) -> JobResult:
    return JobResult(job, notices=(f"{os.getpid()}",))


def died_at_3(job: Job) -> JobResult:
    if job.pid == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(job)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_job_has_an_outcome(count: int) -> None:
    with Workers({Stage.CONVERT: convert}, count) as workers:
        outcomes = list(workers.run(Stage.CONVERT, JOBS))
    assert sorted(outcome.job.pid for outcome in outcomes) == [job.pid for job in JOBS]
    own = {outcome.notices for outcome in outcomes} == {(str(os.getpid()),)}
    assert own is (count == 1)


def test_the_largest_are_begun_first() -> None:
    with Workers({Stage.CONVERT: convert}, 2) as workers:
        first = next(iter(workers.run(Stage.CONVERT, JOBS)))
    assert first.job.pid in (6, 7)


def test_who_has_begun_with_a_job_gets_it_again() -> None:
    both = multiprocessing.get_context("fork").Barrier(2)

    def beside_the_other(job: Job) -> JobResult:
        both.wait(60)  # so that each worker has one
        return convert(job)

    with Workers({Stage.MEASURE: beside_the_other, Stage.CONVERT: beside_the_other}, 2) as workers:
        first, second = (
            {outcome.job.task: outcome.notices for outcome in workers.run(stage, jobs)}
            for stage, jobs in (
                (Stage.MEASURE, [Job(1, "", 1, "", size=2), Job(2, "", 2, "", size=1)]),
                (Stage.CONVERT, [Job(1, "", 1, "", size=1), Job(2, "", 2, "", size=2)]),
            )
        )
    assert len(set(first.values())) == 2
    assert second == first


def test_a_worker_that_dies_takes_only_its_own_job_with_it() -> None:
    with Workers({Stage.CONVERT: died_at_3}, 2) as workers:
        outcomes = {outcome.job.pid: outcome for outcome in workers.run(Stage.CONVERT, JOBS)}
    assert len(outcomes) == len(JOBS)
    assert outcomes[3].error == "3 (p3): the process that converted it was ended by signal 9"
    assert all(outcome.error is None for pid, outcome in outcomes.items() if pid != 3)


def test_large_jobs_and_large_results_do_not_wait_for_each_other() -> None:
    """A worker is sent its next job while it does one, but none that it must read before it can send its result."""

    def convert_large(job: Job) -> JobResult:
        return JobResult(job, notices=("x" * (1 << 22),))

    jobs = [Job(pid, "x" * (1 << 22), 0, "") for pid in range(1, 9)]
    with Workers({Stage.CONVERT: convert_large}, 2) as workers:
        assert sorted(outcome.job.pid for outcome in workers.run(Stage.CONVERT, jobs)) == [job.pid for job in jobs]


def test_a_worker_has_its_next_job_before_its_result_is_looked_at() -> None:
    begun = multiprocessing.get_context("fork").Semaphore(0)

    def convert_and_tell(job: Job) -> JobResult:
        begun.release()
        return convert(job)

    with Workers({Stage.CONVERT: convert_and_tell}, 2) as workers:
        outcomes = workers.run(Stage.CONVERT, JOBS)
        next(outcomes)
        assert all(begun.acquire(timeout=60) for _ in range(4))  # two that were begun first, and one more each
        assert len(list(outcomes)) == len(JOBS) - 1


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from vmcore2core.run.jobs import Job, JobResult, Stage
from vmcore2core.run.workers import Workers

def convert(job):
    Path(sys.argv[1], f"{job.pid}").write_text(str(os.getpid()))
    try:
        time.sleep(float(sys.argv[2]))
        return JobResult(job)
    except KeyboardInterrupt:
        Path(sys.argv[1], f"{job.pid}").unlink()
        raise

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
with Workers({Stage.CONVERT: convert}, 2) as workers:
    list(workers.run(Stage.CONVERT, [Job(1, "", 0, ""), Job(2, "", 0, "")]))
"""


def started(folder: Path, seconds: float) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(seconds)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [path.read_text() for path in folder.iterdir()]
        if len(found) == 2 and all(found):
            return process, [int(text) for text in found]
        time.sleep(0.01)
    raise AssertionError("the workers did not begin")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] in "ZX":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.no_cover
def test_an_interrupt_ends_the_workers_and_they_clean_up(tmp_path: Path) -> None:
    process, pids = started(tmp_path, 100)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert all(map(gone, pids))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.no_cover
def test_workers_whose_parent_is_killed_end_after_their_job(tmp_path: Path) -> None:
    process, pids = started(tmp_path, 0.5)
    process.kill()
    process.communicate(timeout=60)
    assert all(map(gone, pids))

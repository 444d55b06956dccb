"""Jobs by any executor: each gets a result, whatever happens to the workers.

Tests run/dask_cluster.py, run/jobs.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from vmcore2core.errors import UsageError, WorkersError
from vmcore2core.run.dask_cluster import dask_cluster, scheduler_address
from vmcore2core.run.jobs import Job, JobResult, Stage
from vmcore2core.run.pool import Cluster, Pool

JOBS = [Job(pid, f"p{pid}", 0, "", size=pid) for pid in range(1, 8)]


def convert(_stage: Stage, job: Job) -> JobResult:
    return JobResult(job, notices=(f"{os.getpid()}",))


def failed_at_3(stage: Stage, job: Job) -> JobResult:
    if job.pid == 3:
        raise RuntimeError("two\n lines")
    return convert(stage, job)


def died_at_3(stage: Stage, job: Job) -> JobResult:
    if job.pid == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(stage, job)


class WorkersDied(Exception):
    pass


class Recorded(Executor):
    """Does jobs at once when asked to, and remembers how many were there at a time."""

    def __init__(self, answer: Callable[[Job, int], JobResult | BaseException]) -> None:
        self.answer, self.tries = answer, Counter[int]()
        self.now = self.most = 0
        self._pool = ThreadPoolExecutor(8)
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        return self._pool.submit(self._do, args[1])

    def _do(self, job: Job) -> JobResult:
        self.tries[job.pid] += 1
        beside = self.now
        answer = self.answer(job, beside)
        with self._lock:
            self.now -= 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_does(kind: type[ThreadPoolExecutor | ProcessPoolExecutor]) -> None:
    with kind(2) as executor:
        outcomes = list(Pool(Cluster(executor, lambda: 2), convert).run(Stage.CONVERT, JOBS))
        assert sorted(outcome.job.pid for outcome in outcomes) == [job.pid for job in JOBS]
        assert all(outcome.error is None for outcome in outcomes)


def test_a_job_that_fails_fails_alone_and_in_one_sentence() -> None:
    with ThreadPoolExecutor(2) as executor:
        outcomes = {
            o.job.pid: o.error for o in Pool(Cluster(executor, lambda: 2), failed_at_3).run(Stage.CONVERT, JOBS)
        }
    assert outcomes.pop(3) == "3 (p3): no worker could convert it: two lines"
    assert set(outcomes.values()) == {None}


def test_an_executor_that_breaks_ends_the_run() -> None:
    with ProcessPoolExecutor(1) as executor:
        outcomes = {o.job.pid: o.error for o in Pool(Cluster(executor, lambda: 1), died_at_3).run(Stage.CONVERT, JOBS)}
    assert outcomes.keys() == {job.pid for job in JOBS}
    assert {pid for pid, error in outcomes.items() if error is None} == {7, 6, 5, 4}
    assert "terminated abruptly" in (outcomes[1] or "")


def test_no_more_jobs_are_handed_over_than_there_is_room_for() -> None:
    def slow(job: Job, _beside: int) -> JobResult:
        time.sleep(0.05)
        return convert(Stage.CONVERT, job)

    executor = Recorded(slow)
    assert len(list(Pool(Cluster(executor, lambda: 3), convert).run(Stage.CONVERT, JOBS))) == len(JOBS)
    assert executor.most == 3


def test_what_workers_died_of_is_tried_once_more_by_itself() -> None:
    def answer(job: Job, beside: int) -> JobResult | BaseException:
        return WorkersDied() if job.pid == 3 or (job.pid == 7 and beside > 1) else convert(Stage.CONVERT, job)

    executor = Recorded(answer)
    executor.now = 1  # so that each has another beside it, at first
    cluster = Cluster(executor, lambda: 2, (WorkersDied,))
    outcomes = {}
    for outcome in Pool(cluster, convert).run(Stage.CONVERT, JOBS):
        outcomes[outcome.job.pid] = outcome.error
        if len(outcomes) == len(JOBS) - 2:
            executor.now = 0
    assert outcomes.pop(3) == "3 (p3): each worker that began to convert it died"
    assert set(outcomes.values()) == {None}
    assert executor.tries == Counter({job.pid: 2 if job.pid in (3, 7) else 1 for job in JOBS})


def broken() -> int:
    raise OSError("gone")


@pytest.mark.parametrize("room", [lambda: 0, broken])
def test_without_workers_jobs_are_given_up(room: Callable[[], int]) -> None:
    executor = Recorded(lambda job, _beside: convert(Stage.CONVERT, job))
    outcomes = list(Pool(Cluster(executor, room, empty_s=0.1), convert).run(Stage.CONVERT, JOBS))
    assert [outcome.error for outcome in outcomes] == [
        f"{job.pid} ({job.comm}): no worker could convert it: there was none for 0 seconds" for job in reversed(JOBS)
    ]


@pytest.mark.parametrize("text", ["dask", "dask:", "dask:8786", "ray://head:1", "tcp://head:8786"])
def test_an_executor_that_is_not_known_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="expected dask:tcp://HOST:PORT"):
        scheduler_address(text)


def test_dask_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with (
        pytest.raises(UsageError, match=r"needs a package that is not installed .*: pip install distributed"),
        dask_cluster("tcp://x:1", print),
    ):
        pass


def test_a_scheduler_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcore2core.run.dask_cluster.CONNECT_S", 0.2)
    words = r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"
    with pytest.raises(WorkersError, match=words), dask_cluster("tcp://127.0.0.1:9", print):
        pass

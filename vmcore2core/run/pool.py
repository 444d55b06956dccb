"""Workers elsewhere: any ``concurrent.futures.Executor`` whose workers see the same files.

It replaces those that die, as Dask does, and gives their jobs to others. No more jobs are handed over than workers take
at once: so a job that ends its worker has no others waiting there. Where it says that a job ended several workers, the
job is tried once more, when all others are done, with nothing beside it: if that ends workers too, it was this job.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass

from vmcore2core.run.jobs import DoJob, Job, JobResult, largest_first

POLL_S = 1.0
"""How often it is looked whether there are workers."""

EMPTY_S = 60.0
"""How long there may be none before the jobs are given up."""


@dataclass(frozen=True)
class Cluster:
    """Where the workers are.

    Attributes:
        executor: takes the jobs.
        room: how many jobs its workers take at once at present; 0 where there are none.
        killed: what a job raises that ended several workers.
        empty_s: seconds without any worker after which the jobs are given up.
    """

    executor: Executor
    room: Callable[[], int]
    killed: tuple[type[BaseException], ...] = ()
    empty_s: float = EMPTY_S


class Pool:
    """The workers of a cluster, for one run.

    Args:
        cluster: where they are.
        convert: what they do; it is pickled for each job.
    """

    def __init__(self, cluster: Cluster, convert: DoJob) -> None:
        self._cluster, self._convert = cluster, convert

    def run(self, jobs: Sequence[Job]) -> Iterator[JobResult]:
        """Yield what comes of the jobs, as they are done: the largest are begun first."""
        blamed = []
        for job, answer in self._answers(largest_first(jobs)):
            if isinstance(answer, self._cluster.killed):
                blamed.append(job)
            else:
                yield self._outcome(job, answer)
        for job in blamed:
            for _, answer in self._answers([job]):
                yield self._outcome(job, answer)

    def _outcome(self, job: Job, answer: JobResult | BaseException) -> JobResult:
        if isinstance(answer, JobResult):
            return answer
        if isinstance(answer, self._cluster.killed):
            why = "each worker that began to convert it died"
        else:
            why = f"no worker could convert it: {_sentence(answer)}"
        return JobResult(job, error=f"{job.pid} ({job.comm}): {why}")

    def _answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult | BaseException]]:
        """Yield each job with what came of it."""
        waiting, running = deque(jobs), dict[Future[JobResult], Job]()
        manned = time.monotonic()
        try:
            while waiting or running:
                room = self._room()
                manned = time.monotonic() if room else manned
                while waiting and len(running) < room:
                    job = waiting.popleft()
                    try:
                        running[self._cluster.executor.submit(self._convert, job)] = job
                    except Exception as error:  # each executor has exceptions of its own
                        yield job, error
                if not running:
                    time.sleep(min(POLL_S, self._cluster.empty_s))
                done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), _answer(future)
                if time.monotonic() - manned > self._cluster.empty_s:
                    gone = TimeoutError(f"there was none for {self._cluster.empty_s:.0f} seconds")
                    for job in (*running.values(), *waiting):
                        yield job, gone
                    return
        finally:
            for future in running:
                future.cancel()

    def _room(self) -> int:
        try:
            return self._cluster.room()
        except Exception:
            return 0  # who cannot be asked has none; it may come back


def _answer(future: Future[JobResult]) -> JobResult | BaseException:
    if future.cancelled():
        return ConnectionError("what hands out the jobs is gone")
    return future.exception() or future.result()


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

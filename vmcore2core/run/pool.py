"""Workers on other machines: any ``concurrent.futures.Executor`` whose workers see the same files.

The executor replaces dead workers, as Dask does, and gives their jobs to others. The pool submits only as many jobs as
the workers take at once, so that no other job waits behind one that kills its worker. If the executor says that a job
killed several workers, the pool tries it once more, alone, after all others: if workers die again, the job is to blame.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass

from vmcore2core.run.jobs import Job, JobResult, Stage, largest_first

POLL_S = 1.0
"""How often the pool checks for workers."""

EMPTY_S = 60.0
"""How long the pool waits without any worker before it gives up the jobs."""


@dataclass(frozen=True)
class Cluster:
    """The workers of an executor.

    Attributes:
        executor: takes the jobs.
        room: how many jobs its workers take at once at present; 0 without workers.
        killed: exception raised for a job that killed several workers.
        empty_s: seconds without any worker after which the pool gives up the jobs.
    """

    executor: Executor
    room: Callable[[], int]
    killed: tuple[type[BaseException], ...] = ()
    empty_s: float = EMPTY_S


class Pool:
    """The workers of a cluster, for one run.

    Args:
        cluster: the workers.
        do: does one stage of a job; it is pickled for each one.
    """

    def __init__(self, cluster: Cluster, do: Callable[[Stage, Job], JobResult]) -> None:
        self._cluster, self._do = cluster, do

    def run(self, stage: Stage, jobs: Sequence[Job]) -> Iterator[JobResult]:
        """Start the largest jobs first; yield each result when it is ready."""
        blamed = []
        for job, answer in self._answers(stage, largest_first(jobs)):
            if isinstance(answer, self._cluster.killed):
                blamed.append(job)
            else:
                yield self._outcome(job, answer)
        for job in blamed:
            for _, answer in self._answers(stage, [job]):
                yield self._outcome(job, answer)

    def _outcome(self, job: Job, answer: JobResult | BaseException) -> JobResult:
        if isinstance(answer, JobResult):
            return answer
        if isinstance(answer, self._cluster.killed):
            why = "each worker that began to convert it died"
        else:
            why = f"no worker could convert it: {_sentence(answer)}"
        return JobResult(job, error=f"{job.who}: {why}")

    def _answers(self, stage: Stage, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult | BaseException]]:
        """Yield each job with its result."""
        waiting, running = deque(jobs), dict[Future[JobResult], Job]()
        manned = time.monotonic()
        try:
            while waiting or running:
                room = self._room()
                manned = time.monotonic() if room else manned
                while waiting and len(running) < room:
                    job = waiting.popleft()
                    try:
                        running[self._cluster.executor.submit(self._do, stage, job)] = job
                    except Exception as error:  # each executor raises its own exceptions
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
            return 0  # an executor that does not answer has no workers now; it may come back


def _answer(future: Future[JobResult]) -> JobResult | BaseException:
    if future.cancelled():
        return ConnectionError("what hands out the jobs is gone")
    return future.exception() or future.result()


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

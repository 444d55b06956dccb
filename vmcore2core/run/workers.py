"""Worker processes on this machine.

Codecs hold Python's global lock for each page, so workers are processes. The process that opened the dump forks them,
so they share its knowledge of the kernel. Each caches the pages that it decompressed and the processes that it has
captured. A worker that has a job is sent the next one, too, so that it does not wait for its parent between them. A
worker that dies loses only the job that it was doing. If the parent dies, a worker finishes its job and ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from vmcore2core.run.jobs import DoJob, Job, JobResult, Stage, largest_first
from vmcore2core.signals import ENDING, blocked

if TYPE_CHECKING:  # multiprocessing, too: a run without workers does not need it
    from multiprocessing.connection import Connection


JOBS_IN_HAND = 2
"""Jobs that a worker has been sent: the one that it does, and the next."""
SENT_AHEAD_MAX = 1 << 14
"""Largest message, in bytes, to a worker that may be sending a result: it surely fits into the socket's buffer."""


class Workers:
    """Worker processes; with a count of one, this process does the jobs itself.

    Args:
        stages: the function for each stage.
        count: number of workers.
    """

    def __init__(self, stages: Mapping[Stage, DoJob], count: int) -> None:
        self._stages = stages
        self._workers: list[_Worker] = []
        self._done_by: dict[int, _Worker] = {}
        for _ in range(count if count > 1 else 0):
            self._add()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, stage: Stage, jobs: Sequence[Job]) -> Iterator[JobResult]:
        """Yield each result when it is ready; workers start the largest jobs first."""
        if not self._workers:
            yield from map(self._stages[stage], jobs)
            return
        from multiprocessing.connection import wait

        waiting = _Waiting(largest_first(jobs), self._done_by)
        while waiting or any(worker.jobs for worker in self._workers):
            self._hand_out(stage, waiting)
            busy = {worker.connection: worker for worker in self._workers if worker.jobs}
            for connection in wait(list(busy)):
                result = self._result(stage, busy[connection], waiting)  # type: ignore[index]
                self._hand_out(stage, waiting)
                yield result

    def _hand_out(self, stage: Stage, waiting: _Waiting) -> None:
        """Give each worker a job, and then a second one, unless another worker could soon be left without any."""
        for nr_jobs in range(JOBS_IN_HAND):
            for worker in self._workers:
                if len(worker.jobs) == nr_jobs and len(waiting) > nr_jobs * len(self._workers):
                    job = waiting.take(worker)
                    if worker.begin(stage, job):
                        self._done_by[job.task] = worker
                    else:
                        waiting.put_back(job)

    def _result(self, stage: Stage, worker: _Worker, waiting: _Waiting) -> JobResult:
        """Return the result of a worker's first job; if the worker died, replace it, and keep its other jobs."""
        result = worker.result()
        if result is None:
            job, how = worker.died()
            did = "wrote" if stage is Stage.WRITE_FILE else "converted"
            result = JobResult(job, error=f"{job.who}: the process that {did} it {how}")
            for other in reversed(worker.jobs):
                waiting.put_back(other)
            self._workers.remove(worker)
            self._add()
        return result

    def _add(self) -> None:
        self._workers.append(_Worker(self._stages, [worker.connection for worker in self._workers]))


class _Waiting:
    """The jobs of a stage that no worker has yet.

    Args:
        jobs: in the order in which to start them.
        done_by: the worker that did an earlier stage of a job, by the job's task.
    """

    def __init__(self, jobs: Sequence[Job], done_by: Mapping[int, _Worker]) -> None:
        self._of: dict[_Worker | None, deque[Job]] = {None: deque()}
        for job in jobs:
            self._of.setdefault(done_by.get(job.task), deque()).append(job)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def take(self, worker: _Worker) -> Job:
        """Return the best job for a worker: one whose earlier stage it did, else one that nobody did, else the last."""
        for key in (worker, None):
            if self._of.get(key):
                return self._of[key].popleft()
        return max(self._of.values(), key=len).pop()

    def put_back(self, job: Job) -> None:
        """Take a job back, which any worker may do next."""
        self._of[None].appendleft(job)


class _Worker:
    """One worker process, as its parent sees it.

    Attributes:
        jobs: the jobs that it was sent, the one that it does first.
    """

    def __init__(self, stages: Mapping[Stage, DoJob], siblings: list[Connection]) -> None:
        import multiprocessing

        fork = multiprocessing.get_context("fork")
        self.jobs: list[Job] = []
        self.connection, theirs = fork.Pipe()
        # The worker closes the inherited copies of its parent's pipe ends; otherwise it would not see the parent die.
        self._process = fork.Process(target=_serve, args=(theirs, stages, [*siblings, self.connection]))
        # Block signals until it has its own handlers.
        with blocked(*ENDING):
            self._process.start()
        theirs.close()

    def begin(self, stage: Stage, job: Job) -> bool:
        """Send it a job, and return True; return False if the job is too large to be sent ahead of a result.

        If the worker is dead, ``result`` will report that.
        """
        message = pickle.dumps((stage, job), pickle.HIGHEST_PROTOCOL)
        if self.jobs and len(message) > SENT_AHEAD_MAX:
            return False
        self.jobs.append(job)
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)
        return True

    def result(self) -> JobResult | None:
        """Return the result of its job; None if it died."""
        try:
            found: JobResult = self.connection.recv()
        except (EOFError, OSError):
            return None
        del self.jobs[0]
        return found

    def died(self) -> tuple[Job, str]:
        """Return the job that was lost with it, and how the worker ended."""
        self.connection.close()
        self._process.join()
        code = self._process.exitcode or 0
        return self.jobs.pop(0), f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        """Terminate it; it removes its unfinished files."""
        if self.jobs:
            self._process.terminate()
        self.connection.close()
        self._process.join()


def _serve(connection: Connection, stages: Mapping[Stage, DoJob], inherited: list[Connection]) -> NoReturn:
    """Do jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the terminal's interrupt
    signal.signal(signal.SIGTERM, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    status = 0
    try:
        for other in inherited:
            other.close()
        while True:
            stage, job = connection.recv()
            connection.send(stages[stage](job))
    except (EOFError, OSError):
        pass
    except KeyboardInterrupt:
        status = 1
    os._exit(status)  # leave the parent's buffers and cleanup to the parent


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # cleanup is short, and a second signal must not interrupt it
    raise KeyboardInterrupt

"""Worker processes on this machine.

Codecs hold Python's global lock for each page, so workers are processes. The process that opened the dump forks them,
so they share its knowledge of the kernel. Each caches the pages that it decompressed and the processes that it has
captured. A worker that dies loses only its own job. If the parent dies, a worker finishes its job and ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from vmcore2core.run.jobs import DoJob, Job, JobResult, Stage, largest_first
from vmcore2core.signals import ENDING, blocked

if TYPE_CHECKING:  # multiprocessing, too: a run without workers does not need it
    from multiprocessing.connection import Connection


class Workers:
    """Worker processes; with a count of one, this process does the jobs itself.

    Args:
        stages: the function for each stage.
        count: number of workers.
    """

    def __init__(self, stages: Mapping[Stage, DoJob], count: int) -> None:
        self._stages = stages
        self._workers: list[_Worker] = []
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

        waiting = largest_first(jobs)
        while waiting or any(worker.job for worker in self._workers):
            for worker in self._workers:
                if waiting and worker.job is None:
                    worker.begin(stage, waiting.pop(worker.preferred(waiting)))
            busy = {worker.connection: worker for worker in self._workers if worker.job}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                result = worker.result()
                if result is None:
                    job, how = worker.died()
                    self._workers.remove(worker)
                    self._add()
                    result = JobResult(job, error=f"{job.pid} ({job.comm}): the process that converted it {how}")
                yield result

    def _add(self) -> None:
        self._workers.append(_Worker(self._stages, [worker.connection for worker in self._workers]))


class _Worker:
    """One worker process, as its parent sees it."""

    def __init__(self, stages: Mapping[Stage, DoJob], siblings: list[Connection]) -> None:
        import multiprocessing

        fork = multiprocessing.get_context("fork")
        self.job: Job | None = None
        self._known: set[int] = set()
        self.connection, theirs = fork.Pipe()
        # The worker closes the inherited copies of its parent's pipe ends; otherwise it would not see the parent die.
        self._process = fork.Process(target=_serve, args=(theirs, stages, [*siblings, self.connection]))
        # Block signals until it has its own handlers.
        with blocked(*ENDING):
            self._process.start()
        theirs.close()

    def preferred(self, waiting: Sequence[Job]) -> int:
        """Return the index of the best job for it: the first whose earlier stage it did, if any."""
        return next((i for i, job in enumerate(waiting) if job.task in self._known), 0)

    def begin(self, stage: Stage, job: Job) -> None:
        """Send it a job; if it is dead, ``result`` will report that."""
        self.job = job
        self._known.add(job.task)
        with contextlib.suppress(OSError):
            self.connection.send((stage, job))

    def result(self) -> JobResult | None:
        """Return the result of its job; None if it died."""
        try:
            found: JobResult = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.job = None
        return found

    def died(self) -> tuple[Job, str]:
        """Return the job that was lost with it, and how the worker ended."""
        assert self.job is not None  # noqa: S101 - the parent waits only for workers with a job
        self.connection.close()
        self._process.join()
        code = self._process.exitcode or 0
        return self.job, f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        """Terminate it; it removes its unfinished files."""
        if self.job is not None:
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

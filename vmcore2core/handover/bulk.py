"""Many processes at once: jobs, what comes of each, and the worker processes that do them.

Codecs hold Python's global lock for each page, so workers are processes. They are forked from the one that opened the
dump, and share with it what it knows of the kernel; each remembers the pages that it decompressed. A worker that dies
takes only its own job with it. One whose parent dies finishes its job and ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Job:
    """One process to convert.

    Attributes:
        pid: of its thread group.
        comm: printable.
        task: kernel virtual address of its leader's ``struct task_struct``.
        target: the core's path.
        size: bytes that the core will take on disk, about.
    """

    pid: int
    comm: str
    task: int
    target: str
    size: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        job: the job.
        error: why there is no core, as a sentence; or None.
        entry: what the index says of it (``entry``).
        line: what stdout says of it.
        summary: what ``--json`` says of it.
        sentences: what stderr says of it.
        complete: whether the core is.
        warnings: sentences about the dump as a whole that its worker has met so far.
        notices: likewise, about what came from elsewhere than the dump.
        provenance: which layout source answered what, so far.
    """

    job: Job
    error: str | None = None
    entry: dict[str, Any] | None = None
    line: str = ""
    summary: dict[str, Any] | None = None
    sentences: tuple[str, ...] = ()
    complete: bool = False
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)


Convert = Callable[[Job], Outcome]
"""Converts one process; every error that is the process's own is in the outcome."""


def largest_first(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs so that the last ones to end take little time."""
    return sorted(jobs, key=lambda job: -job.size)


class Workers:
    """Worker processes; with one, the jobs are done in this process itself.

    Args:
        convert: what they do.
        count: how many.
    """

    def __init__(self, convert: Convert, count: int) -> None:
        self._convert = convert
        self._workers: list[_Worker] = []
        for _ in range(count if count > 1 else 0):
            self._add()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Yield what comes of the jobs, as they are done: the largest are begun first where there are workers."""
        if not self._workers:
            yield from map(self._convert, jobs)
            return
        waiting = deque(largest_first(jobs))
        while waiting or any(worker.job for worker in self._workers):
            for worker in list(self._workers):
                if waiting and worker.job is None:
                    worker.begin(waiting.popleft())
            busy = {worker.connection: worker for worker in self._workers if worker.job}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                outcome = worker.outcome()
                if outcome is None:
                    job, how = worker.died()
                    self._workers.remove(worker)
                    self._add()
                    outcome = Outcome(job, error=f"{job.pid} ({job.comm}): the process that converted it {how}")
                yield outcome

    def _add(self) -> None:
        self._workers.append(_Worker(self._convert, [worker.connection for worker in self._workers]))


class _Worker:
    """One worker process, as its parent sees it."""

    def __init__(self, convert: Convert, siblings: list[Connection]) -> None:
        fork = multiprocessing.get_context("fork")
        self.job: Job | None = None
        self.connection, theirs = fork.Pipe()
        # It closes what it inherits of its parent's ends: only so it sees when the parent is gone.
        self._process = fork.Process(target=_serve, args=(theirs, convert, [*siblings, self.connection]))
        # No signal may come before it has its own handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def begin(self, job: Job) -> None:
        """Give it a job; should it be dead, ``outcome`` tells."""
        self.job = job
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def outcome(self) -> Outcome | None:
        """Return what came of its job; None if it died."""
        try:
            found: Outcome = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.job = None
        return found

    def died(self) -> tuple[Job, str]:
        """Return the job that it took with it, and how it ended."""
        assert self.job is not None  # noqa: S101 - only one that has a job is waited for
        self.connection.close()
        self._process.join()
        code = self._process.exitcode or 0
        return self.job, f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        """End it; what it had begun is removed."""
        if self.job is not None:
            self._process.terminate()
        self.connection.close()
        self._process.join()


def _serve(connection: Connection, convert: Convert, inherited: list[Connection]) -> NoReturn:
    """Do jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's, the parent tells
    signal.signal(signal.SIGTERM, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    status = 0
    try:
        for other in inherited:
            other.close()
        while True:
            connection.send(convert(connection.recv()))
    except (EOFError, OSError):
        pass
    except KeyboardInterrupt:
        status = 1
    os._exit(status)  # what the parent has to flush and to clean up is not this process's


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what cleans up is short, and a second one must not end it halfway
    raise KeyboardInterrupt

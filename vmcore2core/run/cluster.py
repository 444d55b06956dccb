"""Conversions by the workers of a cluster, which share only files with the process that started the run.

For each job they get less than two kilobytes: the dump's paths, the options for cores, the process. A worker opens the
dump for its first job, and checks that it is the same one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from vmcore2core import __version__
from vmcore2core.containers.piped import STDIN
from vmcore2core.containers.remote import Url, located
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import UsageError, Vmcore2coreError, WorkersError
from vmcore2core.folders import opened_folder, part_name
from vmcore2core.run.converter import Converter
from vmcore2core.run.dask_cluster import dask_cluster, scheduler_address
from vmcore2core.run.jobs import Job, JobResult, Stage
from vmcore2core.run.pool import Cluster
from vmcore2core.run.samefile import FileIdentity, identity_of
from vmcore2core.session import OpenOptions, Session

_NUMBERED = re.compile(r"(\d{1,2}=)?(.+)", re.DOTALL)
_ONE_AT_A_TIME = threading.Lock()
"""A worker may have several threads; only one may use a session."""


@dataclass(frozen=True, slots=True)
class WorkerDump:
    """How a worker opens the dump, from any working directory.

    Attributes:
        paths: absolute paths, or URLs.
        options: how to open the dump; all paths are absolute.
        identities: the identities of all named files.
        version: vmcore2core's version.
    """

    paths: tuple[str, ...]
    options: OpenOptions
    identities: tuple[FileIdentity, ...]
    version: str = __version__

    def check(self) -> None:
        """Check that this machine has the same files and the same program.

        Raises:
            WorkersError: they differ.
            DumpError: a file cannot be read.
        """
        if self.version != __version__:
            raise WorkersError(f"it has vmcore2core {__version__}, expected {self.version}")
        for identity in self.identities:
            difference = identity.difference()
            if difference is not None:
                raise WorkersError(f"{difference}: it sees another file there")


def worker_dump(paths: Sequence[Path], options: OpenOptions) -> WorkerDump:
    """Return how workers open the dump that ``Session`` opens with these arguments; they neither search nor cache.

    Raises:
        UsageError: the dump comes through a pipe.
        DumpError: a file cannot be read.
    """
    for path in paths:
        if path == STDIN or path.is_fifo():
            raise UsageError(f"{path} is a pipe, which workers elsewhere cannot open: keep it in a file")
    dump = tuple(map(_absolute, paths))
    vmlinux, vmcoreinfo = (
        None if path is None else Path(_absolute(path)) for path in (options.vmlinux, options.vmcoreinfo)
    )
    areas = [
        (match[1] or "", _absolute(Path(match[2]))) for text in options.swap if (match := _NUMBERED.fullmatch(text))
    ]
    files = [*dump, *(str(path) for path in (vmlinux, vmcoreinfo) if path), *(path for _, path in areas)]
    where = options.memory_map
    if where is not None and ":" not in where and Path(where).is_file():
        where = _absolute(Path(where))
        files.append(where)
    absolute = replace(
        options,
        vmlinux=vmlinux,
        vmcoreinfo=vmcoreinfo,
        swap=tuple(number + path for number, path in areas),
        memory_map=where,
        sysroots=tuple(Path(_absolute(folder)) for folder in options.sysroots),
        remember=False,
        scan=False,
    )
    return WorkerDump(dump, absolute, tuple(identity_of(located(path)) for path in files))


def _absolute(path: Path) -> str:
    return path.text if isinstance(path, Url) else str(path.absolute())


@dataclass(frozen=True, slots=True)
class DoOnCluster:
    """The function that a worker calls; it is sent with each job.

    Attributes:
        dump: the dump.
        beacon: a file in the folder of the cores, which the worker must see; each run has its own.
        options: how to write cores.
        folder: the folder that a job's target is relative to.
    """

    dump: WorkerDump
    beacon: str
    options: CoreOptions = field(compare=False)
    folder: str = field(compare=False)

    def __call__(self, stage: Stage, job: Job) -> JobResult:
        """Do one stage of a job; the result holds any error, as our exceptions may not survive pickling."""
        with _ONE_AT_A_TIME:
            try:
                if not Path(self.beacon).exists():
                    folder = Path(self.beacon).parent
                    raise WorkersError(f"its {folder} is not the folder for the cores, expected one that is shared")
                converter = _converter(self)
            except Vmcore2coreError as error:
                return JobResult(job, error=f"{job.who}: the worker on {os.uname().nodename}: {error}")
            return converter.stages()[stage](job)


@lru_cache(maxsize=1)
def _converter(run: DoOnCluster) -> Converter:
    """Return what does a run's jobs; it has what processes share, such as who holds the other ends of their pipes."""
    return Converter(_opened(run.dump), run.options, folder=Path(run.folder), again=True)


@lru_cache(maxsize=1)
def _opened(dump: WorkerDump) -> Session:
    """Return the dump's session; a worker reuses it for many jobs."""
    dump.check()
    return Session([located(path) for path in dump.paths], dump.options)


@contextlib.contextmanager
def cluster_workers(executor: str, dump: WorkerDump) -> Iterator[tuple[Cluster, WorkerDump]]:
    """Yield the workers that ``--executor`` names, and how they open the dump.

    Raises:
        UsageError: the executor is unknown, or its package is not installed.
        WorkersError: they do not answer.
    """
    with dask_cluster(scheduler_address(executor), release) as cluster:
        yield cluster, dump


def release() -> None:
    """Close the dump: a worker calls this when a run ends."""
    with _ONE_AT_A_TIME:
        _converter.cache_clear()
        _opened.cache_clear()
        gc.collect()


@contextlib.contextmanager
def beacon(folder: Path) -> Iterator[str]:
    """Yield a file that exists in ``folder`` during the block; ``--resume`` removes a leftover one."""
    name = part_name(".workers.")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with opened_folder(folder) as directory:
        try:
            os.close(os.open(name, flags, 0o600, dir_fd=directory))
        except OSError as error:
            raise WorkersError(f"{folder} cannot be written: {error.strerror}") from error
        try:
            yield str(folder.absolute() / name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)

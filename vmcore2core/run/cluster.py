"""Conversions by workers elsewhere, which share nothing with the process that began the run but files.

What goes to them for each job is below two kilobytes: which dump, how cores are to be written, which process. A worker
opens the dump for its first job, and checks that it is the same one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vmcore2core import __version__
from vmcore2core.containers.piped import STDIN
from vmcore2core.containers.remote import Url, located
from vmcore2core.errors import UsageError, Vmcore2coreError, WorkersError
from vmcore2core.folders import opened_folder
from vmcore2core.run.converter import Conversion, Manner
from vmcore2core.run.dask_cluster import dask_cluster, scheduler_address
from vmcore2core.run.jobs import Job, Outcome
from vmcore2core.run.pool import Cluster
from vmcore2core.run.samefile import FileIdentity, identity_of
from vmcore2core.session import Session

_NUMBERED = re.compile(r"(\d{1,2}=)?(.+)", re.DOTALL)
_ONE_AT_A_TIME = threading.Lock()
"""A worker may have threads; a session is for one."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How ``Session`` opens a dump, from any working directory; see its arguments.

    Attributes:
        identities: of all files that are named.
        version: of vmcore2core.
    """

    paths: tuple[str, ...]
    vmlinux: str | None
    vmcoreinfo: str | None
    swap: tuple[str, ...]
    memory_map: str | None
    sysroots: tuple[str, ...]
    identities: tuple[FileIdentity, ...]
    cache: bool = True
    any_size: bool = False
    zero_excluded: bool = False
    version: str = __version__

    def check(self) -> None:
        """Check that this machine has the same files and the same program.

        Raises:
            WorkersError: it has not.
            DumpError: a file cannot be read.
        """
        if self.version != __version__:
            raise WorkersError(f"it has vmcore2core {__version__}, expected {self.version}")
        for identity in self.identities:
            difference = identity.difference()
            if difference is not None:
                raise WorkersError(f"{difference}: it sees another file there")


def opening(
    paths: Sequence[Path],
    vmlinux: Path | None = None,
    vmcoreinfo: Path | None = None,
    swap: Sequence[str] = (),
    memory_map: str | None = None,
    sysroots: Sequence[Path] = (),
) -> Opening:
    """Return how workers open what ``Session`` opens with these arguments.

    Raises:
        UsageError: the dump comes through a pipe.
        DumpError: a file cannot be read.
    """
    for path in paths:
        if path == STDIN or path.is_fifo():
            raise UsageError(f"{path} is a pipe, which workers elsewhere cannot open: keep it in a file")
    dump = [_absolute(path) for path in paths]
    symbols = [None if path is None else _absolute(path) for path in (vmlinux, vmcoreinfo)]
    areas = [(match[1] or "", _absolute(Path(match[2]))) for text in swap if (match := _NUMBERED.fullmatch(text))]
    in_file = memory_map is not None and ":" not in memory_map and Path(memory_map).is_file()
    where = _absolute(Path(memory_map)) if in_file and memory_map is not None else memory_map
    files = [*dump, *(path for path in symbols if path), *(path for _, path in areas)]
    files += [where] if in_file and where is not None else []
    return Opening(
        paths=tuple(dump),
        vmlinux=symbols[0],
        vmcoreinfo=symbols[1],
        swap=tuple(number + path for number, path in areas),
        memory_map=where,
        sysroots=tuple(map(_absolute, sysroots)),
        identities=tuple(identity_of(located(path)) for path in files),
    )


def _absolute(path: Path) -> str:
    return path.text if isinstance(path, Url) else str(path.absolute())


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What a worker does; it is sent with each job.

    Attributes:
        opening: the dump.
        manner: how cores are written.
        folder: what a job's target is relative to.
        beacon: a file in the folder of the cores, which the worker must see.
    """

    opening: Opening
    manner: Manner
    folder: str
    beacon: str

    def __call__(self, job: Job) -> Outcome:
        """Convert one process; an error is in the outcome, as exceptions of ours need not survive pickling."""
        with _ONE_AT_A_TIME:
            try:
                if not Path(self.beacon).exists():
                    folder = Path(self.beacon).parent
                    raise WorkersError(f"its {folder} is not the folder for the cores, expected one that is shared")
                session = _opened(self.opening)
            except Vmcore2coreError as error:
                return Outcome(job, error=f"{job.pid} ({job.comm}): the worker on {os.uname().nodename}: {error}")
            return Conversion(session, self.manner, folder=Path(self.folder)).convert(job)


@lru_cache(maxsize=1)
def _opened(how: Opening) -> Session:
    """Return the dump; a worker has many jobs of one."""
    how.check()
    vmlinux, vmcoreinfo = (None if path is None else Path(path) for path in (how.vmlinux, how.vmcoreinfo))
    paths = [located(path) for path in how.paths]
    return Session(
        paths,
        vmlinux,
        vmcoreinfo,
        how.swap,
        how.memory_map,
        sysroots=[Path(folder) for folder in how.sysroots],
        cache=how.cache,
        any_size=how.any_size,
        zero_excluded=how.zero_excluded,
    )


@contextlib.contextmanager
def workers_elsewhere(executor: str, how: Opening) -> Iterator[tuple[Cluster, Opening]]:
    """Give the workers that ``--executor`` names, and how they open the dump.

    Raises:
        UsageError: it names none that are known, or their package is not installed.
        WorkersError: they do not answer.
    """
    with dask_cluster(scheduler_address(executor), release) as cluster:
        yield cluster, how


def release() -> None:
    """Let the dump go: what a worker does when a run ends."""
    with _ONE_AT_A_TIME:
        _opened.cache_clear()
        gc.collect()


@contextlib.contextmanager
def beacon(folder: Path) -> Iterator[str]:
    """Give a file that is in ``folder`` while the block lasts; ``--resume`` removes one that stayed."""
    name = f".workers.{secrets.token_hex(8)}.part"
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

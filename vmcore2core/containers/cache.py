"""Copies of dumps that cannot be read in place, kept below the user's cache directory.

A file there is complete: it gets its name after its last byte is written. It is trusted only if it is a regular file
that the user or root owns and nobody else can write to, and if the same holds for its folders (``folders``). Otherwise
somebody else could put another machine's memory there. If a folder is not the user's alone, or with ``--no-cache``, the
copy is a file without a name, which disappears at the end of the run.

Each folder keeps ``KEPT_MAX`` bytes; files that were not used for the longest time are removed first.

References: XDG Base Directory Specification 0.8, $XDG_CACHE_HOME.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import DumpError, OutputError
from vmcore2core.folders import bytes_on_disk, open_own_file, opened_folder, part_name
from vmcore2core.overrides import override

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all, or 0 if unknown)."""

ProgressBar = Callable[[str], AbstractContextManager[Progress | None]]
"""Called with what is being done; returns a bar for as long as it lasts, or None if there is nowhere to draw one."""

RESERVE = 64 << 20
"""Bytes that are left free on the cache's file system."""

KEPT_MAX = 64 << 30
"""Bytes on disk that each folder of the cache keeps, in addition to the latest file."""

HOLE = 1 << 16
"""This many zeros, or more, become a hole."""


@dataclass(frozen=True)
class Keeping:
    """How to keep a copy of a dump that cannot be read in place.

    Attributes:
        progress: draws a bar meanwhile.
        cache: keep it in the cache, for later runs.
        any_size: unpack it to any size.
        refusal: given the first unpacked bytes, returns why they are no dump, as the rest of a sentence, or None. If
            it is None itself, the bytes may be anything.
    """

    progress: ProgressBar | None = None
    cache: bool = True
    any_size: bool = False
    refusal: Callable[[bytes], str | None] | None = None


class CachedFile(DumpFile):
    """A file of the cache; errors name the file that it was made from.

    Args:
        path: the file that it was made from.
        handle: its descriptor.
        strong_identity: that of the file that it was made from.
    """

    def __init__(self, path: Path, handle: int, strong_identity: str | None = None) -> None:
        super().__init__(path, handle)
        self._strong_identity = strong_identity

    @override
    def strong_identity(self) -> str | None:
        return self._strong_identity

    @override
    def changed(self) -> str | None:
        """Not checked: it is the user's own file, and its time is that of its last use."""
        return None


def cache_folder(path: Path, kind: str) -> Path:
    """Return the folder for such copies.

    Args:
        path: the dump, for the message.
        kind: what has to be done with it: "unpacked".

    Raises:
        DumpError: the user has no cache directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():  # the specification: a relative one is to be ignored
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            base = ""
        if not Path(base).is_absolute():
            raise DumpError(
                f"{path} has to be {kind}, and there is no cache directory to do so: set XDG_CACHE_HOME, or give a "
                f"file that can be read in place"
            )
    return Path(base) / "vmcore2core" / kind


def find(folder: Path, name: str) -> int | None:
    """Return a descriptor for reading a file of the cache; None if there is none that can be trusted.

    A file that cannot be trusted is reported.
    """
    try:
        with opened_folder(folder) as directory:
            handle = open_own_file(directory, name, f"{folder}/{name}")
            with contextlib.suppress(OSError):
                os.utime(handle)
            return handle
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s/%s is not used: %s", folder, name, error.strerror)
    except OutputError as error:
        log.warning("%s", error)
    return None


def progress_bar(progress: ProgressBar | None, label: str) -> AbstractContextManager[Progress | None]:
    """Return a bar, if there is somewhere to draw one."""
    return contextlib.nullcontext() if progress is None else progress(label)


@dataclass(frozen=True)
class Store:
    """One file on its way to the cache.

    Attributes:
        folder: where it goes.
        name: part of its name until it is whole.
        why: what it is and why it needs space, as the beginning of a sentence.
        remedy: what the user can do if there is no space.
        keeping: how it is kept.
        label: what a bar says.
        done: given the bytes written, returns the first argument of ``Progress``.
    """

    folder: Path
    name: str
    why: str
    remedy: str
    keeping: Keeping
    label: str
    done: Callable[[int], tuple[int, int]]

    def keep(self, pieces: Iterable[bytes], size: int, name: Callable[[], str]) -> tuple[int, Path | None]:
        """Write a file; return a descriptor for reading it, and its path in the cache or None if it has no name.

        Args:
            pieces: its bytes, in order.
            size: the least number of bytes.
            name: returns its name, called after the last byte is written.

        Raises:
            DumpError: it cannot be written.
        """
        try:
            with contextlib.ExitStack() as stack:
                directory = self._directory(stack) if self.keeping.cache else None
                if directory is None:
                    return self._nameless(pieces, size), None
                return self._named(directory, pieces, size, name)
        except OSError as error:
            raise DumpError(f"{self.why}, and {self.folder}: {error.strerror or error}") from error

    def _directory(self, stack: contextlib.ExitStack) -> int | None:
        """Return a descriptor of the folder; if others could change files there, report that and return None."""
        try:
            return stack.enter_context(opened_folder(self.folder, make=True))
        except OutputError as error:
            log.warning("%s; so nothing is kept for later runs", error)
            return None

    def _named(
        self, directory: int, pieces: Iterable[bytes], size: int, name: Callable[[], str]
    ) -> tuple[int, Path | None]:
        self._check_room(directory, size)
        temporary = part_name(f".{self.name}.")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(temporary, flags, 0o600, dir_fd=directory)
            try:
                _lock(handle)
                self._write(pieces, handle)
                os.replace(temporary, name(), src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                os.close(handle)
                raise
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        prune(directory, name())
        return handle, self.folder / name()

    def _nameless(self, pieces: Iterable[bytes], size: int) -> int:
        import tempfile

        # /tmp is often memory.
        with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", "/var/tmp")) as file:  # noqa: S108 - it has no name
            self._check_room(file.fileno(), size)
            self._write(pieces, file.fileno())
            return os.dup(file.fileno())

    def _check_room(self, where: int, size: int) -> None:
        free = free_bytes(where)
        if free < size + RESERVE:
            raise DumpError(
                f"{self.why}, and {self.folder} has {free} bytes free: {self.remedy}, or set XDG_CACHE_HOME"
            )

    def _write(self, pieces: Iterable[bytes], handle: int) -> None:
        """Write the pieces, with holes for zeros; stop before the disk is full."""
        since_check = at = 0
        with progress_bar(self.keeping.progress, self.label) as update:
            for piece in pieces:
                for part in _parts(piece):
                    if len(part) < HOLE or part.strip(b"\0"):
                        _write_all(handle, part, at)
                        since_check += len(part)
                    at += len(part)
                if since_check >= RESERVE // 2:
                    since_check = 0
                    self._check_room(handle, 0)
                if update is not None:
                    update(*self.done(at))
        os.ftruncate(handle, at)
        # If a file had its name before its bytes are on the disk, it would pass as complete after a power cut.
        os.fsync(handle)


def _parts(piece: bytes) -> Iterator[bytes]:
    for at in range(0, len(piece), HOLE):
        yield piece[at : at + HOLE]


def _write_all(handle: int, part: bytes, at: int) -> None:
    left = memoryview(part)
    while left:
        count = os.pwrite(handle, left, at)
        left, at = left[count:], at + count


def prune(directory: int, newest: str, room: int | None = None) -> None:
    """Remove the files that killed runs left, then old files until the folder is below its limit.

    Args:
        directory: a descriptor.
        newest: a file that must stay.
        room: bytes on disk for all other files; None for ``KEPT_MAX``.
    """
    kept: list[tuple[int, int, str]] = []
    with contextlib.suppress(OSError):
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            with os.scandir(readable) as found:
                entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in found]
        finally:
            os.close(readable)
        for name, status in entries:
            if name.startswith(".") and _is_left(directory, name):
                os.unlink(name, dir_fd=directory)
            elif stat.S_ISREG(status.st_mode) and not name.startswith(".") and name != newest:
                kept.append((status.st_mtime_ns, bytes_on_disk(status), name))
        room = KEPT_MAX if room is None else room
        for _, size, name in sorted(kept, reverse=True):
            room -= size
            if room < 0:
                log.info("%s is removed from the cache: newer files need its room", name)
                os.unlink(name, dir_fd=directory)


def _is_left(directory: int, name: str) -> bool:
    """Tell whether no process writes to a file any more."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(handle).st_mode) and _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def free_bytes(where: int) -> int:
    """Return how many bytes the file system of a descriptor has left for this user."""
    status = os.fstatvfs(where)
    return status.f_bavail * status.f_frsize

"""Writes a file atomically: it gets its name only when it is complete.

The file is written without a name, synced, and then linked to its name. If the run ends before that, even by SIGKILL
or loss of power, the directory is unchanged. To replace a file, the new one needs a temporary name for a moment,
because rename(2) can replace and linkat(2) cannot. A run that ends in that moment leaves both files complete, the old
one under its name.

The temporary name begins with "." and ends in ".part". A file has it from the beginning, and SIGKILL leaves it behind,
on a file system without O_TMPFILE (NFS, vfat), or without /proc, which is needed to link a nameless file. The writer
keeps its file locked.

References: open(2), O_TMPFILE, since Linux 3.11.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmcore2core.corefile.sink import pwrite_all
from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.folders import opened_folder, part_name

COPY_SIZE = 1 << 24
_NAMELESS = Path("/proc/self/fd")
_NEW = os.O_RDWR | os.O_CLOEXEC
_PART = re.compile(r"\.(?:.*\.)?[0-9a-f]{16}\.part")


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror or error}")


def _exists(path: Path) -> OutputExists:
    return OutputExists(f"{path} exists already; --force replaces it")


def check_output(path: Path, *, force: bool, inputs: Sequence[Path]) -> None:
    """Refuse a path that must not be replaced, before any work is done.

    Raises:
        OutputExists: something is there, and ``force`` is not set.
        OutputError: it is one of the inputs, or no regular file.
    """
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failed(path, error) from error
    for source in inputs:
        with contextlib.suppress(OSError):
            if source.exists() and path.exists() and source.samefile(path):
                what = "the dump itself" if source == inputs[0] else "what the cores are made of"
                raise OutputError(f"{path} is {what}, expected another file")
    if stat.S_ISDIR(there.st_mode):
        raise OutputError(f"{path} is a directory, expected a file name")
    if not (stat.S_ISREG(there.st_mode) or stat.S_ISLNK(there.st_mode)):
        raise OutputError(
            f"{path} is not a regular file: a core appears whole or not at all, which no pipe or device can do"
        )
    if stat.S_ISLNK(there.st_mode) and path.exists() and not path.is_file():
        raise OutputError(f"{path} leads to something that is not a regular file")
    if not force:
        raise _exists(path)


@contextmanager
def atomic_file(path: Path, *, force: bool = False, inputs: Sequence[Path] = ()) -> Iterator[int]:
    """Give a file descriptor whose file gets its name when the block ends well, and is removed when it does not.

    Args:
        path: the name it gets; mode 0600: cores hold secrets.
        force: replace an existing file.
        inputs: files that must never be replaced.

    Raises:
        OutputExists, OutputError: as ``check_output`` raises them; or a system call fails.
    """
    check_output(path, force=force, inputs=inputs)
    # A name has at most 255 bytes (NAME_MAX).
    start = os.fsdecode(os.fsencode(path.name)[:200])
    try:
        with opened_folder(path.parent) as directory:
            with new_file(directory, path.name, f".{start}.", force=force) as fd:
                yield fd
                os.fsync(fd)
            _sync_directory(directory)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise _failed(path, error) from error


@contextmanager
def new_file(
    directory: int, name: str | bytes, start: str, *, force: bool, enough: Callable[[int], bool] = lambda _fd: False
) -> Iterator[int]:
    """Give a file descriptor as ``atomic_file`` does, in an open directory; nothing is synced.

    Args:
        directory: a descriptor of the directory; O_PATH is enough.
        name: the name in it that the file gets.
        start: prefix of the temporary name, if one is needed; it begins with ".".
        force: replace an existing file.
        enough: given the new file, tells whether the existing file can stay in its place.

    Raises:
        FileExistsError: something has the name already.
        OSError: a system call fails.
    """
    temporary = part_name(start)
    try:
        # Opened inside: an interrupt may come as soon as the file exists.
        fd, named = _open_new(directory, temporary)
        try:
            lock(fd)
            yield fd
            try:
                if named or not _name_at_once(fd, directory, temporary, name, force=force):
                    _give_name(directory, temporary, name, force=force)
            except FileExistsError:
                if not enough(fd):
                    raise
                _remove(directory, temporary)
        finally:
            os.close(fd)
    except BaseException:
        _remove(directory, temporary)  # the file may have its temporary name, whatever was raised
        raise


def remove_partial(directory: int) -> None:
    """Remove the unfinished files that killed runs left in a directory, except files that are still being written.

    Args:
        directory: a descriptor of the directory; O_PATH is enough.
    """
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with os.scandir(readable) as found:
            names = [entry.name for entry in found if _PART.fullmatch(entry.name)]
    finally:
        os.close(readable)
    for name in names:
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode) and lock(fd):
                    os.unlink(name, dir_fd=directory)
            finally:
                os.close(fd)


def lock(fd: int) -> bool:
    """Lock a file until it is closed or the process ends; return False if it is locked already or cannot be locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _open_new(directory: int, temporary: str) -> tuple[int, bool]:
    """Return a new file, and whether it has its temporary name already."""
    if _NAMELESS.is_dir():
        # EOPNOTSUPP or EISDIR; any other failure (no permission, no room) also stops the second way.
        with contextlib.suppress(OSError):
            return os.open(".", _NEW | os.O_TMPFILE, 0o600, dir_fd=directory), False
    return _open_named(directory, temporary), True


def _open_named(directory: int, temporary: str) -> int:
    return os.open(temporary, _NEW | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)


def _name_at_once(fd: int, directory: int, temporary: str, name: str | bytes, *, force: bool) -> bool:
    """Link a nameless file to its name; return False if it got its temporary name instead, to replace another file."""
    try:
        _link_nameless(fd, directory, name)
    except FileExistsError:
        if not force:
            raise
    except OSError:
        pass  # as below
    else:
        return True
    try:
        _link_nameless(fd, directory, temporary)
    except OSError:
        _copy(fd, directory, temporary)  # no hard links here, or /proc is not for us (Landlock, AppArmor)
    return False


def _link_nameless(fd: int, directory: int, name: str | bytes) -> None:
    # Python passes AT_SYMLINK_FOLLOW, which is needed here, only with a directory's descriptor.
    os.link(_NAMELESS / f"{fd}", name, dst_dir_fd=directory, follow_symlinks=True)


def _copy(source: int, directory: int, temporary: str) -> None:
    """Copy a file to a new one, with its holes."""
    fd = _open_named(directory, temporary)
    try:
        lock(fd)
        at, size = 0, os.fstat(source).st_size
        os.ftruncate(fd, size)
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # the rest is a hole
                    break
                raise
            piece = os.pread(source, min(COPY_SIZE, os.lseek(source, at, os.SEEK_HOLE) - at), at)
            at = pwrite_all(fd, memoryview(piece), at)
        os.fsync(fd)
    finally:
        os.close(fd)


def _give_name(directory: int, temporary: str, name: str | bytes, *, force: bool) -> None:
    if force:
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        return
    try:  # unlike rename, link never replaces a file that appeared meanwhile
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        _rename_new(directory, temporary, name)  # a file system without hard links
    _remove(directory, temporary)


def _rename_new(directory: int, temporary: str, name: str | bytes) -> None:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _remove(directory: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)


def _sync_directory(directory: int) -> None:
    # Some file systems cannot sync a directory; the file itself is on disk already.
    with contextlib.suppress(OSError):
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

"""A file that appears whole or not at all.

It is written without any name, synced, and then given its own; whatever ends the run before that, SIGKILL and a loss of
power too, leaves nothing behind but what was there. Replacing a file takes another name for a moment, as rename(2) does
it and linkat(2) does not: ended just then, a run leaves both files whole, the old one under its name.

That other name begins with "." and ends in ".part". Where a file cannot be without any, it has that one from the
beginning, and SIGKILL leaves it: on a file system without O_TMPFILE (NFS, vfat), or without /proc, by which a file gets
its first name. A file that somebody is still writing is locked.

References: open(2), O_TMPFILE, since Linux 3.11.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmcore2core.corefile.sink import pwrite_all
from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.folders import opened_folder

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
        force: replace what is there.
        inputs: files that must never be replaced.

    Raises:
        OutputExists, OutputError: see ``check_output``; or the system refuses.
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
        directory: a descriptor, for which O_PATH does.
        name: the name in it that the file gets.
        start: how its other name begins, should it need one: with a ".".
        force: replace what is there.
        enough: tells, given the new file, whether what has the name already will do.

    Raises:
        FileExistsError: something has the name already.
        OSError: the system refuses.
    """
    temporary = f"{start}{secrets.token_hex(8)}.part"
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
        _remove(directory, temporary)  # it may have it, whatever it was that came in between
        raise


def remove_partial(directory: int) -> None:
    """Remove what killed runs had begun in a directory, but for what is still being written.

    Args:
        directory: a descriptor, for which O_PATH does.
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
    """Lock a file until it is closed, whoever ends the process; False if it is locked, or cannot be."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _open_new(directory: int, temporary: str) -> tuple[int, bool]:
    """Return a new file, and whether it has its temporary name already."""
    if _NAMELESS.is_dir():
        # EOPNOTSUPP or EISDIR; whatever else refuses (no permission, no room), it refuses the other, too.
        with contextlib.suppress(OSError):
            return os.open(".", _NEW | os.O_TMPFILE, 0o600, dir_fd=directory), False
    return _open_named(directory, temporary), True


def _open_named(directory: int, temporary: str) -> int:
    return os.open(temporary, _NEW | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)


def _name_at_once(fd: int, directory: int, temporary: str, name: str | bytes, *, force: bool) -> bool:
    """Give a file without a name its own; False where it has its temporary one now, to replace something with it."""
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
                if error.errno == errno.ENXIO:  # there is but a hole
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
    try:  # unlike rename, it never replaces what came in between
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
    # Some file systems cannot sync a directory; the file itself is safe by then.
    with contextlib.suppress(OSError):
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

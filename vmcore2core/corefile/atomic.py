"""A file that appears whole or not at all.

It is written under another name in the same directory, synced, and then given its name; whatever ends the run before
that leaves nothing behind but what was there. SIGKILL leaves the other name, which begins with "." and ends in ".part";
a file that somebody is still writing is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmcore2core.errors import OutputError, OutputExists

_PART = re.compile(r"\.(?:.*\.)?[0-9a-f]{16}\.part")


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror or error}")


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
        raise OutputExists(f"{path} exists already; --force replaces it")


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
    temporary = path.with_name(f".{start}.{secrets.token_hex(8)}.part")
    try:
        # Opened inside: an interrupt may come as soon as the file exists.
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            lock(fd)
            yield fd
            os.fsync(fd)
            _give_name(temporary, path, force=force)
        finally:
            os.close(fd)
    except OSError as error:
        _remove(temporary)
        raise _failed(path, error) from error
    except BaseException:
        _remove(temporary)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what killed runs had begun in a folder, but for what is still being written."""
    for path in folder.iterdir():
        if not _PART.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode) and lock(fd):
                    path.unlink()
            finally:
                os.close(fd)


def lock(fd: int) -> bool:
    """Lock a file until it is closed, whoever ends the process; False if it is locked, or cannot be."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _give_name(temporary: Path, path: Path, *, force: bool) -> None:
    if force:
        temporary.replace(path)
    else:
        try:
            os.link(temporary, path, follow_symlinks=False)  # unlike rename, never replaces what came in between
        except FileExistsError:
            raise OutputExists(f"{path} exists already; --force replaces it") from None
        except OSError:
            _rename_new(temporary, path)  # a file system without hard links
        _remove(temporary)
    _sync_directory(path.parent)


def _rename_new(temporary: Path, path: Path) -> None:
    if os.path.lexists(path):
        raise OutputExists(f"{path} exists already; --force replaces it")
    temporary.rename(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_directory(path: Path) -> None:
    # Some file systems cannot sync a directory; the file itself is safe by then.
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

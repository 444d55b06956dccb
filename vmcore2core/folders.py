"""Open folders for output and cached files so that no other user can redirect the writes.

root runs this program on dumps, often with output to /tmp or /var/crash, where other users may have planted links. So
it opens each directory of a path by its own descriptor, without following links, and checks it:

- the user, root, or the user who called sudo owns it;
- nobody else can write to it, or it has the sticky bit, as /tmp has: then nobody else can rename its files;
- a link on the way has one of the same owners, and is followed by the same rules.

Later writes go through the descriptor, so later changes of the path do not matter.

References: open(2), O_NOFOLLOW; proc_sys_fs(5), protected_symlinks; OpenSSH's auth_secure_path(), and Debian's
secure_permissions() for groups of one user; git's safe.directory for SUDO_UID.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from vmcore2core.errors import OutputError
from vmcore2core.printable import text

LINKS_MAX = 40
"""Most links on the way, as in the kernel (MAXSYMLINKS)."""
MODE = 0o700
"""Mode of a new directory: a process's memory may be secret."""
STAT_BLOCK = 512
"""stat(2): bytes per unit of st_blocks."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def opened_folder(path: Path, *, make: bool = False) -> Iterator[int]:
    """Yield an O_PATH descriptor of a directory.

    Args:
        path: links in it are followed if they are trusted.
        make: make missing directories.

    Raises:
        OutputError: another user could redirect it; the message says at which directory, and how.
        OSError: the system refuses.
    """
    walk = _Walk(path)
    try:
        walk.run(make=make)
        yield walk.at
    finally:
        os.close(walk.at)


@contextmanager
def opened_below(directory: int, name: str | bytes, shown: str, *, make: bool = False) -> Iterator[int]:
    """Yield a descriptor of a directory inside an open one; no link is followed, not even a trusted one.

    Args:
        directory: descriptor of the outer directory.
        name: name of the inner one.
        shown: its path, for messages.
        make: make it if it is missing.

    Raises:
        OutputError: it is a link, or another user owns it.
        OSError: the system refuses.
    """
    try:
        at = _enter(directory, name, make=make)
    except NotADirectoryError:
        raise OutputError(f"{shown} is not used: it is a link or a file, expected a directory") from None
    try:
        _check(at, shown)
        yield at
    finally:
        os.close(at)


def open_own_file(directory: int, name: str | bytes, shown: str, access: int = os.O_RDONLY) -> int:
    """Open a regular file in an open directory; return its descriptor.

    It neither follows a link nor waits for the other end of a FIFO.

    Args:
        directory: descriptor of the directory.
        name: of the file.
        shown: its path, for messages.
        access: ``os.O_RDONLY`` or ``os.O_RDWR``.

    Raises:
        OutputError: it is not a regular file, or another user owns it or can write to it.
        OSError: the system refuses, or the file does not exist.
    """
    try:
        fd = os.open(name, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OutputError(f"{shown} is not used: it is a link, expected a regular file") from None
        raise
    try:
        _check_file(os.fstat(fd), shown)
    except BaseException:
        os.close(fd)
        raise
    return fd


def part_name(prefix: str = ".") -> str:
    """Return a new temporary name; by its form, what a killed run left is found.

    Args:
        prefix: begins with "." and ends in ".".
    """
    return f"{prefix}{os.urandom(8).hex()}.part"


def bytes_on_disk(status: os.stat_result) -> int:
    """Return the bytes that a file takes on disk: stat(2) counts them in units of 512."""
    return status.st_blocks * STAT_BLOCK


def _check_file(status: os.stat_result, shown: str) -> None:
    mode = stat.filemode(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{shown} is not used: it is {mode}, expected a regular file")
    if status.st_uid not in trusted_owners():
        raise OutputError(f"{shown} is not used: it belongs to {_user(status.st_uid)}, expected a file of your own")
    if status.st_mode & _OTHERS_WRITE and not _only_ours(status):
        raise OutputError(f"{shown} is not used: others can write to it ({mode})")


def trusted_owners(*, sheltered: bool = False) -> frozenset[int]:
    """Return the user IDs whose directories and links are trusted: root, the user, and the user who called sudo.

    Args:
        sheltered: whether only the owner of its directory can make files there. There, in a user namespace, a file
            of the overflow user is taken to be the outer root's, as "/" of a container may be.
    """
    owners = {0, os.geteuid(), *(_owners_outside() if sheltered else ())}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal():
        owners.add(int(caller))
    return frozenset(owners)


@lru_cache(maxsize=1)
def _owners_outside() -> frozenset[int]:
    """Return the overflow user ID, if no user of this namespace can have it; most often the result is empty."""
    try:
        spans = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return frozenset()
    inside = any(int(first) <= overflow < int(first) + int(count) for first, _, count in spans)
    return frozenset() if inside else frozenset({overflow})


class _Walk:
    """The walk from the working directory, or "/", to a directory.

    Attributes:
        at: descriptor of the directory reached so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = deque(os.fsencode(path).split(b"/"))
        self._shown: list[bytes] = []
        self._links = 0
        self._sheltered = False
        self.at = self._begin(absolute=path.is_absolute())

    def _begin(self, *, absolute: bool) -> int:
        self._shown = [b""] if absolute else []
        self._sheltered = absolute
        return os.open("/" if absolute else ".", _DIRECTORY)

    def run(self, *, make: bool) -> None:
        """Walk to the end of the path."""
        self._look()
        while self._names:
            name = self._names.popleft()
            if name in (b"", b"."):
                continue
            if not self._follow(name):
                self._go(name, make=make)

    def _go(self, name: bytes, *, make: bool) -> None:
        self._shown.append(name)
        below = _enter(self.at, name, make=make)
        self.at, left = below, self.at
        os.close(left)
        self._look()

    def _look(self) -> None:
        _check(self.at, self._where(), sheltered=self._sheltered)
        self._sheltered = not os.fstat(self.at).st_mode & _OTHERS_WRITE

    def _follow(self, name: bytes) -> bool:
        """If a name is a link, replace it by its target; return whether it was one."""
        try:
            status = os.stat(name, dir_fd=self.at, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISLNK(status.st_mode):
            return False
        if status.st_uid not in trusted_owners(sheltered=self._sheltered):
            where = text(b"/".join([*self._shown, name]))
            raise OutputError(f"{self._path} is not used: {where} is a link that {_user(status.st_uid)} made")
        self._links += 1
        if self._links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(name, dir_fd=self.at)
        if target.startswith(b"/"):
            top = self._begin(absolute=True)
            self.at, left = top, self.at
            os.close(left)
            self._look()
        self._names.extendleft(reversed(target.split(b"/")))
        return True

    def _where(self) -> str:
        return text(b"/".join(self._shown) or (b"/" if self._shown else b"."))


def _enter(directory: int, name: str | bytes, *, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, MODE, dir_fd=directory)
    return os.open(name, _DIRECTORY, dir_fd=directory)


def _check(directory: int, shown: str, *, sheltered: bool = False) -> None:
    """Check that no other user can replace the entries of a directory.

    Raises:
        OutputError: another user can.
    """
    status = os.fstat(directory)
    if status.st_uid not in trusted_owners(sheltered=sheltered) and not _is_ours_there(directory, status.st_uid):
        raise OutputError(
            f"{shown} is not used: it belongs to {_user(status.st_uid)}, who could change what is written there; "
            "expected a directory of your own or of root"
        )
    sticky = status.st_mode & stat.S_ISVTX
    if status.st_mode & _OTHERS_WRITE and not sticky and not _only_ours(status):
        raise OutputError(
            f"{shown} is not used: others can write to it ({stat.filemode(status.st_mode)}), and it has no sticky bit; "
            "expected a directory that only its owner can write to"
        )


def _only_ours(status: os.stat_result) -> bool:
    """Tell whether its group has its owner as the only member: a group of one user, with the same name."""
    if status.st_mode & stat.S_IWOTH:
        return False
    try:
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    for owner in trusted_owners():
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(owner).pw_name
            if group.gr_name == name and set(group.gr_mem) <= {name}:
                return True
    return False


def _is_ours_there(directory: int, owner: int) -> bool:
    """Tell whether a file that this user makes in a directory has the directory's owner.

    On NFS root may become nobody; vfat gives all files one owner. The check makes a file and removes it.
    """
    name = part_name()
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.fstat(fd).st_uid == owner
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory)


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"

"""Whether a file system has room for a core, found before the core's pages are read.

Pages of zeros take no space, so a core may need less than its pages have. It is refused only if it is sure not to fit:
by its size, or by the pages that are known to hold something. On file systems that compress (btrfs, ZFS) or that
belong to another machine (NFS), nothing is sure.

References: statvfs(3); proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from vmcore2core.addresses import U64Array
from vmcore2core.containers.base import DumpContainer
from vmcore2core.corefile.plan import segments_of
from vmcore2core.errors import OutputError
from vmcore2core.memory.user import UserMemory
from vmcore2core.printable import amount
from vmcore2core.process.snapshot import Captured

PLAIN = frozenset({b"ext2", b"ext3", b"ext4", b"xfs", b"jfs", b"tmpfs", b"vfat", b"exfat"})
"""File systems on which a page that is not zeros takes its size."""


def free_bytes(directory: Path) -> int | None:
    """Return the bytes that this user can still write to a directory's file system; None if it does not tell."""
    try:
        found = os.statvfs(existing(directory))
    except OSError:
        return None
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def existing(directory: Path) -> Path:
    """Return the directory, or if it does not exist, the one above it in which it would be made."""
    directory = directory.absolute()
    return next((place for place in (directory, *directory.parents) if place.is_dir()), directory)


def is_plain(directory: Path) -> bool:
    """Tell whether a file on this file system takes the space of its pages, so that too little room is certain."""
    try:
        device = existing(directory).stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    lines = (line.split() for line in mounts.splitlines())
    return any(fields[fields.index(b"-") + 1] in PLAIN for fields in lines if fields[2] == number)


def check_size(directory: Path, size: int) -> None:
    """Check that a file system, and the user's limit, allow a file of a size, holes included.

    Raises:
        OutputError: they do not.
    """
    try:
        handle = os.open(existing(directory), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # then writing will find out
    try:
        os.ftruncate(handle, size)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise OutputError(
                f"{directory} cannot have a core of {amount(size)} with holes: its file system, or the limit of file "
                "sizes (ulimit -f), allows no file of that size"
            ) from error
    finally:
        with suppress(OSError):  # Linux closes it whatever close(2) says
            os.close(handle)


def check_room(captured: Captured, container: DumpContainer, directory: Path) -> None:
    """Check that a process's core has room, if that can be known before it is written.

    Args:
        captured: the process; redaction has left out what it leaves out.
        container: the dump.
        directory: where the core goes.

    Raises:
        OutputError: the core has no room.
    """
    free = free_bytes(directory)
    if free is None or captured.snapshot.blanked or most_on_disk(captured) <= free or not is_plain(directory):
        return
    least = least_on_disk(captured, container, free)
    if least > free:
        raise OutputError(
            f"{directory} has room for {amount(free)}, expected {amount(least)} at least for the core; "
            "nothing is written"
        )


def _ranges(captured: Captured) -> list[tuple[int, int]]:
    """Return the user addresses whose pages a core has."""
    return [(one.start, one.start + one.filesz) for one in segments_of(captured.snapshot) if one.filesz]


def most_on_disk(captured: Captured) -> int:
    """Return the bytes of a core's pages, untouched ones included: a quick upper bound."""
    return sum(end - start for start, end in _ranges(captured))


def least_on_disk(captured: Captured, container: DumpContainer, enough: int) -> int:
    """Return the bytes of a core's pages that certainly take space.

    Pages of a compressed dump are not decompressed for that: it tells which of them are zeros, or 0 is returned.

    Args:
        captured: the process.
        container: the dump.
        enough: counting may stop above this.
    """
    memory, pages = captured.memory, 0
    page_size = captured.snapshot.page_size
    if container.compressed is not None:
        return _certain(memory, container, _ranges(captured)) * page_size
    for _, found in memory.batches(_ranges(captured)):
        pages += int(np.count_nonzero(found.view(np.bool_).any(axis=1)))
        if pages * page_size > enough:
            break
    return pages * page_size


def _certain(memory: UserMemory, container: DumpContainer, ranges: list[tuple[int, int]]) -> int:
    """Return how many pages of the ranges are not zeros according to the dump."""
    frames: list[U64Array] = [pages.paddrs() // np.uint64(container.page_size) for pages in memory.located(ranges)]
    return container.not_zero(np.unique(np.concatenate(frames))) if frames else 0

"""Locks that tasks wait for: file locks, and the kernel's own.

References: fs/locks.c; include/linux/filelock.h: struct file_lock_core (file_lock itself before Linux 6.9);
include/linux/hung_task.h (Linux 6.16); kernel/locking/mutex.h: __mutex_owner(); kernel/locking/rwsem.c: rwsem_owner().
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import StructView

LOCKS_MAX = 1 << 12
BLOCKER_MUTEX, BLOCKER_SEM = 0, 1
BLOCKER_MASK = 3
OWNER_FLAGS = 7
"""Bits of ``mutex.owner`` and ``rw_semaphore.owner`` that do not belong to the task's address."""
RWSEM_READER_OWNED = 1


@dataclass(frozen=True, slots=True)
class FileLock:
    """A lock that one process holds and others wait for.

    Attributes:
        pid: ``flc_pid`` of the process that holds it.
        file: address of the ``struct file`` that it was taken through.
        waiting: ``flc_pid`` of the waiting processes.
        kind: "flock" or "posix".
    """

    pid: int
    file: int
    waiting: tuple[int, ...]
    kind: str


def file_locks(inode: StructView) -> Iterator[FileLock]:
    """Yield the locks of a file that processes wait for.

    Raises:
        CorruptStructure, MemoryFault: a list is broken.
        LayoutUnknown: the layout does not tell of locks.
    """
    context = inode.follow("i_flctx", "file_lock_context")
    if context is None:
        return
    # Since Linux kernel commit 69c3a998ab2a ("filelock: split common fields into struct file_lock_core") (in v6.9).
    core = inode.kernel.layout.find_member("file_lock_core", "flc_list") is not None
    struct, prefix = ("file_lock_core", "flc_") if core else ("file_lock", "fl_")
    for kind in ("flock", "posix"):
        locks = list_for_each_entry(inode.kernel, context.addr_of(f"flc_{kind}"), struct, f"{prefix}list")
        for lock in islice(locks, LOCKS_MAX):
            requests = list_for_each_entry(
                inode.kernel, lock.addr_of(f"{prefix}blocked_requests"), struct, f"{prefix}blocked_member"
            )
            waiting = tuple(one.sint(f"{prefix}pid", size=4) for one in islice(requests, LOCKS_MAX))
            if waiting:
                yield FileLock(lock.sint(f"{prefix}pid", size=4), lock.pointer(f"{prefix}file"), waiting, kind)


@dataclass(frozen=True, slots=True)
class KernelLock:
    """A lock of the kernel that a task waits for; ``owner`` is the address of a task, 0 if unknown."""

    kind: str
    address: int
    owner: int


def kernel_lock(task: StructView) -> KernelLock | None:
    """Return the mutex or semaphore that a task waits for; None if there is none, or if the kernel does not record it.

    It does since Linux kernel commit 194a9b9e843b ("hung_task: show the blocker task if the task is hung on mutex") (in
    v6.16), with CONFIG_DETECT_HUNG_TASK_BLOCKER.

    Raises:
        MemoryFault: it cannot be read.
    """
    blocker = task.find_uint("blocker", 8)
    if not blocker:
        return None
    kind, address = blocker & BLOCKER_MASK, blocker & ~BLOCKER_MASK
    if kind == BLOCKER_SEM:
        return KernelLock("semaphore", address, 0)
    struct, word = ("mutex", "mutex") if kind == BLOCKER_MUTEX else ("rw_semaphore", "rwsem")
    owner = task.kernel.view(struct, address).find_uint("owner", 8) or 0
    if struct == "rw_semaphore" and owner & RWSEM_READER_OWNED:
        return KernelLock("rwsem", address, 0)  # for readers, this is one that may have left long ago
    return KernelLock(word, address, owner & ~OWNER_FLAGS)

"""Open files of a task: its table of descriptors, and what /proc/PID/fd and /proc/PID/fdinfo show of each.

References: include/linux/fdtable.h: struct fdtable; fs/file.c; fs/proc/fd.c: seq_show(), tid_fd_mode() (Linux 4.18 to
7.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

FDS_MAX = 1 << 24
"""Sixteen times the usual /proc/sys/fs/nr_open."""
FDS_PER_READ = 4096
FMODE_READ, FMODE_WRITE = 0x1, 0x2
O_CLOEXEC = 0o2000000
"""The same on all supported architectures."""
S_IFMT, S_IFIFO, S_IFSOCK = 0o170000, 0o010000, 0o140000

NEEDED = (
    ("task_struct", "files"),
    ("files_struct", "fdt"),
    ("fdtable", "max_fds"),
    ("fdtable", "fd"),
    ("fdtable", "open_fds"),
    ("fdtable", "close_on_exec"),
    ("file", "f_mode"),
    ("file", "f_flags"),
    ("file", "f_pos"),
    ("file", "f_inode"),
    ("file", "private_data"),
    ("inode", "i_mode"),
    ("inode", "i_ino"),
)
"""Structures and members that are needed to show a table of descriptors."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor of a table.

    Attributes:
        fd: its number.
        file: ``struct file``.
        close_on_exec: whether exec closes it.
    """

    fd: int
    file: StructView
    close_on_exec: bool

    @property
    def flags(self) -> int:
        """``f_flags``, with the descriptor's O_CLOEXEC: fdinfo's flags."""
        return self.file.uint("f_flags", size=4) & ~O_CLOEXEC | (O_CLOEXEC if self.close_on_exec else 0)

    @property
    def pos(self) -> int:
        """``f_pos``, in bytes."""
        return self.file.sint("f_pos", size=8)

    @property
    def access(self) -> str:
        """The access that it was opened for: "r", "w", "rw", or "" with O_PATH."""
        f_mode = self.file.uint("f_mode", size=4)
        return "r" * bool(f_mode & FMODE_READ) + "w" * bool(f_mode & FMODE_WRITE)

    @property
    def inode(self) -> StructView:
        """``f_inode``.

        Raises:
            CorruptStructure: there is none.
        """
        found = self.file.follow("f_inode", "inode")
        if found is None:
            raise self.file.corrupt("f_inode", "NULL, expected the file's inode")
        return found


def missing(kernel: Kernel) -> tuple[str, ...]:
    """Return which of ``NEEDED`` the layout does not know, in VMCOREINFO's grammar."""
    find = kernel.layout.find_member
    return tuple(f"OFFSET({tag}.{name})" for tag, name in NEEDED if find(tag, name) is None)


def descriptors(files: StructView) -> Iterator[Descriptor]:
    """Yield the open descriptors of a table, ascending.

    A number that open() has reserved without a file yet is skipped, as in /proc.

    Args:
        files: ``struct files_struct``.

    Raises:
        CorruptStructure: the table is impossibly large.
        MemoryFault: after the good ones: the table cannot be read.
    """
    fdt = files.follow("fdt", "fdtable")
    if fdt is None:
        raise files.corrupt("fdt", "NULL, expected the table of descriptors")
    max_fds = fdt.uint("max_fds", size=4)
    if max_fds > FDS_MAX:
        raise fdt.corrupt("max_fds", f"{max_fds:#x}, expected {FDS_MAX:#x} at most")
    kernel, table = fdt.kernel, fdt.pointer("fd")
    opened, on_exec = _bits(fdt, "open_fds", max_fds), _bits(fdt, "close_on_exec", max_fds)
    for first in range(0, max_fds, FDS_PER_READ):
        for fd in (first + np.flatnonzero(opened[first : first + FDS_PER_READ])).tolist():
            file = kernel.read_pointer(table + fd * kernel.arch.pointer_size)
            if file:
                yield Descriptor(fd, kernel.view("file", file), bool(on_exec[fd]))


def _bits(fdt: StructView, name: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return the bitmap of unsigned longs that a member points to, as bool[count]."""
    kernel, word = fdt.kernel, fdt.kernel.arch.pointer_size
    size = -(-count // (8 * word)) * word
    raw = np.frombuffer(kernel.memory.read(fdt.pointer(name), size), np.uint8)
    if kernel.arch.byte_order == "big":
        raw = raw.reshape(-1, word)[:, ::-1].reshape(-1)
    return np.unpackbits(raw, bitorder="little").astype(np.bool_)[:count]


def mount_id(file: StructView) -> int | None:
    """Return fdinfo's mnt_id: ``real_mount(file->f_path.mnt)->mnt_id``; None if it is not known."""
    kernel = file.kernel
    if kernel.layout.find_member("mount", "mnt") is None or kernel.layout.find_member("path", "mnt") is None:
        return None
    try:
        vfsmount = file.embedded("f_path", "path").pointer("mnt")
        return kernel.container_of(vfsmount, "mount", "mnt").find_uint("mnt_id", 4) if vfsmount else None
    except MemoryFault:
        return None


def is_kind(inode: StructView, kind: int) -> bool:
    """Tell whether an inode is of a kind (S_IFIFO, S_IFSOCK)."""
    return inode.uint("i_mode", size=2) & S_IFMT == kind


def working_folder(task: StructView, name: str) -> StructView | None:
    """Return ``fs->pwd`` or ``fs->root`` of a task as ``struct path``; None if it has none, or if it is not known.

    Raises:
        MemoryFault: it cannot be read.
    """
    if not task.has("fs") or task.kernel.layout.find_member("fs_struct", name) is None:
        return None
    fs_struct = task.follow("fs", "fs_struct")
    return None if fs_struct is None else fs_struct.embedded(name, "path")


def table_of(task: StructView) -> StructView | None:
    """Return a task's ``struct files_struct``; None if the task has exited."""
    return task.follow("files", "files_struct")

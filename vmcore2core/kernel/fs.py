"""Paths of files: ``struct path`` to text across mounts.

References: fs/d_path.c: d_path(), prepend_path(), simple_dname(); fs/mount.h: struct mount (Linux 7.2).
"""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

NAME_MAX = 255
PATH_LEVELS_MAX = 4096  # PATH_MAX bytes cannot hold more components
DELETED = b" (deleted)"


def dentry_name(dentry: StructView) -> bytes:
    """Return ``dentry->d_name`` as bytes.

    Its length is the upper half of ``qstr.hash_len`` in host order (HASH_LEN_DECLARE in include/linux/dcache.h).

    Raises:
        MemoryFault: it cannot be read.
        CorruptStructure: it is not as long as it says.
    """
    d_name = dentry.embedded("d_name", "qstr")
    length, at = d_name.uint("hash_len", size=8) >> 32, d_name.pointer("name")
    name = dentry.kernel.memory.read(at, min(length, NAME_MAX) + 1)
    if length > NAME_MAX or name.find(b"\0") != length:
        raise dentry.corrupt("d_name", f"a name of {length} bytes does not end there: {name[:16]!r}")
    return name[:-1]


def d_unlinked(dentry: StructView) -> bool:
    """Tell whether the dentry is unhashed and not a root: its file was deleted, or never had a name."""
    word = dentry.kernel.arch.pointer_size
    return dentry.pointer("d_parent") != dentry.address and (
        dentry.kernel.read_pointer(dentry.addr_of("d_hash") + word) == 0
    )


class Mounts:
    """``struct mount`` around a ``struct vfsmount``; what is looked up is remembered."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.known = kernel.layout.find_member("mount", "mnt") is not None
        self._above: dict[int, tuple[KernelAddr, KernelAddr] | None] = {}

    def above(self, vfsmount: KernelAddr) -> tuple[KernelAddr, KernelAddr] | None:
        """Return the parent's vfsmount and the dentry it is mounted on; None for a root mount."""
        if vfsmount not in self._above:
            mount = self.kernel.container_of(vfsmount, "mount", "mnt")
            parent = mount.pointer("mnt_parent")
            result = None
            if parent != mount.address:
                result = self.kernel.view("mount", parent).addr_of("mnt"), mount.pointer("mnt_mountpoint")
            self._above[vfsmount] = result
        return self._above[vfsmount]


def d_path(kernel: Kernel, path: StructView, mounts: Mounts, root: tuple[int, int] | None = None) -> bytes:
    """Return a ``struct path`` as text, as the kernel prints it for a process with this root.

    Args:
        path: ``struct path *``.
        mounts: the mounts of this kernel; where their layout is not known, the path ends at its file system's root.
        root: (vfsmount, dentry) of the process's ``fs->root``, or None for the root of all mounts.

    Raises:
        MemoryFault, LayoutUnknown: a dentry on the way cannot be read.
        CorruptStructure: a name is none, or the path leads back into itself.
    """
    dentry = kernel.view("dentry", path.pointer("dentry"))
    vfsmount = path.pointer("mnt") if mounts.known else KernelAddr(0)
    if dentry.pointer("d_parent") == dentry.address and (name := dentry_name(dentry)) not in (b"/", b""):
        # A file of a pseudo file system has no name in any directory: memfd, SysV, /dev/zero (simple_dname()).
        return b"/" + name + DELETED
    deleted = DELETED if d_unlinked(dentry) else b""
    parts: list[bytes] = []
    seen: set[tuple[int, int]] = set()
    while root != (vfsmount, dentry.address):
        if (vfsmount, dentry.address) in seen or len(seen) >= PATH_LEVELS_MAX:
            raise dentry.corrupt("d_parent", "the path leads back into itself, or does not end")
        seen.add((vfsmount, dentry.address))
        parent = dentry.pointer("d_parent")
        if parent == dentry.address:
            above = mounts.above(vfsmount) if mounts.known else None
            if above is None:
                break
            vfsmount, dentry = above[0], kernel.view("dentry", above[1])
            continue
        parts.append(dentry_name(dentry))
        dentry = kernel.view("dentry", parent)
    return b"/" + b"/".join(reversed(parts)) + deleted


def task_root(task: StructView) -> tuple[int, int] | None:
    """Return a task's root directory as (vfsmount, dentry), or None where it is not known."""
    try:
        fs_struct = task.follow("fs", "fs_struct")
        if fs_struct is None:
            return None
        root = fs_struct.embedded("root", "path")
        return root.pointer("mnt"), root.pointer("dentry")
    except (LayoutUnknown, MemoryFault):
        return None


def file_path(kernel: Kernel, file: StructView, mounts: Mounts, root: tuple[int, int] | None = None) -> bytes | None:
    """Return ``d_path(&file->f_path)``, or None where it cannot be read."""
    try:
        return d_path(kernel, file.embedded("f_path", "path"), mounts, root)
    except (MemoryFault, CorruptStructure):
        return None


def device_and_inode(file: StructView) -> tuple[int | None, int | None]:
    """Return ``s_dev`` and ``i_ino`` of a file's inode, None where not known."""
    try:
        inode = file.follow("f_inode", "inode") if file.has("f_inode") else None
        if inode is None or not (inode.has("i_sb") and inode.has("i_ino")):
            return None, None
        sb = inode.follow("i_sb", "super_block")
        return sb.find_uint("s_dev", 4) if sb is not None else None, inode.ulong("i_ino")
    except MemoryFault:
        return None, None

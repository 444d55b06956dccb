"""Paths of files: a ``struct path`` as text, across mounts.

References: fs/d_path.c: d_path(), prepend_path(), simple_dname(); fs/mount.h: struct mount; include/linux/fs.h:
file_user_path(), file_user_inode() (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

NAME_MAX = 255
PATH_LEVELS_MAX = 4096  # PATH_MAX bytes cannot hold more components
DELETED = b" (deleted)"
FMODE_BACKING, FMODE_BACKING_BEFORE_6_14, FMODE_NOACCOUNT = 1 << 24, 1 << 25, 1 << 29

# include/uapi/linux/magic.h
PIPEFS_MAGIC, SOCKFS_MAGIC = 0x50495045, 0x534F434B
ANON_INODE_FS_MAGIC, PID_FS_MAGIC, DMA_BUF_MAGIC = 0x09041934, 0x50494446, 0x444D4142
S_IFMT, S_IFREG = 0o170000, 0o100000
DMA_BUF_NAME_LEN = 32  # include/uapi/linux/dma-buf.h, with its NUL

Root = tuple[int, int]
"""(vfsmount, dentry) of a ``struct path`` at which paths begin, such as ``fs->root``."""


def is_regular(file: StructView) -> bool:
    """Tell whether a ``struct file`` is known not to be a device's: a driver may map anything."""
    try:
        inode = file.follow("f_inode", "inode") if file.has("f_inode") and file.has("f_mapping") else None
        mode = inode.find_uint("i_mode", 2) if inode is not None else None
    except MemoryFault:
        return False
    return mode is not None and mode & S_IFMT == S_IFREG


def dentry_name(dentry: StructView) -> bytes:
    """Return ``dentry->d_name`` as bytes.

    Its length is the upper half of ``qstr.hash_len`` in host order (HASH_LEN_DECLARE in include/linux/dcache.h).

    Raises:
        MemoryFault: it cannot be read.
        CorruptStructure: it does not have the length that it says.
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
    return not is_root(dentry) and dentry.kernel.read_pointer(dentry.addr_of("d_hash") + word) == 0


def is_root(dentry: StructView) -> bool:
    """Return ``IS_ROOT(dentry)``: it is in no directory."""
    return dentry.pointer("d_parent") == dentry.address


class Mount(NamedTuple):
    """A ``struct mount``.

    Attributes:
        root: ``mnt.mnt_root``, the dentry that appears at the mount point; None if the layout does not tell.
        above: the parent's vfsmount and the dentry that it is mounted on; None for a mount without a parent.
    """

    root: KernelAddr | None
    above: Root | None

    def ends_at(self, dentry: StructView) -> bool:
        """Tell whether a path within this mount begins at a dentry."""
        return is_root(dentry) if self.root is None else dentry.address == self.root


class Mounts:
    """``struct mount`` around a ``struct vfsmount``; results are kept."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.known = kernel.layout.find_member("mount", "mnt") is not None
        self._mounts: dict[int, Mount] = {}

    def of(self, vfsmount: int) -> Mount:
        """Return the mount of a ``struct vfsmount *``; a mount without a parent if the layout knows no mounts."""
        if vfsmount not in self._mounts:
            self._mounts[vfsmount] = self._read(vfsmount) if self.known else Mount(None, None)
        return self._mounts[vfsmount]

    def _read(self, vfsmount: int) -> Mount:
        mount = self.kernel.container_of(vfsmount, "mount", "mnt")
        inner = self.kernel.view("vfsmount", vfsmount)
        root = inner.pointer("mnt_root") if inner.has("mnt_root") else None
        parent = mount.pointer("mnt_parent")
        if parent == mount.address:
            return Mount(root, None)
        return Mount(root, (self.kernel.view("mount", parent).addr_of("mnt"), mount.pointer("mnt_mountpoint")))


def d_path(kernel: Kernel, path: StructView, mounts: Mounts, root: Root | None = None) -> bytes:
    """Return a ``struct path`` as text, as the kernel prints it for a process with this root.

    As in the kernel, a path that does not lead to this root begins at the top of its tree of mounts, and a path that
    leaves the visible part of its mount (a bind mount whose folder was moved away) is "/".

    Args:
        path: ``struct path *``.
        mounts: the mounts of this kernel; if their layout is not known, the path ends at its file system's root.
        root: of the process that asks, or None for the root of all mounts.

    Raises:
        MemoryFault, LayoutUnknown: a dentry on the way cannot be read.
        CorruptStructure: a name is impossible, or the path leads back into itself.
    """
    dentry = kernel.view("dentry", path.pointer("dentry"))
    vfsmount = path.pointer("mnt") if mounts.known else KernelAddr(0)
    if _has_dname(dentry) and not (is_root(dentry) and mounts.of(vfsmount).root == dentry.address):
        return _d_dname(dentry)
    deleted = DELETED if d_unlinked(dentry) else b""
    return (_prepend_path(dentry, vfsmount, mounts, root) or b"/") + deleted


def _prepend_path(dentry: StructView, vfsmount: int, mounts: Mounts, root: Root | None) -> bytes:
    """Return the names from the root on, each after a slash; none for the root, or for a path that escaped it."""
    parts: list[bytes] = []
    seen: set[Root] = set()
    while root != (vfsmount, dentry.address):
        if (vfsmount, dentry.address) in seen or len(seen) >= PATH_LEVELS_MAX:
            raise dentry.corrupt("d_parent", "the path leads back into itself, or does not end")
        seen.add((vfsmount, dentry.address))
        mount = mounts.of(vfsmount)
        if mount.ends_at(dentry):
            if mount.above is None:
                break
            vfsmount, dentry = mount.above[0], dentry.kernel.view("dentry", mount.above[1])
            continue
        if is_root(dentry):
            return b""
        parts.append(b"/" + dentry_name(dentry))
        dentry = dentry.kernel.view("dentry", dentry.pointer("d_parent"))
    return b"".join(reversed(parts))


def _has_dname(dentry: StructView) -> bool:
    """Tell whether ``dentry->d_op->d_dname`` is set: then the file system makes up a name."""
    found = dentry.kernel.layout.find_member("dentry_operations", "d_dname")
    if found is not None and dentry.has("d_op"):
        d_op = dentry.pointer("d_op")
        try:
            return bool(d_op) and dentry.kernel.read_pointer(d_op + found.offset) != 0
        except MemoryFault:
            pass  # the dump may lack the kernel's read-only data
    # Such a dentry is in no directory and has a name. Roots of other file systems are "/".
    return is_root(dentry) and dentry_name(dentry) not in (b"/", b"")


def _d_dname(dentry: StructView) -> bytes:
    """Return the name that ``dentry->d_op->d_dname()`` makes up; mostly simple_dname(): memfd, SysV, /dev/zero."""
    name, magic = dentry_name(dentry), _s_magic(dentry)
    if magic is None and name[:1] == b"[" and name != b"[aio]":
        magic = ANON_INODE_FS_MAGIC  # no other file system has names in brackets
    d_dname = _D_DNAMES.get(magic)
    return b"/" + name + DELETED if d_dname is None else d_dname(dentry, name)


def _s_magic(dentry: StructView) -> int | None:
    """Return ``dentry->d_sb->s_magic``, or None if the layout does not tell."""
    sb = dentry.follow("d_sb", "super_block") if dentry.has("d_sb") else None
    return None if sb is None else sb.find_uint("s_magic", sb.kernel.arch.pointer_size)


def _i_ino(dentry: StructView) -> int:
    inode = dentry.follow("d_inode", "inode")
    if inode is None:
        raise dentry.corrupt("d_inode", "NULL, expected the inode that the name is made of")
    return inode.ulong("i_ino")


def _dma_buf_name(dentry: StructView) -> bytes:
    dma_buf = dentry.follow("d_fsdata", "dma_buf")
    name = dma_buf.pointer("name") if dma_buf is not None else 0
    return dentry.kernel.read_string(name, DMA_BUF_NAME_LEN - 1) if name else b""


_D_DNAMES: dict[int | None, Callable[[StructView, bytes], bytes]] = {
    ANON_INODE_FS_MAGIC: lambda _, name: b"anon_inode:" + name,  # fs/anon_inodes.c: anon_inodefs_dname()
    PID_FS_MAGIC: lambda *_: b"anon_inode:[pidfd]",  # fs/pidfs.c: pidfs_dname()
    PIPEFS_MAGIC: lambda dentry, _: b"pipe:[%d]" % _i_ino(dentry),  # fs/pipe.c: pipefs_dname()
    SOCKFS_MAGIC: lambda dentry, _: b"socket:[%d]" % _i_ino(dentry),  # net/socket.c: sockfs_dname()
    # drivers/dma-buf/dma-buf.c: dmabuffs_dname()
    DMA_BUF_MAGIC: lambda dentry, name: b"/" + name + b":" + _dma_buf_name(dentry),
}


def task_root(task: StructView) -> Root | None:
    """Return a task's root directory as (vfsmount, dentry), or None if it is not known."""
    try:
        fs_struct = task.follow("fs", "fs_struct")
        if fs_struct is None:
            return None
        root = fs_struct.embedded("root", "path")
        return root.pointer("mnt"), root.pointer("dentry")
    except (LayoutUnknown, MemoryFault):
        return None


def is_chroot(kernel: Kernel, root: Root | None, mounts: Mounts) -> bool:
    """Tell whether a task's root is a folder below the top of its tree of mounts: then others see longer paths.

    Args:
        root: as ``task_root`` returns it.

    Raises:
        MemoryFault, CorruptStructure: it cannot be read.
    """
    return (
        root is not None and mounts.known and bool(_prepend_path(kernel.view("dentry", root[1]), root[0], mounts, None))
    )


def file_user_path(file: StructView) -> StructView:
    """Return the ``struct path`` by which the user opened a file.

    overlayfs and FUSE map another file system's file (``struct backing_file``) in place of their own. Since Linux
    kernel commit def3ae83da02 ("fs: store real path instead of fake path in backing file f_path") (in v6.7), that
    file's f_path is a path which no process sees. Before, f_path is the user's.
    """
    layout = file.kernel.layout
    found = layout.find_member("backing_file", "user_path")
    if found is None or not _is_backing(file):
        return file.embedded("f_path", "path")
    return file.kernel.view("path", file.address + found.offset)


def _is_backing(file: StructView) -> bool:
    """Tell whether a ``struct file`` is the one in a ``struct backing_file``: it has FMODE_BACKING and FMODE_NOACCOUNT.

    Linux 6.14 needed bit 25 for FMODE_NONOTIFY, and has FSNOTIFY_EVENT_FILE_RANGE since. Of the later 6.12, which took
    the one change without the other (6.12.117), only the second flag tells that bit 24 is not FMODE_DIO_PARALLEL_WRITE.
    """
    f_mode = file.find_uint("f_mode", 4) or 0
    newer = file.kernel.layout.find_constant("FSNOTIFY_EVENT_FILE_RANGE") is not None
    backing = FMODE_BACKING if newer else FMODE_BACKING | FMODE_BACKING_BEFORE_6_14
    return bool(f_mode & FMODE_NOACCOUNT and f_mode & backing)


def file_path(kernel: Kernel, file: StructView, mounts: Mounts, root: Root | None = None) -> bytes | None:
    """Return ``d_path(&file->f_path)``, or None if it cannot be read."""
    try:
        return d_path(kernel, file.embedded("f_path", "path"), mounts, root)
    except (MemoryFault, CorruptStructure):
        return None


def device_and_inode(file: StructView) -> tuple[int | None, int | None]:
    """Return ``s_dev`` and ``i_ino`` of ``file_user_inode()``, None if not known."""
    try:
        inode = _file_user_inode(file)
        if inode is None or not (inode.has("i_sb") and inode.has("i_ino")):
            return None, None
        sb = inode.follow("i_sb", "super_block")
        return sb.find_uint("s_dev", 4) if sb is not None else None, inode.ulong("i_ino")
    except MemoryFault:
        return None, None


def _file_user_inode(file: StructView) -> StructView | None:
    path = file_user_path(file)
    if path.address == file.addr_of("f_path"):
        return file.follow("f_inode", "inode") if file.has("f_inode") else None
    dentry = path.follow("dentry", "dentry")
    return dentry.follow("d_inode", "inode") if dentry is not None and dentry.has("d_inode") else None

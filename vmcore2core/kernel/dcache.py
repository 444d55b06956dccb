"""Names of files in memory: all dentries of a directory, whether their files are mapped or open or not.

References: include/linux/dcache.h: struct dentry; fs/dcache.c: __d_alloc(), d_walk() (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel.fs import dentry_name
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import StructView

CHILDREN_MAX = 1 << 16


def for_each_child(dentry: StructView) -> Iterator[StructView]:
    """Yield the ``struct dentry`` of each name of a directory that is in memory, in no particular order.

    Raises:
        CorruptStructure, MemoryFault: after the good ones: a broken list.
        LayoutUnknown: the members are not known.
    """
    # Since Linux kernel commit da549bdd15c2 ("dentry: switch the lists of children to hlist") (in v6.8), children are a
    # hlist; before that, a list.
    if dentry.has("d_children"):
        kernel, offset = dentry.kernel, dentry.kernel.layout.member("dentry", "d_sib").offset
        node = kernel.read_pointer(dentry.addr_of("d_children"))
        for _ in range(CHILDREN_MAX):
            if not node:
                return
            yield kernel.view("dentry", node - offset)
            node = kernel.read_pointer(node)
        raise CorruptStructure(f"more than {CHILDREN_MAX:#x} children", dentry.address, "dentry.d_children")
    for count, child in enumerate(
        list_for_each_entry(dentry.kernel, dentry.addr_of("d_subdirs"), "dentry", "d_child"), 1
    ):
        if count > CHILDREN_MAX:
            raise CorruptStructure(f"more than {CHILDREN_MAX:#x} children", dentry.address, "dentry.d_subdirs")
        yield child


def lookup(root: StructView, path: bytes) -> StructView | None:
    """Return the ``struct inode`` of a path below a directory; None if it is not in memory or does not exist.

    Symbolic links and mounts are not followed.

    Raises:
        CorruptStructure, MemoryFault: a directory's list of names is broken.
        LayoutUnknown: the members are not known.
    """
    dentry: StructView | None = root
    for name in path.split(b"/"):
        if dentry is None:
            return None
        parent = dentry.address
        found = (child for child in for_each_child(dentry) if _is(child, name))
        dentry = next((child for child in found if child.pointer("d_parent") == parent), None)
    return None if dentry is None else dentry.follow("d_inode", "inode")


def _is(dentry: StructView, name: bytes) -> bool:
    try:
        return dentry_name(dentry) == name
    except (MemoryFault, CorruptStructure):
        return False

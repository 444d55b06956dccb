"""Control groups of a task (include/linux/cgroup-defs.h), and their paths (include/linux/kernfs.h).

References: kernel/cgroup/cgroup.c: task_cgroup_from_root(), cgroup_path_ns_locked(); fs/kernfs/dir.c:
kernfs_path_from_node() (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.struct import StructView

DEPTH_MAX = 256
NAME_MAX = 255
SUBSYS_MAX = 64  # CGROUP_SUBSYS_COUNT is 16 at most in all of Linux 4.18 to 7.2: they are bits of a u16 there

NEEDED = (
    ("task_struct", "cgroups"),
    ("css_set", "dfl_cgrp"),
    ("cgroup", "kn"),
    ("kernfs_node", "name"),
    ("kernfs_node", "__parent", "parent"),
)
"""Structures, and the names of the member that is needed, the newest kernel's name first."""


def task_cgroup_paths(task: StructView) -> tuple[bytes, ...]:
    """Return the paths of a task's control groups, each once: first in the unified hierarchy, then in version 1's.

    Args:
        task: ``struct task_struct *``.

    Raises:
        LayoutUnknown: the layout does not tell.
        MemoryFault, CorruptStructure: they cannot be read.
    """
    css_set = task.follow("cgroups", "css_set")
    if css_set is None:
        return ()
    default = css_set.follow("dfl_cgrp", "cgroup")
    groups = [] if default is None else [default]
    groups += _of_version_1(css_set, default)
    return tuple(dict.fromkeys(cgroup_path(group) for group in groups))


def _of_version_1(css_set: StructView, default: StructView | None) -> Iterator[StructView]:
    """Yield the ``struct cgroup`` of each controller that is on a hierarchy of its own."""
    kernel = css_set.kernel
    subsys = kernel.layout.find_member("css_set", "subsys")
    known = subsys is not None and subsys.size and kernel.layout.find_member("cgroup_subsys_state", "cgroup")
    if not known or default is None or not default.has("root"):
        return
    assert subsys is not None  # noqa: S101 - for mypy
    word = kernel.arch.pointer_size
    for i in range(min((subsys.size or 0) // word, SUBSYS_MAX)):
        css = kernel.read_pointer(css_set.address + subsys.offset + i * word)
        group = kernel.view("cgroup_subsys_state", css).follow("cgroup", "cgroup") if css else None
        if group is not None and group.pointer("root") != default.pointer("root"):
            yield group


def cgroup_path(group: StructView) -> bytes:
    """Return the path of a ``struct cgroup *`` from the root of its hierarchy, as /proc/PID/cgroup has it.

    Raises:
        CorruptStructure: its chain of parents does not end.
    """
    kernel = group.kernel
    names: list[bytes] = []
    node = group.follow("kn", "kernfs_node")
    for _ in range(DEPTH_MAX):
        if node is None:
            break
        # Since Linux kernel commit 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent.") (in v6.15), the
        # member is called __parent.
        above = node.pointer("__parent" if node.has("__parent") else "parent")
        if not above:
            return b"/" + b"/".join(reversed(names))
        names.append(kernel.read_string(node.pointer("name"), NAME_MAX))
        node = kernel.view("kernfs_node", above)
    raise CorruptStructure(f"no root within {DEPTH_MAX} parents", group.address, "cgroup.kn")

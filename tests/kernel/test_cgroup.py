"""Control groups and PID namespaces, put together as the kernel's headers say, with literal offsets of Linux 7.2."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.builders.kernelimage import EXPORT, MORE, KernelImage, Offsets
from vmcore2core.errors import CorruptStructure, LayoutUnknown
from vmcore2core.kernel.cgroup import task_cgroup_paths
from vmcore2core.kernel.pid import task_nspids
from vmcore2core.kernel.struct import StructView

GROUPS: Offsets = {
    "task_struct": {"cgroups": (1800, 8), "thread_pid": (1424, 8)},
    "css_set": {"subsys": (0, 112), "dfl_cgrp": (120, 8)},
    "cgroup_subsys_state": {"cgroup": (0, 8)},
    "cgroup": {"kn": (48, 8), "root": (120, 8)},
    "kernfs_node": {"__parent": (8, 8), "name": (16, 8)},
    "pid": {"level": (4, 4), "numbers": (96, 0)},
}
OLD: Offsets = {**GROUPS, "kernfs_node": {"parent": (8, 8), "name": (16, 8)}}
POD = "0123456789abcdef" * 4


class Groups:
    """One task, and hierarchies for it."""

    def __init__(self, groups: Offsets = GROUPS) -> None:
        self.image = KernelImage(EXPORT, MORE, groups)
        self.parent = "__parent" if "__parent" in groups["kernfs_node"] else "parent"
        self.task = self.image.make("task_struct", pid=100, tgid=100, comm=b"app")
        self.set = self.image.make("css_set")
        self.image.set("task_struct", self.task, cgroups=self.set)

    def node(self, name: bytes, parent: int) -> int:
        return self.image.make("kernfs_node", {self.parent: parent, "name": self.image.string(name)})

    def group(self, root: int, *names: bytes) -> int:
        node = self.node(b"", 0)
        for name in names:
            node = self.node(name, node)
        return self.image.make("cgroup", kn=node, root=root)

    def default(self, *names: bytes) -> int:
        group = self.group(0x1000, *names)
        self.image.set("css_set", self.set, dfl_cgrp=group)
        return group

    def controller(self, number: int, group: int) -> None:
        self.image.words(self.set + 8 * number, self.image.make("cgroup_subsys_state", cgroup=group))

    def view(self) -> StructView:
        return self.image.kernel().view("task_struct", self.task)

    def paths(self) -> tuple[bytes, ...]:
        return task_cgroup_paths(self.view())


@pytest.mark.parametrize("offsets", [GROUPS, OLD], ids=["__parent", "parent"])
def test_the_path_of_the_unified_hierarchy(offsets: Offsets) -> None:
    groups = Groups(offsets)
    groups.default(b"system.slice", b"docker-%s.scope" % POD.encode())
    assert groups.paths() == (b"/system.slice/docker-%s.scope" % POD.encode(),)


def test_the_root_of_a_hierarchy() -> None:
    groups = Groups()
    groups.default()
    assert groups.paths() == (b"/",)


def test_controllers_of_version_1_have_paths_of_their_own_and_each_is_told_once() -> None:
    groups = Groups()
    groups.default()
    for number, name in ((0, b"docker"), (3, b"docker"), (4, b"other")):
        groups.controller(number, groups.group(0x2000, name))
    assert groups.paths() == (b"/", b"/docker", b"/other")


def test_a_controller_on_the_unified_hierarchy_is_in_an_ancestor_and_is_not_told() -> None:
    groups = Groups()
    groups.default(b"a", b"b")
    groups.controller(0, groups.group(0x1000, b"a"))
    assert groups.paths() == (b"/a/b",)


def test_parents_in_a_circle_end_with_an_error() -> None:
    groups = Groups()
    group = groups.default(b"a")
    node = groups.image.word(group + 48)
    groups.image.words(node + 8, node)
    with pytest.raises(CorruptStructure, match="no root within 256 parents"):
        groups.paths()


def test_a_layout_without_control_groups_says_so() -> None:
    groups = Groups()
    del groups.image.table.offsets["css_set"]["dfl_cgrp"]
    with pytest.raises(LayoutUnknown, match=r"OFFSET\(css_set.dfl_cgrp\)"):
        groups.paths()


def pid(groups: Groups, level: int, numbers: Sequence[int]) -> None:
    address = groups.image.make("pid", level=level)
    for i, number in enumerate(numbers):
        groups.image.words(address + 96 + 16 * i, 0xAAAA_AAAA << 32 | number, 0xFFFF_8880_0000_0000)
    groups.image.set("task_struct", groups.task, thread_pid=address)


@pytest.mark.parametrize("numbers", [(100,), (100, 7), (100, 7, 1)])
def test_numbers_in_pid_namespaces(numbers: tuple[int, ...]) -> None:
    groups = Groups()
    pid(groups, len(numbers) - 1, numbers)
    assert task_nspids(groups.view()) == numbers


def test_an_impossible_level_of_namespaces() -> None:
    groups = Groups()
    pid(groups, 33, (100,))
    with pytest.raises(CorruptStructure, match="level 33, expected 32 at most"):
        task_nspids(groups.view())

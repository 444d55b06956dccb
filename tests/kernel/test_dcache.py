"""The file that says which system a process saw, found by names in memory alone: a list of children, or a hlist."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import TEXT, KernelImage
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel import dcache

NEW = {"dentry": {"d_inode": (48, 8), "d_sib": (136, 16), "d_children": (152, 8)}}
OLD = {"dentry": {"d_inode": (48, 8), "d_child": (136, 16), "d_subdirs": (152, 16)}}


def directory(image: KernelImage, parent: int, *children: int) -> None:
    """Put dentries into their parent's list, as the layout has it."""
    if "d_children" in image.table.offsets["dentry"]:
        nodes = [child + 136 for child in children]
        for node, after in zip([parent + 152, *nodes], [*nodes, 0], strict=True):
            image.words(node, after)
    else:
        image.link(parent + 152, *(child + 136 for child in children))


def built(extra: dict[str, dict[str, tuple[int, int]]]) -> tuple[KernelImage, int, int, int]:
    """Return an image, its root, the dentry etc, and the inode of /etc/os-release."""
    image = KernelImage()
    image.table.offsets["dentry"] |= extra["dentry"]
    root = image.dentry(b"/")
    other, etc = image.dentry(b"var", root), image.dentry(b"etc", root)
    decoy, release = image.dentry(b"os-release.old", etc), image.dentry(b"os-release", etc)
    inode = image.alloc(256, 64)
    for dentry, members in ((other, ()), (etc, (decoy, release)), (root, (other, etc)), (decoy, ()), (release, ())):
        directory(image, dentry, *members)
    image.words(release + 48, inode)
    return image, root, etc, inode


@pytest.mark.parametrize("extra", [NEW, OLD])
def test_a_name_is_found_and_what_is_not_there_is_not(extra: dict[str, dict[str, tuple[int, int]]]) -> None:
    image, root, _, inode = built(extra)
    kernel = image.kernel()
    found = dcache.lookup(kernel.view("dentry", root), b"etc/os-release")
    assert found is not None
    assert found.address == inode
    assert dcache.lookup(kernel.view("dentry", root), b"usr/lib/os-release") is None
    assert dcache.lookup(kernel.view("dentry", root), b"etc/os-release.old") is None  # a negative dentry


@pytest.mark.parametrize("extra", [NEW, OLD])
def test_a_list_that_does_not_end_is_an_error(
    extra: dict[str, dict[str, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcache, "CHILDREN_MAX", 100)
    image, root, etc, _ = built(extra)
    image.words(etc + 136, etc + 136)
    with pytest.raises(CorruptStructure):
        dcache.lookup(image.kernel().view("dentry", root), b"nothing")


@pytest.mark.parametrize("extra", [NEW, OLD])
def test_a_child_of_another_directory_is_not_taken(extra: dict[str, dict[str, tuple[int, int]]]) -> None:
    image, root, etc, _ = built(extra)
    image.set("dentry", etc, d_parent=TEXT)
    assert dcache.lookup(image.kernel().view("dentry", root), b"etc/os-release") is None

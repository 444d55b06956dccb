"""Paths as fs/d_path.c prints them: bind mounts, mounts on mounts, chroots, overlayfs, and files in no directory."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import KernelImage, Offsets
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel import fs

FAR = {
    "file": {"f_mode": (4, 4), "f_inode": (32, 8)},
    "dentry": {"d_op": (96, 8), "d_sb": (104, 8), "d_inode": (48, 8), "d_fsdata": (120, 8)},
    "dentry_operations": {"d_dname": (72, 8)},
    "super_block": {"s_magic": (96, 8), "s_dev": (16, 4)},
    "inode": {"i_ino": (64, 8), "i_sb": (40, 8)},
    "dma_buf": {"name": (72, 8)},
    "backing_file": {"user_path": (176, 16)},
}
"""As Debian's 7.2.13 has them (BTF), s_dev aside."""


class Tree:
    """One file system, /usr/bin/prog and /srv/app/prog, mounted at the top."""

    def __init__(self, *more: Offsets) -> None:
        self.image = KernelImage()
        for offsets in more:
            for tag, members in offsets.items():
                self.image.table.offsets.setdefault(tag, {}).update(members)
        self.top = self.image.dentry(b"/")
        self.usr = self.image.dentry(b"usr", self.top)
        self.bin = self.image.dentry(b"bin", self.usr)
        self.prog = self.image.dentry(b"prog", self.bin)
        self.srv = self.image.dentry(b"srv", self.top)
        self.root = self.image.mount(self.top)

    def path(self, vfsmount: int, dentry: int, root: fs.Root | None = None) -> bytes:
        file = self.image.file(vfsmount, dentry)
        kernel = self.image.kernel()
        return fs.d_path(kernel, kernel.view("file", file).embedded("f_path", "path"), fs.Mounts(kernel), root)

    def pseudo(self, name: bytes, magic: int | None, *, ino: int = 0) -> bytes:
        """Return the path of a dentry whose file system makes names up, as alloc_file_pseudo() makes it."""
        image = self.image
        dentry = image.dentry(name, hashed=False)
        if magic is not None:
            ops, sb = image.make("dentry_operations", d_dname=0xFFFF_FFFF_8112_3400), image.make("super_block")
            image.set("super_block", sb, s_magic=magic)
            image.set("dentry", dentry, d_op=ops, d_sb=sb, d_inode=image.make("inode", i_ino=ino))
        internal = image.mount(image.dentry(b"/"))
        return self.path(internal, dentry)


def test_a_folder_bound_onto_itself_is_in_its_path_once() -> None:
    tree = Tree()
    bound = tree.image.mount(tree.usr, (tree.root, tree.usr))
    assert tree.path(bound, tree.prog) == b"/usr/bin/prog"


def test_a_file_bound_onto_another_has_the_others_path() -> None:
    tree = Tree()
    bound = tree.image.mount(tree.prog, (tree.root, tree.srv))
    assert tree.path(bound, tree.prog) == b"/srv"


def test_mounts_on_one_another_end_at_their_own_roots() -> None:
    tree = Tree()
    lower = tree.image.mount(tree.usr, (tree.root, tree.srv))
    upper = tree.image.mount(tree.bin, (lower, tree.usr))
    third_top = tree.image.dentry(b"/")
    third = tree.image.mount(third_top, (upper, tree.bin))
    assert tree.path(upper, tree.prog) == b"/srv/prog"
    assert tree.path(third, tree.image.dentry(b"x", third_top)) == b"/srv/x"


def test_a_subvolume_that_is_the_root_file_system_is_no_part_of_a_path() -> None:
    """Btrfs, mounted with subvol=@: the dentry of @ is the mount's root, and has a parent."""
    tree = Tree()
    at = tree.image.dentry(b"@", tree.top)
    mounted = tree.image.mount(at)
    assert tree.path(mounted, tree.image.dentry(b"prog", at)) == b"/prog"


def test_a_process_in_a_chroot_sees_less_of_a_path_than_others() -> None:
    tree = Tree()
    inside = (tree.root, tree.usr)
    assert tree.path(tree.root, tree.prog, inside) == b"/bin/prog"
    assert tree.path(tree.root, tree.prog) == b"/usr/bin/prog"
    kernel = tree.image.kernel()
    assert fs.is_chroot(kernel, inside, fs.Mounts(kernel))
    assert not fs.is_chroot(kernel, (tree.root, tree.top), fs.Mounts(kernel))
    assert not fs.is_chroot(kernel, None, fs.Mounts(kernel))


def test_a_path_that_does_not_lead_to_the_processs_root_begins_at_the_top() -> None:
    tree = Tree()
    assert tree.path(tree.root, tree.prog, (tree.root, tree.srv)) == b"/usr/bin/prog"


def test_the_root_that_a_container_was_pivoted_to_begins_its_paths() -> None:
    """pivot_root(2), and the old root unmounted: the mount that is now on no other shows a folder."""
    tree = Tree()
    pivoted = tree.image.mount(tree.usr)
    assert tree.path(pivoted, tree.prog, (pivoted, tree.usr)) == b"/bin/prog"
    kernel = tree.image.kernel()
    assert not fs.is_chroot(kernel, (pivoted, tree.usr), fs.Mounts(kernel))


def test_the_root_itself_is_a_slash() -> None:
    tree = Tree()
    assert tree.path(tree.root, tree.top) == b"/"


def test_what_was_moved_out_of_a_bind_mounts_folder_is_a_slash() -> None:
    """prepend_path() returns 3, "Escaped?"."""
    tree = Tree()
    bound = tree.image.mount(tree.usr, (tree.root, tree.srv))
    assert tree.path(bound, tree.image.dentry(b"moved", tree.srv)) == b"/"
    assert tree.path(bound, tree.image.dentry(b"moved", tree.srv, hashed=False)) == b"/ (deleted)"


def test_a_deleted_file_below_a_bind_mount_says_so() -> None:
    tree = Tree()
    bound = tree.image.mount(tree.usr, (tree.root, tree.usr))
    assert tree.path(bound, tree.image.dentry(b"gone", tree.bin, hashed=False)) == b"/usr/bin/gone (deleted)"


def test_without_the_mounts_root_a_path_ends_at_the_file_systems() -> None:
    tree = Tree()
    del tree.image.table.offsets["vfsmount"]
    assert tree.path(tree.root, tree.prog) == b"/usr/bin/prog"


def test_mounts_that_lead_back_into_themselves_are_an_error() -> None:
    tree = Tree()
    bound = tree.image.mount(tree.usr, (tree.root, tree.srv))
    tree.image.words(tree.root - 16, bound - 32)
    tree.image.words(tree.root - 8, tree.bin)
    with pytest.raises(CorruptStructure, match="leads back into itself"):
        tree.path(bound, tree.prog)


@pytest.mark.parametrize(
    ("name", "magic", "expected"),
    [
        (b"[io_uring]", 0x09041934, b"anon_inode:[io_uring]"),
        (b"kvm-vcpu:0", 0x09041934, b"anon_inode:kvm-vcpu:0"),
        (b"", 0x50494446, b"anon_inode:[pidfd]"),
        (b"", 0x534F434B, b"socket:[4711]"),
        (b"", 0x50495045, b"pipe:[4711]"),
        (b"memfd:x", 0x01021994, b"/memfd:x (deleted)"),
        (b"SYSV00000000", 0x01021994, b"/SYSV00000000 (deleted)"),
        (b"dev/zero", 0x01021994, b"/dev/zero (deleted)"),
        (b"anon_hugepage", 0x958458F6, b"/anon_hugepage (deleted)"),
        (b"[aio]", 0x9B2D, b"/[aio] (deleted)"),
        (b"dmabuf", 0x444D4142, b"/dmabuf:"),
    ],
)
def test_what_is_in_no_directory_has_the_name_that_its_file_system_makes_up(
    name: bytes, magic: int, expected: bytes
) -> None:
    """Linux 7.2: fs/anon_inodes.c, fs/pidfs.c, net/socket.c, fs/pipe.c, mm/shmem.c, fs/aio.c, drivers/dma-buf."""
    assert Tree(FAR).pseudo(name, magic, ino=4711) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"[io_uring]", b"anon_inode:[io_uring]"),
        (b"[aio]", b"/[aio] (deleted)"),
        (b"memfd:x", b"/memfd:x (deleted)"),
    ],
)
def test_without_its_file_system_it_is_told_by_its_form(name: bytes, expected: bytes) -> None:
    assert Tree().pseudo(name, None) == expected


def test_operations_that_are_not_in_the_dump_leave_the_form_to_tell() -> None:
    tree = Tree(FAR)
    dentry = tree.image.dentry(b"memfd:x", hashed=False)
    tree.image.set("dentry", dentry, d_op=0xFFFF_FFFF_FF00_0000)
    assert tree.path(tree.image.mount(tree.image.dentry(b"/")), dentry) == b"/memfd:x (deleted)"


def test_a_dma_buf_has_the_name_that_it_was_given() -> None:
    tree = Tree(FAR)
    ops, sb = tree.image.make("dentry_operations", d_dname=0xFFFF_FFFF_8112_3400), tree.image.make("super_block")
    tree.image.set("super_block", sb, s_magic=0x444D4142)
    dentry = tree.image.dentry(b"dmabuf", hashed=False)
    buf = tree.image.make("dma_buf", name=tree.image.string(b"camera"))
    tree.image.set("dentry", dentry, d_op=ops, d_sb=sb, d_fsdata=buf)
    assert tree.path(tree.image.mount(tree.image.dentry(b"/")), dentry) == b"/dmabuf:camera"


def test_a_mounted_pseudo_file_systems_root_has_the_path_it_is_mounted_at() -> None:
    """As a network namespace that ip-netns(8) keeps: d_path() asks d_dname() for no mount's own root."""
    tree = Tree(FAR)
    ops = tree.image.make("dentry_operations", d_dname=0xFFFF_FFFF_8112_3400)
    net = tree.image.dentry(b"net", hashed=False)
    tree.image.set("dentry", net, d_op=ops)
    assert tree.path(tree.image.mount(net, (tree.root, tree.srv)), net) == b"/srv"


@pytest.mark.parametrize(
    ("f_mode", "range_events", "expected"),
    [
        pytest.param(1 << 25 | 1 << 29, False, (b"/usr/bin/prog", 0x15, 77), id="6.7 to 6.13"),
        pytest.param(1 << 24 | 1 << 29, True, (b"/usr/bin/prog", 0x15, 77), id="6.14 and later"),
        pytest.param(0x2D4A_801D, False, (b"/usr/bin/prog", 0x15, 77), id="Debian's 6.12.117"),
        pytest.param(1 << 25, False, (b"/layer/prog", 0x16, 88), id="FMODE_NONOTIFY of Debian's 6.12.117"),
        pytest.param(1 << 25 | 1 << 29, True, (b"/layer/prog", 0x16, 88), id="FMODE_NONOTIFY of 6.14 and later"),
        pytest.param(1 << 24, False, (b"/layer/prog", 0x16, 88), id="FMODE_DIO_PARALLEL_WRITE of 6.7"),
    ],
)
def test_a_file_that_overlayfs_mapped_in_place_of_its_own_has_the_users_path(
    f_mode: int, range_events: bool, expected: tuple[bytes, int, int]
) -> None:
    tree = Tree(FAR)
    image = tree.image
    layer_top = image.dentry(b"/")
    layer = image.mount(layer_top)
    sbs = image.make("super_block", s_dev=0x15), image.make("super_block", s_dev=0x16)
    mine, real = image.make("inode", i_ino=77, i_sb=sbs[0]), image.make("inode", i_ino=88, i_sb=sbs[1])
    image.set("dentry", tree.prog, d_inode=mine)
    inner = image.dentry(b"prog", image.dentry(b"layer", layer_top))
    file = image.file(layer, inner, f_mode=f_mode, f_inode=real)
    image.words(file + 176, tree.root, tree.prog)
    if range_events:
        image.table.constants["FSNOTIFY_EVENT_FILE_RANGE"] = 1
    kernel = image.kernel()
    view = kernel.view("file", file)
    path = fs.d_path(kernel, fs.file_user_path(view), fs.Mounts(kernel))
    assert (path, *fs.device_and_inode(view)) == expected

"""Check that the structures that a mapped file points to point back: dentries, inodes, mounts, and its mappings.

References: include/linux/fs.h: struct file, struct address_space; include/linux/dcache.h: struct dentry; fs/mount.h:
struct mount; mm/vma.c: vma_link_file(); fs/dcache.c: __d_alloc(), d_alloc() (Linux 5.10 to 7.3).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel.fs import S_IFMT, S_IFREG
from vmcore2core.kernel.mm import VM_SHARED
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.structs import Structs, read_words
from vmcore2core.kernel.vmas import Vmas

FMODE_WRITE = 0x2
RB_PARENT = ~0x3
"""The mask of the parent's address in ``rb_node.__rb_parent_color``."""
RB_DEPTH_MAX = 128
DEPTH_MAX = 256
"""Most directories, or mounts, to look at for one path."""
LENT_PATHS = (0x794C_7630, 0x6573_5546)
"""``super_block.s_magic`` of overlayfs and FUSE, whose dentries stand for files of other file systems."""
RWSEM_READER_OWNED, RWSEM_OWNER_MASK = 0x1, ~0x7


class FileLinks:
    """The files of a dump; what is wrong with a structure that several processes share is found once and reported once.

    Args:
        kernel: the dumped kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._word = kernel.arch.pointer_size
        self._of_files: dict[int, list[str]] = {}
        self._of_dentries: dict[int, list[str]] = {}
        self._of_mounts: dict[int, list[str]] = {}
        self._of_paths: dict[int, list[str]] = {}
        self._tops: dict[int, int] = {}

    def problems(self, vma: StructView, file: StructView, *, linked: bool = False) -> list[str]:
        """Return a sentence for each thing that is wrong with a mapped file.

        Args:
            vma: ``struct vm_area_struct``.
            file: ``vma->vm_file``.
            linked: whether the mapping is known to be in its file's tree, so that only the file is checked.
        """
        if file.address not in self._of_files:
            self._of_files[file.address] = list(_sentences(self._of_file(file)))
        if file.address not in self._of_paths:
            self._of_paths[file.address] = list(self._of_path(file))
        checks = () if linked else (self._is_shared(vma, file), self._in_tree(vma, file))
        of_vma = (sentence for check in checks for sentence in _sentences(check))
        return [*self._of_files[file.address], *self._of_paths[file.address], *of_vma]

    def linked(self, vmas: Vmas) -> NDArray[np.bool_]:
        """Tell which mappings are known to be in their files' trees, bool[n]: nothing is wrong with their links.

        Args:
            vmas: of a process.
        """
        members = ("vm_pgoff", "shared.rb", "shared.rb_subtree_last")
        if not all(map(vmas.has, members)) or self.kernel.layout.find_member("address_space", "i_mmap") is None:
            return np.zeros(len(vmas), np.bool_)
        files, which = np.unique(vmas.file, return_inverse=True)
        shared = vmas.flags & np.uint64(VM_SHARED) != 0
        roots, writable = zip(*(self._root_and_mode(file) for file in files.tolist()), strict=True)
        node = vmas.addresses + np.uint64(self.kernel.layout.member("vm_area_struct", "shared.rb").offset)
        known: NDArray[np.bool_] = vmas.whole & (vmas.file != 0) & (~shared | np.array(writable, np.bool_)[which])
        tops = np.zeros(len(vmas), np.uint64)
        tops[known] = self._tops_of(node[known])
        known &= (tops != 0) & (tops == np.array(roots, np.uint64)[which])
        known[known] &= self._are_in_order(vmas, node, known)
        return known

    def _root_and_mode(self, address: int) -> tuple[int, bool]:
        """Return the root ``struct rb_node *`` of a file's mappings, 0 if not known; and whether it may be written."""
        file, i_mmap = self.kernel.view("file", address), self.kernel.layout.member("address_space", "i_mmap")
        try:
            if not address or not file.has("f_mapping"):
                return 0, False
            mode = file.find_uint("f_mode", 4)
            root = self.kernel.read_pointer(file.pointer("f_mapping") + i_mmap.offset)
            return root, mode is None or bool(mode & FMODE_WRITE)
        except MemoryFault:
            return 0, False

    def _tops_of(self, nodes: U64Array) -> U64Array:
        """Return the root ``struct rb_node *`` of each node's tree, 0 if it is not known."""
        tops, which = np.unique(nodes, return_inverse=True)
        above = np.arange(len(tops))
        for _ in range(RB_DEPTH_MAX):
            words, there = read_words(self.kernel, tops)
            parents = words & np.uint64(RB_PARENT % (1 << 64))
            if not (parents[there] != 0).any():
                break
            following = np.where(parents != 0, parents, tops)
            following[~there] = 0
            tops, merged = np.unique(following, return_inverse=True)
            above = merged[above]
        else:
            return np.zeros(len(nodes), np.uint64)
        tops[~there] = 0
        return tops[above][which]

    def _are_in_order(self, vmas: Vmas, node: U64Array, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which mappings have the place in the file that ``_in_order`` expects.

        Args:
            vmas: of a process.
            node: address of each one's ``struct rb_node``.
            rows: the mappings to check.
        """
        page, node = np.uint64(self.kernel.memory.kernel_map.spec.page_size), node[rows]
        pgoff, told = vmas.ulong("vm_pgoff")[rows], vmas.ulong("shared.rb_subtree_last")[rows]
        last = pgoff + (vmas.end[rows] - vmas.start[rows]) // page - np.uint64(1)
        fine: NDArray[np.bool_] = (pgoff < np.uint64(1 << 63)) & (last < np.uint64(1 << 63))
        for i in (1, 2):
            child, there = read_words(self.kernel, node + np.uint64(i * self._word))
            has = child != 0
            below = Structs(self.kernel, "vm_area_struct", child[has] - (node - vmas.addresses[rows])[has])
            last[has] = np.maximum(last[has], below.ulong("shared.rb_subtree_last"))
            place = below.ulong("vm_pgoff")
            fine[has] &= below.whole & ((place >= pgoff[has]) if i == 1 else (place <= pgoff[has]))
            fine &= there
        fine &= last == told
        return fine

    def _is_shared(self, vma: StructView, file: StructView) -> Iterator[CorruptStructure]:
        """Check that a file that is mapped with VM_SHARED was opened for writing (do_mmap())."""
        mode, flags = file.find_uint("f_mode", 4), vma.ulong("vm_flags")
        if mode is not None and flags & VM_SHARED and not mode & FMODE_WRITE:
            yield vma.corrupt("vm_flags", f"{flags:#x}: shared, but the file is open for reading alone")

    def _of_file(self, file: StructView) -> Iterator[CorruptStructure]:
        """Compare the inode that ``f_inode`` names with those that other pointers lead to."""
        inode = file.follow("f_inode", "inode") if file.has("f_inode") else None
        path = file.embedded("f_path", "path")
        dentry = path.follow("dentry", "dentry")
        if dentry is None or inode is None:
            return
        self._check_operations(dentry)
        mode, same = inode.find_uint("i_mode", 2), inode.has("i_mapping") and file.has("f_mapping")
        if same and (mode or 0) & S_IFMT == S_IFREG and inode.pointer("i_mapping") != file.pointer("f_mapping"):
            expected = inode.pointer("i_mapping")
            yield file.corrupt("f_mapping", f"{file.pointer('f_mapping'):#x}, expected {expected:#x} as f_inode has")
        if dentry.has("d_inode") and dentry.pointer("d_inode") != inode.address and not _is_lent(dentry, inode):
            found = dentry.pointer("d_inode")
            yield path.corrupt("dentry", f"{dentry.address:#x} of inode {found:#x}, but f_inode is {inode.address:#x}")
        if not path.has("mnt") or self.kernel.layout.find_member("vfsmount", "mnt_sb") is None:
            return
        mount = path.follow("mnt", "vfsmount")
        if mount is not None and dentry.has("d_sb") and mount.pointer("mnt_sb") != dentry.pointer("d_sb"):
            yield path.corrupt("mnt", f"{mount.address:#x}, a mount of another file system than its dentry's")

    def _check_operations(self, dentry: StructView) -> None:
        """Check that the operation that makes up a dentry's name points to a function.

        Raises:
            MemoryFault: the kernel has no memory there.
        """
        d_dname = self.kernel.layout.find_member("dentry_operations", "d_dname")
        d_op = dentry.pointer("d_op") if d_dname is not None and dentry.has("d_op") else 0
        if d_dname is None or not d_op:
            return
        try:
            function = self.kernel.read_pointer(d_op + d_dname.offset)
        except MemoryFault:
            return  # the kernel's read-only data need not be in the dump
        if function:
            self.kernel.memory.to_phys(function)

    def _of_path(self, file: StructView) -> Iterator[str]:
        """Yield what is wrong with the directories and mounts on the way to a file."""
        path = file.embedded("f_path", "path")
        try:
            yield from self._upwards("dentry", path.pointer("dentry"), "d_parent", self._of_dentries)
            if path.has("mnt") and self.kernel.layout.find_member("mount", "mnt") is not None:
                mount = self.kernel.container_of(path.pointer("mnt"), "mount", "mnt")
                yield from self._upwards("mount", mount.address, "mnt_parent", self._of_mounts)
        except MemoryFault:
            return  # the path says so

    def _upwards(self, struct: str, address: int, parent: str, known: dict[int, list[str]]) -> Iterator[str]:
        """Yield what is wrong with a structure and its ancestors, up to the one that is its own parent."""
        check = self._of_dentry if struct == "dentry" else self._of_mount
        for _ in range(DEPTH_MAX):
            view = self.kernel.view(struct, address)
            if address not in known:
                known[address] = list(_sentences(check(view)))
            yield from known[address]
            above = view.pointer(parent)
            if above == address:
                return
            address = above

    def _of_dentry(self, dentry: StructView) -> Iterator[CorruptStructure]:
        """Compare a dentry's parent with its sibling's, and the place of its name with that of short names."""
        parent = dentry.pointer("d_parent")
        # Since Linux kernel commit da549bdd15c2 ("dentry: switch the lists of children to hlist") (in v6.8).
        new = dentry.has("d_sib")
        link, head = ("d_sib", "d_children") if new else ("d_child", "d_subdirs")
        if parent != dentry.address:
            yield from self._beside(dentry, link, head, "d_parent", "dentry", is_hlist=new)
        if dentry.has(link):
            at = dentry.addr_of(link)
            linked = self.kernel.read_pointer(at + self._word) not in (0, at)
            if linked != (parent != dentry.address):
                said = "in" if linked else "not in"
                yield dentry.corrupt("d_parent", f"{parent:#x}, but the dentry is {said} a list of some directory's")
        short = next((name for name in ("d_shortname", "d_iname") if dentry.has(name)), None)
        room = self.kernel.layout.member("dentry", short).size if short is not None else None
        if short is None or not room:
            return
        name = dentry.embedded("d_name", "qstr")
        length, at = name.uint("hash_len", size=8) >> 32, name.pointer("name")
        if length < room and at != dentry.addr_of(short):
            yield name.corrupt("name", f"{at:#x}, expected {dentry.addr_of(short):#x}: it is short")

    def _of_mount(self, mount: StructView) -> Iterator[CorruptStructure]:
        """Compare where a mount is mounted with what its sibling and its mountpoint say."""
        parent, layout = mount.follow("mnt_parent", "mount"), self.kernel.layout
        if parent is None or parent.address == mount.address:
            return
        yield from self._beside(mount, "mnt_child", "mnt_mounts", "mnt_parent", "mount", is_hlist=False)
        at = mount.pointer("mnt_mountpoint")
        point = mount.follow("mnt_mp", "mountpoint") if mount.has("mnt_mp") else None
        if point is not None and point.has("m_dentry") and point.pointer("m_dentry") != at:
            yield mount.corrupt("mnt_mountpoint", f"{at:#x}, expected {point.pointer('m_dentry'):#x} as mnt_mp has it")
        dentry, mnt_sb = self.kernel.view("dentry", at), layout.find_member("vfsmount", "mnt_sb")
        if mnt_sb is not None and dentry.has("d_sb"):
            expected = self.kernel.view("vfsmount", parent.addr_of("mnt")).pointer("mnt_sb")
            if dentry.pointer("d_sb") != expected:
                yield mount.corrupt("mnt_mountpoint", f"{at:#x}, of another file system than mnt_parent's")

    def _beside(
        self, view: StructView, link: str, head: str, parent: str, struct: str, *, is_hlist: bool
    ) -> Iterator[CorruptStructure]:
        """Compare the parent of a structure with that of a sibling in the parent's list of children.

        Args:
            view: the structure.
            link: member that links it.
            head: the parent's member that is the head of the list.
            parent: member that points to the parent.
            struct: C tag of both.
            is_hlist: whether the list ends with NULL, and points back to pointers.
        """
        layout = self.kernel.layout
        if not view.has(link) or layout.find_member(struct, head) is None:
            return
        above = view.pointer(parent)
        at, first = view.addr_of(link), self.kernel.view(struct, above).addr_of(head)
        following, before = (self.kernel.read_pointer(at + i * self._word) for i in (0, 1))
        other = following or before if is_hlist else following
        if not other or other in (at, first) or (is_hlist and before == first):
            return
        beside = self.kernel.view(struct, other - layout.member(struct, link).offset)
        if beside.pointer(parent) != above:
            found = beside.pointer(parent)
            yield view.corrupt(parent, f"{above:#x}, expected {found:#x} as the one beside it has, {beside.address:#x}")

    def _in_tree(self, vma: StructView, file: StructView) -> Iterator[CorruptStructure]:
        """Check that a mapping is in its file's tree of mappings, ``address_space.i_mmap``."""
        layout = self.kernel.layout
        root, node = layout.find_member("address_space", "i_mmap"), layout.find_member("vm_area_struct", "shared.rb")
        lock = layout.find_member("address_space", "i_mmap_rwsem.owner")
        if root is None or node is None or lock is None or not file.has("f_mapping"):
            return
        mapping = file.pointer("f_mapping")
        owner = self.kernel.read_pointer(mapping + lock.offset)
        if owner & RWSEM_OWNER_MASK and not owner & RWSEM_READER_OWNED:
            return  # a task is changing it
        found, expected = self._top(vma.address + node.offset), self.kernel.read_pointer(mapping + root.offset)
        if found != expected:
            yield vma.corrupt("vm_file", f"{file.address:#x}, whose file does not know this mapping (i_mmap)")
        elif vma.has("vm_pgoff") and vma.has("shared.rb_subtree_last"):
            yield from self._in_order(vma, node.offset)

    def _in_order(self, vma: StructView, node: int) -> Iterator[CorruptStructure]:
        """Compare vm_pgoff with the tree: it is sorted by vm_pgoff, and each node has the last page of its subtree.

        include/linux/interval_tree_generic.h; struct rb_node is {__rb_parent_color, rb_right, rb_left}.
        """
        pgoff = vma.ulong("vm_pgoff")
        pages = (vma.ulong("vm_end") - vma.ulong("vm_start")) // self.kernel.memory.kernel_map.spec.page_size
        last, children = pgoff + pages - 1, []
        for i in (1, 2):
            child = self.kernel.read_pointer(vma.address + node + i * self._word)
            children.append(self.kernel.view("vm_area_struct", child - node) if child else None)
        right, left = children
        last = max([last, *(child.ulong("shared.rb_subtree_last") for child in children if child is not None)])
        told = vma.ulong("shared.rb_subtree_last")
        low = left.ulong("vm_pgoff") if left is not None else pgoff
        high = right.ulong("vm_pgoff") if right is not None else pgoff
        if last != told or not low <= pgoff <= high:
            yield vma.corrupt("vm_pgoff", f"{pgoff:#x}, which is not what i_mmap has: {told:#x} is the last page there")

    def _top(self, node: int) -> int:
        """Return the root ``struct rb_node *`` of the tree, 0 if there is none."""
        way: list[int] = []
        top = self._tops.get(node)
        while top is None and len(way) < RB_DEPTH_MAX:
            way.append(node)
            parent = self.kernel.read_pointer(node) & RB_PARENT
            top, node = (node, node) if not parent else (self._tops.get(parent), parent)
        self._tops.update(dict.fromkeys(way, top or 0))
        return top or 0


def _is_lent(dentry: StructView, inode: StructView) -> bool:
    """Tell whether the path may belong to another file system than the file."""
    if not (dentry.has("d_sb") and inode.has("i_sb")) or dentry.pointer("d_sb") == inode.pointer("i_sb"):
        return False
    sb = dentry.follow("d_sb", "super_block")
    return sb is not None and sb.find_uint("s_magic", dentry.kernel.arch.pointer_size) in (None, *LENT_PATHS)


def _sentences(checks: Iterator[CorruptStructure]) -> Iterator[str]:
    try:
        yield from map(str, checks)
    except LayoutError:
        return
    except (MemoryFault, CorruptStructure) as error:
        yield str(error)

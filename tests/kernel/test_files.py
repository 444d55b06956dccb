"""Broken tables of descriptors, by a small fake kernel; tests/e2e has intact ones.

Tests kernel/rbtree.py, kernel/fdinfo.py, kernel/socket.py.
"""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import KernelImage, Offsets
from vmcore2core.errors import CorruptStructure, LayoutUnknown, MemoryFault
from vmcore2core.kernel import files
from vmcore2core.kernel.fdinfo import fdinfo, pipe
from vmcore2core.kernel.rbtree import rb_nodes
from vmcore2core.kernel.socket import socket_of

OFFSETS: Offsets = {
    "task_struct": {"files": (1600, 8)},
    "files_struct": {"fdt": (32, 8)},
    "fdtable": {"max_fds": (0, 4), "fd": (8, 8), "close_on_exec": (16, 8), "open_fds": (24, 8)},
    "file": {
        "f_mode": (4, 4),
        "f_flags": (40, 4),
        "f_pos": (112, 8),
        "f_inode": (32, 8),
        "private_data": (24, 8),
        "f_path": (64, 16),
    },
    "inode": {"i_mode": (0, 2), "i_ino": (64, 8)},
    "pipe_inode_info": {"head": (80, 4), "tail": (84, 4), "ring_size": (92, 4), "readers": (100, 4), "bufs": (152, 8)},
    "pipe_buffer": {"len": (12, 4)},
    "rb_node": {"__rb_parent_color": (0, 8), "rb_right": (8, 8), "rb_left": (16, 8)},
    "socket": {"type": (4, 2), "sk": (24, 8)},
    "eventfd_ctx": {"count": (32, 8)},
}


class Table(KernelImage):
    """A task with a table of descriptors."""

    def __init__(self) -> None:
        super().__init__()
        for tag, members in OFFSETS.items():
            self.table.offsets.setdefault(tag, {}).update(members)
        self.table.sizes["pipe_buffer"] = 40
        self.fdt = self.make(
            "fdtable", max_fds=64, fd=self.alloc(512), open_fds=self.alloc(8), close_on_exec=self.alloc(8)
        )
        self.files = self.make("files_struct", fdt=self.fdt)

    def open(self, fd: int, file: int, *, on_exec: bool = False) -> None:
        """Give a file a descriptor."""
        fds, opened, closing = (self.word(self.fdt + at) for at in (8, 24, 16))
        self.words(fds + 8 * fd, file)
        self.words(opened, self.word(opened) | 1 << fd)
        self.words(closing, self.word(closing) | on_exec << fd)

    def listed(self) -> list[tuple[int, str, int]]:
        view = self.kernel().view("files_struct", self.files)
        return [(one.fd, one.access, one.flags) for one in files.descriptors(view)]


def test_descriptors_have_the_flag_of_the_table_and_not_of_the_file() -> None:
    table = Table()
    table.open(3, table.make("file", f_mode=1, f_flags=0o2100000))
    table.open(63, table.make("file", f_mode=3, f_flags=0o2), on_exec=True)
    table.open(7, table.make("file", f_mode=0x4000, f_flags=0o10000000))
    assert table.listed() == [(3, "r", 0o100000), (7, "", 0o10000000), (63, "rw", 0o2000002)]


def test_a_number_that_has_no_file_yet_is_passed_over() -> None:
    table = Table()
    table.open(5, 0)
    assert table.listed() == []


def test_a_table_that_is_too_large_is_refused() -> None:
    table = Table()
    table.set("fdtable", table.fdt, max_fds=1 << 30)
    with pytest.raises(CorruptStructure, match=r"fdtable\.max_fds .* 0x40000000, expected 0x1000000 at most"):
        table.listed()


def test_a_table_that_is_not_there_is_said() -> None:
    table = Table()
    table.set("files_struct", table.files, fdt=0)
    with pytest.raises(CorruptStructure, match=r"files_struct\.fdt"):
        table.listed()
    table.set("files_struct", table.files, fdt=0xFFFF_FFFF_8F00_0000)
    with pytest.raises(MemoryFault):
        table.listed()


def test_the_layout_says_what_it_lacks() -> None:
    table = Table()
    assert files.missing(table.kernel()) == ()
    del table.table.offsets["fdtable"]["open_fds"]
    assert files.missing(table.kernel()) == ("OFFSET(fdtable.open_fds)",)


def full_pipe(table: Table, head: int, tail: int, size: int = 4) -> int:
    bufs = table.alloc(40 * 4)
    for slot, length in enumerate((100, 200, 300, 400)):
        table.write(bufs + 40 * slot + 12, struct.pack("<I", length))
    info = table.make("pipe_inode_info", head=head, tail=tail, ring_size=size, readers=2, bufs=bufs)
    return table.make("file", private_data=info)


@pytest.mark.parametrize(
    ("head", "tail", "size"), [(3, 3, 0), (3, 1, 500), (0x1_0000_0001 & 0xFFFF_FFFF, 0xFFFF_FFFF, 500)]
)
def test_a_pipe_has_what_lies_between_its_tail_and_its_head(head: int, tail: int, size: int) -> None:
    table = Table()
    file = full_pipe(table, head, tail)
    assert pipe(table.kernel().view("file", file)) == {"readers": 2, "bytes": size}


@pytest.mark.parametrize(("head", "tail", "slots"), [(9, 1, 4), (1, 2, 4), (2, 1, 3), (2, 1, 0), (2, 1, 1 << 20)])
def test_a_pipe_that_has_more_than_its_slots_is_refused(head: int, tail: int, slots: int) -> None:
    table = Table()
    file = full_pipe(table, head, tail, slots)
    with pytest.raises(CorruptStructure, match=r"pipe_inode_info\.head"):
        pipe(table.kernel().view("file", file))


def test_a_file_without_private_data_has_no_more_to_say() -> None:
    table = Table()
    view = table.kernel().view("file", table.make("file", private_data=0))
    assert pipe(view) == {}
    assert fdinfo(view, b"anon_inode:[eventfd]") == {}
    assert fdinfo(view, b"/anon_inode:[eventfd]") == {}
    assert fdinfo(view, b"anon_inode:kvm-vm") == {}
    assert socket_of(view) is None


def test_an_eventfd_has_what_the_layout_knows() -> None:
    table = Table()
    file = table.make("file", private_data=table.make("eventfd_ctx", count=9))
    view = table.kernel().view("file", file)
    assert fdinfo(view, b"anon_inode:[eventfd]") == {"eventfd_count": "0x9"}
    del table.table.offsets["eventfd_ctx"]
    with pytest.raises(LayoutUnknown):
        fdinfo(table.kernel().view("file", view.address), b"anon_inode:[eventfd]")


def test_a_socket_that_was_released_has_its_type() -> None:
    table = Table()
    file = table.make("file", private_data=table.make("socket", type=2))
    view = table.kernel().view("file", file)
    found = socket_of(view)
    assert found is not None
    assert (found.type, found.sock, str(found)) == ("dgram", 0, "???")


def tree(table: Table, depth: int) -> int:
    """Make a full tree, and return its root's address."""

    def node(level: int, parent: int) -> int:
        if not level:
            return 0
        at = table.alloc(24)
        left, right = node(level - 1, at), node(level - 1, at)
        table.words(at, parent | level & 1, right, left)
        return at

    return table.words(table.alloc(16), node(depth, 0))


def test_a_tree_is_walked_in_its_order() -> None:
    table = Table()
    root = tree(table, 4)
    nodes = list(rb_nodes(table.kernel(), root, "eventpoll.rbr"))
    assert len(nodes) == len(set(nodes)) == 15
    assert nodes[7] == table.word(root)
    assert list(rb_nodes(table.kernel(), table.words(table.alloc(16), 0), "eventpoll.rbr")) == []


def test_a_tree_that_leads_back_into_itself_is_refused() -> None:
    table = Table()
    root = tree(table, 3)
    table.words(table.word(root) + 8, table.word(root))
    with pytest.raises(CorruptStructure, match=r"eventpoll\.rbr"):
        list(rb_nodes(table.kernel(), root, "eventpoll.rbr"))

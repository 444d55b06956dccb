"""Red-black trees (include/linux/rbtree.h)."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.struct import Kernel

NODES_MAX = 1 << 20
COLOUR = 3
"""Bits of ``rb_node.__rb_parent_color`` that do not belong to the parent's address."""


def rb_nodes(kernel: Kernel, root: int, where: str) -> Iterator[int]:
    """Yield the address of each ``struct rb_node`` of a tree, in its order.

    Args:
        kernel: the dumped kernel.
        root: address of ``struct rb_root``, or of ``struct rb_root_cached``, which begins with one.
        where: C type and member, for messages.

    Raises:
        CorruptStructure: after the good ones: a node names another parent, or there are more than ``NODES_MAX`` nodes.
        MemoryFault: likewise: a node cannot be read.
    """
    waiting: list[tuple[int, int]] = []
    above, node, count = 0, kernel.read_pointer(root), 0
    while node or waiting:
        while node:
            view = kernel.view("rb_node", node)
            parent = view.ulong("__rb_parent_color") & ~COLOUR
            count += 1
            if parent != above or count > NODES_MAX:
                raise CorruptStructure(f"the parent is {parent:#x}, expected {above:#x}", node, where)
            waiting.append((node, above))
            above, node = node, view.pointer("rb_left")
        above, _ = waiting.pop()
        yield above
        node = kernel.view("rb_node", above).pointer("rb_right")

"""Maple tree, the index of a process's VMAs since Linux 6.1.

References: include/linux/maple_tree.h, lib/maple_tree.c (v7.2): mte_to_node(), mte_node_type(), ma_data_end().
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from vmcore2core.addresses import KernelAddr
from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

MAPLE_NODE_MASK = 255  # nodes are aligned to 256 bytes
MAPLE_NODE_TYPE_SHIFT = 3
MAPLE_NODE_TYPE_MASK = 15
MAPLE_HEIGHT_MAX = 31
MAX_NODES = 1 << 20  # more VMAs than vm.max_map_count allows


class MapleType(IntEnum):
    """enum maple_type, Linux 6.1 to 7.x."""

    DENSE = 0
    LEAF_64 = 1
    RANGE_64 = 2
    ARANGE_64 = 3
    COPY = 4


class NodeForm(NamedTuple):
    """Where one node type has its pivots, its slots and the number of the last used slot.

    Attributes:
        shares_end: whether that number is in the last slot while this slot is unused.
    """

    pivot: int
    slot: int
    nr_slots: int
    end: int
    shares_end: bool


def xa_is_node(entry: int) -> bool:
    """Tell whether an entry is a tree node: internal (low bits 10) and beyond the reserved ones."""
    return entry & 3 == 2 and entry > 4096


class MapleTree:
    """One ``struct maple_tree``."""

    def __init__(self, tree: StructView) -> None:
        self.tree = tree
        self.kernel: Kernel = tree.kernel
        layout, word = self.kernel.layout, self.kernel.arch.pointer_size
        # MAPLE_RANGE64_SLOTS is 16 on 64-bit and 32 on 32-bit machines, MAPLE_ARANGE64_SLOTS 10 and 21.
        wide, narrow = (16, 10) if word == 8 else (32, 21)
        node = layout.find_member("maple_node", "mr64")
        base = node.offset if node else 0
        range_slot = base + layout.member("maple_range_64", "slot").offset
        end = layout.member("maple_metadata", "end").offset
        range_pivot, range_end = base + layout.member("maple_range_64", "pivot").offset, range_slot + word * (wide - 1)
        range_form = NodeForm(range_pivot, range_slot, wide, range_end + end, shares_end=True)
        # struct maple_metadata shares the last slot of a range node; an arange node has it by itself.
        arange = NodeForm(
            base + layout.member("maple_arange_64", "pivot").offset,
            base + layout.member("maple_arange_64", "slot").offset,
            narrow,
            base + layout.member("maple_arange_64", "meta").offset + end,
            shares_end=False,
        )
        parent = layout.find_member("maple_node", "parent")
        self._has_parent = parent is not None and parent.offset == 0
        self.forms = {MapleType.LEAF_64: range_form, MapleType.RANGE_64: range_form, MapleType.ARANGE_64: arange}

    def entries(self) -> Iterator[KernelAddr]:
        """Yield the pointers stored in the tree in index order; errors as of ``ranges``."""
        return (entry for _, _, entry in self.ranges())

    def ranges(self) -> Iterator[tuple[int, int, KernelAddr]]:
        """Yield (first index, last index, pointer) of each entry of the tree, in index order.

        Raises:
            CorruptStructure: after the good entries: a node that is not readable, of an unknown type, out of order,
                or visited twice.
        """
        root = self.tree.pointer("ma_root")
        if not xa_is_node(root):
            # A tree of one entry at index 0 has it in ma_root; reserved and internal entries are no pointers.
            if root & 3 == 0 and root:
                yield 0, 0, root
            return
        yield from self._node(root & ~2, 0, (1 << (8 * self.kernel.arch.pointer_size)) - 1, 0, set())

    def _node(
        self, enode: int, minimum: int, maximum: int, depth: int, seen: set[int], above: int | None = None
    ) -> Iterator[tuple[int, int, KernelAddr]]:
        node = enode & ~MAPLE_NODE_MASK
        where = "maple_node"
        if depth > MAPLE_HEIGHT_MAX or node in seen or len(seen) >= MAX_NODES:
            raise CorruptStructure("the tree leads back into itself or is too deep", node, where)
        seen.add(node)
        kind = enode >> MAPLE_NODE_TYPE_SHIFT & MAPLE_NODE_TYPE_MASK
        form = self.forms.get(MapleType(kind)) if kind <= MapleType.COPY else None
        if form is None:
            raise CorruptStructure(f"node type {kind}, expected leaf_64, range_64 or arange_64", node, where)
        try:
            pivots = self._words(node + form.pivot, form.nr_slots - 1)
            slots = self._words(node + form.slot, form.nr_slots)
            end = self._data_end(node, form, pivots, maximum)
            parent = self._words(node, 1)[0] & ~MAPLE_NODE_MASK if self._has_parent else above
        except MemoryFault as fault:
            raise CorruptStructure(str(fault), node, where) from None
        if above is not None and parent not in (0, above):
            raise CorruptStructure(f"parent is {parent:#x}, expected {above:#x}", node, where)
        start = minimum
        for i in range(end + 1):
            # The last slot reaches to the node's own maximum, and its pivot may be left 0.
            last = pivots[i] if i < end else maximum
            if not start <= last <= maximum or (last == maximum and i < end):
                raise CorruptStructure(
                    f"pivot {i} of {end} is {last:#x}, expected {start:#x} to {maximum:#x}", node, where
                )
            slot = slots[i]
            if kind == MapleType.LEAF_64:
                if slot & 3 == 0 and slot:
                    yield start, last, KernelAddr(slot)
            elif slot > 4096:
                yield from self._node(slot, start, last, depth + 1, seen, node)
            start = last + 1

    def _data_end(self, node: int, form: NodeForm, pivots: list[int], maximum: int) -> int:
        """Return the number of a node's last slot: ma_data_end()."""
        final = form.nr_slots - 2  # the last pivot
        if form.shares_end and pivots[final]:
            return final if pivots[final] == maximum else final + 1
        return min(self.kernel.uint(node + form.end, 1), form.nr_slots - 1)

    def _words(self, address: int, count: int) -> list[int]:
        word, order = self.kernel.arch.pointer_size, self.kernel.arch.byte_order
        raw = self.kernel.memory.read(address, word * count)
        return list(struct.unpack(f"{'<' if order == 'little' else '>'}{count}{'Q' if word == 8 else 'I'}", raw))

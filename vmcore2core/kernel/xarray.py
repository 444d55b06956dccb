"""XArray, the index of a file's cached pages since Linux 4.20.

References: include/linux/xarray.h, lib/xarray.c (v7.2): xas_load(), xa_is_sibling(), xa_to_sibling().
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

NODES_MAX = 1 << 22  # of 64 pages each: a TiB
WORD_BITS = 64  # of an index: bounds the depth, as each level has a lower shift


class XaRun(NamedTuple):
    """Entry stored for the indices ``[first, last]`` (more than one: a multi-index entry, such as a large folio)."""

    first: int
    last: int
    entry: int

    @property
    def is_value(self) -> bool:
        """Whether it is an integer (a shadow or swap entry), not a pointer."""
        return bool(self.entry & 1)


class XArray:
    """One ``struct xarray``.

    Args:
        xa: ``struct xarray``.
        counted: whether nodes count their used slots; an IDR's nodes count allocated numbers.
    """

    def __init__(self, xa: StructView, *, counted: bool = True) -> None:
        self.xa, self._counted = xa, counted
        self.kernel: Kernel = xa.kernel
        layout = self.kernel.layout
        self._slots = layout.member("xa_node", "slots").offset
        self._shift = layout.member("xa_node", "shift").offset
        chunk = layout.member("xa_node", "slots").size
        self._nr_slots = chunk // self.kernel.arch.pointer_size if chunk else 64
        self._bits = max(self._nr_slots.bit_length() - 1, 1)
        self._dtype: np.dtype[np.unsignedinteger] = np.dtype(
            ("<" if self.kernel.arch.byte_order == "little" else ">") + f"u{self.kernel.arch.pointer_size}"
        )

    def runs(self, first: int, last: int) -> Iterator[XaRun]:
        """Yield the entries at the indices ``[first, last]``, ascending; a run may begin before and end after them.

        Raises:
            CorruptStructure: after the good entries: a node that is not readable or does not get smaller.
        """
        head = self.xa.pointer("xa_head")
        if not self._is_node(head):
            if head and first == 0:
                yield XaRun(0, 0, head)
            return
        yield from self._node(head - 2, 0, first, last, None, None, set())

    @staticmethod
    def _is_node(entry: int) -> bool:
        return entry & 3 == 2 and entry > 4096

    def _node(
        self,
        node: int,
        base: int,
        first: int,
        last: int,
        shift_expected: int | None,
        above: tuple[int, int] | None,
        seen: set[int],
    ) -> Iterator[XaRun]:
        try:
            shift = self.kernel.uint(node + self._shift, 1)
            raw = self.kernel.memory.read(node + self._slots, self._nr_slots * self._dtype.itemsize)
        except MemoryFault as fault:
            raise CorruptStructure(str(fault), node, "xa_node") from None
        # Each level has the same bits: shift is the last one's plus those, and never skips a level.
        if shift != (shift_expected if shift_expected is not None else shift // self._bits * self._bits) or (
            shift >= WORD_BITS
        ):
            expected = f"a multiple of {self._bits}" if shift_expected is None else str(shift_expected)
            raise CorruptStructure(f"shift {shift}, expected {expected}", node, "xa_node.shift", self._shift)
        self._check_links(node, above, seen)
        slots: NDArray[np.uint64] = np.frombuffer(raw, self._dtype).astype(np.uint64)
        if self._counted:
            self._check_count(node, int(np.count_nonzero(slots)))
        span = 1 << shift
        for offset in (int(i) for i in np.flatnonzero(slots)):
            entry = int(slots[offset])
            start = base + offset * span
            if start > last or (entry & 3 == 2 and entry < 4096):
                continue  # beyond the range, or a sibling, whose canonical slot came before
            end = start + span - 1
            if self._is_node(entry):
                if end >= first:
                    if shift == 0:
                        raise CorruptStructure(f"node {entry:#x} below the last level", node, "xa_node.slots")
                    yield from self._node(entry - 2, start, first, last, shift - self._bits, (node, offset), seen)
                continue
            sibling = offset << 2 | 2
            after = offset + 1
            while after < self._nr_slots and int(slots[after]) == sibling:
                after += 1
                end += span
            if end >= first:
                yield XaRun(start, end, entry)

    def _check_links(self, node: int, above: tuple[int, int] | None, seen: set[int]) -> None:
        """Check that a node names its parent: else several slots could lead to one node, which would be walked often.

        Args:
            node: ``struct xa_node *``.
            above: the node above and the slot that leads here; None for the first.
            seen: the nodes of this walk.
        """
        if node in seen or len(seen) >= NODES_MAX:
            raise CorruptStructure("the tree leads back into itself, or is too large", node, "xa_node")
        seen.add(node)
        view = self.kernel.view("xa_node", node)
        parent, slot = above or (0, 0)
        for name, expected in (("parent", parent), ("array", self.xa.address)):
            if view.has(name) and view.pointer(name) != expected:
                raise view.corrupt(name, f"{view.pointer(name):#x}, expected {expected:#x}")
        offset = view.find_uint("offset", 1)
        if above is not None and offset not in (None, slot):
            raise view.corrupt("offset", f"{offset}, expected {slot}")

    def _check_count(self, node: int, there: int) -> None:
        view = self.kernel.view("xa_node", node)
        count = view.find_uint("count", 1)
        if count not in (None, there):
            raise view.corrupt("count", f"{count} entries, expected {there} as there are")

"""XArray, the index of a file's cached pages since Linux 4.20.

References: include/linux/xarray.h, lib/xarray.c (v7.2): xas_load(), xa_is_sibling(), xa_to_sibling().
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel.struct import Kernel, StructView

MAX_DEPTH = 12  # 64 index bits at 6 bits a level, and one for good measure


@dataclass(frozen=True, slots=True)
class XaRun:
    """Entry stored for the indices ``[first, last]`` (more than one: a multi-index entry, such as a large folio)."""

    first: int
    last: int
    entry: int

    @property
    def is_value(self) -> bool:
        """Whether it is an integer (a shadow or swap entry), not a pointer."""
        return bool(self.entry & 1)


class XArray:
    """One ``struct xarray``."""

    def __init__(self, xa: StructView) -> None:
        self.xa = xa
        self.kernel: Kernel = xa.kernel
        layout = self.kernel.layout
        self._slots = layout.member("xa_node", "slots").offset
        self._shift = layout.member("xa_node", "shift").offset
        chunk = layout.member("xa_node", "slots").size
        self._nr_slots = chunk // self.kernel.arch.pointer_size if chunk else 64
        self._dtype: np.dtype[np.unsignedinteger] = np.dtype(
            ("<" if self.kernel.arch.byte_order == "little" else ">") + f"u{self.kernel.arch.pointer_size}"
        )

    def runs(self, first: int, last: int) -> Iterator[XaRun]:
        """Yield what is stored at the indices ``[first, last]``, ascending; a run may begin before and end after them.

        Raises:
            CorruptStructure: after the good entries: a node that is not readable or does not get smaller.
        """
        head = self.xa.pointer("xa_head")
        if not self._is_node(head):
            if head and first == 0:
                yield XaRun(0, 0, head)
            return
        yield from self._node(head - 2, 0, first, last, 1 << 8, 0)

    @staticmethod
    def _is_node(entry: int) -> bool:
        return entry & 3 == 2 and entry > 4096

    def _node(self, node: int, base: int, first: int, last: int, shift_above: int, depth: int) -> Iterator[XaRun]:
        try:
            shift = self.kernel.read_uint(node + self._shift, 1)
            raw = self.kernel.memory.read(node + self._slots, self._nr_slots * self._dtype.itemsize)
        except MemoryFault as fault:
            raise CorruptStructure(str(fault), node, "xa_node") from None
        if shift >= shift_above or depth > MAX_DEPTH:
            raise CorruptStructure(f"shift {shift} below one of shift {shift_above}", node, "xa_node.shift")
        slots: NDArray[np.uint64] = np.frombuffer(raw, self._dtype).astype(np.uint64)
        span = 1 << shift
        for offset in (int(i) for i in np.flatnonzero(slots)):
            entry = int(slots[offset])
            start = base + offset * span
            if start > last or (entry & 3 == 2 and entry < 4096):
                continue  # beyond, or a sibling: its canonical slot has told already
            end = start + span - 1
            if self._is_node(entry):
                if end >= first:
                    yield from self._node(entry - 2, start, first, last, shift, depth + 1)
                continue
            sibling = offset << 2 | 2
            after = offset + 1
            while after < self._nr_slots and int(slots[after]) == sibling:
                after += 1
                end += span
            if end >= first:
                yield XaRun(start, end, entry)

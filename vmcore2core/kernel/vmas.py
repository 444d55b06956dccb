"""All ``struct vm_area_struct`` of a process at once: a column of numbers for each member.

Each is checked as in ``mm.for_each_vma``. numpy finds the suspects, and only these are checked one by one, for the
message.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel import mm
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.structs import Structs, read_words

Flags = NDArray[np.bool_]


class Vmas(Structs):
    """The mappings of a ``struct mm_struct``, in the order of the kernel's index of them (maple tree or list).

    Args:
        owner: ``struct mm_struct``.

    Attributes:
        start, end, flags, file: ``vm_start``, ``vm_end``, ``vm_flags`` and ``vm_file``, uint64[n] each.
    """

    def __init__(self, owner: StructView) -> None:
        self.owner = owner
        self._first, self._last = array("Q"), array("Q")  # each mapping's range in the index; empty for a list
        self._error: CorruptStructure | MemoryFault | None = None
        super().__init__(owner.kernel, "vm_area_struct", list(self._listed()))
        self.start, self.end, self.flags, self.file = map(self.ulong, ("vm_start", "vm_end", "vm_flags", "vm_file"))

    def _listed(self) -> Iterator[int]:
        try:
            for indexed, vma in mm.each_vma(self.owner):
                if indexed is not None:
                    self._first.append(indexed[0])
                    self._last.append(indexed[1] - 1)
                yield int(vma.address)
        except (CorruptStructure, MemoryFault) as error:
            self._error = error

    def only(self, rows: Sequence[int]) -> Vmas:
        """Return the mappings of some rows, which ``checked`` yielded, without checking them again."""
        if len(rows) == len(self):
            return self
        kept, found = np.array(rows, np.intp), copy(self)
        raw, whole = self._read
        found.addresses, found._read = self.addresses[kept], (raw[kept], whole[kept])
        found.start, found.end, found.flags, found.file = (
            column[kept] for column in (self.start, self.end, self.flags, self.file)
        )
        return found

    def checked(self, problems: list[CorruptStructure]) -> Iterator[int]:
        """Yield the row of each mapping that fits the others; see ``mm.for_each_vma``.

        Args:
            problems: as there.

        Raises:
            CorruptStructure, MemoryFault: as there.
        """
        suspects = (~self._in_place() | self._odd()).tolist()
        end_before = 0
        for row in range(len(self)):
            if suspects[row]:
                vma, indexed = self.view(row), (self._first[row], self._last[row] + 1) if self._first else None
                try:
                    mm.check_range(self.owner, vma, end_before, indexed)
                    problems += mm.oddities(self.owner, vma)
                except CorruptStructure as error:
                    if indexed is None:
                        raise
                    problems.append(error)
                    continue
            end_before = int(self.end[row])
            yield row
        if self._error is not None:
            raise self._error
        problems += mm.miscounted(self.owner, len(self))

    def _in_place(self) -> Flags:
        """Tell which ranges are plausible behind the ones before; if one is not, none is."""
        start, end = self.start, self.end
        fits: Flags = self.whole & (start < end) & (end <= np.uint64(self.kernel.arch.user_end))
        fits &= (start | end) & np.uint64(mm.PAGE_SIZE_MIN - 1) == 0
        fits[1:] &= start[1:] >= end[:-1]
        if self._first:
            fits &= (start == np.array(self._first)) & (end - np.uint64(1) == np.array(self._last))
        return fits if fits.all() else np.zeros(len(self), np.bool_)

    def _odd(self) -> Flags:
        """Tell which may be impossible; ``mm.oddities`` then says whether they are."""
        odd: Flags = ~self.whole | self._odd_anon_vma() | self._odd_flags() | self._odd_prot()
        if self.has("vm_mm"):
            odd |= self.ulong("vm_mm") != np.uint64(self.owner.address)
        return odd

    def _odd_flags(self) -> Flags:
        flags, ops = self.flags, self.ulong("vm_ops")
        granted, allowed = flags & _u64(mm.VM_ACCESS_FLAGS), flags >> _u64(mm.VM_MAY_SHIFT) & _u64(mm.VM_ACCESS_FLAGS)
        odd: Flags = (granted & ~allowed != 0) | (flags >> _u64(mm.VM_FLAGS_BITS) != 0)
        odd |= flags & _u64(mm.VM_PFNMAP | mm.VM_MIXEDMAP) == _u64(mm.VM_PFNMAP | mm.VM_MIXEDMAP)
        odd |= self._are(mm.VM_SHARED) & ~self._are(mm.VM_MAYSHARE)
        if not self.has("vm_ops"):
            return odd
        odd |= self._are(mm.NOT_ANONYMOUS) & (ops == 0) & (self.file == 0)
        # Special mappings have operations and no file; there are few. kind="table" would fail above 2^63 in NumPy 2.0.
        special = [self.kernel.layout.find_symbol(name) or 0 for name in mm.SPECIAL_OPERATIONS]
        odd |= (ops != 0) & ((self.file == 0) | np.isin(ops, np.array(special, np.uint64), kind="sort"))
        return odd

    def _odd_prot(self) -> Flags:
        """Tell which may have a vm_page_prot that does not fit vm_flags; see ``mm.oddities``."""
        paging, odd = self.kernel.arch.paging, np.zeros(len(self), np.bool_)
        prot = self.find_uint("vm_page_prot", self.kernel.arch.pointer_size)
        if not paging.prot_valid or prot is None:
            return odd
        valid, access = prot & _u64(paging.prot_valid) != 0, self._are(mm.VM_ACCESS_FLAGS)
        odd |= valid != access
        odd |= self._are(mm.VM_EXEC) & (prot & _u64(paging.prot_noexec) != 0)
        writable = (prot & _u64(paging.pte_write) != 0) & ~self._are(paging.vm_shadow_stack)
        odd |= writable & ~(self._are(mm.VM_SHARED) & self._are(mm.VM_WRITE))
        return odd

    def _odd_anon_vma(self) -> Flags:
        odd = np.zeros(len(self), np.bool_)
        at, chain = self.find_uint("anon_vma", self.kernel.arch.pointer_size), "anon_vma_chain"
        if at is None:
            return odd
        if self.has(chain):
            head = self.addresses + _u64(self.kernel.layout.member(self.struct, chain).offset)
            linked, there = read_words(self.kernel, head)
            odd |= ~there | ((linked != head) != (at != 0))
        odd[at != 0] |= ~self.kernel.memory.are_mapped(at[at != 0])
        return odd

    def _are(self, bits: int) -> Flags:
        """Tell which have any of these ``VM_*`` bits."""
        result: Flags = self.flags & _u64(bits) != 0
        return result

    def may_be_named(self) -> Flags:
        """Tell for which ones ``mm.vma_name`` may return a name, or raise."""
        named: Flags = ~self.whole | (self.file != 0) | (self.ulong("anon_name") != 0)
        named |= self.ulong("vm_ops") != 0 if self.has("vm_ops") else self.ulong("vm_private_data") != 0
        word = self.kernel.arch.pointer_size
        try:
            start_brk, brk, stack = (self.owner.find_uint(name, word) for name in ("start_brk", "brk", "start_stack"))
        except MemoryFault:
            return np.ones(len(self), np.bool_)
        if start_brk is not None and brk is not None:
            named |= (self.start < _u64(brk)) & (self.end > _u64(start_brk))
        if stack is not None:
            named |= (self.start <= _u64(stack)) & (_u64(stack) <= self.end)
        return named


def _u64(number: int) -> np.uint64:
    return np.uint64(number)

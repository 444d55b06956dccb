"""Special mappings whose pages the kernel keeps in an array: on ARM, [sigpage], [vvar] and [vdso].

References: mm/mmap.c: special_mapping_fault(), include/linux/mm_types.h: struct vm_special_mapping (Linux 4.18 to 7.2).
"""

from __future__ import annotations

import numpy as np

from vmcore2core.addresses import PhysAddrs
from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel import mm
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.pages import Pages
from vmcore2core.process.filebacking import CachedLookups

PAGES_MAX = 64


class SpecialBacking:
    """``Backing`` of a special mapping; the index counts pages from the start of the mapping.

    Args:
        cache: who knows where the memory of a ``struct page`` is.
        mapping: ``struct vm_special_mapping``.
    """

    def __init__(self, cache: CachedLookups, mapping: StructView) -> None:
        self._cache, self._mapping = cache, mapping

    def lookup(self, first: int, last: int) -> Pages:
        """Return the pages that the special mapping lists."""
        kernel, found = self._mapping.kernel, []
        array, word = self._mapping.pointer("pages"), kernel.arch.pointer_size
        for index in range(first, min(last + 1, PAGES_MAX)):
            try:
                page = kernel.read_pointer(array + word * index)
                paddr = self._cache.paddr_of(page) if page else None
            except (CorruptStructure, MemoryFault):
                break
            if paddr is None:
                break
            found.append(paddr)
        indices = np.arange(first, first + len(found), dtype=np.uint64)
        return Pages.in_memory(indices, PhysAddrs(np.array(found, np.uint64)))


def special_backing(view: StructView, cache: CachedLookups) -> SpecialBacking | None:
    """Return where a special mapping's pages come from; None if it is not special, or has no pages of its own.

    Args:
        view: ``struct vm_area_struct``.
        cache: as ``SpecialBacking``.
    """
    layout = view.kernel.layout
    if not mm.special_mapping_name(view):
        return None
    if any(layout.find_member("vm_special_mapping", name) is None for name in ("pages", "fault")):
        return None
    mapping = view.kernel.view("vm_special_mapping", view.pointer("vm_private_data"))
    try:
        usable = bool(mapping.pointer("pages")) and not mapping.pointer("fault")
    except MemoryFault:
        return None
    return SpecialBacking(cache, mapping) if usable else None

"""i386: page tables of two levels, and of three with PAE.

References: arch/x86/include/asm/pgtable-{2level,3level}_types.h, pgtable-2level.h (Linux 7.2); Intel SDM volume 3, 4.3
and 4.4.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.arch.spec import EntryKind, PageTableLevel, PageTableSpec
from vmcore2core.arch.x86 import paging as x86_paging
from vmcore2core.formats import i386 as fmt
from vmcore2core.formats import x86_64 as x86

_LEVELS = (PageTableLevel("pgd", 22, 10), PageTableLevel("pte", 12, 10))
_LEVELS_PAE = (PageTableLevel("pgd", 30, 2), PageTableLevel("pmd", 21, 9), PageTableLevel("pte", 12, 9))


def decode_2level(entries: U64Array, index: int) -> tuple[U8Array, U64Array]:
    """Decode entries of 32 bits, see ``PageTableSpec.decode``.

    Addresses of PROT_NONE entries are never inverted (protnone_mask() in pgtable-2level.h).
    """
    entries = entries & ~np.uint64(x86.PAGE_KNL_ERRATUM_MASK)
    present = (entries & np.uint64(x86.PAGE_PRESENT)) != 0
    leaf = present | ((entries & np.uint64(x86.PAGE_PROTNONE)) != 0)
    paddr: U64Array = entries & np.uint64(fmt.PTE_PFN_MASK)
    reserved = np.zeros(len(entries), np.bool_)
    if _LEVELS[index].name == "pgd":
        leaf &= (entries & np.uint64(x86.PAGE_PSE)) != 0
        high = entries >> np.uint64(fmt.PSE_36_SHIFT) & np.uint64((1 << fmt.PSE_36_BITS) - 1)
        paddr = np.where(leaf, entries & np.uint64(fmt.PSE_PFN_MASK) | high << np.uint64(32), paddr)
        reserved = leaf & ((entries & np.uint64(fmt.PSE_RESERVED)) != 0)
    kind = np.full(len(entries), EntryKind.NOT_PRESENT, np.uint8)
    kind[present] = EntryKind.TABLE
    kind[leaf] = EntryKind.LEAF
    kind[reserved] = EntryKind.BAD
    kind[entries == 0] = EntryKind.NONE
    return kind, np.where(present | leaf, paddr, np.uint64(0))


TWO_LEVELS = PageTableSpec(levels=_LEVELS, entry_dtype=np.dtype("<u4"), decode=decode_2level)
PAE = PageTableSpec(
    levels=_LEVELS_PAE,
    entry_dtype=np.dtype("<u8"),
    decode=partial(x86_paging.decode, levels=_LEVELS_PAE, pfn_mask=x86.PTE_PFN_MASK),
)

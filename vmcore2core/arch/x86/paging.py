"""x86: page-table entries of 64 bits, for x86-64 and for i386 with PAE.

References: arch/x86/include/asm/{pgtable_types,pgtable-invert,pgtable_64,pgtable-3level}.h (Linux 7.2).
"""

from __future__ import annotations

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.arch.spec import EntryKind, PageTableLevel
from vmcore2core.formats import x86_64 as fmt


def decode(
    entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...], pfn_mask: int
) -> tuple[U8Array, U64Array]:
    """Decode page-table entries, see ``PageTableSpec.decode``."""
    level = levels[index]
    entries = entries & ~np.uint64(fmt.PAGE_KNL_ERRATUM_MASK)
    present = (entries & np.uint64(fmt.PAGE_PRESENT)) != 0
    # PROT_NONE and NUMA-hinting pages are in memory, only not accessible.
    protnone = ~present & ((entries & np.uint64(fmt.PAGE_PROTNONE)) != 0)
    paddr = entries & np.uint64(pfn_mask)
    # Since Linux kernel commit 6b28baca9b1f ("x86/speculation/l1tf: Protect PROT_NONE PTEs against speculation")
    # (in v4.19 and stable kernels), their address bits are inverted; RAM never reaches up to the top bit.
    inverted = protnone & ((entries & np.uint64(fmt.PTE_INVERTED_BIT)) != 0)
    paddr = np.where(inverted, ~entries & np.uint64(pfn_mask), paddr)
    if level.name == "pte":
        leaf = present | protnone
    else:
        leaf = (present | protnone) & ((entries & np.uint64(fmt.PAGE_PSE)) != 0)
        paddr = np.where(leaf, paddr & ~np.uint64((1 << level.shift) - 1), paddr)
    kind = np.full(len(entries), EntryKind.NOT_PRESENT, np.uint8)
    kind[present] = EntryKind.TABLE
    kind[leaf] = EntryKind.LEAF
    if level.name in ("pgd", "p4d"):
        kind[leaf] = EntryKind.BAD  # no 256 TiB or 512 GiB pages exist
    elif level.name != "pte":
        reserved = ((1 << level.shift) - 1) & ~((fmt.PAGE_PAT_LARGE << 1) - 1)
        kind[leaf & present & ((entries & np.uint64(reserved)) != 0)] = EntryKind.BAD
    kind[entries == 0] = EntryKind.NONE
    present_or_leaf = present | leaf
    return kind, np.where(present_or_leaf, paddr, np.uint64(0))


def swap_entry(entries: U64Array) -> tuple[U64Array, U64Array]:
    """Return type and offset (``SwapEntries``); since the L1TF mitigation (v4.19), the offset is inverted."""
    types: U64Array = entries >> np.uint64(64 - fmt.SWP_TYPE_BITS)
    return types, (~entries << np.uint64(fmt.SWP_TYPE_BITS)) >> np.uint64(fmt.SWP_OFFSET_SHIFT)

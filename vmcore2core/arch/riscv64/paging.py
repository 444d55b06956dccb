"""RISC-V's page tables: Sv39, Sv48, Sv57, with Svpbmt and Svnapot.

References: the privileged specification, "Sv39" to "Svpbmt"; arch/riscv/include/asm/{pgtable,pgtable-64,pgtable-bits}.h
(Linux 7.2).
"""

from __future__ import annotations

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.arch.spec import EntryKind, PageTableLevel
from vmcore2core.formats import riscv64 as fmt

LEVELS = {
    39: (PageTableLevel("pgd", 30, 9), PageTableLevel("pmd", 21, 9), PageTableLevel("pte", 12, 9)),
    48: (
        PageTableLevel("pgd", 39, 9),
        PageTableLevel("pud", 30, 9),
        PageTableLevel("pmd", 21, 9),
        PageTableLevel("pte", 12, 9),
    ),
    57: (
        PageTableLevel("pgd", 48, 9),
        PageTableLevel("p4d", 39, 9),
        PageTableLevel("pud", 30, 9),
        PageTableLevel("pmd", 21, 9),
        PageTableLevel("pte", 12, 9),
    ),
}
"""Bits of a virtual address -> levels."""


def decode(entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...]) -> tuple[U8Array, U64Array]:
    """Decode page-table entries, see ``PageTableSpec.decode``.

    The page of a NAPOT entry comes without its lowest address bits, which are those of ``napot_address_bits``.
    """
    level = levels[index]
    last = level.name == "pte"
    present = _has(entries, fmt.PAGE_PRESENT)
    # PROT_NONE pages are in memory, only not accessible. A huge page that is being split has only lost the valid bit
    # for a moment: pmd_present() in arch/riscv/include/asm/pgtable.h.
    absent_leaf = ~present & _has(entries, fmt.PAGE_PROT_NONE if last else fmt.PAGE_PROT_NONE | fmt.PAGE_LEAF)
    permissions = entries & np.uint64(fmt.PAGE_LEAF)
    leaf = absent_leaf | (present & (permissions != 0))
    paddr = (entries & np.uint64(fmt.PFN_MASK)) >> np.uint64(fmt.PFN_SHIFT) << np.uint64(fmt.PAGE_SHIFT)
    napot = leaf & _has(entries, fmt.NAPOT) & ((entries & np.uint64(fmt.NAPOT_SIZE_MASK)) == fmt.NAPOT_64K)
    paddr = np.where(napot, paddr & ~np.uint64(fmt.NAPOT_64K_ADDRESS), paddr)

    kind = np.full(len(entries), EntryKind.NOT_PRESENT, np.uint8)
    kind[present] = EntryKind.BAD if last else EntryKind.TABLE
    kind[leaf] = EntryKind.LEAF
    # Written without R is a shadow stack (Zicfiss); with X and without R it is nothing.
    bad = present & (permissions == fmt.PAGE_WRITE | fmt.PAGE_EXEC)
    bad |= present & ~leaf & _has(entries, fmt.TABLE_RESERVED)
    bad |= leaf & _has(entries, fmt.LEAF_RESERVED)
    bad |= leaf & _has(entries, fmt.NAPOT) & (~napot if last else True)
    bad |= leaf & ((paddr & np.uint64((1 << level.shift) - 1)) != 0)
    kind[bad] = EntryKind.BAD
    kind[entries == 0] = EntryKind.NONE
    known = (kind == EntryKind.TABLE) | (kind == EntryKind.LEAF)
    return kind, np.where(known, paddr, np.uint64(0))


def napot_address_bits(entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...]) -> U64Array:
    """Return the bits of the virtual address that a NAPOT entry leaves as they are, see ``PageTableSpec``."""
    napot = _has(entries, fmt.NAPOT) if levels[index].name == "pte" else np.zeros(len(entries), np.bool_)
    return np.where(napot, np.uint64(fmt.NAPOT_64K_ADDRESS), np.uint64(0))


def swap_entry(entries: U64Array) -> tuple[U64Array, U64Array]:
    """Return type and offset, see ``Arch.swap_entry``; the same at all levels, __pmd_to_swp_entry()."""
    types = entries >> np.uint64(fmt.SWP_TYPE_SHIFT) & np.uint64(fmt.SWP_TYPE_MASK)
    return types, entries >> np.uint64(fmt.SWP_OFFSET_SHIFT)


def _has(entries: U64Array, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (entries & np.uint64(bits)) != 0
    return found

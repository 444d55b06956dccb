"""LoongArch's page tables as Linux has them: two to four levels of 4, 16 or 64 KiB pages.

The kernel's exception handlers walk them, so their form is the kernel's own: an entry that leads to a table has the
table's kernel address, and an empty entry has the address of ``invalid_*_table``, whose entries are empty, too.

References: arch/loongarch/include/asm/{pgtable,pgtable-bits}.h, arch/loongarch/mm/pgtable.c (Linux 7.2).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U8Array, U64Array
from vmcore2core.arch.capabilities import PlainSwapEntries
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import EntryKind, KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

IMAGE_ALIGN = 2 << 20
IMAGE_MAX = 256 << 20
INVALID_TABLES = ("invalid_pte_table", "invalid_pmd_table", "invalid_pud_table")
LINEAR_END = fmt.CACHE_BASE + (1 << fmt.DMW_PABITS)

_NAMES = {2: ("pgd", "pte"), 3: ("pgd", "pmd", "pte"), 4: ("pgd", "pud", "pmd", "pte")}


def page_table_spec(page_size: int, levels: int, invalid: tuple[int, ...] = ()) -> PageTableSpec:
    """Return the form of page tables.

    Args:
        page_size: bytes; a table is one page.
        levels: CONFIG_PGTABLE_LEVELS.
        invalid: addresses of the tables that stand for "nothing"; if they are not known, the walk enters them and finds
            them empty.
    """
    shift, bits = page_size.bit_length() - 1, page_size.bit_length() - 4
    made = tuple(PageTableLevel(name, shift + bits * (levels - 1 - i), bits) for i, name in enumerate(_NAMES[levels]))
    known = np.array(sorted(invalid), np.uint64)
    return PageTableSpec(
        made, np.dtype("<u8"), partial(decode, levels=made, page_size=page_size, invalid=known), page_size
    )


def decode(
    entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...], page_size: int, invalid: U64Array
) -> tuple[U8Array, U64Array]:
    """Decode page-table entries, see ``PageTableSpec.decode``."""
    if index == len(levels) - 1:
        return _decode_pte(entries, page_size)
    kind = np.full(len(entries), EntryKind.BAD, np.uint8)
    inside = np.uint64(fmt.TO_PHYS_MASK)
    table = entries & ~(inside & ~np.uint64(page_size - 1)) == np.uint64(fmt.CACHE_BASE)
    kind[table] = EntryKind.TABLE
    paddr = np.where(table, entries & inside, np.uint64(0))
    if index == len(levels) - 2:  # only this level has huge pages: arch_hugetlb_valid_size()
        huge = _has(entries, fmt.PAGE_HUGE)
        # A page that is being split or migrated lacks the present bit for a moment: pmd_present().
        leaf = huge & _has(entries, fmt.PAGE_PRESENT | fmt.PAGE_PROTNONE | fmt.PAGE_PRESENT_INVALID)
        kind[huge] = EntryKind.NOT_PRESENT
        address = entries & _pfn_mask(page_size) & ~np.uint64(fmt.PAGE_HGLOBAL)
        aligned = address & np.uint64((1 << levels[index].shift) - 1) == 0
        good = leaf & aligned & ~_has(entries, fmt.LEAF_RESERVED)
        kind[leaf] = EntryKind.BAD
        kind[good] = EntryKind.LEAF
        paddr = np.where(good, address, paddr)
    kind[(entries == 0) | np.isin(entries, invalid, kind="sort")] = EntryKind.NONE
    known = (kind == EntryKind.TABLE) | (kind == EntryKind.LEAF)
    return kind, np.where(known, paddr, np.uint64(0))


def _decode_pte(entries: U64Array, page_size: int) -> tuple[U8Array, U64Array]:
    """Decode entries of the last level; PROT_NONE pages are in memory, only not accessible: pte_present()."""
    kind = np.full(len(entries), EntryKind.NOT_PRESENT, np.uint8)
    leaf = _has(entries, fmt.PAGE_PRESENT | fmt.PAGE_PROTNONE)
    kind[leaf] = EntryKind.LEAF
    kind[leaf & _has(entries, fmt.LEAF_RESERVED)] = EntryKind.BAD
    kind[entries & ~np.uint64(fmt.PAGE_GLOBAL) == 0] = EntryKind.NONE  # the kernel's empty entries may be global
    return kind, np.where(kind == EntryKind.LEAF, entries & _pfn_mask(page_size), np.uint64(0))


def _pfn_mask(page_size: int) -> np.uint64:
    return np.uint64(((1 << fmt.PFN_END_SHIFT) - 1) & ~(page_size - 1))


def _has(entries: U64Array, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (entries & np.uint64(bits)) != 0
    return found


class Loongarch64Paging(Paging):
    """Address translation on LoongArch."""

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The window maps physical memory from 0 on in every kernel, wherever it was loaded.

        VMCOREINFO does not tell how many levels the kernel's page table has: the first possible number is taken.
        Entries of one level cannot pass for another's, so a wrong number finds nothing rather than other memory.

        Raises:
            LayoutInvalid: these kernels have no such page size, or a symbol is not in the window.
        """
        pgd, stext = self._linear(vmcoreinfo, "swapper_pg_dir"), self._linear(vmcoreinfo, "_stext")
        size = self.page_size(vmcoreinfo, fmt.PGTABLE_LEVELS)
        start = stext & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(
            AddressRange(start, min(start + IMAGE_MAX, LINEAR_END)), PhysAddr(start & fmt.TO_PHYS_MASK)
        )
        return KernelMap(
            spec=page_table_spec(size, fmt.PGTABLE_LEVELS[size][0]),
            root=PhysAddr(pgd & fmt.TO_PHYS_MASK),
            linear=(LinearMapping(AddressRange(fmt.CACHE_BASE, LINEAR_END), PhysAddr(0)),),
            image=(image,),
        )

    @staticmethod
    def _linear(vmcoreinfo: LayoutKeys, name: str) -> int:
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        if not fmt.CACHE_BASE <= address < LINEAR_END:
            raise LayoutInvalid(
                f"{name} is at {address:#x} in VMCOREINFO, "
                f"expected {fmt.CACHE_BASE:#x} to {LINEAR_END:#x} (the direct-mapped window)"
            )
        return address

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """A kernel has an invalid table for each level but the first, named after the level."""
        found = [kernel.layout.find_symbol(name) for name in INVALID_TABLES]
        known = tuple(address for address in found if address is not None)
        if not known:
            return kernel_map.spec
        levels = max(i for i, address in enumerate(found) if address is not None) + 2
        return page_table_spec(kernel_map.spec.page_size, levels, known)


class Loongarch64SwapEntries(PlainSwapEntries):
    """Page-table entries of LoongArch that name swap."""

    type_shift, type_mask, offset_shift = fmt.SWP_TYPE_SHIFT, fmt.SWP_TYPE_MASK, fmt.SWP_OFFSET_SHIFT

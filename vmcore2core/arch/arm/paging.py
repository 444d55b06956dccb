"""32-bit ARM's page tables: two levels (short descriptors), and three with LPAE (long descriptors).

References: arch/arm/include/asm/pgtable-2level.h, pgtable-2level-hwdef.h, pgtable-3level.h, pgtable-3level-hwdef.h;
arch/arm/mm/proc-v7-2level.S, proc-v7-3level.S: cpu_v7_set_pte_ext() (Linux 6.1); Arm ARM (DDI 0406C) B3.5 and B3.6.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr, U8Array, U64Array
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import EntryKind, KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.arch.task import mem_map
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.formats import arm as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

WORD = 4
IMAGE_STEP = 2 << 20  # the kernel maps itself in steps of this size
MASK_32 = 0xFFFF_FFFF

# Linux's pgd has half as many entries, of two words each: a pair leads to the two halves of one page of tables.
_LEVELS = (PageTableLevel("pgd", 20, 12), PageTableLevel("pte", 12, 8))
_LEVELS_LPAE = (PageTableLevel("pgd", 30, 2), PageTableLevel("pmd", 21, 9), PageTableLevel("pte", 12, 9))


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def decode_2level(entries: U64Array, index: int) -> tuple[U8Array, U64Array]:
    """Decode entries of 32 bits, see ``PageTableSpec.decode``.

    Linux keeps its own table below each table that the processor walks. Only Linux's table has a process's pages that
    are not young, or PROT_NONE: the processor's has no entry for them.
    """
    if _LEVELS[index].name == "pte":
        present = (entries & _u64(fmt.L_PTE_PRESENT)) != 0
        kind = np.where(present, EntryKind.LEAF, EntryKind.NOT_PRESENT).astype(np.uint8)
        kind[entries == 0] = EntryKind.NONE
        return kind, np.where(present, entries & _u64(fmt.L_PTE_ADDR), _u64(0))
    table = (entries & _u64(fmt.PMD_TYPE_MASK)) == fmt.PMD_TYPE_TABLE
    section = (entries & _u64(fmt.PMD_TYPE_SECT)) != 0
    hardware = entries & _u64(fmt.PMD_TABLE_ADDR)
    # The processor's tables are the upper half of a page.
    good = table & ((hardware & _u64(fmt.PTE_HWTABLE_OFF)) != 0)
    kind = np.full(len(entries), EntryKind.BAD, np.uint8)
    kind[good] = EntryKind.TABLE
    kind[section] = EntryKind.LEAF
    kind[entries == 0] = EntryKind.NONE
    paddr = np.where(section, entries & _u64(fmt.PMD_SECT_ADDR), _u64(0))
    super_ = section & ((entries & _u64(fmt.PMD_SECT_SUPER)) != 0)
    high = np.zeros(len(entries), np.uint64)
    for low, width, shift in fmt.SUPERSECTION_HIGH:
        high |= (entries >> _u64(low) & _u64((1 << width) - 1)) << _u64(shift)
    paddr = np.where(super_, entries & _u64(fmt.SUPERSECTION_ADDR) | high, paddr)
    return kind, np.where(good, hardware - _u64(fmt.PTE_HWTABLE_OFF), paddr)


def supersection_bits(entries: U64Array, index: int) -> U64Array:
    """Return the bits that a supersection's 16 equal entries take from the address, see ``address_bits``."""
    super_ = (entries & _u64(fmt.PMD_TYPE_SECT | fmt.PMD_SECT_SUPER)) == fmt.PMD_TYPE_SECT | fmt.PMD_SECT_SUPER
    bits = _u64(fmt.SUPERSECTION_BITS if _LEVELS[index].name == "pgd" else 0)
    return np.where(super_, bits, _u64(0)).astype(np.uint64)


def decode_lpae(entries: U64Array, index: int) -> tuple[U8Array, U64Array]:
    """Decode long descriptors, see ``PageTableSpec.decode``."""
    level = _LEVELS_LPAE[index]
    valid, second = ((entries & _u64(bit)) != 0 for bit in (fmt.LPAE_VALID, fmt.LPAE_TABLE_BIT))
    kind = np.full(len(entries), EntryKind.BAD, np.uint8)
    if level.name == "pte":
        # pte_present(): a PROT_NONE page keeps the second bit.
        leaf = second
        kind[~valid & ~second] = EntryKind.NOT_PRESENT
    else:
        leaf = valid & ~second
        kind[valid & second] = EntryKind.TABLE
        if level.name == "pmd":
            # pmd_trans_huge(): neither a table nor empty; PROT_NONE, or invalid for a moment (pmd_mkinvalid()).
            huge = (entries & _u64(fmt.L_PMD_SECT_NONE | fmt.PMD_SECT_NG)) != 0
            leaf |= ~valid & ~second & huge
            kind[~valid & ~second & ~huge] = EntryKind.NOT_PRESENT
    kind[leaf] = EntryKind.LEAF
    mask = np.where(leaf, _u64(fmt.LPAE_ADDR & ~((1 << level.shift) - 1)), _u64(fmt.LPAE_ADDR))
    there = leaf | (kind == EntryKind.TABLE)
    kind[there & ((entries & _u64(fmt.LPAE_RESERVED)) != 0)] = EntryKind.BAD
    kind[entries == 0] = EntryKind.NONE
    return kind, np.where(there & (kind != EntryKind.BAD), entries & mask, _u64(0))


TWO_LEVELS = PageTableSpec(
    levels=_LEVELS, entry_dtype=np.dtype("<u4"), decode=decode_2level, address_bits=supersection_bits
)
LPAE = PageTableSpec(levels=_LEVELS_LPAE, entry_dtype=np.dtype("<u8"), decode=decode_lpae)


class ArmPaging(Paging):
    """Address translation on 32-bit ARM."""

    # No kernel exports it: each finds out at boot where it was loaded.
    image_keys = ("NUMBER(__pv_offset)",)

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """Nothing tells where the direct map ends, so all addresses go through the page table.

        Raises:
            LayoutUnknown: VMCOREINFO lacks a required key.
            LayoutInvalid: the kernel is at an address where none can be.
        """
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        offset = vmcoreinfo.number("__pv_offset")
        for item, value in (("SYMBOL(swapper_pg_dir)", pgd), ("SYMBOL(_stext)", stext), (self.image_keys[0], offset)):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert pgd is not None and stext is not None and offset is not None  # noqa: S101, PT018 - for mypy
        start = stext & ~(IMAGE_STEP - 1)
        if min(pgd, stext) < fmt.PAGE_OFFSETS[-1] or max(pgd, stext) > MASK_32 or min(pgd, start) + offset < 0:
            raise LayoutInvalid(
                f"SYMBOL(_stext) is {stext:#x} and SYMBOL(swapper_pg_dir) {pgd:#x}, expected both from "
                f"{max(fmt.PAGE_OFFSETS[-1], -offset):#x} to {MASK_32:#x}"
            )
        image = LinearMapping(
            AddressRange(start, min(start + fmt.KERNEL_IMAGE_SIZE, MASK_32 + 1)), PhysAddr(start + offset)
        )
        spec = LPAE if vmcoreinfo.string("CONFIG_ARM_LPAE") == "y" else TWO_LEVELS
        return KernelMap(spec=spec, root=PhysAddr(pgd + offset), linear=(), image=(image,))

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """__pv_offset is PHYS_OFFSET less PAGE_OFFSET."""
        yield {self.image_keys[0]: str(paddr - address)}

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """ARM has no vmemmap; FLATMEM's array begins with the first page of memory (PHYS_OFFSET)."""
        layout = kernel.layout
        first, size = layout.find_symbol("__pv_phys_pfn_offset"), layout.find_size("page")
        array = mem_map(kernel, WORD)
        if first is None or size is None or array is None:
            return None
        return array - kernel.uint(first, WORD) * size

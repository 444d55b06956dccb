"""arm64's page tables: 4, 16 and 64 KiB pages, 36 to 52 bits of a virtual address, 48 or 52 of a physical one.

References: Arm ARM (DDI 0487) D8.3, "Translation table descriptor formats"; arch/arm64/include/asm/pgtable-hwdef.h,
pgtable-prot.h, pgtable.h (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr, U8Array, U64Array
from vmcore2core.arch.capabilities import SwapEntries
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import EntryKind, KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.errors import LayoutUnknown
from vmcore2core.formats import arm64 as fmt
from vmcore2core.interfaces import KernelView, Layout
from vmcore2core.overrides import override

ADDRESS_MASK = (1 << 64) - 1
PHYS_MASK = (1 << 52) - 1
IMAGE_ALIGN = 2 << 20
IMAGE_MAX = 256 << 20

LAYOUT_KEYS = ("SYMBOL(execmem_alloc)", "SYMBOL(module_alloc)", "NUMBER(PG_anon_exclusive)", "NUMBER(PG_uptodate)")
PAGE_SHIFTS = {4096: 12, 16384: 14, 65536: 16}
VA_BITS = {12: (39, 48, 52), 14: (36, 47, 48, 52), 16: (42, 48, 52)}
"""PAGE_SHIFT -> possible values of CONFIG_ARM64_VA_BITS."""
_NAMES = ("pgd", "p4d", "pud", "pmd", "pte")


@dataclass(frozen=True, slots=True)
class TableForm:
    """Numbers that determine the form of a kernel's page tables.

    Attributes:
        page_shift: of a page: 12, 14 or 16.
        va_bits: CONFIG_ARM64_VA_BITS; it gives the size of the top table if both numbers need as many levels.
        va_bits_actual: bits of a kernel address: fewer on a processor without LVA or LPA2.
    """

    page_shift: int
    va_bits: int
    va_bits_actual: int

    @property
    def lpa2(self) -> bool:
        """Whether entries are as FEAT_LPA2 has them: TCR_EL1.DS, which comes with 52 bits of a virtual address."""
        return self.page_shift < 16 and self.va_bits_actual > 48


def levels(form: TableForm) -> tuple[PageTableLevel, ...]:
    """Return the levels; ARM64_HW_PGTABLE_LEVELS() and PTRS_PER_PGD in pgtable-hwdef.h.

    If a kernel for 52 bits runs on a processor without LVA, it still indexes the larger top table and gives the
    processor the end of it (64 KiB pages), or uses one level less (pgtable_l5_enabled()).
    """
    bits = form.page_shift - fmt.ENTRY_SHIFT
    count = (form.va_bits_actual - 4) // bits
    same = (form.va_bits - 4) // bits == count
    top_shift = bits * (count - 1) + form.page_shift
    top_bits = (form.va_bits if same else form.va_bits_actual) - top_shift
    names = ("pgd", *_NAMES[len(_NAMES) - count + 1 :])
    shifts = range(top_shift, form.page_shift - 1, -bits)
    return tuple(
        PageTableLevel(name, shift, bits if i else top_bits)
        for i, (name, shift) in enumerate(zip(names, shifts, strict=True))
    )


def page_table_spec(form: TableForm) -> PageTableSpec:
    """Return the form of the kernel's and the processes' page tables."""
    found = levels(form)
    return PageTableSpec(
        levels=found,
        entry_dtype=np.dtype("<u8"),
        decode=partial(decode, levels=found, form=form),
        page_size=1 << form.page_shift,
    )


def decode(
    entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...], form: TableForm
) -> tuple[U8Array, U64Array]:
    """Decode page-table entries, see ``PageTableSpec.decode``."""
    level, last = levels[index], index + 1 == len(levels)
    valid = (entries & np.uint64(fmt.PTE_VALID)) != 0
    typed = (entries & np.uint64(fmt.PTE_TABLE_BIT)) != 0
    # PROT_NONE pages are in memory, only not accessible, and so is a huge page that is being split. Swap entries have
    # neither of the type bits. The marks below are of blocks: PTE_PRESENT_INVALID, which is PTE_NG since Linux kernel
    # commit f0f5863a0fb0 ("arm64/mm: Remove PTE_PROT_NONE bit") (in v6.10); before that, one bit for each case. A swap
    # entry of a block has none of the three: its offset is a multiple of the block's pages.
    marks = fmt.PTE_NG | fmt.PTE_PROT_NONE_OLD | fmt.PMD_PRESENT_INVALID_OLD
    invalid = ~valid & (typed if last else ~typed & ((entries & np.uint64(marks)) != 0))
    leaf = (valid & (typed if last else ~typed)) | invalid
    table = valid & typed if not last else np.zeros(len(entries), np.bool_)
    paddr = address(entries, form)
    leaf_paddr = paddr & ~np.uint64((1 << level.shift) - 1)

    kind = np.full(len(entries), EntryKind.NOT_PRESENT, np.uint8)
    kind[valid] = EntryKind.BAD
    kind[table] = EntryKind.TABLE
    kind[leaf] = EntryKind.LEAF if last or level.shift <= _block_shift_max(form) else EntryKind.BAD
    reserved = 0 if form.lpa2 else fmt.PTE_RESERVED_48
    kind[(table | leaf) & ((entries & np.uint64(reserved)) != 0)] = EntryKind.BAD
    if not last:
        within = ((1 << level.shift) - 1) & ~((1 << form.page_shift) - 1) & ~fmt.BLOCK_NT
        kind[leaf & ((entries & np.uint64(within)) != 0)] = EntryKind.BAD
    kind[entries == 0] = EntryKind.NONE
    known = (kind == EntryKind.TABLE) | (kind == EntryKind.LEAF)
    return kind, np.where(known, np.where(leaf, leaf_paddr, paddr), np.uint64(0))


def _block_shift_max(form: TableForm) -> int:
    """Return the shift of the highest level that may have blocks."""
    return (fmt.BLOCK_SHIFT_MAX_52 if form.lpa2 or form.page_shift == 16 else fmt.BLOCK_SHIFT_MAX_48)[form.page_shift]


def address(entries: U64Array, form: TableForm) -> U64Array:
    """Return the physical addresses in entries of any kind: __pte_to_phys()."""
    page = ~np.uint64((1 << form.page_shift) - 1)
    low: U64Array = entries & np.uint64(fmt.PTE_ADDR_LOW_LPA2 if form.lpa2 else fmt.PTE_ADDR_LOW_48) & page
    if form.lpa2:
        return low | (entries & np.uint64(fmt.PTE_ADDR_HIGH_LPA2)) << np.uint64(fmt.PTE_ADDR_HIGH_LPA2_SHIFT)
    if form.page_shift == 16:  # zero if FEAT_LPA is not in use
        return low | (entries & np.uint64(fmt.PTE_ADDR_HIGH_64K)) << np.uint64(fmt.PTE_ADDR_HIGH_64K_SHIFT)
    return low


def swap_entry(entries: U64Array, layout: Layout) -> tuple[U64Array, U64Array] | None:
    """Return type and offset (``SwapEntries``); the same at all levels, __pmd_to_swp_entry().

    Nothing tells the form directly; members and symbols that came with the same kernel versions do.
    """
    # Since Linux kernel commit 55564814a838 ("arm64/mm: Move PTE_PRESENT_INVALID to overlay PTE_NG"), and since commits
    # f6bec26c0a23 ("mm: introduce execmem_alloc() and execmem_free()") and 223b5e57d0d5 ("mm/execmem, arch: convert
    # remaining overrides of module_alloc to execmem") (all in v6.10).
    if layout.find_symbol("execmem_alloc") is not None:
        shifts = fmt.SWP_SHIFTS
    elif layout.find_symbol("module_alloc") is None:
        return None
    # Since Linux kernel commit 570ef363509b ("arm64/pgtable: support __HAVE_ARCH_PTE_SWP_EXCLUSIVE"), and since commit
    # 6c287605fd56 ("mm: remember exclusively mapped anonymous pages with PG_anon_exclusive") (both in v5.19).
    elif layout.find_constant("PG_anon_exclusive") is not None:
        shifts = fmt.SWP_SHIFTS_5_19
    elif layout.find_constant("PG_uptodate") is not None:
        shifts = fmt.SWP_SHIFTS_OLD
    else:
        return None  # this layout has no enumerators: the kernel may have it
    if shifts == fmt.SWP_SHIFTS and (entries & np.uint64(fmt.SWP_ZERO)).any():
        return None  # a kernel that has only execmem_alloc(), or no enumerator of it
    types: U64Array = entries >> np.uint64(shifts[0]) & np.uint64(fmt.SWP_TYPE_MASK)
    return types, entries >> np.uint64(shifts[1]) & np.uint64(fmt.SWP_OFFSET_MASK)


class Arm64Paging(Paging):
    """Address translation on arm64."""

    prot_valid = 1 << 0
    prot_noexec = 1 << 54  # PTE_UXN
    pte_write = 1 << 51
    vm_shadow_stack = 1 << 38  # VM_HIGH_ARCH_6
    image_keys = ("NUMBER(kimage_voffset)", "NUMBER(VA_BITS)")

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The keys are from arch_crash_save_vmcoreinfo() and crash_save_vmcoreinfo_init().

        No range is ``linear``: VMCOREINFO does not tell where the image ends, and vmalloc's addresses follow it.
        """
        offset, va_bits = vmcoreinfo.number("kimage_voffset"), vmcoreinfo.number("VA_BITS")
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        page_shift = self._page_shift(vmcoreinfo)
        for item, value in (
            ("NUMBER(kimage_voffset)", offset),
            ("SYMBOL(swapper_pg_dir)", pgd),
            ("SYMBOL(_stext)", stext),
            ("PAGESIZE", page_shift),
            ("NUMBER(VA_BITS)", va_bits if va_bits in VA_BITS.get(page_shift or 0, ()) else None),
        ):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert offset is not None and pgd is not None and stext is not None  # noqa: S101, PT018 - for mypy
        assert page_shift is not None and va_bits is not None  # noqa: S101, PT018
        # Since Linux kernel commit bbdbc11804ff ("arm64/crash_core: Export TCR_EL1.T1SZ in vmcoreinfo") (in v5.9),
        # VMCOREINFO tells how many of VA_BITS the processor uses.
        t1sz = vmcoreinfo.number("TCR_EL1_T1SZ")
        actual = va_bits if t1sz is None else 64 - t1sz
        if not page_shift + 9 < actual <= va_bits:
            raise LayoutUnknown("NUMBER(TCR_EL1_T1SZ)", ("VMCOREINFO",))
        start = stext & ADDRESS_MASK & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(
            AddressRange(start, min(start + IMAGE_MAX, 1 << 64)), PhysAddr((start - offset) & PHYS_MASK)
        )
        spec = page_table_spec(TableForm(page_shift, va_bits, actual))
        return KernelMap(spec=spec, root=PhysAddr((pgd - offset) & PHYS_MASK), linear=(), image=(image,))

    @staticmethod
    def _page_shift(vmcoreinfo: LayoutKeys) -> int | None:
        size = vmcoreinfo.string("PAGESIZE")
        return PAGE_SHIFTS.get(int(size)) if size is not None and size.isascii() and size.isdigit() else None

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """Yields kimage_voffset, and the number of address bits."""
        offset = (address - paddr) & ADDRESS_MASK
        known, told = vmcoreinfo.number("kimage_voffset"), vmcoreinfo.number("VA_BITS")
        t1sz = vmcoreinfo.number("TCR_EL1_T1SZ")
        if known is not None and known & ADDRESS_MASK != offset:
            return
        page_shift = self._page_shift(vmcoreinfo)
        for va_bits in VA_BITS.get(page_shift or 0, ()) if told is None else (told,):
            # A kernel for 52 bits on a processor for 48 or, with 16 KiB pages, 47.
            fewer = (47 if page_shift == 14 else 48,) if va_bits == 52 else ()
            for actual in (va_bits, *fewer) if t1sz is None else (64 - t1sz,):
                yield {
                    "NUMBER(kimage_voffset)": f"{offset:#x}",
                    "NUMBER(VA_BITS)": str(va_bits),
                    "NUMBER(TCR_EL1_T1SZ)": f"{64 - actual:#x}",
                }

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Follows ``vmemmap`` in asm/pgtable.h; VMCOREINFO of 6.1 has its parts.

        VMEMMAP_START is the page structure of the first memory of the machine (memstart_addr, a signed number).
        """
        layout = kernel.layout
        found = layout.find_symbol("vmemmap")
        if found is not None:
            return found
        start, first, page = (layout.find_constant(name) for name in ("VMEMMAP_START", "PHYS_OFFSET", "PAGESIZE"))
        size = layout.find_size("page")
        if start is None or first is None or not page or not size:
            return None
        signed = ((first & ADDRESS_MASK) ^ 1 << 63) - (1 << 63)
        return (start - signed // page * size) & ADDRESS_MASK


class Arm64SwapEntries(SwapEntries):
    """Page-table entries of arm64 that name swap."""

    @override
    def type_and_offset(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array] | None:
        return swap_entry(entries, layout)

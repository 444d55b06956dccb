"""x86-64: page tables, and where the kernel is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr, U64Array
from vmcore2core.arch.capabilities import SwapEntries
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.arch.x86.paging import decode, swap_entry
from vmcore2core.errors import LayoutUnknown
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.interfaces import KernelView, Layout
from vmcore2core.overrides import override

_LEVELS = (
    PageTableLevel("pgd", 48, 9),
    PageTableLevel("p4d", 39, 9),
    PageTableLevel("pud", 30, 9),
    PageTableLevel("pmd", 21, 9),
    PageTableLevel("pte", 12, 9),
)


class X86_64Paging(Paging):
    """Address translation on x86-64."""

    image_keys = ("NUMBER(phys_base)", "NUMBER(pgtable_l5_enabled)")
    prot_valid = 1 << 0
    prot_noexec = 1 << 63  # _PAGE_NX
    pte_write = 1 << 1
    vm_shadow_stack = 1 << 37  # VM_HIGH_ARCH_5
    own_tables = "context.ldt"  # map_ldt_struct(), with page table isolation
    # pgd_set_mm() in arch/x86/mm/pgtable.c; since Linux 6.6 a struct ptdesc, which lies over the struct page.
    pgd_mm = (("ptdesc", "pt_mm"), ("page", "pt_mm"))

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The keys are from arch_crash_save_vmcoreinfo() of x86-64."""
        phys_base = vmcoreinfo.number("phys_base")
        pgd = vmcoreinfo.symbol("swapper_pg_dir") or vmcoreinfo.symbol("init_top_pgt")
        stext = vmcoreinfo.symbol("_stext")
        for item, value in (
            ("NUMBER(phys_base)", phys_base),
            ("SYMBOL(swapper_pg_dir)", pgd),
            ("SYMBOL(_stext)", stext),
        ):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert phys_base is not None and pgd is not None and stext is not None  # noqa: S101, PT018 - for mypy
        levels = _LEVELS if vmcoreinfo.number("pgtable_l5_enabled") else _LEVELS[1:]
        pfn_mask = fmt.PTE_PFN_MASK & ~(vmcoreinfo.number("sme_mask") or 0)
        spec = PageTableSpec(
            levels=levels,
            entry_dtype=np.dtype("<u8"),
            decode=partial(decode, levels=levels, pfn_mask=pfn_mask),
        )
        start = max(fmt.START_KERNEL_MAP, stext & ~0x1FFFFF, fmt.START_KERNEL_MAP - phys_base)
        size = vmcoreinfo.number("KERNEL_IMAGE_SIZE") or fmt.KERNEL_IMAGE_SIZE
        end = min(fmt.START_KERNEL_MAP + size, 1 << 64)
        to_phys = phys_base - fmt.START_KERNEL_MAP
        image = LinearMapping(AddressRange(start, end), PhysAddr(start + to_phys))
        # mm->pgd and swapper_pg_dir are the kernel's copies with page-table isolation too; the user's is at +4096.
        return KernelMap(spec=spec, root=PhysAddr(pgd + to_phys), linear=(image,))

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """Yields Yields phys_base, and whether there is a fifth level."""
        base = paddr - (address - fmt.START_KERNEL_MAP)
        known, level_5 = vmcoreinfo.number("phys_base"), vmcoreinfo.number("pgtable_l5_enabled")
        if known in (None, base):
            for enabled in (0, 1) if level_5 is None else (level_5,):
                yield {"NUMBER(phys_base)": str(base), "NUMBER(pgtable_l5_enabled)": str(enabled)}

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Its base is random; VMCOREINFO's SYMBOL(vmemmap) has it (since Linux 5.13)."""
        layout = kernel.layout
        found = layout.find_symbol("vmemmap_base")
        if found is not None:
            return kernel.uint(found, 8)
        return layout.find_symbol("vmemmap")


class X86_64SwapEntries(SwapEntries):
    """Page-table entries of x86-64 that name swap."""

    @override
    def type_and_offset(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        return swap_entry(entries)

"""RISC-V's page tables: Sv39, Sv48, Sv57, with Svpbmt and Svnapot.

References: the privileged specification, "Sv39" to "Svpbmt"; arch/riscv/include/asm/{pgtable,pgtable-64,pgtable-bits}.h
(Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr, U8Array, U64Array
from vmcore2core.arch.capabilities import SwapEntries
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import EntryKind, KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.arch.task import mem_map
from vmcore2core.errors import LayoutUnknown, MemoryFault
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.interfaces import KernelView, Layout
from vmcore2core.overrides import override

ADDRESS_MASK = (1 << 64) - 1
PHYS_MASK = (1 << 56) - 1
PMD_SIZE = 2 << 20
IMAGE_MAX = 256 << 20

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

    The page of a NAPOT entry comes without its lowest address bits: ``napot_address_bits`` has those.
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
    # W without R is a shadow stack (Zicfiss); W and X without R is reserved.
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
    """Return the bits of the virtual address that a NAPOT entry does not translate: ``PageTableSpec.address_bits``."""
    napot = _has(entries, fmt.NAPOT) if levels[index].name == "pte" else np.zeros(len(entries), np.bool_)
    return np.where(napot, np.uint64(fmt.NAPOT_64K_ADDRESS), np.uint64(0))


def swap_entry(entries: U64Array) -> tuple[U64Array, U64Array]:
    """Return type and offset (``SwapEntries``); the same at all levels, __pmd_to_swp_entry()."""
    types = entries >> np.uint64(fmt.SWP_TYPE_SHIFT) & np.uint64(fmt.SWP_TYPE_MASK)
    return types, entries >> np.uint64(fmt.SWP_OFFSET_SHIFT)


def _has(entries: U64Array, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (entries & np.uint64(bits)) != 0
    return found


class Riscv64Paging(Paging):
    """Address translation on RISC-V."""

    prot_valid = 1 << 0
    pte_write = 1 << 2
    vm_shadow_stack = 1 << 37  # VM_HIGH_ARCH_5
    image_keys = ("NUMBER(va_kernel_pa_offset)", "NUMBER(VA_BITS)")

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The keys are from arch_crash_save_vmcoreinfo() and crash_save_vmcoreinfo_init().

        No range is ``linear``: VMCOREINFO does not tell where the image ends.
        """
        offset = vmcoreinfo.number("va_kernel_pa_offset")
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        va_bits = self._va_bits(vmcoreinfo)
        for item, value in (
            ("NUMBER(va_kernel_pa_offset)", offset),
            ("SYMBOL(swapper_pg_dir)", pgd),
            ("SYMBOL(_stext)", stext),
            ("NUMBER(VA_BITS)", va_bits),
        ):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert offset is not None and pgd is not None and stext is not None  # noqa: S101, PT018 - for mypy
        assert va_bits is not None  # noqa: S101
        levels = LEVELS[va_bits]
        spec = PageTableSpec(
            levels=levels,
            entry_dtype=np.dtype("<u8"),
            decode=partial(decode, levels=levels),
            address_bits=partial(napot_address_bits, levels=levels),
        )
        start = stext & ADDRESS_MASK & ~(PMD_SIZE - 1)
        end = min(start + IMAGE_MAX, 1 << 64)
        image = LinearMapping(AddressRange(start, end), PhysAddr((start - offset) & PHYS_MASK))
        return KernelMap(spec=spec, root=PhysAddr((pgd - offset) & PHYS_MASK), linear=(), image=(image,))

    @staticmethod
    def _va_bits(vmcoreinfo: LayoutKeys) -> int | None:
        """Return the bits of a virtual address: 39, 48, 57, or None.

        Newer kernels have NUMBER(satp), too; VA_BITS was there from the beginning, and says the same.
        """
        satp = vmcoreinfo.number("satp")
        mode = None if satp is None else fmt.SATP_VA_BITS.get((satp & ADDRESS_MASK) >> fmt.SATP_MODE_SHIFT)
        told = vmcoreinfo.number("VA_BITS") if mode is None else mode
        return told if told in LEVELS else None

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """Yields va_kernel_pa_offset, and the number of levels."""
        offset = (address - paddr) & ADDRESS_MASK
        known, va_bits = vmcoreinfo.number("va_kernel_pa_offset"), self._va_bits(vmcoreinfo)
        if known is None or known & ADDRESS_MASK == offset:
            for bits in LEVELS if va_bits is None else (va_bits,):
                yield {"NUMBER(va_kernel_pa_offset)": f"{offset:#x}", "NUMBER(VA_BITS)": str(bits)}

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Follows ``vmemmap`` in arch/riscv/include/asm/pgtable.h.

        Since Linux kernel commit f754f27e98f8 ("riscv: mm: Fix the out of bound issue of vmemmap address") (in v6.14
        and stable kernels), the page at VMEMMAP_START is that of vmemmap_start_pfn; since a11dd49dcb93 ("riscv:
        Sparse-Memory/vmemmap out-of-bounds fix") (in v6.8 and stable kernels), that of phys_ram_base; before that,
        that of page 0, so that nothing is mapped there where no memory is at physical 0. A kernel with CONFIG_FLATMEM
        has mem_map instead, whose first page is that of phys_ram_base.
        """
        layout = kernel.layout
        start, size = layout.find_constant("VMEMMAP_START"), layout.find_size("page")
        array, base = mem_map(kernel, 8), layout.find_constant("phys_ram_base")
        if array is not None:
            if not size or base is None:
                return None
            return (array - ((base & ADDRESS_MASK) >> fmt.PAGE_SHIFT) * size) & ADDRESS_MASK
        if start is None:
            return layout.find_symbol("vmemmap")
        if not size:
            return None
        start &= ADDRESS_MASK
        variable = layout.find_symbol("vmemmap_start_pfn")
        if variable is not None:
            first = kernel.uint(variable, 8)
        else:
            try:
                kernel.memory.read(start, 1)
            except MemoryFault:
                return start
            if base is None:
                return None
            first = (base & ADDRESS_MASK) >> fmt.PAGE_SHIFT
        return (start - first * size) & ADDRESS_MASK


class Riscv64SwapEntries(SwapEntries):
    """Page-table entries of RISC-V that name swap."""

    @override
    def type_and_offset(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array] | None:
        """Only the form of Linux 6.3 and later is known.

        It came with Linux kernel commit 51a1007d4113 ("riscv/mm: support __HAVE_ARCH_PTE_SWP_EXCLUSIVE") (in v6.3).
        The entry does not tell its form; task_struct.mm_cid, which came with the same version, does.
        """
        return None if layout.find_member("task_struct", "mm_cid") is None else swap_entry(entries)

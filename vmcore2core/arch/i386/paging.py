"""i386: page tables of two levels, and of three with PAE.

References: arch/x86/include/asm/pgtable-{2level,3level}_types.h, pgtable-2level.h (Linux 7.2); Intel SDM volume 3, 4.3
and 4.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr, U8Array, U64Array
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import EntryKind, KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.arch.task import mem_map
from vmcore2core.arch.x86 import paging as x86_paging
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.formats import i386 as fmt
from vmcore2core.formats import x86_64 as x86
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

WORD = 4
IMAGE_STEP = 2 << 20  # the kernel image begins within the first page of this size

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


class I386Paging(Paging):
    """Address translation on i386."""

    # No kernel exports it: PAGE_OFFSET is fixed at build time.
    image_keys = ("NUMBER(PAGE_OFFSET)",)

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """Nothing tells where the direct map ends, so all addresses go through the page table.

        Raises:
            LayoutUnknown: VMCOREINFO lacks a required key.
            LayoutInvalid: the kernel is below every possible PAGE_OFFSET.
        """
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        if pgd is None or stext is None:
            raise LayoutUnknown(f"SYMBOL({'swapper_pg_dir' if pgd is None else '_stext'})", ("VMCOREINFO",))
        page_offset = vmcoreinfo.number("PAGE_OFFSET")
        if page_offset is None:
            page_offset = next((at for at in fmt.PAGE_OFFSETS if at <= stext), 0)
        if not 0 < page_offset <= min(pgd, stext) or max(pgd, stext) >> 32:
            raise LayoutInvalid(
                f"SYMBOL(_stext) is {stext:#x} and SYMBOL(swapper_pg_dir) {pgd:#x}, expected both from PAGE_OFFSET "
                f"{page_offset:#x} to 0xffffffff"
            )
        start = stext & ~(IMAGE_STEP - 1)
        end = min(page_offset + fmt.KERNEL_IMAGE_SIZE, 1 << 32)
        image = LinearMapping(AddressRange(start, max(start, end)), PhysAddr(start - page_offset))
        spec = PAE if vmcoreinfo.string("CONFIG_X86_PAE") == "y" else TWO_LEVELS
        # mm->pgd and swapper_pg_dir are the kernel's copies with page-table isolation too; the user's is at +4096.
        return KernelMap(spec=spec, root=PhysAddr(pgd - page_offset), linear=(), image=(image,))

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """Yields PAGE_OFFSET; KASLR moves the image in the direct map, its virtual and its physical address."""
        if address - paddr in fmt.PAGE_OFFSETS:
            yield {"NUMBER(PAGE_OFFSET)": str(address - paddr)}

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """i386 has no vmemmap; FLATMEM's array begins with page frame 0."""
        return mem_map(kernel, WORD)

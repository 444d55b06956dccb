"""s390x's region, segment and page tables: three to five levels, with pages of 4 KiB, 1 MiB and 2 GiB.

The TT bits of every region- or segment-table entry, even of an empty one, tell what kind of table it is in.

References: z/Architecture Principles of Operation, "Region-Table Entries" to "Page-Table Entries";
arch/s390/include/asm/pgtable.h: pgd_offset_raw(), pte_present(), pmd_present(), mk_swap_rste() (Linux 4.16 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U8Array, U64Array
from vmcore2core.arch.capabilities import SwapEntries
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import EntryKind, KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.formats import s390x as fmt
from vmcore2core.interfaces import KernelView, Layout
from vmcore2core.overrides import override

IMAGE_MAX = 256 << 20

LEVELS = (
    PageTableLevel("pgd", 53, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("p4d", 42, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("pud", 31, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("pmd", 20, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("pte", fmt.PAGE_SHIFT, fmt.PTE_ENTRIES_BITS),
)
"""Levels of the largest address space, 16 EiB; a process's top table may be a lower one."""


def _spec(table_type: int) -> PageTableSpec:
    levels = LEVELS[fmt.TABLE_TYPES["pgd"] - table_type :]

    def decode(entries: U64Array, index: int) -> tuple[U8Array, U64Array]:
        level = levels[index]
        return _decode_pte(entries) if level.name == "pte" else _decode_table(entries, level)

    return PageTableSpec(levels=levels, entry_dtype=np.dtype(">u8"), decode=decode)


SPECS = {table_type: _spec(table_type) for table_type in sorted(fmt.TABLE_TYPES.values())}
"""TT bits of the top table's entries -> form of the page table."""


def _decode_pte(entries: U64Array) -> tuple[U8Array, U64Array]:
    """Decode page-table entries; a present one may be invalid for the hardware: PROT_NONE, or not yet accessed."""
    present = _has(entries, fmt.PAGE_PRESENT)
    swap = ~present & _has(entries, fmt.PAGE_PROTECT) & _has(entries, fmt.PAGE_INVALID)
    kind = np.full(len(entries), EntryKind.BAD, np.uint8)
    kind[present & ~_has(entries, fmt.PAGE_RESERVED)] = EntryKind.LEAF
    kind[swap] = EntryKind.NOT_PRESENT
    kind[(entries == fmt.PAGE_EMPTY) | (entries == 0)] = EntryKind.NONE
    return kind, _known(kind, entries & np.uint64(fmt.PAGE_ORIGIN))


def _decode_table(entries: U64Array, level: PageTableLevel) -> tuple[U8Array, U64Array]:
    """Decode region- and segment-table entries.

    Large pages may be invalid for the hardware, as small ones may. An entry that leads to a table never is, except
    while the kernel changes it.
    """
    invalid = _has(entries, fmt.ENTRY_INVALID)
    large = _has(entries, fmt.ENTRY_LARGE) if level.name in ("pud", "pmd") else np.zeros(len(entries), np.bool_)
    swap = invalid & _has(entries, fmt.ENTRY_COMM)
    origin = entries & np.uint64(fmt.SEGMENT_ORIGIN if level.name == "pmd" else fmt.REGION_ORIGIN)
    paddr = np.where(large, entries & ~np.uint64((1 << level.shift) - 1), origin)

    table_type = fmt.TABLE_TYPES[level.name]
    wrong = (entries & np.uint64(fmt.ENTRY_TYPE_MASK)) != table_type << fmt.TYPE_SHIFT
    if level.name == "pmd":
        wrong |= ~large & ~swap & _has(entries, fmt.SEGMENT_RESERVED)
    else:  # the kernel's tables always have full length
        partial = (entries & np.uint64(fmt.REGION_LENGTH)) != fmt.REGION_LENGTH
        wrong |= ~large & ~swap & ~(invalid & (origin == 0)) & (partial | _has(entries, fmt.REGION_OFFSET))
    kind = np.full(len(entries), EntryKind.TABLE, np.uint8)
    kind[large] = EntryKind.LEAF
    kind[swap] = EntryKind.NOT_PRESENT
    kind[invalid & ~large & ~swap & (origin == 0)] = EntryKind.NONE
    kind[wrong] = EntryKind.BAD
    kind[entries == 0] = EntryKind.NONE
    return kind, _known(kind, paddr)


def swap_entry(entries: U64Array, sizes: U64Array) -> tuple[U64Array, U64Array]:
    """Return type and offset (``SwapEntries``); region- and segment-table entries have the type in other bits."""
    shift = np.where(sizes == 1 << fmt.PAGE_SHIFT, np.uint64(fmt.SWP_TYPE_SHIFT), np.uint64(fmt.SWP_TYPE_SHIFT_RSTE))
    return entries >> shift & np.uint64(fmt.SWP_TYPE_MASK), entries >> np.uint64(fmt.SWP_OFFSET_SHIFT)


def _known(kind: U8Array, paddr: U64Array) -> U64Array:
    known = (kind == EntryKind.TABLE) | (kind == EntryKind.LEAF)
    return np.where(known, paddr, np.uint64(0))


def _has(entries: U64Array, bits: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (entries & np.uint64(bits)) != 0
    return found


class S390xPaging(Paging):
    """Address translation on s390x."""

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """Follows arch_crash_save_vmcoreinfo().

        Since Linux kernel commit c98d2ecae08f ("s390/mm: Uncouple physical vs virtual address spaces") (in v6.10),
        the image's physical and virtual addresses differ, by KERNELOFFPHYS; before that, they are the same.

        No range is ``linear``: VMCOREINFO does not tell where the image ends.

        Raises:
            LayoutInvalid: the offsets put the page table beyond what a machine has.
        """
        pgd, stext = self._symbol(vmcoreinfo, "swapper_pg_dir"), self._symbol(vmcoreinfo, "_stext")
        virtual, physical = (self._hex(vmcoreinfo, key) for key in ("KERNELOFFSET", "KERNELOFFPHYS"))
        offset = 0 if virtual is None or physical is None else virtual - physical
        start = stext & ~((1 << fmt.PAGE_SHIFT) - 1)
        for name, address in (("swapper_pg_dir", pgd), ("_stext", start)):
            if not 0 <= address - offset < fmt.REGION1_SIZE:
                raise LayoutInvalid(
                    f"{name} is at {address:#x} in VMCOREINFO, which KERNELOFFSET and KERNELOFFPHYS put at physical "
                    f"{address - offset:#x}, expected 0 to {fmt.REGION1_SIZE:#x}"
                )
        image = LinearMapping(AddressRange(start, min(start + IMAGE_MAX, 1 << 64)), PhysAddr(start - offset))
        return KernelMap(self._kernel_spec(vmcoreinfo, pgd, stext), PhysAddr(pgd - offset), linear=(), image=(image,))

    @staticmethod
    def _kernel_spec(vmcoreinfo: LayoutKeys, *addresses: int) -> PageTableSpec:
        """Return the form of the kernel's page table: its highest addresses tell how many levels it must have.

        vmalloc and modules are at the end of the range that it maps: setup_kernel_memory_layout(), in older kernels
        setup_memory_end(). Each entry tells its table's kind, so a wrong number of levels translates nothing.
        """
        told = (vmcoreinfo.number("VMALLOC_START"), vmcoreinfo.symbol("vmemmap"), *addresses)
        highest = max(address for address in told if address is not None)
        kind = "pud" if highest < fmt.REGION2_SIZE else "p4d" if highest < fmt.REGION1_SIZE else "pgd"
        return SPECS[fmt.TABLE_TYPES[kind]]

    @staticmethod
    def _symbol(vmcoreinfo: LayoutKeys, name: str) -> int:
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        return address

    @staticmethod
    def _hex(vmcoreinfo: LayoutKeys, key: str) -> int | None:
        text = vmcoreinfo.string(key)
        if text is None:
            return None
        try:
            return int(text, 16)
        except ValueError:
            raise LayoutInvalid(f"{key} is {text[:32]!r} in VMCOREINFO, expected a hexadecimal number") from None

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """Yields how far the image was moved from its link address, where its text follows 1 MiB."""
        moved = self._symbol(vmcoreinfo, "_stext") - fmt.TEXT_OFFSET
        if address == paddr:
            yield {}
        else:
            yield {"KERNELOFFSET": f"{moved:x}", "KERNELOFFPHYS": f"{moved - (address - paddr):x}"}

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """The first entry tells the top table's kind, as for pgd_offset_raw().

        Raises:
            LayoutInvalid: the entry is zero, which none can be.
        """
        pgd = kernel.uint(mm + kernel.layout.member("mm_struct", "pgd").offset, 8)
        first = kernel.uint(pgd, 8)
        if first == 0:
            raise LayoutInvalid(f"the first entry of the page table at {pgd:#x} is 0, expected one with its type")
        return SPECS[(first & fmt.ENTRY_TYPE_MASK) >> fmt.TYPE_SHIFT]

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """VMCOREINFO has the value of ``vmemmap``; kallsyms has its address in the image."""
        layout = kernel.layout
        found, stext = layout.find_symbol("vmemmap"), layout.find_symbol("_stext")
        if found is not None and stext is not None and stext <= found < stext + IMAGE_MAX:
            return kernel.uint(found, 8)
        return found


class S390xSwapEntries(SwapEntries):
    """Page-table entries of s390x that name swap."""

    @override
    def type_and_offset(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        return swap_entry(entries, sizes)

"""MIPS64's page tables: two to four levels of 4 to 64 KiB pages.

The kernel fills the TLB, so their form is the kernel's own: an entry that leads to a table has the table's kernel
address, and an empty entry has the address of ``invalid_*_table``, whose entries are empty, too.

References: arch/mips/include/asm/{pgtable,pgtable-64,pgtable-bits}.h, arch/mips/Kconfig: PGTABLE_LEVELS (Linux 6.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U8Array, U64Array
from vmcore2core.arch.capabilities import PlainSwapEntries
from vmcore2core.arch.mips64.registers import Mips64Registers
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import EntryKind, KernelMap, LayoutKeys, LinearMapping, PageTableLevel, PageTableSpec
from vmcore2core.arch.task import mem_map
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

IMAGE_ALIGN = 64 << 10
IMAGE_MAX = 256 << 20
_CKSEGS = tuple(
    LinearMapping(AddressRange(start, start + fmt.CKSEG_SIZE), PhysAddr(0)) for start in (fmt.CKSEG0, fmt.CKSEG1)
)
_XKPHYS = tuple(
    LinearMapping(AddressRange(start, start + (1 << fmt.XKPHYS_PABITS)), PhysAddr(0))
    for start in (fmt.XKPHYS | cca << fmt.XKPHYS_CCA_SHIFT for cca in range(fmt.XKPHYS_CCAS))
)
LINEAR = (*_CKSEGS, *_XKPHYS)

INVALID_TABLES = ("invalid_pte_table", "invalid_pmd_table", "invalid_pud_table")
LAYOUT_KEYS = (
    *(f"SYMBOL({name})" for name in INVALID_TABLES),
    *(f"NUMBER({name})" for name in ("_CACHE_SHIFT", "_PFN_MASK", "_PAGE_GLOBAL", "_PAGE_VALID", "PTRS_PER_PGD")),
)

_NAMES = {2: ("pgd", "pte"), 3: ("pgd", "pmd", "pte"), 4: ("pgd", "pud", "pmd", "pte")}
_MASK = (1 << 64) - 1

FindNumber = Callable[[str], int | None]
"""Name -> NUMBER(name) of the layout or of VMCOREINFO."""


@dataclass(frozen=True)
class TableForm:
    """The form of page tables, as a kernel's configuration determines it.

    Attributes:
        page_size: bytes.
        levels: CONFIG_PGTABLE_LEVELS.
        pgd_bits: address bits that the top table decodes; all other tables are one page.
        cache_shift: _CACHE_SHIFT; the page frame number follows the cache bits.
    """

    page_size: int
    levels: int
    pgd_bits: int
    cache_shift: int

    @property
    def page_shift(self) -> int:
        """PAGE_SHIFT."""
        return self.page_size.bit_length() - 1

    @property
    def pfn_shift(self) -> int:
        """_PFN_SHIFT."""
        return self.page_shift - 12 + self.cache_shift + fmt.CACHE_BITS


def table_form(page_size: int, levels: int | None, task_size: int | None, number: FindNumber) -> TableForm:
    """Return the form of a kernel's page tables.

    Args:
        page_size: a key of ``fmt.PGTABLE_LEVELS``.
        levels: their number; None if that is not known: the fewest possible are taken.
        task_size: ``mm->task_size`` of a process, or None.
        number: returns a number that the layout knows.
    """
    levels = levels or number("CONFIG_PGTABLE_LEVELS") or fmt.PGTABLE_LEVELS[page_size][0]
    bits = page_size.bit_length() - 4
    entries = number("PTRS_PER_PGD")
    if entries and entries.bit_count() == 1 and 1 << bits <= entries <= 1 << bits + 1:
        pgd_bits = entries.bit_length() - 1
    elif task_size is not None and task_size > 1 << fmt.VA_BITS and page_size == 16384:
        pgd_bits = bits + 1  # CONFIG_MIPS_VA_BITS_48
    else:
        pgd_bits = bits + fmt.PGD_TABLE_ORDER.get((page_size, levels), 0)
    return TableForm(page_size, levels, pgd_bits, find_cache_shift(page_size, number) or fmt.CACHE_SHIFT_USUAL)


def find_cache_shift(page_size: int, number: FindNumber) -> int | None:
    """Return _CACHE_SHIFT, or None if that is not known.

    It is an enumerator, so debug information has it; VMCOREINFO may have masks of the bits next to it.
    """
    told = number("_CACHE_SHIFT")
    for name, distance in (
        ("_PFN_MASK", -fmt.CACHE_BITS - (page_size.bit_length() - 13)),
        ("_PAGE_GLOBAL", fmt.GLOBAL_TO_CACHE),
        ("_PAGE_VALID", fmt.GLOBAL_TO_CACHE - 1),
    ):
        mask = number(name)
        if told is None and mask:
            told = _lowest_bit(mask & _MASK) + distance
    return told if told in fmt.CACHE_SHIFTS else None


def _lowest_bit(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def page_table_spec(form: TableForm, order: str, invalid: tuple[int, ...] = ()) -> PageTableSpec:
    """Return the form of page tables for the walk.

    Args:
        form: of the kernel.
        order: "<" or ">".
        invalid: addresses of the tables that stand for "nothing"; if they are not known, the walk enters them and finds
            them empty.
    """
    shift, bits = form.page_shift, form.page_shift - 3
    names = _NAMES[form.levels]
    levels = tuple(
        PageTableLevel(name, shift + bits * (len(names) - 1 - i), bits if i else form.pgd_bits)
        for i, name in enumerate(names)
    )
    known = np.array(sorted(invalid), np.uint64)
    return PageTableSpec(
        levels, np.dtype(f"{order}u8"), partial(decode, levels=levels, form=form, invalid=known), form.page_size
    )


def decode(
    entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...], form: TableForm, invalid: U64Array
) -> tuple[U8Array, U64Array]:
    """Decode page-table entries, see ``PageTableSpec.decode``."""
    last, huge = index == len(levels) - 1, index == len(levels) - 2
    table, paddr = _tables(entries, form.page_size)
    present = entries & np.uint64(fmt.PAGE_PRESENT) != 0
    kind = np.full(len(entries), EntryKind.NOT_PRESENT if last or huge else EntryKind.BAD, np.uint8)
    if last or huge:  # PROT_NONE pages are present, and not valid
        leaf = present if last else present & ~table
        address, good = _frames(entries, form, levels[index].shift)
        kind[leaf] = np.where(good[leaf], EntryKind.LEAF, EntryKind.BAD)
        paddr = np.where(leaf & good, address, paddr)
    if not last:
        kind[table] = EntryKind.TABLE
    empty = entries & ~np.uint64(1 << form.cache_shift - fmt.GLOBAL_TO_CACHE) == 0  # the kernel's may be global
    kind[empty | np.isin(entries, invalid, kind="sort")] = EntryKind.NONE
    known = (kind == EntryKind.TABLE) | (kind == EntryKind.LEAF)
    return kind, np.where(known, paddr, np.uint64(0))


def _tables(entries: U64Array, page_size: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.bool_]], U64Array]:
    """Tell which entries are kernel addresses of whole pages, and return the physical ones."""
    inside = np.uint64((1 << fmt.XKPHYS_PABITS) - 1)
    cca = np.uint64(7 << fmt.XKPHYS_CCA_SHIFT)
    xkphys = entries & ~(inside | cca) == np.uint64(fmt.XKPHYS)
    ckseg0 = entries & np.uint64(_MASK & ~(fmt.CKSEG_SIZE - 1)) == np.uint64(fmt.CKSEG0)
    aligned = entries & np.uint64(page_size - 1) == 0
    paddr = np.where(xkphys, entries & inside, entries & np.uint64(fmt.CKSEG_SIZE - 1))
    return (xkphys | ckseg0) & aligned, paddr


def _frames(
    entries: U64Array, form: TableForm, shift: int
) -> tuple[U64Array, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """Return the physical addresses in leaves of one level, and whether each is possible."""
    pfn = entries >> np.uint64(form.pfn_shift)
    address = pfn << np.uint64(form.page_shift)
    good = (pfn < np.uint64(1 << fmt.XKPHYS_PABITS - form.page_shift)) & (address & np.uint64((1 << shift) - 1) == 0)
    return address, good


def linear_paddr(address: int) -> int | None:
    """Return the physical address of a kernel address in a segment without page tables; None for other addresses."""
    for mapping in LINEAR:
        if mapping.range.start <= address < mapping.range.end:
            return mapping.paddr + address - mapping.range.start
    return None


class Mips64Paging(Paging):
    """Address translation on MIPS64."""

    def __init__(self, registers: Mips64Registers) -> None:
        self.registers = registers

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The segments are the same in every kernel, wherever it was loaded.

        VMCOREINFO does not tell how many levels the kernel's page table has: the fewest possible are taken.
        Entries of one level cannot pass for another's, so a wrong number finds nothing rather than other memory.

        Raises:
            LayoutInvalid: these kernels have no such page size, or a symbol is in none of the segments.
        """
        pgd, stext = self._linear(vmcoreinfo, "swapper_pg_dir"), self._linear(vmcoreinfo, "_stext")
        size = self.page_size(vmcoreinfo, fmt.PGTABLE_LEVELS)
        start = (vmcoreinfo.symbol("_stext") or 0) & ~(IMAGE_ALIGN - 1)
        paddr = stext & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(AddressRange(start, start + min(IMAGE_MAX, fmt.CKSEG_SIZE - paddr)), PhysAddr(paddr))
        form = table_form(size, None, None, vmcoreinfo.number)
        return KernelMap(
            spec=page_table_spec(form, self.registers.order), root=PhysAddr(pgd), linear=LINEAR, image=(image,)
        )

    @staticmethod
    def _linear(vmcoreinfo: LayoutKeys, name: str) -> int:
        """Return the physical address of a symbol."""
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        paddr = linear_paddr(address)
        if paddr is None or paddr >= fmt.CKSEG_SIZE:
            raise LayoutInvalid(
                f"{name} is at {address:#x} in VMCOREINFO, expected {fmt.CKSEG0:#x} to {fmt.CKSEG1:#x} (CKSEG0) or "
                f"as low in XKPHYS; 32-bit kernels are not read"
            )
        return paddr

    @override
    def whole_map(self, kernel_map: KernelMap, kernel: KernelView) -> KernelMap:
        """The invalid tables tell how many levels there are."""
        invalid = self._invalid_tables(kernel_map, kernel)
        levels = len(invalid) + 1 if invalid else None
        form = table_form(kernel_map.spec.page_size, levels, None, kernel.layout.find_constant)
        spec = page_table_spec(form, self.registers.order)
        return KernelMap(spec, kernel_map.root, kernel_map.linear, kernel_map.image)

    def _invalid_tables(self, kernel_map: KernelMap, kernel: KernelView) -> tuple[int, ...]:
        """Return the addresses of the tables that stand for "nothing": one for each level but the first.

        If no symbol tells, the kernel's page table does: most of its entries are empty.
        """
        named = [kernel.layout.find_symbol(name) for name in INVALID_TABLES]
        if any(address is not None for address in named):
            return tuple(address for address in named if address is not None)
        spec = kernel_map.spec
        found: list[int] = []
        table, size = fmt.CKSEG0 + kernel_map.root, 8 << spec.levels[0].bits
        try:
            for _ in INVALID_TABLES:
                entries, counts = np.unique(
                    np.frombuffer(kernel.memory.read(table, size), spec.entry_dtype), return_counts=True
                )
                table = int(entries[counts.argmax()])
                if 2 * counts.max() <= size // 8 or linear_paddr(table) is None or table % spec.page_size:
                    break
                found.append(table)
                size = spec.page_size
        except MemoryFault:
            return ()
        return tuple(reversed(found))

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """The invalid tables and ``mm_struct.task_size`` tell the number of levels.

        Raises:
            LayoutUnknown: the layout does not tell where an entry has its page frame number.
        """
        layout = kernel.layout
        page_size = kernel_map.spec.page_size
        if find_cache_shift(page_size, layout.find_constant) is None:
            raise LayoutUnknown("NUMBER(_CACHE_SHIFT)")
        member = layout.find_member("mm_struct", "task_size")
        task_size = None
        if member is not None:
            task_size = kernel.uint(mm + member.offset, 8)
        invalid = self._invalid_tables(kernel_map, kernel)
        form = table_form(page_size, len(invalid) + 1 if invalid else None, task_size, layout.find_constant)
        return page_table_spec(form, self.registers.order, invalid)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Kernels with CONFIG_FLATMEM have an array, from physical page 0 on."""
        return mem_map(kernel, 8)


class Mips64SwapEntries(PlainSwapEntries):
    """Page-table entries of MIPS64 that name swap."""

    type_shift, type_mask, offset_shift = fmt.SWP_TYPE_SHIFT, fmt.SWP_TYPE_MASK, fmt.SWP_OFFSET_SHIFT

"""Page tables of 64-bit POWER servers: those of the radix MMU, and those that Linux keeps beside the hash MMU.

Both have four levels of big-endian entries, whatever the kernel's byte order, with the same bits in a page's entry. A
radix entry that leads to a table tells the table's size; with the hash MMU only the kernel's variables tell.

References: arch/powerpc/include/asm/book3s/64/{pgtable,radix,hash,hash-4k,hash-64k}.h, arch/powerpc/mm/pgtable_64.c,
arch/powerpc/mm/book3s64/{radix_pgtable,hash_utils}.c (Linux 4.7 to 7.2); Power ISA 3.1B, book III, 6.7.10.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U8Array, U64Array
from vmcore2core.arch.capabilities import SwapEntries
from vmcore2core.arch.parts import Paging
from vmcore2core.arch.spec import (
    EntryKind,
    KernelMap,
    LayoutKeys,
    LinearMapping,
    PageTableLevel,
    PageTableSpec,
    keys_of,
)
from vmcore2core.errors import LayoutError, LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.interfaces import KernelView, Layout, Memory
from vmcore2core.overrides import override

IMAGE_MAX = 256 << 20
IMAGE_ALIGN = 64 << 10  # alignment of a kernel that is not loaded at 0: at least the page size

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

VMEMMAP_KEYS = keys_of(
    {
        "vmemmap_backing": "list phys virt_addr",
        "mmu_psize_def": "shift",
    },
    symbols="vmemmap_list mmu_vmemmap_psize mmu_psize_defs",
)
_PAGES_MAX = 1 << 18
"""Limit for vmemmap: it describes 64 TiB in pages of 16 MiB, or 64 GiB in pages of 4 KiB."""

IndexSizes = tuple[int, int, int, int]
"""{PTE,PMD,PUD,PGD}_INDEX_SIZE."""


def _levels(page_size: int, sizes: IndexSizes) -> tuple[PageTableLevel, ...]:
    levels = []
    shift = page_size.bit_length() - 1
    for name, bits in zip(("pte", "pmd", "pud", "pgd"), sizes, strict=True):
        levels.append(PageTableLevel(name, shift, bits))
        shift += bits
    return tuple(reversed(levels))


def decode_radix(entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...]) -> tuple[U8Array, U64Array]:
    """Decode entries of the radix MMU, see ``PageTableSpec.decode``."""
    if levels[index].name == "pte":
        entries = np.where((entries & ~np.uint64(fmt.RADIX_PTE_NONE_MASK)) == 0, np.uint64(0), entries)
    page = entries & np.uint64(fmt.PTE_RPN_MASK | fmt.RADIX_LEAF_RESERVED)  # misaligned where a reserved bit is set
    bits = levels[index + 1].bits if index + 1 < len(levels) else 0
    table = (entries & np.uint64(fmt.RADIX_TABLE_BITS)) == fmt.PAGE_PRESENT | bits
    return _decode(entries, index, page, table, levels)


def decode_hash(
    entries: U64Array, index: int, *, levels: tuple[PageTableLevel, ...], val_bits: int
) -> tuple[U8Array, U64Array]:
    """Decode entries that Linux keeps with the hash MMU, see ``PageTableSpec.decode``.

    Huge page directories (hugepd_t, for 16 MiB and 16 GiB pages in older kernels) are ``BAD``.

    Args:
        entries: uint64[n].
        index: into ``levels``.
        levels: all.
        val_bits: bits of entries to tables besides the address: HASH_PMD_VAL_BITS.
    """
    if levels[index].name == "pte":  # an empty entry may still have the bits that tell the slot in the hash table
        entries = np.where((entries & ~np.uint64(fmt.HASH_NONE_MASK)) == 0, np.uint64(0), entries)
    # The hash MMU has bits of its own below the page size and above the address.
    page = entries & np.uint64(fmt.PTE_RPN_MASK & ~((1 << levels[-1].shift) - 1))
    table = (entries & np.uint64(fmt.TABLE_MASKED_BITS)) == val_bits
    return _decode(entries, index, page, table, levels)


def _decode(
    entries: U64Array, index: int, page: U64Array, table: BoolArray, levels: tuple[PageTableLevel, ...]
) -> tuple[U8Array, U64Array]:
    """Decode the parts of entries that both MMUs share.

    Args:
        entries: uint64[n].
        index: into ``levels``.
        page: uint64[n], the physical addresses of leaves; a broken one has bits beyond PTE_RPN_MASK.
        table: bool[n], whether an entry has the marks of one that leads to a table.
        levels: all.
    """
    level = levels[index]
    pte = _has(entries, fmt.PAGE_PTE)
    # pte_present(), pmd_present(): an entry that is being changed says so, and its page is still there. PROT_NONE and
    # NUMA-hinting pages are present without permissions.
    leaf = pte & _has(entries, fmt.PAGE_PRESENT | fmt.PAGE_INVALID)
    kind = np.full(len(entries), EntryKind.BAD, np.uint8)
    if level.name in ("pte", "pmd"):
        kind[pte & ~leaf] = EntryKind.NOT_PRESENT
    if level.name != "pgd":
        kind[leaf & ~_has(page, ~fmt.PTE_RPN_MASK & fmt.ALL_BITS | (1 << level.shift) - 1)] = EntryKind.LEAF
    below = entries & ~np.uint64(fmt.TABLE_MASKED_BITS)
    if level.name != "pte":
        size = 8 << levels[index + 1].bits
        kind[table & (below < fmt.TABLE_ADDRESS_MAX) & ~_has(below, size - 1)] = EntryKind.TABLE
    kind[entries == 0] = EntryKind.NONE
    paddr = np.where(kind == EntryKind.LEAF, page, np.where(kind == EntryKind.TABLE, below, np.uint64(0)))
    return kind, paddr


def swap_entry(entries: U64Array, page_size: int) -> tuple[U64Array, U64Array]:
    """Return type and offset (``SwapEntries``); the same with both MMUs and at all levels."""
    pages = (entries & np.uint64(fmt.PTE_RPN_MASK)) // np.uint64(page_size)
    return entries & np.uint64(fmt.SWP_TYPE_MASK), pages


def _has(entries: U64Array, bits: int) -> BoolArray:
    found: BoolArray = (entries & np.uint64(bits)) != 0
    return found


def decode_nothing(entries: U64Array, _index: int) -> tuple[U8Array, U64Array]:
    """Mark every entry as broken, see ``kernel_spec``."""
    return np.full(len(entries), EntryKind.BAD, np.uint8), np.zeros(len(entries), np.uint64)


def radix_spec(page_size: int) -> PageTableSpec:
    """Return the form of page tables with the radix MMU: user and kernel have the same."""
    levels = _levels(page_size, fmt.RADIX_INDEX_SIZES[page_size])
    return PageTableSpec(levels, np.dtype(">u8"), partial(decode_radix, levels=levels), page_size)


def kernel_spec(page_size: int, radix_mmu: int | None) -> PageTableSpec:
    """Return the form of the kernel's page table.

    With the hash MMU it is not read: VMCOREINFO does not tell its levels, which differ between versions. If VMCOREINFO
    does not tell the MMU either, radix entries are expected: they give the size of the table that they lead to, which
    entries of the hash MMU do not.

    Args:
        page_size: of the kernel.
        radix_mmu: NUMBER(RADIX_MMU), or None.
    """
    spec = radix_spec(page_size)
    return spec if radix_mmu != 0 else PageTableSpec(spec.levels, spec.entry_dtype, decode_nothing, page_size)


def vmemmap_backing(kernel: KernelView) -> tuple[LinearMapping, ...]:
    """Return where the pages of ``vmemmap`` are, joined where possible; with the hash MMU no page table has them.

    Follows vmemmap_list_populate() in arch/powerpc/mm/init_64.c.

    Raises:
        LayoutUnknown: a symbol or member for it is not known.
        LayoutInvalid: the list is not valid.
        MemoryFault: it cannot be read.
    """
    layout = kernel.layout
    defs, index = layout.symbol("mmu_psize_defs"), _read(kernel.memory, layout.symbol("mmu_vmemmap_psize"), 4)
    at = defs + index * layout.size("mmu_psize_def") + layout.member("mmu_psize_def", "shift").offset
    shift = _read(kernel.memory, at, 4) if index < fmt.MMU_PAGE_COUNT_MAX else 0
    if shift not in fmt.VMEMMAP_SHIFTS:
        raise LayoutInvalid(f"the shift at {at:#x} of a page of vmemmap is {shift}, expected {fmt.VMEMMAP_SHIFTS}")
    members = [layout.member("vmemmap_backing", name).offset for name in ("virt_addr", "phys", "list")]
    pages: dict[int, int] = {}
    entry = _read(kernel.memory, layout.symbol("vmemmap_list"), 8)
    while entry:
        start, paddr, following = (_read(kernel.memory, entry + offset, 8) for offset in members)
        if (start | paddr) & (1 << shift) - 1 or start in pages or start < fmt.PAGE_OFFSET or len(pages) >= _PAGES_MAX:
            raise LayoutInvalid(f"vmemmap_list has {start:#x} at physical {paddr:#x}, expected another page of vmemmap")
        pages[start], entry = paddr, following
    return _merged(sorted(pages.items()), 1 << shift)


def _merged(pages: list[tuple[int, int]], size: int) -> tuple[LinearMapping, ...]:
    """Join pages (virtual, physical address) that follow each other."""
    runs: list[LinearMapping] = []
    for start, paddr in pages:
        last = runs[-1] if runs else None
        if last and (last.range.end, last.paddr + last.range.size) == (start, paddr):
            runs[-1] = LinearMapping(AddressRange(last.range.start, start + size), last.paddr)
        else:
            runs.append(LinearMapping(AddressRange(start, start + size), PhysAddr(paddr)))
    return tuple(runs)


def _read(memory: Memory, address: int, size: int) -> int:
    return int.from_bytes(memory.read(address, size), "little")


def user_spec(page_size: int, kernel: KernelView) -> PageTableSpec:
    """Return the form of all processes' page tables, from the kernel's own variables.

    Raises:
        LayoutUnknown: a variable is not known (the oldest kernels have none).
        LayoutInvalid: a variable has an impossible value.
        MemoryFault: a variable cannot be read.
    """
    layout = kernel.layout
    radix_mmu = layout.find_constant("RADIX_MMU")
    if radix_mmu == 1:
        return radix_spec(page_size)
    places = [layout.symbol(name) for name in (*fmt.INDEX_SIZES, "__pmd_val_bits")]
    pte, pmd, pud, pgd, val_bits = (kernel.uint(at, 8) for at in places)
    sizes = pte, pmd, pud, pgd
    if radix_mmu is None and val_bits & fmt.VAL_BITS_RADIX:
        if sizes != fmt.RADIX_INDEX_SIZES[page_size]:
            raise LayoutInvalid(
                f"{fmt.INDEX_SIZES[0]} at {places[0]:#x} and its like are {sizes}, "
                f"expected {fmt.RADIX_INDEX_SIZES[page_size]} with the radix MMU"
            )
        return radix_spec(page_size)
    if not all(1 <= size <= fmt.INDEX_SIZE_MAX for size in sizes) or (
        sum(sizes) + page_size.bit_length() - 1 > fmt.EADDR_SIZE_MAX
    ):
        raise LayoutInvalid(
            f"{fmt.INDEX_SIZES[0]} at {places[0]:#x} and its like are {sizes}, "
            f"expected 1 to {fmt.INDEX_SIZE_MAX} bits each, {fmt.EADDR_SIZE_MAX} with those of a page"
        )
    if val_bits not in fmt.HASH_VAL_BITS:
        raise LayoutInvalid(f"__pmd_val_bits at {places[-1]:#x} is {val_bits:#x}, expected 1 << 63 with the hash MMU")
    levels = _levels(page_size, sizes)
    decode = partial(decode_hash, levels=levels, val_bits=val_bits)
    return PageTableSpec(levels, np.dtype(">u8"), decode, page_size)


class Ppc64lePaging(Paging):
    """Address translation on POWER."""

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """0xc000000000000000 is physical 0 in every kernel, wherever it was loaded.

        Raises:
            LayoutInvalid: these kernels have no such page size, or a symbol is not in the linear mapping.
        """
        pgd, stext = self._linear(vmcoreinfo, "swapper_pg_dir"), self._linear(vmcoreinfo, "_stext")
        size = self.page_size(vmcoreinfo, fmt.RADIX_INDEX_SIZES)
        radix_mmu = vmcoreinfo.number("RADIX_MMU")
        # If the MMU is not known: beyond the smaller mapping, the radix MMU's page table has the linear mapping, too.
        end = fmt.LINEAR_END_HASH_4K if radix_mmu != 1 and size == 4096 else fmt.LINEAR_END
        linear = LinearMapping(AddressRange(fmt.PAGE_OFFSET, end), PhysAddr(0))
        start = stext & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(AddressRange(start, min(start + IMAGE_MAX, end)), PhysAddr(start - fmt.PAGE_OFFSET))
        root = PhysAddr(pgd - fmt.PAGE_OFFSET)
        return KernelMap(spec=kernel_spec(size, radix_mmu), root=root, linear=(linear,), image=(image,))

    @override
    def whole_map(self, kernel_map: KernelMap, kernel: KernelView) -> KernelMap:
        """With the hash MMU, the kernel's variables tell the form of its page table, too.

        If they do not, addresses beyond the linear mapping stay unknown.
        """
        if kernel.layout.find_constant("RADIX_MMU") == 1:
            return kernel_map
        try:
            spec = user_spec(kernel_map.spec.page_size, kernel)
        except (LayoutError, MemoryFault):
            return kernel_map
        if spec.levels == kernel_map.spec.levels:  # radix, whose page table has vmemmap
            return kernel_map
        try:
            backing = vmemmap_backing(kernel)
        except (LayoutError, MemoryFault):
            backing = ()
        return kernel_map._replace(spec=spec, linear=(*kernel_map.linear, *backing))

    @staticmethod
    def _linear(vmcoreinfo: LayoutKeys, name: str) -> int:
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        if not fmt.PAGE_OFFSET <= address < fmt.LINEAR_END_HASH_4K:
            raise LayoutInvalid(
                f"{name} is at {address:#x} in VMCOREINFO, "
                f"expected {fmt.PAGE_OFFSET:#x} to {fmt.LINEAR_END_HASH_4K:#x} (the linear mapping)"
            )
        return address

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """All processes' page tables have one form."""
        return user_spec(kernel_map.spec.page_size, kernel)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """VMCOREINFO has the value of ``vmemmap`` (since Linux 5.13), kallsyms its address."""
        found = kernel.layout.find_symbol("vmemmap")
        if found is not None and fmt.PAGE_OFFSET <= found < fmt.LINEAR_END_HASH_4K:
            return kernel.uint(found, 8)
        return found


class Ppc64leSwapEntries(SwapEntries):
    """Page-table entries of POWER that name swap."""

    @override
    def type_and_offset(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        return swap_entry(entries, page_size)

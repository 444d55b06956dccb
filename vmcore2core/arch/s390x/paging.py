"""s390x's region, segment and page tables: three to five levels, with pages of 4 KiB, 1 MiB and 2 GiB.

Every entry of a region or segment table, empty ones too, tells in its TT bits what kind of table it stands in.

References: z/Architecture Principles of Operation, "Region-Table Entries" to "Page-Table Entries";
arch/s390/include/asm/pgtable.h: pgd_offset_raw(), pte_present(), pmd_present(), mk_swap_rste() (Linux 4.16 to 7.2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.arch.spec import EntryKind, PageTableLevel, PageTableSpec
from vmcore2core.formats import s390x as fmt

LEVELS = (
    PageTableLevel("pgd", 53, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("p4d", 42, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("pud", 31, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("pmd", 20, fmt.TABLE_ENTRIES_BITS),
    PageTableLevel("pte", fmt.PAGE_SHIFT, fmt.PTE_ENTRIES_BITS),
)
"""Of the largest address space, 16 EiB; that of a process begins further down."""


def _spec(table_type: int) -> PageTableSpec:
    levels = LEVELS[fmt.TABLE_TYPES["pgd"] - table_type :]

    def decode(entries: U64Array, index: int) -> tuple[U8Array, U64Array]:
        level = levels[index]
        return _decode_pte(entries) if level.name == "pte" else _decode_table(entries, level)

    return PageTableSpec(levels=levels, entry_dtype=np.dtype(">u8"), decode=decode)


SPECS = {table_type: _spec(table_type) for table_type in sorted(fmt.TABLE_TYPES.values())}
"""TT of the top table's entries -> its form."""


def _decode_pte(entries: U64Array) -> tuple[U8Array, U64Array]:
    """Decode page-table entries; one that is present may be invalid to the hardware: PROT_NONE, or not yet accessed."""
    present = _has(entries, fmt.PAGE_PRESENT)
    swap = ~present & _has(entries, fmt.PAGE_PROTECT) & _has(entries, fmt.PAGE_INVALID)
    kind = np.full(len(entries), EntryKind.BAD, np.uint8)
    kind[present & ~_has(entries, fmt.PAGE_RESERVED)] = EntryKind.LEAF
    kind[swap] = EntryKind.NOT_PRESENT
    kind[(entries == fmt.PAGE_EMPTY) | (entries == 0)] = EntryKind.NONE
    return kind, _known(kind, entries & np.uint64(fmt.PAGE_ORIGIN))


def _decode_table(entries: U64Array, level: PageTableLevel) -> tuple[U8Array, U64Array]:
    """Decode region- and segment-table entries.

    Large pages may be invalid to the hardware just as small ones. An entry to a table never is, but for the moment in
    which it is changed.
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
    else:  # the kernel's tables are never cut short
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
    """Return type and offset, see ``Arch.swap_entry``; region- and segment-table entries have their type elsewhere."""
    shift = np.where(sizes == 1 << fmt.PAGE_SHIFT, np.uint64(fmt.SWP_TYPE_SHIFT), np.uint64(fmt.SWP_TYPE_SHIFT_RSTE))
    return entries >> shift & np.uint64(fmt.SWP_TYPE_MASK), entries >> np.uint64(fmt.SWP_OFFSET_SHIFT)


def _known(kind: U8Array, paddr: U64Array) -> U64Array:
    known = (kind == EntryKind.TABLE) | (kind == EntryKind.LEAF)
    return np.where(known, paddr, np.uint64(0))


def _has(entries: U64Array, bits: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (entries & np.uint64(bits)) != 0
    return found

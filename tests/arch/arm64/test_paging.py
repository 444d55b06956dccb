"""arm64's page tables by the Arm ARM (DDI 0487), D8.3: literal descriptors.

Tests arch/spec.py.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry
from tests.builders.kernelimage import Table
from tests.builders.paging import FlatContainer
from vmcore2core.addresses import PhysAddr
from vmcore2core.arch.arm64.machine import ARCH
from vmcore2core.arch.arm64.paging import TableForm, page_table_spec
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory

FORM_4K = TableForm(12, 48, 48)
FORM_LPA2 = TableForm(12, 52, 52)
FORM_16K = TableForm(14, 47, 47)
FORM_16K_LPA2 = TableForm(14, 52, 52)
FORM_64K = TableForm(16, 48, 48)
FORM_64K_LVA = TableForm(16, 52, 52)
# As Linux maps a user page: nG, AF, inner shareable, AP[1] (EL0), attributes, valid page; XN above.
USER_PAGE = 0x00E0_0000_0000_0F53 | 1 << 11


def decoded(entry: int, level: str = "pte", form: TableForm = FORM_4K) -> tuple[int, int]:
    """Return kind and physical address."""
    spec = page_table_spec(form)
    return read_entry(spec, level, entry)


@pytest.mark.parametrize(
    ("entry", "kind", "paddr"),
    [
        pytest.param(0, NONE, 0, id="nothing"),
        pytest.param(USER_PAGE | 0x1234_5000, LEAF, 0x1234_5000, id="user page"),
        pytest.param(USER_PAGE | 0xFFFF_FFFF_F000, LEAF, 0xFFFF_FFFF_F000, id="the highest page of 48 bits"),
        pytest.param(USER_PAGE & ~2 | 0x1234_5000, BAD, 0, id="a block below the last level is reserved"),
        pytest.param(USER_PAGE | 1 << 48 | 0x1234_5000, BAD, 0, id="bit 48 is zero without LPA2"),
        pytest.param(USER_PAGE & ~1 | 0x1234_5000, LEAF, 0x1234_5000, id="PROT_NONE: invalid, type page"),
        # Swap since Linux 6.10: bits 0 and 1 clear, type in 6 to 10, offset from 12 on.
        pytest.param(0x1234 << 12 | 1 << 6, NOT_PRESENT, 0, id="swap type 1"),
        pytest.param(0x1234 << 12 | 1 << 6 | 1 << 2, NOT_PRESENT, 0, id="swap, exclusive"),
    ],
)
def test_an_entry_of_the_last_level(entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry) == (kind, paddr)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        ("pmd", 0x1234_5003, TABLE, 0x1234_5000),
        ("pgd", 0x1800_0000_1234_5003, TABLE, 0x1234_5000),
        ("pmd", USER_PAGE & ~2 | 0x1240_0000, LEAF, 0x1240_0000),
        ("pmd", USER_PAGE & ~2 | 0x1240_1000, BAD, 0),
        ("pmd", USER_PAGE & ~2 | 0x1241_0000, LEAF, 0x1240_0000),  # nT of FEAT_BBM
        ("pud", USER_PAGE & ~2 | 0x1_4000_0000, LEAF, 0x1_4000_0000),
        ("pgd", USER_PAGE & ~2, BAD, 0),  # no blocks of 512 GiB without LPA2
        ("pmd", USER_PAGE & ~3 | 0x1240_0000, LEAF, 0x1240_0000),  # PTE_PRESENT_INVALID, a huge PROT_NONE page
        ("pmd", 0x1240_0000 | 1 << 6, NOT_PRESENT, 0),  # a huge page's migration entry
    ],
)
def test_an_entry_of_an_upper_level(level: str, entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry, level) == (kind, paddr)


@pytest.mark.parametrize(
    ("form", "entry", "paddr"),
    [
        (FORM_LPA2, 0x0003_0000_1234_5003 | 1 << 10 | 1 << 11, 0x0003_0000_1234_5000),  # bits 49 and 48 in place
        (FORM_LPA2, 0x0000_0000_1234_5003 | 0x3 << 8 | 1 << 10, 0x000C_0000_1234_5000),  # bits 51 and 50 in 9 and 8
        (FORM_16K, 0x0000_0012_3456_4003 | 1 << 10, 0x12_3456_4000),
        (FORM_16K, 0x0000_0012_3456_7003 | 1 << 10, 0x12_3456_4000),  # bits 13 and 12 are no address
        (FORM_16K_LPA2, 0x0000_0012_3456_4003 | 0x2 << 8 | 1 << 10, 0x0008_0012_3456_4000),
        (FORM_64K, 0x0000_0012_3456_0003 | 1 << 10, 0x12_3456_0000),
        (FORM_64K_LVA, 0x0000_0012_3456_0003 | 0xA << 12 | 1 << 10, 0x000A_0012_3456_0000),  # bits 51 to 48 in 15 to 12
    ],
)
def test_where_the_upper_bits_of_an_address_stand(form: TableForm, entry: int, paddr: int) -> None:
    assert decoded(entry, "pte", form) == (LEAF, paddr)


@pytest.mark.parametrize(
    ("form", "levels"),
    [
        (TableForm(12, 39, 39), [("pgd", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        (FORM_4K, [("pgd", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        (FORM_LPA2, [("pgd", 48, 4), ("p4d", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        # A kernel for 52 bits on a processor without LPA2 has one level less.
        (TableForm(12, 52, 48), [("pgd", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9)]),
        (TableForm(14, 36, 36), [("pgd", 25, 11), ("pte", 14, 11)]),
        (FORM_16K, [("pgd", 36, 11), ("pmd", 25, 11), ("pte", 14, 11)]),
        (TableForm(14, 48, 48), [("pgd", 47, 1), ("pud", 36, 11), ("pmd", 25, 11), ("pte", 14, 11)]),
        (FORM_16K_LPA2, [("pgd", 47, 5), ("pud", 36, 11), ("pmd", 25, 11), ("pte", 14, 11)]),
        (TableForm(16, 42, 42), [("pgd", 29, 13), ("pte", 16, 13)]),
        (FORM_64K, [("pgd", 42, 6), ("pmd", 29, 13), ("pte", 16, 13)]),
        # With 64 KiB pages the top table is as large as for 52 bits, and the processor is given its end.
        (TableForm(16, 52, 48), [("pgd", 42, 10), ("pmd", 29, 13), ("pte", 16, 13)]),
        (FORM_64K_LVA, [("pgd", 42, 10), ("pmd", 29, 13), ("pte", 16, 13)]),
    ],
)
def test_the_levels_of_each_form(form: TableForm, levels: list[tuple[str, int, int]]) -> None:
    spec = page_table_spec(form)
    assert [(level.name, level.shift, level.bits) for level in spec.levels] == levels
    assert spec.page_size == 1 << form.page_shift


@pytest.mark.parametrize("form", [FORM_4K, FORM_LPA2, FORM_16K, FORM_64K, FORM_64K_LVA, TableForm(12, 39, 39)])
def test_an_address_is_translated_level_by_level(form: TableForm) -> None:
    spec = page_table_spec(form)
    size = spec.page_size
    memory = bytearray(size * 8)
    vaddr = 0x2A_5A5A_5000 & ~(size - 1) & ((1 << 38) - 1)
    for i, level in enumerate(spec.levels):
        index = vaddr >> level.shift & ((1 << level.bits) - 1)
        struct.pack_into("<Q", memory, size * (i + 1) + 8 * index, size * (i + 2) | 3 | 1 << 10)
    (batch,) = (
        found
        for found in walk(
            PhysicalMemory(FlatContainer(bytes(memory))),
            spec,
            PhysAddr(size),
            Ranges(np.array([vaddr], np.uint64), np.array([vaddr + size], np.uint64)),
        )
        if len(found.kind)
    )
    assert (batch.vaddr.tolist(), batch.paddr.tolist()) == ([vaddr], [size * (len(spec.levels) + 1)])
    assert batch.kind.tolist() == [RunKind.LEAF]


@pytest.mark.parametrize(
    ("entry", "level", "form", "kind", "paddr"),
    [
        # Until Linux 6.9: PROT_NONE was bit 58, a huge page being split bit 59; swap's type from 3 on, offset from 8.
        pytest.param(1 << 58 | 0x1234_5782, "pte", FORM_4K, LEAF, 0x1234_5000, id="old PROT_NONE"),
        pytest.param(1 << 58 | 0x1220_0780, "pmd", FORM_4K, LEAF, 0x1220_0000, id="old PROT_NONE, 2M"),
        pytest.param(1 << 59 | 0x1220_0780, "pmd", FORM_4K, LEAF, 0x1220_0000, id="old, being split"),
        pytest.param(0x12200 << 8 | 30 << 3, "pmd", FORM_4K, NOT_PRESENT, 0, id="old, migrating"),
        pytest.param(0x02FF_FFFF_FFFF_FFFC, "pte", FORM_4K, NOT_PRESENT, 0, id="every old swap bit"),
        pytest.param(0x3FFF_FFFF_FFFF_F7FC, "pte", FORM_4K, NOT_PRESENT, 0, id="every swap bit"),
        pytest.param(1 << 49 | USER_PAGE | 0x1234_5000, "pte", FORM_4K, BAD, 0, id="bit 49 is zero without LPA2"),
        pytest.param(1 << 50 | USER_PAGE | 0x1234_5000, "pte", FORM_4K, LEAF, 0x1234_5000, id="guarded page (BTI)"),
        pytest.param(1 << 52 | USER_PAGE | 0x1234_5000, "pte", FORM_4K, LEAF, 0x1234_5000, id="contiguous"),
        pytest.param(7 << 60 | USER_PAGE | 0x1234_5000, "pte", FORM_4K, LEAF, 0x1234_5000, id="protection key"),
        pytest.param(1 << 48 | 0x1234_5003, "pmd", FORM_4K, BAD, 0, id="table with a reserved bit"),
        pytest.param(0x1234_5002, "pmd", FORM_4K, NOT_PRESENT, 0, id="a table that is not valid"),
        pytest.param(0x1234_5203, "pmd", FORM_LPA2, TABLE, 0x8_0000_1234_5000, id="a table above 2 PiB"),
        pytest.param(0x80_0000_0001, "p4d", FORM_LPA2, LEAF, 0x80_0000_0000, id="512G with LPA2"),
        pytest.param(0x1_0000_0000_0001, "pgd", FORM_LPA2, BAD, 0, id="no block of 256T"),
        pytest.param(0x1200_0001, "pmd", FORM_16K, LEAF, 0x1200_0000, id="16K: 32M"),
        pytest.param(0x1100_0001, "pmd", FORM_16K, BAD, 0, id="16K: 32M, misaligned"),
        pytest.param(0x10_0000_0001, "pgd", FORM_16K, BAD, 0, id="16K: no block of 64G without LPA2"),
        pytest.param(0x10_0000_0001, "pud", FORM_16K_LPA2, LEAF, 0x10_0000_0000, id="16K: 64G with LPA2"),
        pytest.param(0x4000_1F01, "pmd", FORM_64K, LEAF, 0x1_0000_4000_0000, id="64K: 512M above 256 TiB"),
        pytest.param(0x4002_0F01, "pmd", FORM_64K, BAD, 0, id="64K: 512M, misaligned"),
        pytest.param(0x1234_3003, "pmd", FORM_64K, TABLE, 0x3_0000_1234_0000, id="64K: a table above 768 TiB"),
    ],
)
def test_rarer_entries(entry: int, level: str, form: TableForm, kind: int, paddr: int) -> None:
    assert decoded(entry, level, form) == (kind, paddr)


@pytest.mark.parametrize("form", [FORM_4K, FORM_LPA2, FORM_16K, FORM_64K])
def test_tables_that_lead_to_themselves_end(form: TableForm) -> None:
    spec = page_table_spec(form)
    top = spec.levels[0]
    memory = bytearray(0x3_0000)
    struct.pack_into(f"<{1 << top.bits}Q", memory, 0x1_0000, *[0x1_0003] * (1 << top.bits))
    ranges = Ranges(np.array([0], np.uint64), np.array([1 << top.shift + top.bits], np.uint64))
    found = walk(PhysicalMemory(FlatContainer(bytes(memory))), spec, PhysAddr(0x1_0000), ranges)
    assert {kind for batch in found for kind in batch.kind.tolist()} == {RunKind.BAD}


def test_a_kernel_address_is_at_the_end_of_the_larger_top_table() -> None:
    """64 KiB pages, built for 52 bits, on a processor for 48: 0xffff... is at the last of 1024 entries."""
    memory = bytearray(0x5_0000)
    for table, slot, entry in ((1, 1023, 0x2_0003), (2, 8191, 0x3_0003), (3, 8190, 0x7777_0703)):
        struct.pack_into("<Q", memory, table * 0x1_0000 + 8 * slot, entry)
    physical = PhysicalMemory(FlatContainer(bytes(memory)))
    spec = page_table_spec(TableForm(16, 52, 48))
    assert translate(physical, spec, PhysAddr(0x1_0000), 0xFFFF_FFFF_FFFE_1234) == (0x7777_0000, 0x1_0000)


ENUMS = {"PG_uptodate": 3}
SINCE_5_19 = {**ENUMS, "PG_anon_exclusive": 17}
NEW, OLD = {"execmem_alloc": 0xFFFF_8000_8012_0000}, {"module_alloc": 0xFFFF_8000_8012_0000}


def swapped(entries: list[int], symbols: dict[str, int], constants: dict[str, int]) -> list[tuple[int, int]] | None:
    """Return type and offset of each entry."""
    layout = KernelLayout([Table(symbols=symbols, constants=constants)])
    raw = np.array(entries, np.uint64)
    found = ARCH.swap_entries.type_and_offset(raw, np.full(len(raw), 4096, np.uint64), 4096, layout)
    return None if found is None else list(zip(found[0].tolist(), found[1].tolist(), strict=True))


def test_a_swap_entry_since_6_10() -> None:
    """Type in bits 6 to 10, offset from 12 to 61; 2 is PG_anon_exclusive, 3 userfaultfd's write protection."""
    entries = [0x1234 << 12 | 3 << 6, 0x1234 << 12 | 31 << 6 | 1 << 2 | 1 << 3, ((1 << 50) - 1) << 12]
    assert swapped(entries, NEW, SINCE_5_19) == [(3, 0x1234), (31, 0x1234), (0, (1 << 50) - 1)]


def test_a_swap_entry_from_5_19_to_6_9() -> None:
    """Type in bits 3 to 7, offset from 8 to 57; 2 is PG_anon_exclusive."""
    entries = [0x1234 << 8 | 3 << 3, 0x1234 << 8 | 31 << 3 | 1 << 2, ((1 << 50) - 1) << 8]
    assert swapped(entries, OLD, SINCE_5_19) == [(3, 0x1234), (31, 0x1234), (0, (1 << 50) - 1)]


def test_a_swap_entry_before_5_19() -> None:
    """Type in bits 2 to 7, offset from 8 to 57."""
    assert swapped([0x1234 << 8 | 3 << 2, 0x1234 << 8 | 31 << 2], OLD, ENUMS) == [(3, 0x1234), (31, 0x1234)]


@pytest.mark.parametrize("bit", [4, 5, 11, 62, 63])
def test_entries_of_another_form_than_the_kernel_seems_to_have_are_not_read(bit: int) -> None:
    assert swapped([0x1234 << 12, 0x1235 << 12 | 1 << bit], NEW, SINCE_5_19) is None


def test_a_kernel_that_does_not_tell_its_age_has_no_form() -> None:
    assert swapped([0x1234 << 12], {}, SINCE_5_19) is None
    assert swapped([0x1234 << 12], OLD, {}) is None
    assert swapped([0x1234 << 12], NEW, {}) == [(0, 0x1234)]

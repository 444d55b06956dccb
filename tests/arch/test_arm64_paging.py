"""arm64's page tables by the Arm ARM (DDI 0487), D8.3: literal descriptors."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.builders.paging import FlatContainer
from vmcore2core.addresses import PhysAddr
from vmcore2core.arch.arm64_paging import TableForm, page_table_spec
from vmcore2core.arch.spec import EntryKind
from vmcore2core.memory.pagetable import Ranges, RunKind, walk
from vmcore2core.memory.physical import PhysicalMemory

NONE, TABLE, LEAF, NOT_PRESENT, BAD = (
    EntryKind.NONE,
    EntryKind.TABLE,
    EntryKind.LEAF,
    EntryKind.NOT_PRESENT,
    EntryKind.BAD,
)
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
    (index,) = (i for i, one in enumerate(spec.levels) if one.name == level)
    kinds, paddrs = spec.decode(np.array([entry], np.uint64), index)
    assert (str(kinds.dtype), str(paddrs.dtype)) == ("uint8", "uint64")
    return int(kinds[0]), int(paddrs[0])


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

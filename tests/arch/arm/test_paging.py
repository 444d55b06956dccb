"""32-bit ARM's page tables by literal numbers: the Arm ARM (DDI 0406C), B3.5 and B3.6, and the kernel's headers."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry
from tests.builders.paging import FlatContainer
from vmcore2core.addresses import PhysAddr
from vmcore2core.arch.arm.machine import ARCH
from vmcore2core.arch.spec import KernelMap, PageTableSpec
from vmcore2core.containers.base import PageState
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, NotMapped
from vmcore2core.layout.locate import locate_image
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory

MIB = 1 << 20
XN, DIRTY, PROT_NONE, RDONLY = (1 << bit for bit in (54, 55, 57, 58))
TEXT = (
    "OSRELEASE=6.1.0-arm\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)={pgd:x}\nSYMBOL(_stext)={stext:x}\n"
    "SYMBOL(init_uts_ns)={uts:x}\nOFFSET(uts_namespace.name)=0\n"
)
LPAE_KEY = "CONFIG_ARM_LPAE=y\n"


def info(
    more: str = "", pgd: int = 0xC020_4000, stext: int = 0xC030_0000, offset: int | None = -0x8000_0000
) -> VmcoreInfo:
    text = TEXT.format(pgd=pgd, stext=stext, uts=stext + 0x1234) + more
    return parse_vmcoreinfo((text + (f"NUMBER(__pv_offset)={offset}\n" if offset is not None else "")).encode())


TWO_LEVELS, LPAE = ARCH.paging.kernel_map(info()).spec, ARCH.paging.kernel_map(info(LPAE_KEY)).spec


def test_the_levels_decode_32_bits() -> None:
    assert [(level.shift, level.bits) for level in TWO_LEVELS.levels] == [(20, 12), (12, 8)]
    assert [(level.shift, level.bits) for level in LPAE.levels] == [(30, 2), (21, 9), (12, 9)]
    assert (TWO_LEVELS.entry_dtype.itemsize, LPAE.entry_dtype.itemsize) == (4, 8)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        # L_PTE_*: 0 PRESENT, 1 YOUNG, 2-5 MT, 6 DIRTY, 7 RDONLY, 8 USER, 9 XN, 10 SHARED, 11 NONE.
        pytest.param("pte", 0, NONE, 0, id="nothing"),
        pytest.param("pte", 0x4567_875F, LEAF, 0x4567_8000, id="user rw"),
        pytest.param("pte", 0xFFFF_F001, LEAF, 0xFFFF_F000, id="the highest page"),
        pytest.param("pte", 0x4567_8F9D, LEAF, 0x4567_8000, id="PROT_NONE, neither young nor dirty"),
        # pgtable.h: type from bit 2 on, offset from bit 7 or 8 on; bit 7 is the exclusive marker.
        pytest.param("pte", 0x1234 << 8 | 1 << 2, NOT_PRESENT, 0, id="swap"),
        pytest.param("pte", 0x1234 << 8 | 1 << 7 | 1 << 2, NOT_PRESENT, 0, id="swap, exclusive"),
        pytest.param("pgd", 0, NONE, 0, id="no table"),
        # PMD_TYPE_TABLE, domain 1: the processor's half of the page at 0x46789000; Linux's table is 2048 bytes below.
        pytest.param("pgd", 0x4678_9821, TABLE, 0x4678_9000, id="first table of a pair"),
        pytest.param("pgd", 0x4678_9C21, TABLE, 0x4678_9400, id="second table of a pair"),
        pytest.param("pgd", 0x4678_9825, TABLE, 0x4678_9000, id="table with PXN"),
        pytest.param("pgd", 0x4678_9421, BAD, 0, id="a table where Linux keeps none"),
        pytest.param("pgd", 0x4671_141E, LEAF, 0x4670_0000, id="section"),
        pytest.param("pgd", 0x4671_141F, LEAF, 0x4670_0000, id="section with PXN"),
        pytest.param("pgd", 0x4505_141E, LEAF, 0x4500_0000, id="supersection"),
        # B3.5.1: bits 23 to 20 are PA[35:32], 8 to 5 PA[39:36].
        pytest.param("pgd", 0x45A5_155E, LEAF, 0xAA_4500_0000, id="supersection above 4 GiB"),
        pytest.param("pgd", 0x4678_9820, BAD, 0, id="what the processor ignores, and Linux never writes"),
    ],
)
def test_a_short_descriptor_reads_as_the_manual_says(level: str, entry: int, kind: int, paddr: int) -> None:
    assert read_entry(TWO_LEVELS, level, entry) == (kind, paddr)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pte", 0, NONE, 0, id="nothing"),
        pytest.param("pte", XN | DIRTY | 0x4567_8F5F, LEAF, 0x4567_8000, id="user rw"),
        pytest.param("pte", RDONLY | 0xFF_FFFF_FFDF, LEAF, 0xFF_FFFF_F000, id="the highest page of 40 bits"),
        # cpu_v7_set_pte_ext() clears VALID alone.
        pytest.param("pte", PROT_NONE | RDONLY | XN | 0x1_4567_8FDE, LEAF, 0x1_4567_8000, id="PROT_NONE"),
        pytest.param("pte", 0x4567_8F5D, BAD, 0, id="a block below the last level is reserved"),
        pytest.param("pte", 1 << 40 | 0x4567_8F5F, BAD, 0, id="bit 40"),
        pytest.param("pte", 0x1234 << 8 | 1 << 2, NOT_PRESENT, 0, id="swap"),
        pytest.param("pmd", 0x1_4678_9003, TABLE, 0x1_4678_9000, id="pte table above 4 GiB"),
        pytest.param("pmd", DIRTY | 0x1_4660_0F5D, LEAF, 0x1_4660_0000, id="2M"),
        pytest.param("pmd", DIRTY | PROT_NONE | 0x1_4660_0F5C, LEAF, 0x1_4660_0000, id="2M, PROT_NONE"),
        pytest.param("pmd", DIRTY | 0x1_4660_0F5C, LEAF, 0x1_4660_0000, id="2M, pmd_mkinvalid()"),
        pytest.param("pmd", 0x1234 << 12 | 1 << 2, NOT_PRESENT, 0, id="neither table nor section"),
        pytest.param("pmd", 0x4678_9002, BAD, 0, id="an invalid table"),
        pytest.param("pmd", 1 << 41 | 0x4660_0F5D, BAD, 0, id="2M with bit 41"),
        # L_PGD_SWAPPER is bit 55.
        pytest.param("pgd", 1 << 55 | 0x4020_7003, TABLE, 0x4020_7000, id="pmd table of the kernel"),
        pytest.param("pgd", 0x4000_0F5D, LEAF, 0x4000_0000, id="1G"),
        pytest.param("pgd", 0x4020_7002, BAD, 0, id="an invalid pmd table"),
        pytest.param("pgd", 0, NONE, 0, id="no pmd table"),
    ],
)
def test_a_long_descriptor_reads_as_the_manual_says(level: str, entry: int, kind: int, paddr: int) -> None:
    assert read_entry(LPAE, level, entry) == (kind, paddr)


def walked(
    spec: PageTableSpec, data: bytearray, root: int, states: dict[int, PageState] | None = None
) -> list[tuple[int, ...]]:
    memory = PhysicalMemory(FlatContainer(bytes(data), states))
    ranges = Ranges(np.array([0], np.uint64), np.array([0x1_0000_0000], np.uint64))
    rows = []
    for batch in walk(memory, spec, PhysAddr(root), ranges):
        columns = (batch.vaddr, batch.size, batch.paddr, batch.kind)
        rows += list(zip(*(column.tolist() for column in columns), strict=True))
    return sorted(rows)


def two_level_tables() -> bytearray:
    """pgd at 0x4000; page 0x8000 has the tables of 0 to 2 MiB: Linux's at +0 and +1024, the processor's behind them.

    The processor's have other addresses here, and none at all for the page that is not young and for PROT_NONE.
    """
    data = bytearray(16 * 4096)
    struct.pack_into("<2I", data, 0x4000, 0x8821, 0x8C21)
    struct.pack_into("<I", data, 0x8000 + 4 * 0x10, 0x4567_875F)  # 0x10000
    struct.pack_into("<I", data, 0x8800 + 4 * 0x10, 0x7777_7C7F)
    struct.pack_into("<I", data, 0x8000 + 4 * 0x11, 0x4567_975D)  # not young
    struct.pack_into("<I", data, 0x8000 + 4 * 0x12, 0x1234 << 8 | 4)
    struct.pack_into("<I", data, 0x8400 + 4 * 0xFF, 0x4567_AE9F)  # 0x1ff000, PROT_NONE
    for slot in range(16):  # a supersection at 0xe0000000
        struct.pack_into("<I", data, 0x4000 + 4 * (0xE00 + slot), 0x4525_141E)
    struct.pack_into("<I", data, 0x4000 + 4 * 0xFFF, 0x8C21)  # the vectors
    return data


def test_a_process_is_walked_in_linuxs_own_tables() -> None:
    assert walked(TWO_LEVELS, two_level_tables(), 0x4000) == [
        (0x1_0000, 0x1000, 0x4567_8000, RunKind.LEAF),
        (0x1_1000, 0x1000, 0x4567_9000, RunKind.LEAF),
        (0x1_2000, 0x1000, 0, RunKind.NOT_PRESENT),
        (0x1F_F000, 0x1000, 0x4567_A000, RunKind.LEAF),
        *((0xE000_0000 + MIB * i, MIB, 0x2_4500_0000 + MIB * i, RunKind.LEAF) for i in range(16)),
        (0xFFFF_F000, 0x1000, 0x4567_A000, RunKind.LEAF),
    ]


def test_an_address_in_a_supersection_keeps_its_bits() -> None:
    memory = PhysicalMemory(FlatContainer(bytes(two_level_tables())))
    assert translate(memory, TWO_LEVELS, PhysAddr(0x4000), 0xE0B4_5678) == (0x2_45B0_0000, MIB)


def lpae_tables() -> bytearray:
    """The pgd of four entries at 0x1f80, as kmalloc() gives it; the last entry is the kernel's."""
    data = bytearray(16 * 4096)
    struct.pack_into("<4Q", data, 0x1F80, 0x2003, 0, 0x3003, 1 << 55 | 0x4003)
    struct.pack_into("<Q", data, 0x2000, 0x5003)
    struct.pack_into("<Q", data, 0x5000 + 8 * 0x10, XN | 0x1_4567_8F5F)
    struct.pack_into("<Q", data, 0x5000 + 8 * 0x11, PROT_NONE | 0x4567_9F5E)
    struct.pack_into("<Q", data, 0x3000 + 8 * 0x1AC, DIRTY | 0x1_4660_0F5D)  # 0xb5800000
    struct.pack_into("<Q", data, 0x4000 + 8 * 0x1FF, 0x6003)
    struct.pack_into("<Q", data, 0x6000 + 8 * 0x1F0, 0x4004_1F5F)  # the vectors
    return data


def test_a_process_with_lpae_is_walked() -> None:
    expected = [
        (0x1_0000, 0x1000, 0x1_4567_8000, RunKind.LEAF),
        (0x1_1000, 0x1000, 0x4567_9000, RunKind.LEAF),
        (0xB580_0000, 2 * MIB, 0x1_4660_0000, RunKind.LEAF),
        (0xFFFF_0000, 0x1000, 0x4004_1000, RunKind.LEAF),
    ]
    assert walked(LPAE, lpae_tables(), 0x1F80) == expected
    rows = walked(LPAE, lpae_tables(), 0x1F80, {3: PageState.EXCLUDED})
    assert rows == [*expected[:2], (0x8000_0000, 1 << 30, 0, RunKind.TABLE_MISSING), expected[3]]


@pytest.mark.parametrize("entry", [0x2003, 0x1003])
def test_a_table_that_leads_back_ends_as_broken(entry: int) -> None:
    data = lpae_tables()
    struct.pack_into("<Q", data, 0x2008, entry)
    struct.pack_into("<Q", data, 0x3008, 0x3003)
    rows = walked(LPAE, data, 0x1F80)
    assert all(kind in (RunKind.LEAF, RunKind.BAD, RunKind.NOT_PRESENT) for *_, kind in rows)


# The kernel.


def kernel_map(more: str = "", **where: int) -> KernelMap:
    return ARCH.paging.kernel_map(info(more, **where))


def test_the_kernel_is_where_pv_offset_puts_it() -> None:
    """QEMU's virt has memory from 1 GiB on; a Keystone's, beyond 4 GiB, can only be of a kernel with LPAE."""
    made = kernel_map()
    assert (made.root, made.linear, made.spec) == (0x4020_4000, (), TWO_LEVELS)
    assert [(place.range.start, place.range.end, place.paddr) for place in made.image] == [
        (0xC020_0000, 0xC820_0000, 0x4020_0000)
    ]
    made = kernel_map(LPAE_KEY, offset=0x8_0000_0000 - 0xC000_0000)
    assert (made.root, made.image[0].paddr, made.spec) == (0x8_0020_4000, 0x8_0020_0000, LPAE)


@pytest.mark.parametrize("key", ["SYMBOL(swapper_pg_dir)", "SYMBOL(_stext)", "NUMBER(__pv_offset)"])
def test_a_missing_key_is_named(key: str) -> None:
    values = {name: value for name, value in info().values.items() if name != key}
    with pytest.raises(LayoutUnknown) as caught:
        ARCH.paging.kernel_map(VmcoreInfo(values))
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("pgd", "stext", "offset"),
    [
        pytest.param(0x4000, 0x10_0000, 0, id="below each PAGE_OFFSET"),
        pytest.param(0xFFFF_8000_0820_4000, 0xFFFF_8000_0800_0000, 0, id="64-bit"),
        pytest.param(0xC020_4000, 0xC030_0000, -0xD000_0000, id="below physical 0"),
    ],
)
def test_a_kernel_that_is_nowhere_is_refused(pgd: int, stext: int, offset: int) -> None:
    with pytest.raises(LayoutInvalid, match="expected both from"):
        kernel_map(pgd=pgd, stext=stext, offset=offset)


@pytest.mark.parametrize("page_offset", [0xC000_0000, 0xB000_0000, 0x8000_0000, 0x4000_0000])
@pytest.mark.parametrize("paddr", [0x40_0000, 0x80_0000])
def test_pv_offset_is_found_in_memory_and_proved_there(page_offset: int, paddr: int) -> None:
    """A kernel at ``paddr`` whose first MiB maps itself with a section; physical memory begins at 2 MiB."""
    data = bytearray(12 * MIB)
    name = b"Linux".ljust(130, b"\0") + b"6.1.0-arm\0"
    data[paddr + 0x1234 : paddr + 0x1234 + len(name)] = name
    base = page_offset + paddr - 2 * MIB
    struct.pack_into("<I", data, paddr + 0x4000 + 4 * (base >> 20), paddr | 0x1141E)
    physical = PhysicalMemory(FlatContainer(bytes(data)))
    found = locate_image(physical, ARCH, info(pgd=base + 0x4000, stext=base, offset=None))
    assert found.number("__pv_offset") == 2 * MIB - page_offset
    memory = KernelMemory(physical, ARCH.paging.kernel_map(found))
    assert memory.read(base + 0x1234, 5) == b"Linux"
    for address in (1 << 32, -1, base + MIB):
        with pytest.raises(NotMapped):
            memory.read(address, 5)


@pytest.mark.parametrize(
    ("text", "claimed"), [(LPAE_KEY, True), ("", False), ("CONFIG_X86_PAE=y\n", False), ("CONFIG_ARM_LPAE=n\n", False)]
)
def test_vmcoreinfo_of_arm_is_recognised_by_lpae(text: str, claimed: bool) -> None:
    assert ARCH.claims(parse_vmcoreinfo(text.encode())) is claimed

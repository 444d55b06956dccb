"""s390x's page tables by literal numbers: the Principles of Operation and the kernel's pgtable.h say what must be."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry, vmcoreinfo
from tests.builders.kernelimage import Table
from tests.builders.paging import FlatContainer
from tests.builders.places import Bytes
from vmcore2core.addresses import KernelAddr, PhysAddr
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.s390x.machine import ARCH
from vmcore2core.arch.spec import KernelMap, PageTableSpec
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, NotMapped
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory

# As Debian's 7.2 kernel writes it in QEMU.
TEXT = """\
OSRELEASE=7.2.13
PAGESIZE=4096
SYMBOL(init_uts_ns)=3ffffd01e00
SYMBOL(swapper_pg_dir)=3fffff54000
SYMBOL(_stext)=3fffe4a8000
NUMBER(VMALLOC_START)=0x37ffe300000
SYMBOL(vmemmap)=37200000000
SYMBOL(lowcore_ptr)=3fffff5c280
LENGTH(lowcore_ptr)=256
IDENTITYBASE=0
KERNELOFFSET=3fffe3a8000
KERNELOFFPHYS=9a8000
"""
MM = KernelAddr(0x8000_0000)


def info(*without: str, **changed: str) -> VmcoreInfo:
    """Return the text, less the lines that have a word, with other values for keys."""
    return vmcoreinfo(TEXT, without, changed)


def kernel_map(*without: str, **changed: str) -> KernelMap:
    return ARCH.paging.kernel_map(info(*without, **changed))


def user_spec(first: int) -> PageTableSpec:
    """Return the form of a process's page table whose first entry this is."""
    memory = Bytes({MM: struct.pack(">QQ", 0, 0x9000_0000), 0x9000_0000: struct.pack(">Q", first)})
    return ARCH.paging.user_page_table(
        kernel_map(), MM, ARCH.view(memory, KernelLayout([Table({"mm_struct": {"pgd": (8, 8)}})]))
    )


FIVE = user_spec(0x2C)  # an empty region-first entry


def decoded(entry: int, level: str = "pte") -> tuple[int, int]:
    """Return kind and physical address."""
    return read_entry(FIVE, level, entry)


# arch/s390/include/asm/pgtable.h: ".IR.uswrdy.p": I is 0x400, R 0x200, w 0x20, r 0x10, d 8, y 4, p 1.


@pytest.mark.parametrize(
    ("entry", "kind", "paddr"),
    [
        pytest.param(0x400, NONE, 0, id="empty"),
        pytest.param(0, NONE, 0, id="zero, as no entry is"),
        pytest.param(0x1234_503D, LEAF, 0x1234_5000, id="read-write, dirty, young"),
        pytest.param(0x1234_543D - 0x4, LEAF, 0x1234_5000, id="read-write, dirty, old: invalid to the hardware"),
        pytest.param(0x1234_5215, LEAF, 0x1234_5000, id="read-only, clean, young"),
        pytest.param(0x1234_5601, LEAF, 0x1234_5000, id="PROT_NONE"),
        pytest.param(0x1234_5315, LEAF, 0x1234_5000, id="no-execute"),
        pytest.param(0x1234_50FF, LEAF, 0x1234_5000, id="every software bit"),
        pytest.param(0x03D, LEAF, 0, id="page 0"),
        pytest.param(0xFFFF_FFFF_FFFF_F03D, LEAF, 0xFFFF_FFFF_FFFF_F000, id="the highest page"),
        pytest.param(0x1234_583D, BAD, 0, id="bit 52: a translation-specification exception"),
        # "swap .11..ttttt.0": I and R, without p; type in 0x7c, offset from bit 12 up.
        pytest.param(0x1234 << 12 | 0x600, NOT_PRESENT, 0, id="swap type 0"),
        pytest.param(0x1234 << 12 | 0x600 | 31 << 2, NOT_PRESENT, 0, id="swap type 31"),
        pytest.param(0x1234 << 12 | 0xE02 | 1 << 2, NOT_PRESENT, 0, id="swap, exclusive, soft-dirty"),
        pytest.param(0x1234_5400, BAD, 0, id="invalid, but not empty"),
        pytest.param(0x1234_5200, BAD, 0, id="neither present nor invalid"),
    ],
)
def test_a_pte_reads_as_the_kernel_says(entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry) == (kind, paddr)


# Region- and segment-table entries: P 0x200, FC 0x400, I 0x20, C 0x10, TT 0xc, TF 0xc0, TL 3.


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pmd", 0x20, NONE, 0, id="no page table"),
        pytest.param("pmd", 0x1234_5001, TABLE, 0x1234_5000, id="page table"),
        pytest.param("pmd", 0x1234_5801, TABLE, 0x1234_5800, id="page table in the second half of a page"),
        pytest.param("pmd", 0x1234_5800, TABLE, 0x1234_5800, id="page table, older kernels"),
        pytest.param("pmd", 0x1234_5A01, TABLE, 0x1234_5800, id="page table, protected"),
        pytest.param("pmd", 0x1234_5021, TABLE, 0x1234_5000, id="page table, invalid for a moment"),
        pytest.param("pmd", 0x1234_5041, BAD, 0, id="page table with a reserved bit"),
        pytest.param("pmd", 0x1234_5005, BAD, 0, id="a region-third entry in a segment table"),
        pytest.param("pmd", 0x24, BAD, 0, id="an empty region-third entry in a segment table"),
        pytest.param("pmd", 0x1230_F403, LEAF, 0x1230_0000, id="1M read-write, dirty, young"),
        pytest.param("pmd", 0x1230_0620 | 0x2001, LEAF, 0x1230_0000, id="1M PROT_NONE"),
        pytest.param("pmd", 0x123F_F403, LEAF, 0x1230_0000, id="1M with an access key: not of the address"),
        pytest.param("pmd", 0x1234 << 12 | 5 << 6 | 0x30, NOT_PRESENT, 0, id="1M swap or migration"),
        pytest.param("pmd", 0x1234 << 12 | 16 << 6 | 0x30, NOT_PRESENT, 0, id="1M swap, whose type has FC's bit"),
        pytest.param("pud", 0x24, NONE, 0, id="no segment table"),
        pytest.param("pud", 0x1234_4007, TABLE, 0x1234_4000, id="segment table"),
        pytest.param("pud", 0x1234_4006, BAD, 0, id="segment table cut short"),
        pytest.param("pud", 0x1234_4047, BAD, 0, id="segment table that does not begin at 0"),
        pytest.param("pud", 0x1234_400B, BAD, 0, id="a region-second entry in a region-third table"),
        pytest.param("pud", 0x1_8000_F405, LEAF, 0x1_8000_0000, id="2G"),
        pytest.param("pud", 0x1234 << 12 | 5 << 6 | 0x34, NOT_PRESENT, 0, id="2G swap"),
        pytest.param("p4d", 0x28, NONE, 0, id="no region-third table"),
        pytest.param("p4d", 0x1234_400B, TABLE, 0x1234_4000, id="region-third table"),
        pytest.param("p4d", 0x1234_440B, TABLE, 0x1234_4000, id="FC is no bit of a region-second entry"),
        pytest.param("pgd", 0x2C, NONE, 0, id="no region-second table"),
        pytest.param("pgd", 0x1234_400F, TABLE, 0x1234_4000, id="region-second table"),
        pytest.param("pgd", 0x1234_4007, BAD, 0, id="a region-third entry in a region-first table"),
        *(pytest.param(level, 0, NONE, 0, id=f"zero {level}") for level in ("pmd", "pud", "p4d", "pgd")),
    ],
)
def test_an_upper_entry_reads_as_the_principles_of_operation_say(level: str, entry: int, kind: int, paddr: int) -> None:
    assert decoded(entry, level) == (kind, paddr)


@pytest.mark.parametrize(
    ("size", "entry", "kind", "offset"),
    [
        # mk_swap_pte(): 0x600, type in 0x7c; 0x800 is PG_anon_exclusive, 0x2 soft-dirty.
        pytest.param(1 << 12, 0x1234 << 12 | 0x600 | 3 << 2, 3, 0x1234, id="4K"),
        pytest.param(1 << 12, 0x1234 << 12 | 0xE02, 0, 0x1234, id="4K exclusive, soft-dirty"),
        pytest.param(1 << 12, 0xFFFF_FFFF_FFFF_F67C, 31, 0xF_FFFF_FFFF_FFFF, id="4K, every bit"),
        pytest.param(1 << 12, 0x1234 << 12 | 0x600 | 30 << 2, 30, 0x1234, id="4K whose type has I and C"),
        # mk_swap_rste(): 0x30, type in 0x7c0; TT is 0 in a segment table, 4 in a region-third table.
        pytest.param(1 << 20, 0x1234 << 12 | 0x30 | 30 << 6, 30, 0x1234, id="1M, migrating"),
        pytest.param(1 << 31, 0x1234 << 12 | 0x36 | 27 << 6, 27, 0x1234, id="2G, soft-dirty"),
    ],
)
def test_a_swap_entry_names_type_and_offset(size: int, entry: int, kind: int, offset: int) -> None:
    types, offsets = ARCH.swap_entries.type_and_offset(
        np.array([entry], np.uint64), np.array([size], np.uint64), 4096, KernelLayout([])
    )
    assert (types.tolist(), offsets.tolist()) == ([kind], [offset])


FORM = [("pgd", 53, 11), ("p4d", 42, 11), ("pud", 31, 11), ("pmd", 20, 11), ("pte", 12, 8)]


def form(spec: PageTableSpec) -> list[tuple[str, int, int]]:
    assert (spec.page_size, spec.entry_dtype) == (4096, np.dtype(">u8"))
    return [(level.name, level.shift, level.bits) for level in spec.levels]


@pytest.mark.parametrize(
    ("first", "levels"),
    [(0x2C, 5), (0x1234_400F, 5), (0x28, 4), (0x24, 3), (0x1234_4007, 3), (0x20, 2), (0x1234_5800, 2)],
)
def test_the_first_entry_tells_how_many_levels_a_process_has(first: int, levels: int) -> None:
    assert form(user_spec(first)) == FORM[-levels:]


def test_a_top_table_that_cannot_be_is_an_error() -> None:
    with pytest.raises(LayoutInvalid, match="page table at 0x90000000"):
        user_spec(0)


@pytest.mark.parametrize(
    ("changed", "levels"),
    [
        pytest.param({}, 3, id="below 4 TiB"),
        pytest.param({"NUMBER(VMALLOC_START)": "0x1fff7ffe00000"}, 4, id="vmalloc beyond 4 TiB"),
        pytest.param({"SYMBOL(vmemmap)": "40000000000"}, 4, id="vmemmap beyond 4 TiB"),
        pytest.param({"NUMBER(VMALLOC_START)": "0x20000000000000"}, 5, id="vmalloc beyond 8 PiB"),
    ],
)
def test_the_highest_address_tells_how_many_levels_the_kernel_has(changed: dict[str, str], levels: int) -> None:
    assert form(kernel_map(**changed).spec) == FORM[-levels:]


def test_the_page_table_and_the_image_are_where_the_offsets_say() -> None:
    made = kernel_map()
    assert made.root == 0x255_4000  # as CR13 of the dump's CPUs has it
    assert made.linear == ()
    (image,) = made.searched
    assert (image.range.start, image.paddr) == (0x3FF_FE4A_8000, 0xAA_8000)
    # Before Linux 6.10 virtual is physical, KASLR or not.
    old = {"SYMBOL(swapper_pg_dir)": "2554000", "SYMBOL(_stext)": "100000", "KERNELOFFSET": "1000000"}
    for without in ("KERNELOFFPHYS", "KERNELOFF"):
        made = kernel_map(without, **old)
        assert (made.root, made.searched[0].range.start, made.searched[0].paddr) == (0x255_4000, 0x10_0000, 0x10_0000)


@pytest.mark.parametrize("key", ["swapper_pg_dir", "_stext"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(LayoutUnknown) as caught:
        kernel_map(key)
    assert f"SYMBOL({key})" in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"KERNELOFFSET": "zzz"},
        {"KERNELOFFPHYS": ""},
        {"KERNELOFFSET": "ffffffffffffffff"},
        {"KERNELOFFPHYS": "ffffffffffffffff"},
        {"SYMBOL(swapper_pg_dir)": "0"},
    ],
)
def test_offsets_that_cannot_be_are_one_sentence(changed: dict[str, str]) -> None:
    with pytest.raises(LayoutInvalid, match="in VMCOREINFO"):
        kernel_map(**changed)


def test_the_text_is_known_for_what_it_is() -> None:
    assert ARCH.claims(info())
    assert not ARCH.claims(info("lowcore_ptr"))
    assert arch_for_machine(22) is ARCH


# Walks.


def tables(*entries: tuple[int, int, int], pages: int = 64) -> PhysicalMemory:
    """Return memory with entries (table, slot, entry), big-endian."""
    data = bytearray(pages * 4096)
    for table, slot, entry in entries:
        struct.pack_into(">Q", data, table + 8 * slot, entry)
    return PhysicalMemory(FlatContainer(bytes(data)))


def everything(memory: PhysicalMemory, spec: PageTableSpec, start: int, end: int) -> list[tuple[int, int, int]]:
    """Return (address, kind, physical address) of what a walk finds."""
    ranges = Ranges(np.array([start], np.uint64), np.array([end], np.uint64))
    found = []
    for batch in walk(memory, spec, PhysAddr(0x4000), ranges):
        found += list(zip(batch.vaddr.tolist(), batch.kind.tolist(), batch.paddr.tolist(), strict=True))
    return found


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_an_address_is_translated_level_by_level(levels: int) -> None:
    """Tables of 16 KiB, one behind the other from 0x4000 on; the page table in the second half of a page."""
    address = 0xFEDC_BA98_7654_3210 & (1 << (0, 0, 31, 42, 53, 64)[levels]) - 1
    kinds = (0xF, 0xB, 0x7, 0x1)[-(levels - 1) :]
    slots = [address >> shift & 2047 for shift in (53, 42, 31, 20)][-(levels - 1) :]
    entries = [(0x4000 * (i + 1), slots[i], 0x4000 * (i + 2) | kind) for i, kind in enumerate(kinds)]
    page_table = 0x4000 * levels + 0x800
    entries[-1] = (*entries[-1][:2], page_table | 1)
    entries.append((page_table, address >> 12 & 255, 0x777_703D))
    empty = [(0x4000, 0, 0x20 | kinds[0] & 0xC)]
    memory, spec = tables(*empty, *entries), user_spec(0x20 | kinds[0] & 0xC)
    assert translate(memory, spec, PhysAddr(0x4000), address) == (0x777_7000, 4096)
    assert everything(memory, spec, address & ~4095, (address & ~4095) + 4096) == [
        (address & ~4095, RunKind.LEAF, 0x777_7000)
    ]
    with pytest.raises(NotMapped):
        translate(memory, spec, PhysAddr(0x4000), address ^ 0x1000)


def test_large_pages_and_small_ones_stand_side_by_side() -> None:
    upper = ((0x4000, 0, 0x8007), (0x4000, 1, 0x1_8000_F405), (0x8000, 0, 0xC801), (0x8000, 1, 0x1230_F403))
    memory = tables(*upper, (0xC800, 255, 0x9903D), (0xC800, 0, 0x400), (0x8000, 2, 0x20))
    assert sorted(everything(memory, user_spec(0x24), 0, 1 << 42)) == [
        (0xF_F000, RunKind.LEAF, 0x9_9000),
        (0x10_0000, RunKind.LEAF, 0x1230_0000),
        (0x8000_0000, RunKind.LEAF, 0x1_8000_0000),
    ]
    assert translate(memory, user_spec(0x24), PhysAddr(0x4000), 0x8123_4567) == (0x1_8000_0000, 1 << 31)


def test_tables_that_lead_to_themselves_end() -> None:
    memory = tables(*((0x4000, slot, 0x4007) for slot in range(2048)))
    assert {kind for _, kind, _ in everything(memory, user_spec(0x24), 0, 1 << 42)} == {RunKind.BAD}
    memory = tables((0x4000, 0, 0x800F), (0x8000, 0, 0xC00B), (0xC000, 0, 0x8007))
    assert everything(memory, user_spec(0x2C), 0, (1 << 64) - 1) == [(0, RunKind.BAD, 0)]


# vmemmap.


def test_vmemmap_is_a_value_in_the_text_and_an_address_in_kallsyms() -> None:
    def vmemmap(symbol: int | None, *places: int) -> int | None:
        symbols = {"_stext": 0x3FF_FE4A_8000} | ({} if symbol is None else {"vmemmap": symbol})
        memory = Bytes({place: struct.pack(">Q", 0x372_0000_0000) for place in places})
        return ARCH.paging.vmemmap(ARCH.view(memory, KernelLayout([Table(symbols=symbols)])))

    assert vmemmap(0x372_0000_0000) == 0x372_0000_0000
    assert vmemmap(0x3FF_FFF5_C280, 0x3FF_FFF5_C280) == 0x372_0000_0000
    assert vmemmap(None) is None
    with pytest.raises(NotMapped):
        vmemmap(0x3FF_FFF5_C280)

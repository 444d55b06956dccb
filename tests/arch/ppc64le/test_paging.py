"""POWER's page tables by literal numbers: Power ISA 3.1B, book III, 6.7.10, and book3s/64/{pgtable,radix,hash}.h.

Radix entries, bit 0 lowest. Of a table: 63 valid, 62 leaf, 8-52 address, 0-4 size of the next level, the rest
reserved. Of a page: 63, 62 as before, 61 software, 12-52 address, 9-11 software, 8 R, 7 C, 0-5 attributes, EAA.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import pytest

from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry, vmcoreinfo
from tests.builders.kernelimage import Table
from tests.builders.paging import FlatContainer
from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr
from vmcore2core.arch.ppc64le.machine import ARCH
from vmcore2core.arch.spec import KernelMap, PageTableSpec
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, NotMapped
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory

V, PTE, INVALID = 1 << 63, 1 << 62, 1 << 61
USER = 0x187  # accessed, dirty, read, write, execute
MM = KernelAddr(0xC000_0000_0100_0000)

# As Debian's 7.2 kernel writes it on QEMU's pseries machine.
TEXT = """\
OSRELEASE=7.2.13
PAGESIZE=4096
SYMBOL(init_uts_ns)=c000000002932680
SYMBOL(swapper_pg_dir)=c0000000029d0000
SYMBOL(_stext)=c000000000000000
SYMBOL(vmemmap)=c00c000000000000
SYMBOL(mmu_psize_defs)=c0000000029ebbf8
NUMBER(RADIX_MMU)=1
KERNELOFFSET=0
"""


def info(*without: str, **changed: str) -> VmcoreInfo:
    """Return the text, less the lines that have a word, with other values."""
    given = {"PAGESIZE": "PAGESIZE", "RADIX_MMU": "NUMBER(RADIX_MMU)"}
    more = {given.get(key, f"SYMBOL({key})"): value for key, value in changed.items()}
    return vmcoreinfo(TEXT, without, more)


def kernel_map(*without: str, **changed: str) -> KernelMap:
    return ARCH.paging.kernel_map(info(*without, **changed))


class Words:
    """Kernel memory of words at addresses."""

    def __init__(self, words: Mapping[int, int]) -> None:
        self.words = words

    def read(self, address: int, size: int) -> bytes:
        if address not in self.words or size != 8:
            raise NotMapped(address)
        return struct.pack("<Q", self.words[address])


NAMES = ("__pte_index_size", "__pmd_index_size", "__pud_index_size", "__pgd_index_size", "__pmd_val_bits")


def user(sizes: tuple[int, ...], val_bits: int, page_size: str = "4096", radix_mmu: int | None = 0) -> PageTableSpec:
    """Return the form of a process's page table as the kernel's variables say."""
    symbols = {name: 0xC000_0000_0200_0000 + 8 * i for i, name in enumerate(NAMES)}
    memory = Words(dict(zip(symbols.values(), (*sizes, val_bits), strict=True)))
    table = Table(symbols=symbols, constants={} if radix_mmu is None else {"RADIX_MMU": radix_mmu})
    made = kernel_map(PAGESIZE=page_size, RADIX_MMU="" if radix_mmu is None else str(radix_mmu))
    return ARCH.paging.user_page_table(made, MM, ARCH.view(memory, KernelLayout([table])))


RADIX_4K, RADIX_64K = kernel_map().spec, kernel_map(PAGESIZE="65536").spec
HASH_4K, HASH_64K = user((9, 7, 9, 9), V), user((8, 10, 10, 8), V, "65536")


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pte", 0, NONE, 0, id="nothing"),
        pytest.param("pte", 0x180, NONE, 0, id="R and C written back into nothing"),
        pytest.param("pte", V | PTE | 0x1234_5000 | USER, LEAF, 0x1234_5000, id="user rwx"),
        pytest.param("pte", V | PTE | USER, LEAF, 0, id="page 0"),
        pytest.param("pte", V | PTE | 0x1F_FFFF_FFFF_F000 | USER, LEAF, 0x1F_FFFF_FFFF_F000, id="the highest page"),
        pytest.param("pte", V | PTE | 0x1234_5E00 | USER, LEAF, 0x1234_5000, id="software bits"),
        # PAGE_NONE: privileged, no permissions; pte_protnone() of NUMA hinting without the privilege as well.
        pytest.param("pte", V | PTE | 0x1234_5108, LEAF, 0x1234_5000, id="PROT_NONE"),
        pytest.param("pte", V | PTE | 0x1234_5100, LEAF, 0x1234_5000, id="NUMA hinting"),
        pytest.param("pte", PTE | INVALID | 0x1234_5000 | USER, LEAF, 0x1234_5000, id="invalid while it is changed"),
        pytest.param("pte", PTE | 0x1234_5001, NOT_PRESENT, 0, id="swap: _PAGE_PTE, offset, type in bits 0 to 4"),
        pytest.param("pte", PTE | 0x1F_FFFF_FFFF_F03F, NOT_PRESENT, 0, id="swap, all its bits"),
        pytest.param("pte", PTE, NOT_PRESENT, 0, id="swap slot 0 of area 0"),
        pytest.param("pte", V | 0x1234_5000, BAD, 0, id="a table below the last level"),
        pytest.param("pte", 0x1234_5000, BAD, 0, id="neither valid nor a page"),
        pytest.param("pte", INVALID | 0x1234_5000, BAD, 0, id="invalid, and no page"),
        pytest.param("pmd", V | 0x1234_5000 | 9, TABLE, 0x1234_5000, id="table of 512"),
        pytest.param("pmd", V | 0x1234_5000 | 5, BAD, 0, id="table of 32 where 512 are"),
        pytest.param("pmd", V | 0x1234_5000, BAD, 0, id="table without a size: the hash MMU's"),
        pytest.param("pmd", V | 0x1234_5800 | 9, BAD, 0, id="table, misaligned"),
        pytest.param("pmd", 0x1234_5000 | 9, BAD, 0, id="table, not valid"),
        pytest.param("pmd", V | PTE | 0x1220_0000 | USER, LEAF, 0x1220_0000, id="2M"),
        pytest.param("pmd", V | PTE | 0x1220_1000 | USER, BAD, 0, id="2M, misaligned"),
        pytest.param("pmd", PTE | INVALID | 0x1220_0000 | USER, LEAF, 0x1220_0000, id="2M, being split"),
        pytest.param("pmd", PTE | 0x1234_501E, NOT_PRESENT, 0, id="2M migrating"),
        pytest.param("pmd", 0x180, BAD, 0, id="R and C in an entry for a table"),
        pytest.param("pud", V | 0x1234_5000 | 9, TABLE, 0x1234_5000, id="table of pmds"),
        pytest.param("pud", V | PTE | 0x4000_0000 | USER, LEAF, 0x4000_0000, id="1G"),
        pytest.param("pud", V | PTE | 0x4020_0000 | USER, BAD, 0, id="1G, misaligned"),
        pytest.param("pud", PTE | 0x1234_501E, BAD, 0, id="no 1G page is ever swapped"),
        pytest.param("pgd", V | 0x1234_5000 | 9, TABLE, 0x1234_5000, id="table of puds"),
        pytest.param("pgd", V | PTE | USER, BAD, 0, id="no page of 512G exists"),
    ],
)
def test_a_radix_entry_reads_as_the_isa_says(level: str, entry: int, kind: int, paddr: int) -> None:
    assert read_entry(RADIX_4K, level, entry) == (kind, paddr)


@pytest.mark.parametrize(
    ("page", "entry", "kind", "offset"),
    [
        pytest.param(4096, PTE | 0x1234_5000 | 3, 3, 0x1_2345, id="4K"),
        pytest.param(4096, PTE | 0x1234_5220 | 31, 31, 0x1_2345, id="4K, exclusive, soft-dirty"),
        pytest.param(4096, PTE | 0x1F_FFFF_FFFF_F03F, 31, 0x1FF_FFFF_FFFF, id="4K, every bit"),
        pytest.param(65536, PTE | 0x1235_0000 | 3, 3, 0x1235, id="64K"),
        pytest.param(65536, PTE | 0x7F << 54 | 0x1235_0000 | 3, 3, 0x1235, id="64K with the hash MMU's bits"),
    ],
)
def test_a_swap_entry_names_type_and_offset(page: int, entry: int, kind: int, offset: int) -> None:
    types, offsets = ARCH.swap_entries.type_and_offset(
        np.array([entry], np.uint64), np.array([page], np.uint64), page, KernelLayout([])
    )
    assert (types.tolist(), offsets.tolist()) == ([kind], [offset])


@pytest.mark.parametrize("bit", [5, 6, 7, *range(53, 62)])
def test_reserved_bits_make_a_table_bad(bit: int) -> None:
    assert read_entry(RADIX_4K, "pgd", 1 << bit | V | 0x1234_5000 | 9) == (BAD, 0)
    assert read_entry(RADIX_64K, "pmd", 1 << bit | V | 0x1234_5000 | 5) == (BAD, 0)


@pytest.mark.parametrize("bit", range(53, 61))
def test_reserved_bits_make_a_page_bad(bit: int) -> None:
    for level in ("pte", "pmd"):
        assert read_entry(RADIX_4K, level, 1 << bit | V | PTE | 0x4000_0000 | USER) == (BAD, 0)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pte", V | PTE | 0x1234_0000 | USER, LEAF, 0x1234_0000, id="64K"),
        pytest.param("pte", V | PTE | 0x1234_5000 | USER, BAD, 0, id="64K, misaligned"),
        pytest.param("pmd", V | 0x1234_5F00 | 5, TABLE, 0x1234_5F00, id="table of 32: 256 bytes of a page"),
        pytest.param("pmd", V | 0x1234_5000 | 9, BAD, 0, id="table of 512 where 32 are"),
        pytest.param("pmd", V | PTE | 0x1220_0000 | USER, LEAF, 0x1220_0000, id="2M"),
        pytest.param("pud", V | 0x1234_5000 | 9, TABLE, 0x1234_5000, id="table of pmds"),
    ],
)
def test_64k_pages_have_small_tables(level: str, entry: int, kind: int, paddr: int) -> None:
    assert read_entry(RADIX_64K, level, entry) == (kind, paddr)


@pytest.mark.parametrize(
    ("spec", "level", "entry", "kind", "paddr"),
    [
        # hash-4k.h: H_PAGE_BUSY 0x40, H_PAGE_F_GIX 53 to 55, H_PAGE_F_SECOND 56, H_PAGE_HASHPTE 60.
        pytest.param(HASH_4K, "pte", V | PTE | 0x10E0 << 48 | 0x1234_5000 | USER, LEAF, 0x1234_5000, id="4K, hashed"),
        pytest.param(HASH_4K, "pte", 0x11E0 << 48 | 0x40, NONE, 0, id="4K, nothing but the slot in the hash table"),
        pytest.param(HASH_4K, "pte", PTE | 0x1234_5001, NOT_PRESENT, 0, id="4K, swap"),
        pytest.param(HASH_4K, "pmd", V | 0x1234_5000, TABLE, 0x1234_5000, id="4K, table"),
        pytest.param(HASH_4K, "pmd", V | 0x1234_5000 | 9, BAD, 0, id="4K, a radix table"),
        pytest.param(HASH_4K, "pud", V | 0x1234_5400, TABLE, 0x1234_5400, id="4K, table of 128: 1K of a page"),
        pytest.param(HASH_4K, "pud", V | 0x1234_5000 | 0x14, BAD, 0, id="4K, a huge page directory"),
        # hash-64k.h: H_PAGE_COMBO 0x1000, H_PAGE_4K_PFN 0x2000, H_PAGE_HASHPTE 55; protection keys 56 to 60.
        pytest.param(HASH_64K, "pte", V | PTE | 0x1F80 << 48 | 0x1234_1000 | USER, LEAF, 0x1234_0000, id="64K, hashed"),
        pytest.param(HASH_64K, "pte", 0x80 << 48 | 0x1040, NONE, 0, id="64K, nothing but flags"),
        pytest.param(HASH_64K, "pmd", V | PTE | 0x80 << 48 | 0x1200_2000 | USER, LEAF, 0x1200_0000, id="16M"),
        pytest.param(HASH_64K, "pmd", V | PTE | 0x1220_0000 | USER, BAD, 0, id="16M, misaligned"),
        pytest.param(HASH_64K, "pud", V | PTE | 0x4_0000_0000 | USER, LEAF, 0x4_0000_0000, id="16G"),
    ],
)
def test_linux_page_tables_of_the_hash_mmu_read_likewise(
    spec: PageTableSpec, level: str, entry: int, kind: int, paddr: int
) -> None:
    assert read_entry(spec, level, entry) == (kind, paddr)


def test_the_levels_are_the_kernels() -> None:
    assert [(o.shift, o.bits) for o in RADIX_4K.levels] == [(39, 13), (30, 9), (21, 9), (12, 9)]
    assert [(o.shift, o.bits) for o in RADIX_64K.levels] == [(39, 13), (30, 9), (21, 9), (16, 5)]
    assert [(o.shift, o.bits) for o in HASH_4K.levels] == [(37, 9), (28, 9), (21, 7), (12, 9)]
    assert [(o.shift, o.bits) for o in HASH_64K.levels] == [(44, 8), (34, 10), (24, 10), (16, 8)]
    assert [spec.page_size for spec in (RADIX_4K, RADIX_64K, HASH_64K)] == [4096, 65536, 65536]
    # Linux 4.12: hash-64k.h of then, and entries without a mark.
    older = user((8, 10, 7, 8), 0, "65536", radix_mmu=None)
    assert [(o.shift, o.bits) for o in older.levels] == [(41, 8), (34, 7), (24, 10), (16, 8)]
    assert read_entry(older, "pmd", 0x1234_5000) == (TABLE, 0x1234_5000)


def test_a_kernel_that_does_not_tell_its_mmu_does_by_its_variables() -> None:
    found = user((9, 9, 9, 13), V | 9, radix_mmu=None)
    assert found.levels == RADIX_4K.levels
    assert read_entry(found, "pmd", V | 0x1234_5000 | 9) == (TABLE, 0x1234_5000)


@pytest.mark.parametrize(
    ("sizes", "val_bits", "radix_mmu"),
    [
        pytest.param((0, 7, 9, 9), V, 0, id="a level of nothing"),
        pytest.param((17, 7, 9, 9), V, 0, id="a table of a megabyte"),
        pytest.param((16, 16, 16, 16), V, 0, id="more bits than an address has"),
        pytest.param(((1 << 64) - 1, 7, 9, 9), V, 0, id="-1"),
        pytest.param((9, 7, 9, 9), V | 9, 0, id="a radix entry"),
        pytest.param((9, 7, 9, 9), V | 9, None, id="radix entries with other levels"),
    ],
)
def test_variables_that_cannot_be_true_are_refused(
    sizes: tuple[int, ...], val_bits: int, radix_mmu: int | None
) -> None:
    with pytest.raises(LayoutInvalid):
        user(sizes, val_bits, radix_mmu=radix_mmu)


def test_without_the_variables_the_hash_mmus_levels_are_not_known() -> None:
    made = kernel_map(RADIX_MMU="0")
    with pytest.raises(LayoutUnknown, match="__pte_index_size"):
        ARCH.paging.user_page_table(made, MM, ARCH.view(Words({}), KernelLayout([Table(constants={"RADIX_MMU": 0})])))


def test_the_linear_mapping_is_at_physical_0_and_the_image_where_it_was_loaded() -> None:
    made = kernel_map(_stext="c000000002000148")  # a kdump kernel, at 32 MiB
    assert made.root == 0x29D_0000
    (linear,), (image,) = made.linear, made.searched
    assert (linear.range, linear.paddr) == (AddressRange(0xC000 << 48, 0xC008 << 48), 0)
    assert (image.range.start, image.paddr) == (0xC000_0000_0200_0000, 0x200_0000)
    for made in (kernel_map(RADIX_MMU="0"), kernel_map("RADIX_MMU")):
        assert made.linear[0].range.end == 0xC000_1000_0000_0000
    assert kernel_map(RADIX_MMU="0", PAGESIZE="65536").linear[0].range.end == 0xC008 << 48


@pytest.mark.parametrize("key", ["swapper_pg_dir", "_stext", "PAGESIZE"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(LayoutUnknown, match=key):
        kernel_map(key)


@pytest.mark.parametrize(
    "changed",
    [{"PAGESIZE": "16384"}, {"PAGESIZE": "0"}, {"swapper_pg_dir": "29d0000"}, {"_stext": "ffffffff80000000"}],
)
def test_nonsense_in_the_text_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(LayoutInvalid):
        kernel_map(**changed)


# Walks.


def tables(*entries: tuple[int, int, int], pages: int = 64) -> PhysicalMemory:
    """Return memory with big-endian entries (table, slot, entry)."""
    data = bytearray(pages * 4096)
    for table, slot, entry in entries:
        struct.pack_into(">Q", data, table + 8 * slot, entry)
    return PhysicalMemory(FlatContainer(bytes(data)))


def test_an_address_is_translated_level_by_level_in_big_endian() -> None:
    # 0xc008000000123000: 0x1000 << 39 | 1 << 20 | 0x23 << 12.
    address = 0xC008_0000_0012_3456
    memory = tables(
        (0x1_0000, 0x1000, V | 0x2000 | 9),
        (0x2000, 0, V | 0x3000 | 9),
        (0x3000, 0, V | 0x4000 | 9),
        (0x4000, 0x123, V | PTE | 0x2_1000 | USER),
    )
    assert translate(memory, RADIX_4K, PhysAddr(0x1_0000), address) == (0x2_1000, 4096)
    kernel = KernelMemory(memory, kernel_map(swapper_pg_dir="c000000000010000"))
    assert (kernel.to_phys(address), kernel.to_phys(0xC000_0000_0000_1234)) == (0x2_1456, 0x1234)
    with pytest.raises(NotMapped):
        kernel.to_phys(address + 0x1000)


def test_a_64k_page_is_found_through_a_table_within_a_page() -> None:
    # 31 << 16 | 0x1234; slot 31 of the table at 0x4500.
    memory = tables(
        (0x1_0000, 0, V | 0x2000 | 9),
        (0x2000, 0, V | 0x3000 | 9),
        (0x3000, 0, V | 0x4500 | 5),
        (0x4500, 31, V | PTE | 0x2_0000 | USER),
    )
    assert translate(memory, RADIX_64K, PhysAddr(0x1_0000), 0x1F_1234) == (0x2_0000, 65536)
    ranges = Ranges(np.array([0x1F_0000], np.uint64), np.array([0x20_0000], np.uint64))
    (batch,) = walk(memory, RADIX_64K, PhysAddr(0x1_0000), ranges)
    assert (batch.vaddr.tolist(), batch.paddr.tolist(), batch.size.tolist()) == ([0x1F_0000], [0x2_0000], [65536])


def test_the_kernels_page_table_is_not_read_with_the_hash_mmu() -> None:
    memory = tables((0x1_0000, 0, V | 0x2000), (0x1_0000, 0x1000, V | 0x2000))
    lookalike = tables((0x1_0000, 0x1000, V | 0x2000 | 9), (0x2000, 0, V | PTE | 0x4000_0000 | USER))
    kernel = KernelMemory(lookalike, kernel_map(swapper_pg_dir="c000000000010000"))
    assert kernel.to_phys(0xC008_0000_0000_0000) == 0x4000_0000
    kernel = KernelMemory(lookalike, kernel_map(swapper_pg_dir="c000000000010000", RADIX_MMU="0"))
    with pytest.raises(NotMapped):
        kernel.to_phys(0xC008_0000_0000_0000)
    # And where nothing tells the MMU, radix entries are expected, which say so.
    kernel = KernelMemory(memory, kernel_map("RADIX_MMU", swapper_pg_dir="c000000000010000"))
    with pytest.raises(NotMapped):
        kernel.to_phys(0xC008_0000_0000_0000)


def test_tables_that_lead_to_themselves_end() -> None:
    ranges = Ranges(np.array([0], np.uint64), np.array([1 << 47], np.uint64))
    memory = tables((0x1_0000, 0, V | 0x1_0000 | 9), (0x1_0000, 1, V | 0x2000 | 9), (0x2000, 0, V | 0x2000 | 9))
    kinds = {kind for batch in walk(memory, RADIX_4K, PhysAddr(0x1_0000), ranges) for kind in batch.kind.tolist()}
    assert kinds == {RunKind.BAD}

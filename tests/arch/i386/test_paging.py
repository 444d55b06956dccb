"""i386's page tables by literal numbers: the Intel SDM and the kernel's headers say what they must be."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.arch.shared import BAD, LEAF, NONE, NOT_PRESENT, TABLE, read_entry
from tests.builders.paging import FlatContainer
from vmcore2core.addresses import AddressRange, PhysAddr
from vmcore2core.arch.i386.machine import ARCH
from vmcore2core.arch.spec import KernelMap, PageTableSpec
from vmcore2core.containers.base import PageState
from vmcore2core.elf.notes import Note
from vmcore2core.errors import DumpError, LayoutInvalid, LayoutUnknown, NotMapped, PageMissing
from vmcore2core.layout.bootstrap import bootstrap
from vmcore2core.layout.locate import locate_image
from vmcore2core.layout.vmcoreinfo import parse_vmcoreinfo
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.pagetable import Ranges, RunKind, translate, walk
from vmcore2core.memory.physical import PhysicalMemory

NX = 1 << 63
MIB = 1 << 20
SYMBOLS = "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)={pgd:x}\nSYMBOL(_stext)={stext:x}\n"
CONFIG_PAE = "CONFIG_X86_PAE=y\n"


def kernel_map(more: str = "", pgd: int = 0xC1F0_0000, stext: int = 0xC100_0000) -> KernelMap:
    return ARCH.paging.kernel_map(parse_vmcoreinfo((SYMBOLS.format(pgd=pgd, stext=stext) + more).encode()))


TWO_LEVELS, PAE = kernel_map().spec, kernel_map(CONFIG_PAE).spec


def test_the_levels_decode_32_bits() -> None:
    """SDM volume 3, figures 4-2 to 4-7: 10, 10, 12; with PAE 2, 9, 9, 12."""
    assert [(level.shift, level.bits) for level in TWO_LEVELS.levels] == [(22, 10), (12, 10)]
    assert [(level.shift, level.bits) for level in PAE.levels] == [(30, 2), (21, 9), (12, 9)]
    assert (TWO_LEVELS.entry_dtype.itemsize, PAE.entry_dtype.itemsize) == (4, 8)


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pte", 0, NONE, 0, id="nothing"),
        pytest.param("pte", 0x1234_5067, LEAF, 0x1234_5000, id="user rw dirty"),
        pytest.param("pte", 0xFFFF_F001, LEAF, 0xFFFF_F000, id="the highest page"),
        pytest.param("pte", 0x0000_1FFF, LEAF, 0x1000, id="all low bits, PAT too"),
        # pgtable-2level.h: "No inverted PFNs on 2 level page tables".
        pytest.param("pte", 0x1234_5160, LEAF, 0x1234_5000, id="PROT_NONE"),
        pytest.param("pte", 0xFFFF_F120, LEAF, 0xFFFF_F000, id="PROT_NONE, the highest page"),
        pytest.param("pte", 0x0001_2402, NOT_PRESENT, 0, id="swap"),
        pytest.param("pte", 0x60, NONE, 0, id="accessed and dirty alone"),
        pytest.param("pgd", 0, NONE, 0, id="no table"),
        pytest.param("pgd", 0x1234_5067, TABLE, 0x1234_5000, id="table"),
        pytest.param("pgd", 0x1240_00E7, LEAF, 0x1240_0000, id="4M"),
        pytest.param("pgd", 0x1240_10E7, LEAF, 0x1240_0000, id="4M with PAT"),
        # SDM volume 3, table 4-4: bits 20:13 are bits 39:32 of the address (PSE-36).
        pytest.param("pgd", 0x1240_60E7, LEAF, 0x3_1240_0000, id="4M above 4 GiB"),
        pytest.param("pgd", 0x1240_01E0, LEAF, 0x1240_0000, id="4M, PROT_NONE"),
        pytest.param("pgd", 0x1260_00E7, BAD, None, id="4M with reserved bit 21"),
        pytest.param("pgd", 0x60, NONE, 0, id="accessed and dirty alone in a pgd"),
        pytest.param("pgd", 0x1234_5100, NOT_PRESENT, 0, id="neither present nor large"),
    ],
)
def test_an_entry_of_32_bits_reads_as_the_manual_says(level: str, entry: int, kind: int, paddr: int | None) -> None:
    found = read_entry(TWO_LEVELS, level, entry)
    assert found[0] == kind
    assert paddr is None or found[1] == paddr


@pytest.mark.parametrize(
    ("level", "entry", "kind", "paddr"),
    [
        pytest.param("pte", NX | 0x1_2345_6025, LEAF, 0x1_2345_6000, id="NX, above 4 GiB"),
        # pgtable-3level.h includes pgtable-invert.h: PROT_NONE is inverted up to bit 51.
        pytest.param("pte", 0x000F_FFFE_DCBA_9160, LEAF, 0x1_2345_6000, id="PROT_NONE, inverted"),
        pytest.param("pte", 0x0000_0001_2345_6160, LEAF, 0x1_2345_6000, id="PROT_NONE before 4.19"),
        pytest.param("pte", ~0x1234 << 14 >> 5 & (1 << 59) - 1 | 1 << 59, NOT_PRESENT, 0, id="swap"),
        pytest.param("pmd", NX | 0x1_2340_00E7, LEAF, 0x1_2340_0000, id="2M"),
        pytest.param("pmd", 0x1_2340_20E7, BAD, None, id="2M with a reserved bit"),
        pytest.param("pmd", 0x1_2345_6067, TABLE, 0x1_2345_6000, id="pte table above 4 GiB"),
        pytest.param("pgd", 0x1_2345_6001, TABLE, 0x1_2345_6000, id="PDPTE"),
        pytest.param("pgd", 0, NONE, 0, id="no PDPTE"),
        pytest.param("pgd", 0x4000_00E7, BAD, None, id="no page of 1 GiB"),
    ],
)
def test_an_entry_of_64_bits_reads_as_the_manual_says(level: str, entry: int, kind: int, paddr: int | None) -> None:
    found = read_entry(PAE, level, entry)
    assert found[0] == kind
    assert paddr is None or found[1] == paddr


def test_many_entries_are_decoded_each_for_itself() -> None:
    kinds, paddrs = TWO_LEVELS.decode(np.array([0, 0x5067, 0x2, 0x1240_00E7, 0x1260_00E7], np.uint64), 0)
    assert kinds.tolist() == [NONE, TABLE, NOT_PRESENT, LEAF, BAD]
    assert paddrs[:4].tolist() == [0, 0x5000, 0, 0x1240_0000]


# A process: its code at 0x08048000, a large page at 0xb7800000, its stack's page below 0xc0000000.


def two_level_tables() -> bytearray:
    """pgd at 0x1000, tables at 0x2000 (pgd slot 32) and 0x3000 (slot 767)."""
    data = bytearray(16 * 4096)
    struct.pack_into("<I", data, 0x1000 + 4 * 32, 0x2067)
    struct.pack_into("<I", data, 0x1000 + 4 * 734, 0x1240_00E7)  # 0xb7800000
    struct.pack_into("<I", data, 0x1000 + 4 * 767, 0x3067)
    struct.pack_into("<I", data, 0x2000 + 4 * 72, 0x5025)
    struct.pack_into("<I", data, 0x2000 + 4 * 73, 0x0001_2402)  # swapped
    struct.pack_into("<I", data, 0x3000 + 4 * 1023, 0x3800_0067)
    return data


def pae_tables() -> bytearray:
    """The table of four entries at 0x1fe0, its last 32 bytes of a page as kmem_cache gives them; three pmds."""
    data = bytearray(16 * 4096)
    for slot, pmd in ((0, 0x2000), (2, 0x3000)):
        struct.pack_into("<Q", data, 0x1FE0 + 8 * slot, pmd | 1)
    struct.pack_into("<Q", data, 0x2000 + 8 * 64, 0x4067)  # 0x08000000
    struct.pack_into("<Q", data, 0x4000 + 8 * 72, NX | 0x5025)
    struct.pack_into("<Q", data, 0x4000 + 8 * 73, ~0x12 << 14 >> 5 & (1 << 59) - 1)  # swapped
    struct.pack_into("<Q", data, 0x3000 + 8 * 444, 0x1_2340_00E7)  # 0xb7800000
    struct.pack_into("<Q", data, 0x3000 + 8 * 511, 0x6067)
    struct.pack_into("<Q", data, 0x6000 + 8 * 511, 0x1_3800_0067)
    return data


def walked(
    spec: PageTableSpec, data: bytearray, root: int, states: dict[int, PageState] | None = None
) -> list[tuple[int, ...]]:
    memory = PhysicalMemory(FlatContainer(bytes(data), states))
    ranges = Ranges(np.array([0], np.uint64), np.array([0xC000_0000], np.uint64))
    rows = []
    for batch in walk(memory, spec, PhysAddr(root), ranges):
        columns = (batch.vaddr, batch.size, batch.paddr, batch.kind)
        rows += list(zip(*(column.tolist() for column in columns), strict=True))
    return sorted(rows)


def test_a_process_of_two_levels_is_walked() -> None:
    assert walked(TWO_LEVELS, two_level_tables(), 0x1000) == [
        (0x0804_8000, 0x1000, 0x5000, RunKind.LEAF),
        (0x0804_9000, 0x1000, 0, RunKind.NOT_PRESENT),
        (0xB780_0000, 4 * MIB, 0x1240_0000, RunKind.LEAF),
        (0xBFFF_F000, 0x1000, 0x3800_0000, RunKind.LEAF),
    ]


def test_a_process_with_pae_is_walked_from_32_bytes_anywhere_in_a_page() -> None:
    assert walked(PAE, pae_tables(), 0x1FE0) == [
        (0x0804_8000, 0x1000, 0x5000, RunKind.LEAF),
        (0x0804_9000, 0x1000, 0, RunKind.NOT_PRESENT),
        (0xB780_0000, 2 * MIB, 0x1_2340_0000, RunKind.LEAF),
        (0xBFFF_F000, 0x1000, 0x1_3800_0000, RunKind.LEAF),
    ]


def test_a_table_that_is_not_in_the_dump_hides_its_range_alone() -> None:
    rows = walked(PAE, pae_tables(), 0x1FE0, {3: PageState.EXCLUDED})
    assert rows[-1] == (0x8000_0000, 1 << 30, 0, RunKind.TABLE_MISSING)
    assert rows[0] == (0x0804_8000, 0x1000, 0x5000, RunKind.LEAF)
    rows = walked(TWO_LEVELS, two_level_tables(), 0x1000, {2: PageState.MISSING})
    assert rows[0] == (0x0800_0000, 4 * MIB, 0, RunKind.TABLE_MISSING)


@pytest.mark.parametrize("slot", [0, 2])
def test_a_table_that_leads_back_to_the_top_ends_as_broken(slot: int) -> None:
    data = two_level_tables()
    struct.pack_into("<I", data, 0x1000 + 4 * slot, 0x1067)
    assert (slot << 22, 4 * MIB, 0, RunKind.BAD) in walked(TWO_LEVELS, data, 0x1000)


def test_one_address_is_translated_or_named() -> None:
    memory = PhysicalMemory(FlatContainer(bytes(two_level_tables())))
    assert translate(memory, TWO_LEVELS, PhysAddr(0x1000), 0xB7A3_4567) == (0x1240_0000, 4 * MIB)
    with pytest.raises(NotMapped, match="pte entry is 0x12402"):
        translate(memory, TWO_LEVELS, PhysAddr(0x1000), 0x0804_9123)
    with pytest.raises(NotMapped, match="pgd entry is 0x0"):
        translate(memory, TWO_LEVELS, PhysAddr(0x1000), 0x4000_0000)
    with pytest.raises(PageMissing):
        translate(memory, TWO_LEVELS, PhysAddr(0x4000_0000), 0x0804_8000)


# The kernel.


@pytest.mark.parametrize(
    ("pgd", "stext", "root", "image"),
    [
        pytest.param(0xC1F0_0000, 0xC100_0000, 0x1F0_0000, 0x100_0000, id="3G"),
        pytest.param(0xD5F0_0000, 0xD500_0000, 0x15F0_0000, 0x1500_0000, id="3G, moved by KASLR"),
        pytest.param(0xB1F0_0000, 0xB100_0000, 0x1F0_0000, 0x100_0000, id="3G_OPT"),
        pytest.param(0x81F0_0000, 0x8100_0000, 0x1F0_0000, 0x100_0000, id="2G"),
        pytest.param(0x79F0_0000, 0x7900_0000, 0x1F0_0000, 0x100_0000, id="2G_OPT"),
        pytest.param(0x41F0_0000, 0x4100_0000, 0x1F0_0000, 0x100_0000, id="1G"),
    ],
)
def test_the_kernel_is_where_the_direct_map_has_it(pgd: int, stext: int, root: int, image: int) -> None:
    made = kernel_map(pgd=pgd, stext=stext)
    (place,) = made.image
    assert (made.root, made.linear) == (root, ())
    assert (place.range.start, place.paddr) == (stext, image)
    assert place.range == AddressRange(stext, stext - image + 512 * MIB)


def test_a_page_offset_that_was_found_goes_before_the_likely_one() -> None:
    """VMSPLIT_3G_OPT, and KASLR has moved the kernel by more than the 256 MiB up to the next."""
    made = kernel_map(f"NUMBER(PAGE_OFFSET)={0xB000_0000}\n", pgd=0xC5F0_0000, stext=0xC500_0000)
    assert (made.root, made.image[0].paddr) == (0x15F0_0000, 0x1500_0000)


@pytest.mark.parametrize(
    ("more", "pgd", "stext"),
    [
        pytest.param("", 0x1000, 0x100_0000, id="below each PAGE_OFFSET"),
        pytest.param("", 0xFFFF_FFFF_82F0_0000, 0xFFFF_FFFF_8100_0000, id="64-bit"),
        pytest.param("NUMBER(PAGE_OFFSET)=0\n", 0xC1F0_0000, 0xC100_0000, id="no PAGE_OFFSET"),
        pytest.param("NUMBER(PAGE_OFFSET)=-4096\n", 0xC1F0_0000, 0xC100_0000, id="a negative one"),
        pytest.param(f"NUMBER(PAGE_OFFSET)={0xD000_0000}\n", 0xC1F0_0000, 0xC100_0000, id="one above the kernel"),
    ],
)
def test_a_kernel_that_is_nowhere_is_refused(more: str, pgd: int, stext: int) -> None:
    with pytest.raises(LayoutInvalid, match="expected both from PAGE_OFFSET"):
        kernel_map(more, pgd=pgd, stext=stext)


@pytest.mark.parametrize("key", ["swapper_pg_dir", "_stext"])
def test_a_missing_symbol_is_named(key: str) -> None:
    lines = [line for line in SYMBOLS.format(pgd=0xC1F0_0000, stext=0xC100_0000).splitlines() if key not in line]
    with pytest.raises(LayoutUnknown, match=key):
        ARCH.paging.kernel_map(parse_vmcoreinfo("\n".join([*lines, ""]).encode()))


def image(page_offset: int, paddr: int) -> tuple[bytearray, bytes]:
    """Return memory with a kernel at ``paddr``, which maps itself with one page of 4 MiB, and its VMCOREINFO."""
    data = bytearray(12 * MIB)
    name = b"Linux".ljust(130, b"\0") + b"6.1.0-686\0"
    data[paddr + 0x1234 : paddr + 0x1234 + len(name)] = name
    base = page_offset + paddr
    struct.pack_into("<I", data, paddr + 0x8000 + 4 * (base >> 22), paddr & ~(4 * MIB - 1) | 0x1E3)
    text = SYMBOLS.format(pgd=base + 0x8000, stext=base).replace("6.1.0", "6.1.0-686")
    return data, (text + f"SYMBOL(init_uts_ns)={base + 0x1234:x}\nOFFSET(uts_namespace.name)=0\n").encode()


@pytest.mark.parametrize("page_offset", [0xC000_0000, 0xB000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000])
@pytest.mark.parametrize("paddr", [0x40_0000, 0x80_0000])
def test_page_offset_is_found_in_memory_and_proved_there(page_offset: int, paddr: int) -> None:
    data, text = image(page_offset, paddr)
    physical = PhysicalMemory(FlatContainer(bytes(data)))
    info = locate_image(physical, ARCH, parse_vmcoreinfo(text))
    assert info.number("PAGE_OFFSET") == page_offset
    memory = KernelMemory(physical, ARCH.paging.kernel_map(info))
    assert memory.read(page_offset + paddr + 0x1234, 5) == b"Linux"


def test_a_page_offset_that_no_kernel_has_is_not_taken() -> None:
    data, text = image(0xA000_0000, 0x40_0000)
    info = locate_image(PhysicalMemory(FlatContainer(bytes(data))), ARCH, parse_vmcoreinfo(text))
    assert info.number("PAGE_OFFSET") is None


def opened(e_machine: int | None, page_offset: int = 0xC000_0000) -> None:
    data, text = image(page_offset, 0x40_0000)
    container = FlatContainer(bytes(data))
    container.e_machine = e_machine  # type: ignore[assignment]
    container.notes = (Note("VMCOREINFO", 0, text),)
    bootstrap(container)


def test_where_nothing_tells_the_machine_the_page_table_proves_it() -> None:
    """Without PAE, VMCOREINFO has no key of i386 alone; LiME has no machine."""
    with pytest.raises(LayoutUnknown, match=r"SYMBOL\(init_task\)"):
        opened(None)
    with pytest.raises(DumpError, match="an unknown machine"):
        opened(None, 0xA000_0000)
    with pytest.raises(DumpError, match="ELF machine 2"):
        opened(2)


@pytest.mark.parametrize("address", [1 << 32, 0x1_C040_1234, -1])
def test_addresses_end_at_4_gib(address: int) -> None:
    """The tables would decode the low 32 bits of any number."""
    data, text = image(0xC000_0000, 0x40_0000)
    memory = KernelMemory(PhysicalMemory(FlatContainer(bytes(data))), ARCH.paging.kernel_map(parse_vmcoreinfo(text)))
    assert memory.read(0xC040_1234, 5) == b"Linux"
    with pytest.raises(NotMapped):
        memory.read(address, 5)


@pytest.mark.parametrize(
    ("text", "claimed"),
    [(CONFIG_PAE, True), ("", False), ("NUMBER(pgtable_l5_enabled)=0\n", False), ("CONFIG_ARM_LPAE=y\n", False)],
)
def test_vmcoreinfo_of_i386_is_recognised_by_pae(text: str, claimed: bool) -> None:
    assert ARCH.claims(parse_vmcoreinfo(text.encode())) is claimed

"""A VMCOREINFO without the architecture's keys: where the kernel image is, is found in memory and proved there."""

from __future__ import annotations

import struct

import pytest

from tests.builders.paging import FlatContainer
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers.base import PageState
from vmcore2core.layout.locate import locate_image
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo
from vmcore2core.memory.physical import PhysicalMemory

MIB = 1 << 20
TEXT = 0xFFFF_FFFF_8100_0000
IMAGE = 0x60_0000  # where TEXT is in physical memory
NAME = 0x1234  # init_uts_ns.name from TEXT
PGD = 0x3000  # swapper_pg_dir from TEXT
RELEASE = b"7.2.13-test"
TEXT_KEYS = f"OSRELEASE={RELEASE.decode()}\nSYMBOL(init_uts_ns)={TEXT + NAME - 8:x}\nOFFSET(uts_namespace.name)=8\n"
TEXT_KEYS += f"SYMBOL(swapper_pg_dir)={TEXT + PGD:x}\nSYMBOL(_stext)={TEXT:x}\n"
PHYS_BASE = IMAGE - (TEXT - 0xFFFF_FFFF_8000_0000)


def utsname(memory: bytearray, paddr: int, release: bytes = RELEASE) -> None:
    memory[paddr : paddr + 6] = b"Linux\0"
    memory[paddr + 130 : paddr + 130 + len(release) + 1] = release + b"\0"


def kernel(levels: int, maps_to: int = IMAGE) -> bytearray:
    """Return 10 MiB with the kernel at ``IMAGE``; its page table maps TEXT to ``maps_to``, in one 2 MiB page."""
    memory = bytearray(10 * MIB)
    utsname(memory, IMAGE + NAME)
    tables = [IMAGE + PGD + 0x1000 * i for i in range(levels - 1)]
    shifts = [48, 39, 30, 21][-(levels - 1) :]
    for table, shift, below in zip(tables, shifts, [*tables[1:], None], strict=True):
        entry = maps_to | 0x1E3 if below is None else below | 0x67  # _PAGE_PSE in the last
        struct.pack_into("<Q", memory, table + 8 * (TEXT >> shift & 511), entry)
    return memory


def located(memory: bytearray, more: str = "", states: dict[int, PageState] | None = None) -> VmcoreInfo:
    info = parse_vmcoreinfo((TEXT_KEYS + more).encode() + b"NUMBER(phys_b")
    return locate_image(PhysicalMemory(FlatContainer(bytes(memory), states)), ARCH, info)


@pytest.mark.parametrize(("levels", "l5"), [(4, 0), (5, 1)])
def test_the_kernels_name_of_itself_tells_where_the_image_is(levels: int, l5: int) -> None:
    info = located(kernel(levels))
    assert (info.number("phys_base"), info.number("pgtable_l5_enabled")) == (PHYS_BASE, l5)
    assert info.symbol("_stext") == TEXT
    assert info.truncated_line == "NUMBER(phys_b"


@pytest.mark.parametrize(("levels", "l5"), [(4, 0), (5, 1)])
def test_one_key_that_is_there_is_kept(levels: int, l5: int) -> None:
    info = located(kernel(levels), f"NUMBER(phys_base)={PHYS_BASE}\n")
    assert (info.number("phys_base"), info.number("pgtable_l5_enabled")) == (PHYS_BASE, l5)


@pytest.mark.parametrize("offset", [0, 4])
def test_before_5_11_the_names_offset_is_not_told(offset: int) -> None:
    text = TEXT_KEYS.replace("OFFSET(uts_namespace.name)=8\n", "").replace(
        f"{TEXT + NAME - 8:x}", f"{TEXT + NAME - offset:x}"
    )
    physical = PhysicalMemory(FlatContainer(bytes(kernel(4))))
    assert locate_image(physical, ARCH, parse_vmcoreinfo(text.encode())).number("phys_base") == PHYS_BASE


def test_a_stale_copy_of_the_name_is_passed_over() -> None:
    memory = kernel(4)
    utsname(memory, 0x20_0000 + NAME)
    utsname(memory, 0x80_0000 + NAME)
    assert located(memory).number("phys_base") == PHYS_BASE


@pytest.mark.parametrize(
    ("memory", "more"),
    [
        (kernel(4, maps_to=0x20_0000), ""),  # the page table has the image elsewhere
        (kernel(4), f"NUMBER(phys_base)={PHYS_BASE + 2 * MIB}\n"),  # memory does not agree with the key that is there
        (kernel(4), "NUMBER(pgtable_l5_enabled)=1\n"),
        (bytearray(2 * MIB), ""),
    ],
    ids=["page table disagrees", "phys_base disagrees", "levels disagree", "no name"],
)
def test_what_memory_does_not_prove_is_not_taken(memory: bytearray, more: str) -> None:
    info = located(memory, more)
    assert dict(info.values) == dict(parse_vmcoreinfo((TEXT_KEYS + more).encode()).values)


def test_a_kernel_of_another_release_is_not_taken() -> None:
    memory = kernel(4)
    utsname(memory, IMAGE + NAME, b"7.2.14-test")
    assert located(memory).number("phys_base") is None


@pytest.mark.parametrize("state", [PageState.EXCLUDED, PageState.MISSING])
def test_a_page_table_that_is_not_in_the_dump_proves_nothing(state: PageState) -> None:
    assert located(kernel(4), states={(IMAGE + PGD) >> 12: state}).number("phys_base") is None


def test_without_the_symbol_nothing_is_searched() -> None:
    info = parse_vmcoreinfo(b"OSRELEASE=7.2.13-test\n")
    assert locate_image(PhysicalMemory(FlatContainer(bytes(kernel(4)))), ARCH, info) is info

"""The kernel's own memory with the hash MMU: vmalloc by swapper_pg_dir, vmemmap by vmemmap_list.

By literal numbers of arch/powerpc/include/asm/book3s/64/{hash-4k,pgalloc,mmu}.h and arch/powerpc/mm/init_64.c.

Tests memory/kernel.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from tests.arch.ppc64le.test_paging import NAMES, PTE, USER, V, kernel_map
from tests.builders.kernelimage import Table
from tests.builders.paging import FlatContainer
from vmcore2core.arch.ppc64le.machine import ARCH
from vmcore2core.errors import NotMapped
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.physical import PhysicalMemory

LINEAR, VMALLOC, VMEMMAP = 0xC000 << 48, 0xC000_3D00_0000_0000, 0xC000_3F00_0000_0000
VARIABLES, LIST, PSIZE, DEFS, ENTRIES = 0x8000, 0x8100, 0x8108, 0x8200, 0x9000
PAGE_64K = 2  # MMU_PAGE_64K
OFFSETS = {
    "vmemmap_backing": {"list": (0, 8), "phys": (8, 8), "virt_addr": (16, 8)},
    "mmu_psize_def": {"shift": (0, 4)},
}


def kernel(backing: Sequence[tuple[int, int]], *, shift: int = 16, index: int = PAGE_64K) -> KernelMemory:
    """Return kernel memory of a machine whose vmemmap_list has pages (virtual, physical address)."""
    data = bytearray(0x10_0000)

    def put(at: int, *words: int, form: str = "<Q") -> None:
        for i, word in enumerate(words):
            struct.pack_into(form, data, at + struct.calcsize(form) * i, word)

    # 0xc0003d0000005000 is 0x1e8 << 37 | 5 << 12; tables are big-endian.
    put(0x1_0000 + 8 * 0x1E8, V | 0x2000, form=">Q")
    put(0x2000, V | 0x3000, form=">Q")
    put(0x3000, V | 0x4000, form=">Q")
    put(0x4000 + 8 * 5, V | PTE | 0x10E0 << 48 | 0x2_1000 | USER, form=">Q")
    put(VARIABLES, 9, 7, 9, 9, V)
    put(PSIZE, index, form="<I")
    put(DEFS + 96 * PAGE_64K, shift, form="<I")
    where = [ENTRIES + 24 * i for i in range(len(backing))]
    put(LIST, LINEAR + where[0] if where else 0)
    for i, (start, paddr) in enumerate(backing):
        put(where[i], LINEAR + where[i + 1] if i + 1 < len(where) else 0, paddr, start)
    symbols = {name: LINEAR + VARIABLES + 8 * i for i, name in enumerate(NAMES)}
    symbols |= {"vmemmap_list": LINEAR + LIST, "mmu_vmemmap_psize": LINEAR + PSIZE, "mmu_psize_defs": LINEAR + DEFS}
    table = Table(OFFSETS, sizes={"mmu_psize_def": 96}, symbols=symbols, constants={"RADIX_MMU": 0})
    made = kernel_map(swapper_pg_dir="c000000000010000", RADIX_MMU="0")
    memory = KernelMemory(PhysicalMemory(FlatContainer(bytes(data))), made)
    memory.kernel_map = ARCH.paging.whole_map(made, ARCH.view(memory, KernelLayout([table])))
    return memory


def test_vmalloc_is_in_the_kernels_page_table() -> None:
    memory = kernel([])
    assert memory.to_phys(VMALLOC + 0x5123) == 0x2_1123
    with pytest.raises(NotMapped):
        memory.to_phys(VMALLOC + 0x6000)


def test_vmemmap_is_where_the_list_says_in_as_few_pieces_as_can_be() -> None:
    memory = kernel([(VMEMMAP + 0x2_0000, 0x5_0000), (VMEMMAP + 0x1_0000, 0x8_0000), (VMEMMAP, 0x7_0000)])
    assert [memory.to_phys(VMEMMAP + at) for at in (0, 0x1_2345, 0x2_0008)] == [0x7_0000, 0x8_2345, 0x5_0008]
    assert [(m.range.start, m.range.end) for m in memory.kernel_map.linear[1:]] == [
        (VMEMMAP, VMEMMAP + 0x2_0000),
        (VMEMMAP + 0x2_0000, VMEMMAP + 0x3_0000),
    ]
    with pytest.raises(NotMapped):
        memory.to_phys(VMEMMAP + 0x3_0000)
    assert memory.to_phys(LINEAR + 0x1234) == 0x1234


@pytest.mark.parametrize(
    ("backing", "shift", "index"),
    [
        pytest.param([(VMEMMAP + 8, 0x7_0000)], 16, PAGE_64K, id="misaligned"),
        pytest.param([(VMEMMAP, 0x7_1000)], 16, PAGE_64K, id="misaligned physical address"),
        pytest.param([(VMEMMAP, 0x7_0000), (VMEMMAP, 0x8_0000)], 16, PAGE_64K, id="one page twice, as in a loop"),
        pytest.param([(0x1_0000, 0x7_0000)], 16, PAGE_64K, id="an address of user memory"),
        pytest.param([(VMEMMAP, 0x7_0000)], 20, PAGE_64K, id="a page size of no vmemmap"),
        pytest.param([(VMEMMAP, 0x7_0000)], 16, 99, id="a size behind the table's end"),
    ],
)
def test_a_list_that_cannot_be_maps_nothing(backing: list[tuple[int, int]], shift: int, index: int) -> None:
    memory = kernel(backing, shift=shift, index=index)
    assert len(memory.kernel_map.linear) == 1
    with pytest.raises(NotMapped):
        memory.to_phys(VMEMMAP)
    assert memory.to_phys(VMALLOC + 0x5123) == 0x2_1123

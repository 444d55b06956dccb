"""The page cache: holes of files that live in memory alone, and huge pages, which older kernels index otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.kernelimage import TEXT, KernelImage
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.memory.pages import Pages, UserPageState

VMEMMAP = 0xFFFF_EA00_0000_0000
SHMEM_AOPS, HUGETLBFS_AOPS, DISK_AOPS = TEXT + 0x100, TEXT + 0x200, TEXT + 0x300
HUGE = 512  # pages
PRESENT, ZERO, BEYOND = UserPageState.PRESENT, UserPageState.ZERO, UserPageState.BEYOND_FILE


def page(pfn: int) -> int:
    """Return the address of struct page, 64 bytes each."""
    return VMEMMAP + 64 * pfn


def huge_entry(pfn: int, at: int) -> dict[int, int]:
    """Return the slots of a node of shift 6 for an entry of order 9 (lib/xarray.c: sibling entries)."""
    return {at: page(pfn)} | {at + i: at << 2 | 2 for i in range(1, 8)}


def lookup(head: int, size: int, aops: int, first: int, last: int, image: KernelImage | None = None) -> Pages:
    image = image or KernelImage()
    image.table.offsets["inode"]["i_blkbits"] = (40, 1)
    image.table.symbols |= {"vmemmap": VMEMMAP, "shmem_aops": SHMEM_AOPS, "hugetlbfs_aops": HUGETLBFS_AOPS}
    inode = image.make("inode", i_size=size, i_blkbits=21 if aops == HUGETLBFS_AOPS else 12)
    mapping = image.make("address_space", host=inode, a_ops=aops)
    image.words(mapping + image.offset("address_space", "i_pages") + 8, head)
    file = image.make("file", f_mapping=mapping)
    kernel = image.kernel()
    return PageCache(kernel).lookup(kernel.view("file", file), first, last)


def places(pages: Pages) -> list[int]:
    """Return the physical address of each page, 0 for pages that are not in memory."""
    found = np.zeros(len(pages), np.uint64)
    found[pages.state == PRESENT] = pages.paddrs()
    return [int(paddr) for paddr in found]


def runs(pages: Pages) -> list[tuple[int, int, int, UserPageState]]:
    """Return (first index, pages, physical address of the first, state) of what continues."""
    result: list[tuple[int, int, int, UserPageState]] = []
    for index, paddr, state in zip(pages.at.tolist(), places(pages), pages.state.tolist(), strict=True):
        if result:
            start, count, at, kind = result[-1]
            if (start + count, kind) == (index, state) and (not paddr or at + 4096 * count == paddr):
                result[-1] = start, count + 1, at, kind
                continue
        result.append((index, 1, paddr, UserPageState(state)))
    return result


def test_a_hole_of_a_file_in_memory_reads_as_zeros() -> None:
    image = KernelImage()
    head = image.xa_node(0, {1: page(0x123), 5: page(0x777)})
    assert runs(lookup(head, 7 * 4096, SHMEM_AOPS, 0, 9, image)) == [
        (0, 1, 0, ZERO),
        (1, 1, 0x12_3000, PRESENT),
        (2, 3, 0, ZERO),
        (5, 1, 0x77_7000, PRESENT),
        (6, 1, 0, ZERO),
        (7, 3, 0, BEYOND),
    ]


def test_a_hole_of_a_file_on_disk_is_not_known() -> None:
    image = KernelImage()
    head = image.xa_node(0, {1: page(0x123)})
    assert runs(lookup(head, 3 * 4096, DISK_AOPS, 0, 3, image)) == [(1, 1, 0x12_3000, PRESENT), (3, 1, 0, BEYOND)]


@pytest.mark.parametrize("first", [0, 1, 511, 512, 700, 1024])
def test_huge_pages_since_6_7_have_as_many_indices_as_pages(first: int) -> None:
    image = KernelImage()
    head = image.xa_node(6, {**huge_entry(0x2000, 0), **huge_entry(0x6000, 16)})
    found = lookup(head, 3 * HUGE * 4096, HUGETLBFS_AOPS, first, 3 * HUGE - 1, image)
    state = [PRESENT] * HUGE + [ZERO] * HUGE + [PRESENT] * HUGE
    paddr = [0x200_0000 + 4096 * i for i in range(HUGE)] + [0] * HUGE + [0x600_0000 + 4096 * i for i in range(HUGE)]
    assert found.at.tolist() == list(range(first, 3 * HUGE))
    assert (found.state.tolist(), places(found)) == (state[first:], paddr[first:])


@pytest.mark.parametrize("first", [0, 1, 511, 512, 700, 1024])
def test_huge_pages_before_6_7_have_one_index(first: int) -> None:
    image = KernelImage()
    head = image.xa_node(0, {0: page(0x2000), 2: page(0x6000)})
    found = lookup(head, 3 * HUGE * 4096, HUGETLBFS_AOPS, first, 3 * HUGE - 1, image)
    paddr = [0x200_0000 + 4096 * i for i in range(HUGE)] + [0] * HUGE + [0x600_0000 + 4096 * i for i in range(HUGE)]
    assert found.at.tolist() == list(range(first, 3 * HUGE))
    assert places(found) == paddr[first:]


def test_one_huge_page_before_6_7_is_the_root_itself() -> None:
    found = lookup(page(0x2000), HUGE * 4096, HUGETLBFS_AOPS, 0, HUGE - 1)
    assert runs(found) == [(0, HUGE, 0x200_0000, PRESENT)]


def test_a_huge_file_with_nothing_cached_is_a_hole() -> None:
    assert runs(lookup(0, HUGE * 4096, HUGETLBFS_AOPS, 0, HUGE - 1)) == [(0, HUGE, 0, ZERO)]


@pytest.mark.parametrize("entry", [VMEMMAP - 64, VMEMMAP + 64 * 0x123 + 8])
def test_an_entry_that_is_no_struct_page_is_refused(entry: int) -> None:
    image = KernelImage()
    with pytest.raises(CorruptStructure, match="no struct page is there"):
        lookup(image.xa_node(0, {1: entry}), 3 * 4096, DISK_AOPS, 0, 3, image)


UPTODATE = 2  # enum pageflags of Linux 6.1
FLAGS = {"flags": (0, 8), "compound_head": (8, 8)}


def described(aops: int, *, known: bool = True) -> tuple[Pages, PageCache]:
    """Look up a file of six pages: read, not read, the second page of a pair that was read, and of one that was not."""
    image = KernelImage()
    image.table.offsets["page"] |= FLAGS
    if known:
        image.table.constants["PG_uptodate"] = UPTODATE
    vmemmap = image.alloc(64 * 16, 64)
    for pfn, flags, head in ((1, 0x14, 0), (2, 0x10, 0), (5, 0, 4), (4, 0x4, 0), (9, 0x4, 8), (8, 0x11, 0)):
        image.words(vmemmap + 64 * pfn, flags, vmemmap + 64 * head + 1 if head else 0)
    entries = {0: 1, 1: 2, 2: 5, 3: 9}
    head = image.xa_node(0, {at: vmemmap + 64 * pfn for at, pfn in entries.items()})
    image.table.symbols |= {"vmemmap": vmemmap, "shmem_aops": SHMEM_AOPS}
    inode = image.make("inode", i_size=4 * 4096)
    mapping = image.make("address_space", host=inode, a_ops=aops)
    image.words(mapping + image.offset("address_space", "i_pages") + 8, head)
    cache = PageCache(image.kernel())
    return cache.pages(cache.kernel.view("address_space", mapping), 0, 3), cache


def test_a_page_that_the_file_was_not_read_into_is_not_the_files() -> None:
    found, cache = described(DISK_AOPS)
    assert runs(found) == [(0, 1, 0x1000, PRESENT), (2, 1, 0x5000, PRESENT)]
    assert cache.tells_uptodate


def test_a_page_that_shared_memory_set_aside_reads_as_zeros() -> None:
    found, _ = described(SHMEM_AOPS)
    assert runs(found) == [(0, 1, 0x1000, PRESENT), (1, 1, 0, ZERO), (2, 1, 0x5000, PRESENT), (3, 1, 0, ZERO)]


def test_where_the_flag_is_not_known_pages_are_taken_and_that_is_told() -> None:
    found, cache = described(DISK_AOPS, known=False)
    assert found.at.tolist() == [0, 1, 2, 3]
    assert not cache.tells_uptodate


def test_a_struct_page_that_is_not_in_the_dump_leaves_the_page() -> None:
    image = KernelImage()
    image.table.offsets["page"] |= FLAGS
    image.table.constants["PG_uptodate"] = UPTODATE
    assert runs(lookup(image.xa_node(0, {1: page(0x123)}), 2 * 4096, DISK_AOPS, 0, 1, image)) == [
        (1, 1, 0x12_3000, PRESENT)
    ]

"""Which mappings a core has, against fs/coredump.c: vma_dump_size() and always_dump_vma() of Linux 7.2."""

from __future__ import annotations

import pytest

from vmcore2core.process.dump_filter import (
    EVERYTHING,
    DumpFilter,
    Extent,
    MappedFile,
    vma_dump_extent,
    vma_p_flags,
)

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
VM_PFNMAP, VM_IO, VM_DONTDUMP, VM_HUGETLB, VM_MIXEDMAP = 0x400, 0x4000, 0x0400_0000, 0x40_0000, 0x1000_0000


@pytest.mark.parametrize(
    ("vm_flags", "p_flags"),
    [(0, 0), (1, 4), (2, 2), (4, 1), (3, 6), (5, 5), (7, 7), (0xF8, 0), (0x7F, 7), (0xFFFF_FFF8, 0)],
)
def test_p_flags_are_pf_r_4_w_2_x_1(vm_flags: int, p_flags: int) -> None:
    assert vma_p_flags(vm_flags) == p_flags


# What the kernel does with coredump_filter 0x33 (the default: private and shared anonymous, ELF headers, private huge
# pages) and with 0x1ff, as vma_dump_size() reads.
ALL, HEAD, IF_ELF, NOTHING = Extent.WHOLE, Extent.FIRST_PAGE, Extent.FIRST_PAGE_IF_ELF, Extent.NOTHING
DATA, PROGRAM = MappedFile(True, False, False), MappedFile(True, True, False)
SHMEM, DAX, UNKNOWN = MappedFile(False, False, False), MappedFile(True, False, True), MappedFile()
TABLE = [
    # vm_flags, file, anon_vma, with 0x33, with 0x1ff
    pytest.param(VM_READ | VM_WRITE, None, True, ALL, ALL, id="private anonymous, touched"),
    pytest.param(VM_READ | VM_WRITE, None, False, NOTHING, NOTHING, id="private anonymous, never touched"),
    pytest.param(VM_READ | VM_WRITE, None, None, ALL, ALL, id="private anonymous, no telling whether touched"),
    pytest.param(VM_READ, PROGRAM, False, HEAD, ALL, id="executable file, never written"),
    pytest.param(VM_READ, DATA, False, IF_ELF, ALL, id="other file, never written"),
    pytest.param(VM_READ, UNKNOWN, False, IF_ELF, ALL, id="a file of which nothing is known"),
    pytest.param(VM_EXEC, PROGRAM, False, NOTHING, ALL, id="a program that cannot be read"),
    pytest.param(VM_READ | VM_WRITE, DATA, True, ALL, ALL, id="private file, written"),
    pytest.param(VM_READ | VM_WRITE | VM_SHARED, DATA, False, NOTHING, ALL, id="shared file"),
    pytest.param(VM_READ | VM_WRITE | VM_SHARED, SHMEM, False, ALL, ALL, id="shared anonymous: a file without a name"),
    pytest.param(VM_READ | VM_WRITE | VM_SHARED, UNKNOWN, False, ALL, ALL, id="shared, no telling of what"),
    pytest.param(VM_READ | VM_IO, None, True, NOTHING, NOTHING, id="I/O memory"),
    pytest.param(VM_READ | VM_IO | VM_PFNMAP | VM_SHARED, DATA, False, NOTHING, NOTHING, id="a device's memory"),
    pytest.param(VM_READ | VM_WRITE | VM_DONTDUMP, None, True, NOTHING, NOTHING, id="MADV_DONTDUMP"),
    pytest.param(VM_READ | VM_WRITE | VM_DONTDUMP, DATA, True, NOTHING, NOTHING, id="MADV_DONTDUMP, file"),
    pytest.param(VM_READ | VM_WRITE | VM_HUGETLB, SHMEM, True, ALL, ALL, id="private hugetlb"),
    pytest.param(VM_READ | VM_WRITE | VM_HUGETLB | VM_SHARED, SHMEM, False, NOTHING, ALL, id="shared hugetlb"),
    pytest.param(VM_READ | VM_WRITE, DAX, True, NOTHING, ALL, id="private DAX"),
    pytest.param(VM_READ | VM_WRITE | VM_SHARED, DAX, False, NOTHING, ALL, id="shared DAX"),
    pytest.param(VM_READ | VM_DONTDUMP | VM_IO | VM_PFNMAP, None, False, NOTHING, NOTHING, id="[vvar]"),
]


@pytest.mark.parametrize(("vm_flags", "file", "anon_vma", "default", "everything"), TABLE)
def test_a_mapping_is_dumped_as_the_kernel_does(
    vm_flags: int, file: MappedFile | None, anon_vma: bool | None, default: Extent, everything: Extent
) -> None:
    assert vma_dump_extent(vm_flags, DumpFilter(0x33), file=file, anon_vma=anon_vma) is default
    assert vma_dump_extent(vm_flags, DumpFilter(0x1FF), file=file, anon_vma=anon_vma) is everything
    assert EVERYTHING == 0x1FF


# One bit of coredump_filter a mapping: core(5) numbers them.
BITS = [
    (0, VM_READ | VM_WRITE, None, True),
    (1, VM_READ | VM_SHARED, SHMEM, False),
    (2, VM_READ, DATA, False),
    (3, VM_READ | VM_SHARED, DATA, False),
    (5, VM_READ | VM_HUGETLB, SHMEM, False),
    (6, VM_READ | VM_HUGETLB | VM_SHARED, SHMEM, False),
    (7, VM_READ, DAX, False),
    (8, VM_READ | VM_SHARED, DAX, False),
]


@pytest.mark.parametrize(("bit", "vm_flags", "file", "anon_vma"), BITS)
def test_one_bit_of_the_filter_decides(bit: int, vm_flags: int, file: MappedFile | None, anon_vma: bool) -> None:
    for mask in range(0x200):
        whole = vma_dump_extent(vm_flags, DumpFilter(mask), file=file, anon_vma=anon_vma) is ALL
        assert whole == bool(mask >> bit & 1)


def test_only_the_mapping_of_a_files_beginning_has_its_elf_header() -> None:
    for at_start, extent in ((True, HEAD), (False, NOTHING)):
        assert vma_dump_extent(VM_READ, DumpFilter(0x10), file=PROGRAM, anon_vma=False, at_start=at_start) is extent


def test_pfn_mapped_memory_is_not_read() -> None:
    """Its page tables lead to device memory; in the kernel such mappings have VM_IO or VM_DONTDUMP too."""
    assert vma_dump_extent(VM_READ | VM_PFNMAP, EVERYTHING, file=DATA, anon_vma=False) is NOTHING
    assert vma_dump_extent(VM_READ | VM_MIXEDMAP, EVERYTHING, file=DATA, anon_vma=False) is ALL

"""Which mappings a core has, against fs/coredump.c: vma_dump_size() and always_dump_vma() of Linux 7.2."""

from __future__ import annotations

import pytest

from vmcore2core.process.dump_filter import vma_dumped, vma_p_flags

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
VM_PFNMAP, VM_IO, VM_DONTDUMP, VM_HUGETLB, VM_MIXEDMAP = 0x400, 0x4000, 0x0400_0000, 0x40_0000, 0x1000_0000


@pytest.mark.parametrize(
    ("vm_flags", "p_flags"),
    [(0, 0), (1, 4), (2, 2), (4, 1), (3, 6), (5, 5), (7, 7), (0xF8, 0), (0x7F, 7), (0xFFFF_FFF8, 0)],
)
def test_p_flags_are_pf_r_4_w_2_x_1(vm_flags: int, p_flags: int) -> None:
    assert vma_p_flags(vm_flags) == p_flags


# What the kernel does with coredump_filter 0x33 (the default: private and shared anonymous, ELF headers, private huge
# pages), and what we do: the same, but that file mappings are kept: who has only the dump lacks the files. So in all
# rows our answer may be "more" for files alone, and "less" never.
ALL, PART, NOTHING = "all", "ELF header", "nothing"
TABLE = [
    # vm_flags, is_file, anon_vma, the kernel with 0x33, ours
    pytest.param(VM_READ | VM_WRITE, False, True, ALL, True, id="private anonymous, touched"),
    pytest.param(VM_READ | VM_WRITE, False, False, NOTHING, False, id="private anonymous, never touched"),
    pytest.param(VM_READ, True, False, PART, True, id="private file, never written"),
    pytest.param(VM_READ | VM_WRITE, True, True, ALL, True, id="private file, written"),
    pytest.param(VM_READ | VM_EXEC, True, False, NOTHING, True, id="text"),
    pytest.param(VM_READ | VM_WRITE | VM_SHARED, True, False, NOTHING, True, id="shared file"),
    pytest.param(VM_READ | VM_WRITE | VM_SHARED, True, None, ALL, True, id="shared anonymous (shmem: it has a file)"),
    pytest.param(VM_READ | VM_IO, False, True, NOTHING, False, id="I/O memory"),
    pytest.param(VM_READ | VM_IO | VM_PFNMAP | VM_SHARED, True, False, NOTHING, False, id="a device's memory"),
    pytest.param(VM_READ | VM_WRITE | VM_DONTDUMP, False, True, NOTHING, False, id="MADV_DONTDUMP"),
    pytest.param(VM_READ | VM_WRITE | VM_DONTDUMP, True, True, NOTHING, False, id="MADV_DONTDUMP, file"),
    pytest.param(VM_READ | VM_WRITE | VM_HUGETLB, True, True, ALL, True, id="private hugetlbfs, written"),
    pytest.param(VM_READ | VM_DONTDUMP | VM_IO | VM_PFNMAP, False, False, NOTHING, False, id="[vvar]"),
]


@pytest.mark.parametrize(("vm_flags", "is_file", "anon_vma", "kernels", "dumped"), TABLE)
def test_a_mapping_is_dumped_as_the_kernel_does_and_files_besides(
    vm_flags: int, is_file: bool, anon_vma: bool | None, kernels: str, dumped: bool
) -> None:
    assert vma_dumped(vm_flags, is_file=is_file, anon_vma=anon_vma) is dumped
    assert dumped or kernels == NOTHING
    assert kernels != NOTHING or not dumped or is_file


def test_an_anonymous_mapping_whose_anon_vma_is_not_known_is_dumped() -> None:
    assert vma_dumped(VM_READ | VM_WRITE, is_file=False, anon_vma=None)


def test_pfn_mapped_memory_is_not_read() -> None:
    """Its page tables lead to device memory; in the kernel such mappings have VM_IO or VM_DONTDUMP too."""
    assert not vma_dumped(VM_READ | VM_PFNMAP, is_file=True, anon_vma=False)
    assert vma_dumped(VM_READ | VM_MIXEDMAP, is_file=True, anon_vma=False)

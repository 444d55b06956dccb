"""Which memory belongs in a core: the rules of core(5), "Controlling which mappings are written".

References: fs/coredump.c: vma_dump_size(), always_dump_vma(), dump_vma_snapshot(); fs/binfmt_elf.c: elf_core_dump()
(Linux 7.3). Two rules are not the kernel's. Device memory (VM_PFNMAP) is not in the dump, so the core has no contents
of such mappings, even where the kernel would write some; the same goes for [vvar], for which kernels write zeros until
Linux 7.2 and the current clocks since. And if it is not known whether a VMA was written to, we assume that it was.
"""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import NamedTuple

from vmcore2core.kernel.mm import VM_DONTDUMP, VM_EXEC, VM_HUGETLB, VM_IO, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE

PF_X, PF_W, PF_R = 1, 2, 4


class DumpFilter(IntFlag):
    """The bits of /proc/PID/coredump_filter (MMF_DUMP_* in include/linux/mm_types.h, from bit 0)."""

    ANON_PRIVATE = 1 << 0
    ANON_SHARED = 1 << 1
    MAPPED_PRIVATE = 1 << 2
    MAPPED_SHARED = 1 << 3
    ELF_HEADERS = 1 << 4
    HUGETLB_PRIVATE = 1 << 5
    HUGETLB_SHARED = 1 << 6
    DAX_PRIVATE = 1 << 7
    DAX_SHARED = 1 << 8


EVERYTHING = ~DumpFilter(0)


class Extent(Enum):
    """How much of a mapping belongs in a core."""

    NOTHING = "nothing"
    FIRST_PAGE = "first page"
    FIRST_PAGE_IF_ELF = "first page if it is an ELF header"
    WHOLE = "whole"


class MappedFile(NamedTuple):
    """What the rules need to know about a mapped file; None if it is not known.

    Attributes:
        linked: whether its inode has a name (i_nlink).
        executable: whether anybody may execute it (i_mode).
        dax: whether its pages are persistent memory itself (S_DAX).
    """

    linked: bool | None = None
    executable: bool | None = None
    dax: bool | None = None


def vma_p_flags(vm_flags: int) -> int:
    """Return ``p_flags`` of a VMA's PT_LOAD (fs/binfmt_elf.c: elf_core_dump())."""
    return (
        (PF_R if vm_flags & VM_READ else 0) | (PF_W if vm_flags & VM_WRITE else 0) | (PF_X if vm_flags & VM_EXEC else 0)
    )


def vma_dump_extent(
    vm_flags: int, dump_filter: DumpFilter, *, file: MappedFile | None, anon_vma: bool | None, at_start: bool = True
) -> Extent:
    """Return how much of a VMA belongs in the core; the caller includes the whole vDSO regardless.

    Args:
        vm_flags: ``vma->vm_flags``.
        dump_filter: the process's, or the user's.
        file: None without ``vm_file``.
        anon_vma: whether ``anon_vma`` is set, or None if the layout does not know it.
        at_start: whether ``vm_pgoff`` is 0.
    """
    if vm_flags & (VM_DONTDUMP | VM_IO | VM_PFNMAP):
        return Extent.NOTHING
    shared = bool(vm_flags & VM_SHARED)
    if file is not None and file.dax:
        return _whole_if(dump_filter, DumpFilter.DAX_SHARED if shared else DumpFilter.DAX_PRIVATE)
    if vm_flags & VM_HUGETLB:
        return _whole_if(dump_filter, DumpFilter.HUGETLB_SHARED if shared else DumpFilter.HUGETLB_PRIVATE)
    if shared:
        # Shared anonymous memory is a file without a name; if the name is unknown, assume one, as most users want it.
        named = file is not None and file.linked is True
        return _whole_if(dump_filter, DumpFilter.MAPPED_SHARED if named else DumpFilter.ANON_SHARED)
    if anon_vma is not False and dump_filter & DumpFilter.ANON_PRIVATE:
        return Extent.WHOLE
    if file is None:
        return Extent.NOTHING
    if dump_filter & DumpFilter.MAPPED_PRIVATE:
        return Extent.WHOLE
    if dump_filter & DumpFilter.ELF_HEADERS and at_start and vm_flags & VM_READ:
        return Extent.FIRST_PAGE if file.executable else Extent.FIRST_PAGE_IF_ELF
    return Extent.NOTHING


def _whole_if(dump_filter: DumpFilter, bit: DumpFilter) -> Extent:
    return Extent.WHOLE if dump_filter & bit else Extent.NOTHING

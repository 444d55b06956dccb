"""Which mappings belong into a core (fs/coredump.c: vma_dump_size(), always_dump_vma(), Linux 7.2).

The process's own coredump_filter is not applied: the memory is in the dump already, and without its text and files a
core is of little use to somebody who lacks the very binaries.
"""

from __future__ import annotations

from vmcore2core.kernel.mm import VM_DONTDUMP, VM_EXEC, VM_IO, VM_PFNMAP, VM_READ, VM_WRITE

PF_X, PF_W, PF_R = 1, 2, 4


def vma_p_flags(vm_flags: int) -> int:
    """Return ``p_flags`` of a VMA's PT_LOAD (fs/binfmt_elf.c: elf_core_dump())."""
    return (
        (PF_R if vm_flags & VM_READ else 0) | (PF_W if vm_flags & VM_WRITE else 0) | (PF_X if vm_flags & VM_EXEC else 0)
    )


def vma_dumped(vm_flags: int, *, is_file: bool, anon_vma: bool | None) -> bool:
    """Tell whether the memory of a VMA belongs into the core; the vDSO does, whatever this says.

    Args:
        vm_flags: ``vma->vm_flags``.
        is_file: whether ``vm_file`` is set.
        anon_vma: whether ``anon_vma`` is set, or None where the layout does not know.
    """
    if vm_flags & (VM_DONTDUMP | VM_IO | VM_PFNMAP):
        return False
    # Private anonymous memory that was never written: the kernel gives it no bytes in the file either.
    return is_file or anon_vma is not False

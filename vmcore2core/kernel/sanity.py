"""Checks that a layout fits the processes, on some of them, before the first core is written.

One process may be broken, but an offset that fits no process is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from vmcore2core.errors import CorruptStructure, MemoryFault, NotMapped
from vmcore2core.kernel import mm, pid, sched
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.sanity import Mismatch, replace_wrong_offsets

TASKS_MAX = 1024
PROCESSES_MAX = 8
VMAS_MAX = 64


def check_processes(kernel: Kernel, layout: KernelLayout) -> list[str]:
    """Check that processes have page tables and mappings where the layout says; replace offsets that do not fit.

    Raises:
        LayoutInvalid: an offset fits no process, and no other source knows another.
    """
    return replace_wrong_offsets(layout, lambda: _mismatch(kernel))


def _mismatch(kernel: Kernel) -> Mismatch | None:
    """Return the first process's defect if all checked processes have one; None if one fits."""
    first: Mismatch | None = None
    for task in islice(_with_mm(kernel), PROCESSES_MAX):
        found = _of_process(task)
        if found is None:
            return None
        first = first or found
    return first


def _with_mm(kernel: Kernel) -> Iterator[StructView]:
    try:
        for task in islice(pid.for_each_process(kernel), TASKS_MAX):
            if not sched.is_kthread(task) and task.pointer("mm"):
                yield task
    except (CorruptStructure, MemoryFault):
        return


def _of_process(task: StructView) -> Mismatch | None:
    kernel = task.kernel
    owner = kernel.view("mm_struct", task.pointer("mm"))
    who = f"mm_struct at {owner.address:#x} of PID {sched.task_pid(task)}"
    try:
        kernel.memory.to_phys(owner.address)
    except NotMapped as fault:
        return ("task_struct", "mm"), f"{who}: {fault}"
    except MemoryFault:
        return None
    try:
        pgd = owner.pointer("pgd")
        # The smallest top table: PAE's four entries are 32 bytes.
        if not pgd or pgd % (4 * kernel.arch.pointer_size):
            return ("mm_struct", "pgd"), f"{who} has its page table at {pgd:#x}, which is not aligned"
        kernel.memory.to_phys(pgd)
    except NotMapped as fault:
        return ("mm_struct", "pgd"), f"{who} has its page table where nothing is: {fault}"
    except MemoryFault:
        return None
    return _of_mappings(owner, who)


def _of_mappings(owner: StructView, who: str) -> Mismatch | None:
    """Check the first mappings; if there is none at all, their tree or list is to blame."""
    index = "mm_mt" if owner.has("mm_mt") else "mmap"
    try:
        problems: list[CorruptStructure] = []
        some = list(islice(mm.for_each_vma(owner, problems), VMAS_MAX))
        for error in problems:
            struct, _, member = error.where.partition(".")
            if struct == "vm_area_struct":
                return (struct, member or "vm_start"), f"{who}: {error}"
        if not some:
            return ("mm_struct", index), f"{who} has no mappings"
    except CorruptStructure as error:
        struct, _, member = error.where.partition(".")
        if struct == "vm_area_struct":
            return (struct, member or "vm_start"), f"{who}: {error}"
        return ("mm_struct", index), f"{who}: {error}"
    except MemoryFault:
        return None
    return None

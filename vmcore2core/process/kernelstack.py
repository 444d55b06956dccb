"""Where a task's kernel stack is: ``task->stack``, if the kernel's other records of the stack agree.

References: kernel/fork.c: alloc_thread_stack_node(); __switch_to_asm() and its equivalents, which save the stack
pointer in ``thread_struct`` (Linux 5.10 to 7.3). For a task on a CPU, the saved pointer is old, but points into the
same stack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import KernelAddr, U64Array
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.structs import read_words
from vmcore2core.kernel.tasks import Tasks

THREAD_SIZE_MAX = 1 << 16
ADDRESS_MASK = (1 << 56) - 1
"""The address bits of a pointer whose top byte may be a tag (KASAN)."""


def kernel_stack(task: StructView) -> tuple[KernelAddr, CorruptStructure | None]:
    """Return the lowest address of a task's stack, and an error if ``task->stack`` is another.

    Args:
        task: ``struct task_struct``.

    Raises:
        MemoryFault: the task cannot be read.
        CorruptStructure: the stack pointer lies in no stack of this task.
    """
    told, area = task.pointer("stack"), _area(task)
    if area is not None and (area ^ told) & ADDRESS_MASK == 0:
        return told, None
    kernel, name = task.kernel, f"thread.{task.kernel.arch.registers.saved_sp}"
    saved = task.find_uint(name, kernel.arch.pointer_size) if kernel.arch.registers.saved_sp else None
    if saved is None:
        return told, None
    size = max(stack_sizes(kernel.layout, (THREAD_SIZE_MAX,)))
    found = max((base for base in (told, area) if base is not None and 0 <= saved - base <= size), default=None)
    if found is None:
        raise task.corrupt("stack", f"{told:#x}, but task_struct.{name} is {saved:#x}")
    if found == told:
        return told, None
    said = f"expected {found:#x} as task_struct.stack_vm_area and task_struct.{name} have it"
    return KernelAddr(found), task.corrupt("stack", f"{told:#x}, {said}")


def kernel_stacks(tasks: Tasks) -> tuple[U64Array, NDArray[np.bool_]]:
    """Return ``task->stack`` of many tasks, uint64[n]; and for which ``kernel_stack`` returns the same, bool[n]."""
    kernel, told = tasks.kernel, tasks.ulong("stack")
    areas, fine = np.zeros(len(tasks), np.uint64), np.zeros(len(tasks), np.bool_)
    addr = kernel.layout.find_member("vm_struct", "addr")
    if tasks.has("stack_vm_area") and addr is not None:
        areas = tasks.ulong("stack_vm_area")
        allocated, there = read_words(kernel, areas + np.uint64(addr.offset))
        fine = there & ((allocated ^ told) & np.uint64(ADDRESS_MASK) == 0)
    name = f"thread.{kernel.arch.registers.saved_sp}"
    saved = tasks.find_uint(name, kernel.arch.pointer_size) if kernel.arch.registers.saved_sp else None
    if saved is None:
        return told, fine | (areas == 0)
    size = min(max(0, *stack_sizes(kernel.layout, (THREAD_SIZE_MAX,))), (1 << 64) - 1)
    return told, fine | ((areas == 0) & (saved >= told) & (saved - told <= np.uint64(size)))


def _area(task: StructView) -> int | None:
    """Return the start of the memory that was allocated for the stack; None if it is not known."""
    if not task.has("stack_vm_area") or task.kernel.layout.find_member("vm_struct", "addr") is None:
        return None
    area = task.follow("stack_vm_area", "vm_struct")
    return None if area is None else area.pointer("addr")

"""Task data that architectures read in the same way: kernel stack size and ``struct thread_struct``."""

from __future__ import annotations

from vmcore2core.interfaces import KernelView, Layout

STACK_SIZE_MAX = 1 << 20

STACK_KEYS = ("SIZE(thread_union)", "SYMBOL(__start_init_stack)", "SYMBOL(__end_init_stack)")


def stack_sizes(layout: Layout, possible: tuple[int, ...]) -> tuple[int, ...]:
    """Return THREAD_SIZE if it is known, else the possible sizes.

    The size of the init task's stack tells it, too: INIT_TASK_DATA() in include/asm-generic/vmlinux.lds.h.

    Args:
        layout: of the kernel.
        possible: its possible sizes on this architecture, in bytes.
    """
    told = layout.find_constant("THREAD_SIZE") or layout.find_size("thread_union")
    if told:
        return (told,)
    start, end = layout.find_symbol("__start_init_stack"), layout.find_symbol("__end_init_stack")
    if start is not None and end is not None and (end - start).bit_count() == 1 and 0 < end - start <= STACK_SIZE_MAX:
        return (end - start,)
    return possible


def mem_map(kernel: KernelView, word: int) -> int | None:
    """Return the address of the first page frame's ``struct page``, or None if the kernel has no array of all.

    Kernels with CONFIG_FLATMEM have one; its first frame is ARCH_PFN_OFFSET (include/asm-generic/memory_model.h).

    Raises:
        MemoryFault: it cannot be read.
    """
    found = kernel.layout.find_symbol("mem_map")
    return kernel.uint(found, word) or None if found is not None else None


class ThreadStruct:
    """Reads the ``struct thread_struct`` of a task; a member that the layout does not know is None.

    Args:
        task: ``struct task_struct *``.
        kernel: the dumped one.
    """

    def __init__(self, task: int, kernel: KernelView) -> None:
        self.task, self.kernel, self.layout = task, kernel, kernel.layout

    def has(self, member: str) -> bool:
        """Tell whether the layout knows a member."""
        return self.layout.find_member("task_struct", f"thread.{member}") is not None

    def raw(self, member: str, size: int) -> bytes | None:
        """Return the bytes that begin at a member."""
        found = self.layout.find_member("task_struct", f"thread.{member}")
        return None if found is None else self.kernel.memory.read(self.task + found.offset, size)

    def uint(self, member: str, size: int = 8) -> int | None:
        """Return an unsigned integer."""
        found = self.layout.find_member("task_struct", f"thread.{member}")
        return None if found is None else self.kernel.uint(self.task + found.offset, size)

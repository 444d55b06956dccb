"""What an mm counts of itself, against what there is: pages of its mappings, by kind, and pages that are resident.

References: mm/vma.c: vm_stat_account(), is_data_mapping(); include/linux/mm.h: get_mm_counter(); lib/percpu_counter.c
(Linux 5.10 to 7.3). Where a task changes the mappings (it holds mmap_lock), they need not agree. Resident pages are
counted a little after they are mapped or unmapped, with a page table's lock held: whatever runs in the kernel may be
between the two, a table's worth of pages each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel import mm, runqueue, sched
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.process.threads import CpuNotes

VM_GROWSDOWN = 0x100
SHADOW_STACKS = 0x3 << 37
"""VM_HIGH_ARCH_5 (x86), VM_HIGH_ARCH_6 (arm64): counted as stacks since Linux 6.10, as data before."""
VM_KIND = mm.VM_EXEC | mm.VM_WRITE | mm.VM_SHARED | VM_GROWSDOWN | SHADOW_STACKS

T = TypeVar("T")


class Accounting:
    """The counters of all processes of a dump.

    Args:
        kernel: the dumped kernel.
        cpus: the dump's CPU notes: what was in user mode is not between two steps.
    """

    def __init__(self, kernel: Kernel, cpus: CpuNotes) -> None:
        self.kernel, self._cpu_notes = kernel, cpus

    def of_process(
        self,
        owner: StructView,
        threads: Sequence[StructView],
        mappings: Sequence[tuple[int, int]],
        mapped: int | None,
    ) -> Iterator[str]:
        """Yield a sentence for each counter that is wrong.

        Args:
            owner: ``struct mm_struct``.
            threads: ``struct task_struct`` of those that share it.
            mappings: vm_flags and bytes of each.
            mapped: entries of the page tables that are not empty, in pages; None where they are not known.
        """
        try:
            if mm.is_settled(owner):
                yield from map(str, self._of_mappings(owner, mappings))
                yield from map(str, self._of_pages(owner, threads, mapped))
        except MemoryFault as fault:
            yield str(fault)

    def _of_mappings(self, owner: StructView, mappings: Sequence[tuple[int, int]]) -> Iterator[CorruptStructure]:
        """Yield what is wrong with total_vm and its like."""
        page = self.kernel.memory.kernel_map.spec.page_size
        word = self.kernel.arch.pointer_size
        counted = {"total_vm": sum(size for _, size in mappings) // page, "exec_vm": 0, "stack_vm": 0, "data_vm": 0}
        shadow = any(flags & SHADOW_STACKS for flags, _ in mappings)
        for flags, size in mappings:
            kind = _kind(flags)
            if kind is not None:
                counted[kind] += size // page
        for name, expected in counted.items():
            found = owner.find_uint(name, word)
            if found not in (None, expected) and not (shadow and name in ("stack_vm", "data_vm")):
                yield owner.corrupt(name, f"{found} pages, expected {expected} as the mappings have")

    def _of_pages(
        self, owner: StructView, threads: Sequence[StructView], mapped: int | None
    ) -> Iterator[CorruptStructure]:
        """Yield what is wrong if the page tables have fewer pages than are counted."""
        if self._between is None or mapped is None:
            return
        counted = self._resident(owner, threads)
        if counted is not None and mapped < counted - self._between:
            yield owner.corrupt("rss_stat", f"{counted} pages, but the page tables have {mapped}")

    def _resident(self, owner: StructView, threads: Sequence[StructView]) -> int | None:
        """Return how many pages are counted; None where it is not known of all tasks that have the mm."""
        # SPLIT_RSS_COUNTING: each task has a part.
        if owner.has("rss_stat.count") and owner.find_uint("mm_users", 4) != len(threads):
            return None
        return mm.get_mm_rss(owner, threads)

    @cached_property
    def _between(self) -> int | None:
        """How many pages may be mapped and not yet counted, or unmapped and still counted; None where not known."""
        return _known(self._in_kernel)

    def _in_kernel(self) -> int | None:
        """Return how many pages those CPUs may be about that were in the kernel, and not idle."""
        tasks = list(runqueue.running(self.kernel))
        busy = sum(bool(sched.task_pid(task)) and not self._in_user_mode(task) for task in tasks)
        return busy << self.kernel.memory.kernel_map.spec.levels[-1].bits if tasks else None

    def _in_user_mode(self, task: StructView) -> bool:
        note = self._cpu_notes.of(task, None, None)
        return note is not None and note.user_mode


def _kind(flags: int) -> str | None:
    """Return which counter a mapping is in besides total_vm."""
    if flags & (mm.VM_EXEC | mm.VM_WRITE | VM_GROWSDOWN) == mm.VM_EXEC:
        return "exec_vm"
    if flags & VM_GROWSDOWN:
        return "stack_vm"
    return "data_vm" if flags & (mm.VM_WRITE | mm.VM_SHARED) == mm.VM_WRITE else None


def _known(ask: Callable[[], T | None]) -> T | None:
    try:
        return ask()
    except (LayoutError, MemoryFault):
        return None

"""Compare an mm's counters with its mappings and page tables.

References: mm/vma.c: vm_stat_account(), is_data_mapping(); include/linux/mm.h: get_mm_counter(), mm_inc_nr_ptes();
mm/huge_memory.c: pgtable_trans_huge_deposit(); lib/percpu_counter.c (Linux 5.10 to 7.3). Where a task changes the
mappings (it holds mmap_lock), they need not agree. The kernel counts pages and page tables a little before or after it
adds or removes them, under a page table's lock: each CPU in the kernel may be between the two steps, with one table and
its pages. If the machine went on while its memory was read, a difference proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel import mm, runqueue, sched
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.tasks import Tasks
from vmcore2core.process.threads import CpuNotes
from vmcore2core.process.walked import Walked

VM_GROWSDOWN = 0x100
WORD = 8
"""For 64-bit kernels, whose counted page tables all map user memory; 32-bit kernels also count some of their own."""

T = TypeVar("T")


class Accounting:
    """The counters of all processes of a dump.

    Args:
        kernel: the dumped kernel.
        cpus: the dump's CPU notes: a CPU in user mode is not between two steps.
    """

    def __init__(self, kernel: Kernel, cpus: CpuNotes) -> None:
        self.kernel, self._cpu_notes = kernel, cpus

    def of_process(
        self,
        owner: StructView,
        threads: Sequence[StructView] | Tasks,
        mappings: Sequence[tuple[int, int]],
        walked: Walked,
    ) -> Iterator[str]:
        """Yield a sentence for each counter that is wrong.

        Args:
            owner: ``struct mm_struct``.
            threads: ``struct task_struct`` of each thread that shares it.
            mappings: vm_flags and bytes of each.
            walked: what a walk of the page tables counted, without mappings of hugetlbfs.
        """
        try:
            if mm.has_no_writer(owner):
                yield from map(str, self._of_mappings(owner, mappings))
                if walked.whole and self._busy is not None and mm.is_unlocked(owner):
                    elsewhere = any(flags & mm.VM_HUGETLB for flags, _ in mappings)
                    yield from map(str, self._of_tables(owner, walked, self._busy, elsewhere))
                    yield from map(str, self._of_pages(owner, threads, walked, self._busy))
        except MemoryFault as fault:
            yield str(fault)

    def _of_mappings(self, owner: StructView, mappings: Sequence[tuple[int, int]]) -> Iterator[CorruptStructure]:
        """Yield what is wrong with total_vm and similar counters."""
        page = self.kernel.memory.kernel_map.spec.page_size
        word = self.kernel.arch.pointer_size
        counted = {"total_vm": sum(size for _, size in mappings) // page, "exec_vm": 0, "stack_vm": 0, "data_vm": 0}
        # Shadow stacks are counted as stacks since Linux 6.10, as data before.
        shadow = any(flags & self.kernel.arch.paging.vm_shadow_stack for flags, _ in mappings)
        for flags, size in mappings:
            kind = _kind(flags)
            if kind is not None:
                counted[kind] += size // page
        for name, expected in counted.items():
            found = owner.find_uint(name, word)
            if found not in (None, expected) and not (shadow and name in ("stack_vm", "data_vm")):
                yield owner.corrupt(name, f"{found} pages, expected {expected} as the mappings have")

    def _of_tables(self, owner: StructView, walked: Walked, busy: int, elsewhere: bool) -> Iterator[CorruptStructure]:
        """Yield what is wrong if the page tables differ from the count; ``elsewhere``: there are further tables."""
        word, own = self.kernel.arch.pointer_size, self.kernel.arch.paging.own_tables
        counted = owner.find_uint("pgtables_bytes", word)
        if counted is None or word != WORD or (own and owner.find_uint(own, word)):
            return
        least, last = walked.table_bytes(), len(walked.spec.levels) - 1
        # The kernel keeps and counts a spare table to split a huge page into; for anonymous memory it always does.
        most = least + walked.huge * walked.size_of_table(last)
        most += busy * max(walked.size_of_table(position) for position in range(last + 1))
        if counted < least or (counted > most and not elsewhere):
            expected = f"{least:#x}" + (f" to {most:#x}" if most > least else "")
            yield owner.corrupt("pgtables_bytes", f"{counted:#x} bytes, expected {expected} as the page tables have")

    def _of_pages(
        self, owner: StructView, threads: Sequence[StructView] | Tasks, walked: Walked, busy: int
    ) -> Iterator[CorruptStructure]:
        """Yield what is wrong if the page tables have fewer pages than the mm counts, or other swapped ones."""
        counters = self._counters(owner, threads)
        if counters is None:
            return
        slack = busy << walked.spec.levels[-1].bits
        counted, swapped = sum(counters[i] for i in mm.RSS_COUNTERS), counters[mm.MM_SWAPENTS]
        if walked.in_memory < counted - slack:
            yield owner.corrupt("rss_stat", f"{counted} pages, but the page tables have {walked.in_memory}")
        if walked.in_slots is not None and abs(walked.in_slots - swapped) > slack:
            yield owner.corrupt("rss_stat", f"{swapped} swapped pages, but the page tables have {walked.in_slots}")

    def _counters(self, owner: StructView, threads: Sequence[StructView] | Tasks) -> list[int] | None:
        """Return how many pages the mm counts; None if the part of any of its tasks is not known."""
        # SPLIT_RSS_COUNTING: each task keeps a part of the count.
        if owner.has("rss_stat.count") and owner.find_uint("mm_users", 4) != len(threads):
            return None
        return mm.mm_counters(owner, threads)

    @cached_property
    def _busy(self) -> int | None:
        """How many CPUs may be between two steps: they were in the kernel and not idle; None if that is not known."""
        return _known(self._in_kernel) if self._cpu_notes.notes else None

    def _in_kernel(self) -> int | None:
        tasks = list(runqueue.running(self.kernel))
        busy = sum(bool(sched.task_pid(task)) and not self._in_user_mode(task) for task in tasks)
        return busy if tasks else None

    def _in_user_mode(self, task: StructView) -> bool:
        note = self._cpu_notes.of(task, None, None)
        return note is not None and note.user_mode


def _kind(flags: int) -> str | None:
    """Return which counter, besides total_vm, includes a mapping."""
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

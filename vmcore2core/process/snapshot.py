"""From kernel structures to a ``ProcessSnapshot`` and the process's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.errors import (
    KernelThread,
    MemoryFault,
    NoUserMemory,
    TaskError,
    TaskNotFound,
)
from vmcore2core.kernel import fs, mm, sched
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.memory.pages import UserPageState
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.accounting import Accounting
from vmcore2core.process.aliased import believed
from vmcore2core.process.consistency import Consistency
from vmcore2core.process.dump_filter import EVERYTHING, DumpFilter
from vmcore2core.process.filebacking import CachedLookups, FileBacking
from vmcore2core.process.filelinks import FileLinks
from vmcore2core.process.mappings import Mappings
from vmcore2core.process.model import (
    AbsentReason,
    AbsentRun,
    ProcessSnapshot,
    ThreadLeftOut,
    ThreadSnapshot,
    Vma,
)
from vmcore2core.process.ondisk import files_on_disk
from vmcore2core.process.pageindex import PageIndex
from vmcore2core.process.regsets import last_notes, regsets
from vmcore2core.process.sparse import with_untouched
from vmcore2core.process.stack import InitialStack
from vmcore2core.process.statm import ELF_PRARGSZ
from vmcore2core.process.status_fields import prstatus_or_unknown, psinfo
from vmcore2core.process.swapped import SwappedPages
from vmcore2core.process.sysroot import Sysroot
from vmcore2core.process.tags import Tags
from vmcore2core.process.task_finder import Scan, TaskFinder
from vmcore2core.process.text import text_left_out, with_torn_text
from vmcore2core.process.threadgroup import ThreadGroup
from vmcore2core.process.threads import CpuNotes, ThreadPointers, ThreadRegs, describe, thread_regs
from vmcore2core.process.vdso import VdsoBacking

_REASONS = {
    UserPageState.EXCLUDED: AbsentReason.EXCLUDED,
    UserPageState.NOT_IN_DUMP: AbsentReason.NOT_IN_DUMP,
    UserPageState.TRUNCATED: AbsentReason.TRUNCATED,
    UserPageState.DAMAGED: AbsentReason.DAMAGED,
    UserPageState.SWAPPED: AbsentReason.SWAPPED,
    UserPageState.NOT_CACHED: AbsentReason.NOT_CACHED,
    UserPageState.BEYOND_FILE: AbsentReason.BEYOND_FILE,
    UserPageState.TABLE_MISSING: AbsentReason.TABLE_MISSING,
    UserPageState.TABLE_BROKEN: AbsentReason.TABLE_BROKEN,
    UserPageState.SWAPPED_TO_DISK: AbsentReason.SWAPPED_TO_DISK,
    UserPageState.SWAP_UNREADABLE: AbsentReason.SWAP_UNREADABLE,
    UserPageState.SWAP_CUT_OFF: AbsentReason.SWAP_CUT_OFF,
    UserPageState.HWPOISON: AbsentReason.HWPOISON,
    UserPageState.DEVICE_PRIVATE: AbsentReason.DEVICE_PRIVATE,
    UserPageState.GUARD: AbsentReason.GUARD,
    UserPageState.SPECIAL: AbsentReason.SPECIAL,
}
_OF_SWAP = (AbsentReason.SWAPPED, AbsentReason.SWAP_UNREADABLE, AbsentReason.DAMAGED)


Answer = tuple[StructView, ThreadRegs | str]
"""A thread with its user registers, or with a sentence that says why they are not known."""


class Captured(NamedTuple):
    """A process ready to be written.

    Attributes:
        answers: its threads, each with its user registers, or with a sentence that says why they are not known.
        mm_rss: resident pages as the kernel counts them, or None if the count is not known.
    """

    snapshot: ProcessSnapshot
    memory: UserMemory
    answers: tuple[Answer, ...] = ()
    mm_rss: int | None = None

    def rss_kib(self) -> int:
        """Return the process's resident memory as ps(1) shows it, or if the kernel's count is unknown, count pages."""
        pages = self.mm_rss
        if pages is None:
            uncounted = {vma.start for vma in self.snapshot.vmas if vma.vm_flags & (mm.VM_HUGETLB | mm.VM_PFNMAP)}
            pages = self.memory.resident_pages(uncounted)
        return pages * self.snapshot.page_size >> 10


class Processes:
    """All processes of the dump.

    Attributes:
        warnings: sentences about broken task lists that were found so far.
        task_finder: every way to the tasks.
        consistency: checks each process.
    """

    def __init__(
        self,
        kernel: Kernel,
        notes: tuple[Note, ...],
        swap: SwappedPages | None = None,
        sysroots: Sequence[Sysroot] = (),
        scan: Scan | None = None,
    ) -> None:
        self.kernel = kernel
        self.sysroots = tuple(sysroots)
        self.swap = swap or SwappedPages(kernel)
        self.cpus = CpuNotes(kernel, notes)
        self.cache = CachedLookups(kernel)
        self.mounts = fs.Mounts(kernel)
        self.warnings: list[str] = []
        self.task_finder = TaskFinder(kernel, self.warn, scan)
        self.consistency = Consistency(kernel)
        self.page_index = PageIndex(kernel)
        self.links = FileLinks(kernel)
        self.accounting = Accounting(kernel, self.cpus)

    def leaders(self) -> Iterator[StructView]:
        """Yield each thread group's leader; if the list is broken, also leaders found in other ways, with a warning."""
        return self.task_finder.leaders()

    def threads(self, leader: StructView, broken: list[str] | None = None) -> Iterator[StructView]:
        """Yield a group's threads; see ``TaskFinder.threads``."""
        return self.task_finder.threads(leader, broken)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Suppress warnings meanwhile: they would be about processes that the user did not ask for."""
        known = list(self.warnings)
        try:
            yield
        finally:
            self.warnings[:] = known
            self.task_finder.look_again()

    def warn(self, sentence: str) -> None:
        """Remember a sentence about a broken structure, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def find(self, number: int) -> StructView:
        """Return the leader of the group that has a thread with this PID.

        Raises:
            TaskNotFound: no group has one.
        """
        for leader in self.leaders():
            if sched.task_pid(leader) == number:
                return leader
        for leader in self.leaders():
            if any(sched.task_pid(thread) == number for thread in self.threads(leader)):
                return leader
        raise TaskNotFound(number, f"no task has PID {number} in this dump{''.join('; ' + w for w in self.warnings)}")

    def mm_of(self, leader: StructView) -> StructView:
        """Return the group's ``struct mm_struct``; a leader that has exited has none, its threads may.

        Raises:
            KernelThread: the leader is a kernel thread.
            NoUserMemory: no thread has an mm any more.
        """
        number = sched.task_pid(leader)
        if sched.is_kthread(leader):
            raise KernelThread(number, f"PID {describe(leader)} is a kernel thread: it has no user memory")
        for thread in chain((leader,), self.threads(leader)):
            found = thread.follow("mm", "mm_struct")
            if found is not None:
                return found
        letter = sched.task_state_char(leader)
        what = "a zombie" if letter == "Z" else f"exiting (state {letter})"
        raise NoUserMemory(number, f"PID {describe(leader)} is {what}: its memory was already released")

    def with_mm(self) -> Iterator[StructView]:
        """Yield the leaders of all groups that have user memory."""
        for leader in self.leaders():
            try:
                self.mm_of(leader)
            except (KernelThread, NoUserMemory):
                continue
            except MemoryFault as fault:
                self.warn(f"the task at {leader.address:#x} cannot be read: {fault}")
                continue
            yield leader

    def thread_registers(self, leader: StructView, broken: list[str] | None = None) -> Iterator[Answer]:
        """Yield each thread with its user registers, or with a sentence that says why they are not known."""
        return self.registers_of(leader, ThreadGroup(self.kernel, list(self.threads(leader, broken))))

    def registers_of(self, leader: StructView, group: ThreadGroup) -> Iterator[Answer]:
        """Yield the same for a group whose threads were read already."""
        pgd = self.kernel.memory.to_phys(self.mm_of(leader).pointer("pgd"))
        siblings = ThreadPointers(self.kernel, group.views)
        for task, answer in zip(group.views, group.answers(), strict=True):
            try:
                yield task, answer or thread_regs(self.kernel, task, self.cpus, pgd, siblings)
            except MemoryFault as fault:
                yield task, f"its task_struct cannot be read: {fault}"

    def capture(
        self,
        leader: StructView,
        *,
        with_absent: bool = True,
        dump_filter: DumpFilter | None = EVERYTHING,
        torn_text: bool = False,
    ) -> Captured:
        """Return the process as plain data, and its memory.

        Args:
            leader: the thread group's leader.
            dump_filter: which memory belongs in the core; None to follow the process's own coredump_filter.
            torn_text: see ``text.with_torn_text``.
            with_absent: look up which pages are absent; without it, ``Vma.absent`` is empty.

        Raises:
            KernelThread, NoUserMemory: it has no user memory.
            MemoryFault, LayoutUnknown, CorruptStructure: an essential structure is not readable, known or intact.
        """
        return _Capture(self, leader).run(dump_filter, with_absent=with_absent, torn_text=torn_text)


class _Capture:
    """The capture of one process; the steps share its attributes."""

    def __init__(self, processes: Processes, leader: StructView) -> None:
        self.processes = processes
        self.kernel = processes.kernel
        self.leader = leader
        self.mm = processes.mm_of(leader)
        self.warnings: list[str] = []
        self.notices: list[str] = []
        self.pgd = self.kernel.memory.to_phys(self.mm.pointer("pgd"))
        self.group = ThreadGroup(self.kernel, list(processes.threads(leader, self.warnings)))
        self.spec = self.kernel.user_page_table(self.mm)

    def run(self, dump_filter: DumpFilter | None, *, with_absent: bool, torn_text: bool) -> Captured:
        answers, threads, left_out, machine = self._threads()
        mappings = Mappings(
            self.kernel,
            self.mm,
            self.leader,
            self.processes.mounts,
            self.processes.cache,
            self._own_filter() if dump_filter is None else dump_filter,
            self.processes.links,
        )
        mappings.leave_out_beyond(1 << machine.elf_class)
        memory = UserMemory(
            self.kernel.memory.physical, self.spec, self.pgd, tuple(mappings.regions), self.processes.swap.space
        )
        mappings.regions[:], misled = believed(memory, self.mm)
        if misled is not None:
            self.warnings.append(misled)
            memory = memory.with_regions(tuple(mappings.regions))
        self._ask_pages(mappings, memory)
        stack = InitialStack(self.mm, memory, machine)
        auxv = mm.saved_auxv(self.mm, machine.elf_class // 8)
        if auxv is None:
            auxv = stack.auxv()
            if auxv is not None:
                self.notices.append(
                    "NT_AUXV is read from the initial user stack: the layout has no mm_struct.saved_auxv"
                )
            else:
                self.warnings.append(
                    "NT_AUXV is left out: the layout has no mm_struct.saved_auxv, and none was found on the user stack"
                )
        else:
            differs = stack.differs(auxv)
            self.warnings += [] if differs is None else [differs]
            self.warnings += stack.misplaced(auxv)
        vdso = stack.vdso(auxv)
        for i, (vma, region) in enumerate(zip(mappings.vmas, mappings.regions, strict=True)):
            if vma.start == vdso:
                mappings.vmas[i] = vma._replace(name="[vdso]", dumped=True, first_page_only=False)
                backing = VdsoBacking(self.kernel.memory, self.spec, self.pgd, region, self._vdso_image(machine))
                mappings.regions[i] = region._replace(zero_fill=False, pgoff=0, backing=backing)
        gate = mappings.gate(machine.elf_class)
        if gate is not None and gate.dumped:
            mappings.vmas.append(gate)
            mappings.regions.append(Region(gate.start, gate.end, zero_fill=False))
        memory = memory.with_regions(tuple(mappings.regions))
        mappings.look_for_elf_headers(memory)
        if torn_text:
            mappings.vmas[:], said = with_torn_text(
                mappings.vmas, memory, self.processes.sysroots, machine.elf_class, self.kernel.arch.byte_order
            )
            self.notices += [] if said is None else [said]
        from_files = self.processes.swap.nr_from_files
        vmas = _surveyed(mappings.vmas, memory) if with_absent else mappings.vmas
        self.notices += self.processes.swap.notices_since(from_files)
        for sysroot in self.processes.sysroots if with_absent else ():
            regions, notices = sysroot.complete(vmas, memory, machine.elf_class, self.kernel.arch.byte_order)
            memory, self.notices = memory.with_regions(tuple(regions)), self.notices + notices
            vmas = _surveyed(vmas, memory)
        if with_absent:
            vmas, sparse = with_untouched(vmas, memory)
            self.notices += [] if sparse is None else [sparse]
        if gate is not None and not gate.dumped:
            vmas.append(gate)
        tags = Tags(self.kernel, vmas, memory)
        self.notices += [] if tags.notice is None else [tags.notice]
        self.warnings += mappings.warnings + ([] if tags.broken is None else [tags.broken])
        problem = self.processes.cache.problem
        if problem and any(run.reason is AbsentReason.NOT_CACHED for vma in vmas for run in vma.absent):
            self.warnings.append(problem)
        if any(run.reason in _OF_SWAP for vma in vmas for run in vma.absent):
            self.warnings += self.processes.swap.problems
        for name in ("arg_start", "arg_end"):
            at = self.mm.find_uint(name, self.kernel.arch.pointer_size)
            if at and not any(vma.start <= at <= vma.end for vma in vmas):
                self.warnings.append(str(self.mm.corrupt(name, f"{at:#x}, which is in no mapping")))
        once = last_notes(self.kernel, self.warnings)
        about = psinfo(self.leader, stack.arguments(ELF_PRARGSZ - 1), self.warnings)
        left = files_on_disk(vmas, memory, mappings.view_at, machine.elf_class, self.kernel.arch.byte_order)
        snapshot = ProcessSnapshot(
            tgid=sched.task_tgid(self.leader),
            comm=sched.task_comm(self.leader),
            e_machine=machine.e_machine,
            elf_class=machine.elf_class,
            byte_order=self.kernel.arch.byte_order,
            page_size=self.spec.page_size,
            threads=tuple(threads),
            threads_left_out=tuple(left_out),
            psinfo=about,
            auxv=auxv,
            last_notes=once,
            vmas=tuple(vmas),
            warnings=tuple(self.warnings),
            notices=tuple(self.notices),
            tags=tuple(tags.runs),
            e_flags=machine.e_flags | self.kernel.arch.cores.flags(self.mm.address, self.kernel),
            greg_size=machine.greg_size,
            uid_size=machine.uid_size,
            on_disk=tuple(left),
        )
        return Captured(snapshot, memory, tuple(answers), self._mm_rss())

    def _mm_rss(self) -> int | None:
        try:
            return mm.get_mm_rss(self.mm, self.group.tasks or self.group.views)
        except MemoryFault:
            return None

    def _ask_pages(self, mappings: Mappings, memory: UserMemory) -> None:
        """Check that the page tables and the mm's counters agree with the mappings."""
        looked = self.processes.page_index.look(mappings.table, memory)
        self.warnings += looked.sentences
        sizes = [(vma.vm_flags, vma.end - vma.start) for vma in mappings.vmas]
        threads = self.group.tasks or self.group.views
        self.warnings += self.processes.accounting.of_process(self.mm, threads, sizes, looked.walked)

    def _threads(self) -> tuple[list[Answer], list[ThreadSnapshot], list[ThreadLeftOut], CoreMachine]:
        """Capture the threads, the leader first; some must be captured one at a time."""
        answers: list[Answer] = []
        found: list[ThreadSnapshot] = []
        left_out: list[ThreadLeftOut] = []
        machine, warnings = None, list[str]()
        self.warnings += self.processes.consistency.of_process(self.leader, self.mm)
        group, suspects = self.group, self._suspects(self.group)
        made: list[ThreadSnapshot | None] = []
        for row, (task, answer) in enumerate(self.processes.registers_of(self.leader, group)):
            answers.append((task, answer))
            is_left_out = bool(suspects[row]) and self._is_left_out(task, answer, left_out)
            if is_left_out or isinstance(answer, str):
                continue
            machine = machine or self._machine(task, answer.regs)
            made = made or group.snapshots(machine, ~suspects)
            found.append(made[row] or self._thread(task, answer, machine, group, warnings))
        self.warnings += warnings
        return answers, found, left_out, machine or self._machine(self.leader, {})

    def _suspects(self, group: ThreadGroup) -> NDArray[np.bool_]:
        """Tell which threads have to be checked one by one: also those whose registers are not known."""
        if group.tasks is None:
            return np.ones(len(group.views), np.bool_)
        odd = self.processes.consistency.suspects(group.tasks, self.leader, self.mm) | ~group.known
        return odd | (group.tasks.uint("pid", size=4) >= np.uint64(1 << 31))  # negative ones

    def _is_left_out(self, task: StructView, answer: ThreadRegs | str, left_out: list[ThreadLeftOut]) -> bool:
        """Check a thread, and tell whether to leave it out; add it to ``left_out`` if that is a loss."""
        try:
            self.warnings += self.processes.consistency.of_task(task, self.leader, self.mm)
            if not task.pointer("mm"):
                # A leader that has exited stays until all its threads have; no core has it.
                self.notices.append(f"thread {describe(task)} has exited")
                return True
            number = sched.task_pid(task)
            if number < 0:
                answer = f"task_struct.pid at {task.addr_of('pid'):#x}: {number}, expected at least 0"
            if isinstance(answer, str):
                left_out.append(ThreadLeftOut(number, sched.task_comm(task), answer))
        except MemoryFault as fault:
            self.warnings.append(f"the thread at {task.address:#x} cannot be read: {fault}")
            return True
        return isinstance(answer, str)

    def _machine(self, task: StructView, regs: Mapping[str, int]) -> CoreMachine:
        """Return machine and class of the process's core, judged by one of its threads."""
        arch = self.kernel.arch
        task_size = self.mm.find_uint("task_size", arch.pointer_size)
        machine = arch.cores.process_machine(task.address, regs, task_size, self.kernel)
        if machine.unsupported is not None:
            raise TaskError(sched.task_tgid(self.leader), f"PID {describe(self.leader)} is {machine.unsupported}")
        return machine

    def _thread(
        self, task: StructView, regs: ThreadRegs, machine: CoreMachine, group: ThreadGroup, warnings: list[str]
    ) -> ThreadSnapshot:
        notes, unknown = regsets(self.kernel, task, regs, machine, warnings)
        spec = self.kernel.arch.unwind.spec(machine)
        if spec is not None and spec.registers[spec.return_address] in regs.unknown:
            warnings.append(f"the program counter of thread {describe(task)} is not known: {regs.source} lacks it")
        lost = [] if spec is None else [n for n in regs.unknown if n in {spec.registers[i] for i in spec.preserved}]
        if lost:
            warnings.append(f"{', '.join(lost)} of thread {describe(task)} are not known: {regs.source} lacks them")
        warnings += [] if regs.doubt is None else [regs.doubt]
        wrong = self.kernel.arch.registers.implausible(regs.regs)
        if wrong is not None:
            warnings.append(f"registers of thread {describe(task)} ({regs.source}): {wrong}")
        return ThreadSnapshot(
            tid=sched.task_pid(task),
            comm=sched.task_comm(task),
            gregs=self.kernel.arch.cores.gregs(regs.regs, machine),
            gregs_source=regs.source,
            regsets=notes,
            gregs_unknown=tuple(name for name in regs.unknown if name in machine.greg_names),
            regsets_unknown=unknown,
            **prstatus_or_unknown(task, group, warnings),
        )

    def _vdso_image(self, machine: CoreMachine) -> KernelAddr | None:
        vdso = self.kernel.arch.vdso
        try:
            return None if vdso is None else vdso.image(self.mm.address, machine, self.kernel)
        except MemoryFault:
            return None

    def _own_filter(self) -> DumpFilter:
        """Return the process's coredump_filter; if it is not known, one that lets everything through."""
        bits = mm.coredump_filter(self.mm)
        if bits is None:
            self.notices.append("all mappings are written: the layout has no mm_struct.flags to tell coredump_filter")
            return EVERYTHING
        self.notices.append(f"mappings are written as the process's coredump_filter {bits:#x} says")
        return DumpFilter(bits)


def _surveyed(vmas: Sequence[Vma], memory: UserMemory) -> list[Vma]:
    """Return the mappings with their absent pages."""
    regions = {region.start: region for region in memory.regions}
    result = []
    for vma in vmas:
        if vma.dumped and (vma.absent or not memory.is_known(regions[vma.start])):
            vma = vma._replace(absent=tuple(_absent(vma, regions[vma.start], memory)))
        result.append(vma)
    return result


def _absent(vma: Vma, region: Region, memory: UserMemory) -> Iterator[AbsentRun]:
    """Yield the pages of a mapping that are not written, each run with the reason that the core gives."""
    if vma.beyond_filter:
        for run in text_left_out(vma, region, memory):
            yield AbsentRun(run.start, run.end, AbsentReason.BEYOND_FILTER)
        return
    for run in memory.survey(region._replace(end=vma.dump_end(memory.spec.page_size))).unknown:
        yield AbsentRun(run.start, run.end, _reason(region, run.state))


def _reason(region: Region, state: UserPageState) -> AbsentReason:
    """Return the reason that the core gives for unknown pages."""
    backing = region.backing
    whole_cache = isinstance(backing, FileBacking) and not backing.broken
    if state is UserPageState.NOT_CACHED and region.on_disk and whole_cache:
        return AbsentReason.IN_FILE
    return _REASONS[state]


def refresh_absent(captured: Captured) -> Captured:
    """Return the process with its pages surveyed again, after reading them showed that some are damaged."""
    vmas = _surveyed(captured.snapshot.vmas, captured.memory)
    return captured._replace(snapshot=captured.snapshot._replace(vmas=tuple(vmas)))

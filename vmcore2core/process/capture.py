"""From kernel structures to a ``ProcessSnapshot`` and the process's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vmcore2core.addresses import U8Array, U64Array, UserAddr
from vmcore2core.arch.base import CoreMachine
from vmcore2core.errors import (
    CorruptStructure,
    KernelThread,
    LayoutUnknown,
    MemoryFault,
    NoUserMemory,
    TaskError,
    TaskNotFound,
)
from vmcore2core.kernel import fs, mm, pid, sched
from vmcore2core.kernel.filemap import CachedPages, PageCache
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.memory.user import Region, Survey, UserMemory, UserPageState
from vmcore2core.process.dump_filter import vma_dumped, vma_p_flags
from vmcore2core.process.model import (
    AbsentReason,
    AbsentRun,
    ProcessSnapshot,
    ThreadLeftOut,
    ThreadSnapshot,
    Vma,
)
from vmcore2core.process.prstatus import prstatus_or_unknown, psinfo
from vmcore2core.process.regsets import last_notes, regsets
from vmcore2core.process.stack import InitialStack
from vmcore2core.process.threads import CpuNotes, ThreadRegs, describe, thread_regs
from vmcore2core.process.vdso import VdsoBacking

ELF_PRARGSZ = 80
CACHED_LOOKUPS = 256

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
}


@dataclass(frozen=True)
class Captured:
    """A process ready to be written."""

    snapshot: ProcessSnapshot
    memory: UserMemory


class FileBacking:
    """``Backing`` of one mapping: the page cache of its ``struct file``."""

    def __init__(self, cache: CachedLookups, file: StructView) -> None:
        self.cache, self.file = cache, file

    def lookup(self, first: int, last: int) -> tuple[U64Array, U64Array, U8Array]:
        """See ``Backing.lookup``."""
        return self.cache.lookup(self.file, first, last)


class CachedLookups:
    """The page cache with the latest answers remembered: processes share libraries.

    Attributes:
        problem: why the page cache cannot be searched, or None.
        broken: sentences about files whose page cache is broken.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.problem: str | None = None
        self.broken: list[str] = []
        self._pages: PageCache | None = None
        self._answers: OrderedDict[tuple[int, int, int], tuple[U64Array, U64Array, U8Array]] = OrderedDict()
        try:
            self._pages = PageCache(kernel)
        except (LayoutUnknown, MemoryFault) as error:
            self.problem = f"files' pages that were not mapped in cannot be looked for: {error}"

    def lookup(self, file: StructView, first: int, last: int) -> tuple[U64Array, U64Array, U8Array]:
        """Return a file's pages as ``Backing.lookup`` does."""
        none = np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.uint8)
        if self._pages is None:
            return none
        try:
            key = int(file.pointer("f_mapping")), first, last
            if key not in self._answers:
                self._answers[key] = self._states(self._pages.lookup(file, first, last))
                if len(self._answers) > CACHED_LOOKUPS:
                    self._answers.popitem(last=False)
            return self._answers[key]
        except (CorruptStructure, MemoryFault, LayoutUnknown) as error:
            sentence = f"the page cache of the file at {file.address:#x} cannot be read: {error}"
            if sentence not in self.broken:
                self.broken.append(sentence)
            return none

    @staticmethod
    def _states(pages: CachedPages) -> tuple[U64Array, U64Array, U8Array]:
        return pages.index, pages.paddr, pages.state


class Processes:
    """All processes of the dump.

    Attributes:
        warnings: sentences about broken task lists met so far.
    """

    def __init__(self, kernel: Kernel, notes: tuple[tuple[str, int, bytes], ...]) -> None:
        self.kernel = kernel
        self.cpus = CpuNotes(kernel, notes)
        self.cache = CachedLookups(kernel)
        self.mounts = fs.Mounts(kernel)
        self.warnings: list[str] = []

    def leaders(self) -> Iterator[StructView]:
        """Yield each thread group's leader; a broken list ends early, with a warning."""
        yield from self._until_broken(pid.for_each_process(self.kernel))

    def threads(self, leader: StructView, broken: list[str] | None = None) -> Iterator[StructView]:
        """Yield a group's threads; a broken list ends early, with a warning, which goes into ``broken`` as well."""
        yield from self._until_broken(pid.for_each_thread(leader), broken)

    def _until_broken(self, views: Iterator[StructView], broken: list[str] | None = None) -> Iterator[StructView]:
        try:
            yield from views
        except (CorruptStructure, MemoryFault) as error:
            sentence = f"some tasks may be missing: {error}"
            self.warn(sentence)
            if broken is not None:
                broken.append(sentence)

    def warn(self, sentence: str) -> None:
        """Remember a sentence about what is broken, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def find(self, number: int) -> StructView:
        """Return the leader of the group that has a thread with this PID.

        Raises:
            TaskNotFound: none has.
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
            KernelThread: it is one.
            NoUserMemory: no thread has an mm any more.
        """
        number = sched.task_pid(leader)
        if sched.is_kthread(leader):
            raise KernelThread(number, f"PID {describe(leader)} is a kernel thread: it has no user memory")
        for thread in (leader, *self.threads(leader)):
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

    def thread_registers(
        self, leader: StructView, broken: list[str] | None = None
    ) -> Iterator[tuple[StructView, ThreadRegs | str]]:
        """Yield each thread with its user registers, or with a sentence that says why there are none."""
        owner = self.mm_of(leader)
        pgd = self.kernel.memory.to_phys(owner.pointer("pgd"))
        for task in self.threads(leader, broken):
            try:
                yield task, thread_regs(self.kernel, task, self.cpus, pgd)
            except MemoryFault as fault:
                yield task, f"its task_struct cannot be read: {fault}"

    def capture(self, leader: StructView, *, with_absent: bool = True) -> Captured:
        """Return the process as plain data, and its memory.

        Args:
            leader: the thread group's leader.
            with_absent: look up which pages are absent; without it, ``Vma.absent`` is empty.

        Raises:
            KernelThread, NoUserMemory: it has no user memory.
            MemoryFault, LayoutUnknown, CorruptStructure: what cannot be done without is not readable or known.
        """
        return _Capture(self, leader).run(with_absent=with_absent)


class _Capture:
    """The capture of one process; its attributes are what the steps share."""

    def __init__(self, processes: Processes, leader: StructView) -> None:
        self.processes = processes
        self.kernel = processes.kernel
        self.leader = leader
        self.mm = processes.mm_of(leader)
        self.warnings: list[str] = []
        self.notices: list[str] = []
        self.pgd = self.kernel.memory.to_phys(self.mm.pointer("pgd"))
        self.spec = self.kernel.user_page_table(self.mm)

    def run(self, *, with_absent: bool) -> Captured:
        threads, left_out, machine = self._threads()
        self.elf_class = machine.elf_class
        vmas, regions = self._vmas()
        memory = UserMemory(self.kernel.memory.physical, self.spec, self.pgd, tuple(regions))
        stack = InitialStack(self.mm, memory, machine)
        auxv = mm.saved_auxv(self.mm, machine.elf_class // 8)
        if auxv is None:
            auxv = stack.auxv()
            if auxv is not None:
                self.notices.append(
                    "NT_AUXV is read from the initial user stack: the layout has no mm_struct.saved_auxv"
                )
        vdso = stack.vdso(auxv)
        if any(vma.start == vdso for vma in vmas):
            vmas = [replace(vma, name="[vdso]", dumped=True) if vma.start == vdso else vma for vma in vmas]
            regions = [self._vdso_region(region) if region.start == vdso else region for region in regions]
            memory = UserMemory(self.kernel.memory.physical, self.spec, self.pgd, tuple(regions))
        vmas = [
            replace(vma, absent=absent_runs(memory.survey(region))) if vma.dumped and with_absent else vma
            for vma, region in zip(vmas, regions, strict=True)
        ]
        gate = self._gate_vma()
        if gate is not None and (not vmas or vmas[-1].end <= gate.start):
            vmas.append(gate)
        problem = self.processes.cache.problem
        if problem and any(run.reason is AbsentReason.NOT_CACHED for vma in vmas for run in vma.absent):
            self.warnings.append(problem)
        self.warnings += self.processes.cache.broken
        snapshot = ProcessSnapshot(
            tgid=sched.task_tgid(self.leader),
            comm=sched.task_comm(self.leader),
            e_machine=machine.e_machine,
            elf_class=machine.elf_class,
            byte_order=self.kernel.arch.byte_order,
            page_size=self.spec.page_size,
            threads=tuple(threads),
            threads_left_out=tuple(left_out),
            psinfo=psinfo(self.leader, stack.arguments(ELF_PRARGSZ - 1)),
            auxv=auxv,
            last_notes=last_notes(self.kernel),
            vmas=tuple(vmas),
            warnings=tuple(self.warnings),
            notices=tuple(self.notices),
            e_flags=self.kernel.arch.core_flags(self.mm.address, self.kernel.memory, self.kernel.layout),
        )
        return Captured(snapshot, memory)

    def _threads(self) -> tuple[list[ThreadSnapshot], list[ThreadLeftOut], CoreMachine]:
        """Capture the threads, the leader first."""
        arch = self.kernel.arch
        found, group = [], []
        left_out: list[ThreadLeftOut] = []
        for task, answer in self.processes.thread_registers(self.leader, self.warnings):
            group.append(task)
            try:
                if isinstance(answer, str):
                    left_out.append(ThreadLeftOut(sched.task_pid(task), sched.task_comm(task), answer))
                else:
                    found.append((task, answer))
            except MemoryFault as fault:
                self.warnings.append(f"the thread at {task.address:#x} cannot be read: {fault}")
        machine = arch.core_machine(
            found[0][1].regs if found else {}, self.mm.find_uint("task_size", arch.pointer_size)
        )
        if machine.unsupported is not None:
            raise TaskError(sched.task_tgid(self.leader), f"PID {describe(self.leader)} is {machine.unsupported}")
        return [self._thread(task, regs, machine, group) for task, regs in found], left_out, machine

    def _thread(
        self, task: StructView, regs: ThreadRegs, machine: CoreMachine, group: list[StructView]
    ) -> ThreadSnapshot:
        notes, unknown = regsets(self.kernel, task, regs, machine)
        return ThreadSnapshot(
            tid=sched.task_pid(task),
            comm=sched.task_comm(task),
            gregs=self.kernel.arch.gregs(regs.regs, machine),
            gregs_source=regs.source,
            regsets=notes,
            gregs_unknown=tuple(name for name in regs.unknown if name in machine.greg_names),
            regsets_unknown=unknown,
            **prstatus_or_unknown(task, group),
        )

    def _vmas(self) -> tuple[list[Vma], list[Region]]:
        vmas: list[Vma] = []
        regions: list[Region] = []
        root = self._root()
        try:
            for view in mm.for_each_vma(self.mm):
                vma, region = self._vma(view, root)
                vmas.append(vma)
                regions.append(region)
        except (CorruptStructure, MemoryFault) as error:
            self.warnings.append(f"mappings may be missing: {error}")
        return vmas, regions

    def _root(self) -> tuple[int, int] | None:
        """Return the process's root directory as (vfsmount, dentry), or None where it is not known."""
        try:
            fs_struct = self.leader.follow("fs", "fs_struct")
            if fs_struct is None:
                return None
            root = fs_struct.embedded("root", "path")
            return root.pointer("mnt"), root.pointer("dentry")
        except (LayoutUnknown, MemoryFault):
            return None

    def _vma(self, view: StructView, root: tuple[int, int] | None) -> tuple[Vma, Region]:
        start, end = UserAddr(mm.vma_start(view)), UserAddr(mm.vma_end(view))
        flags = view.ulong("vm_flags")
        file = view.follow("vm_file", "file")
        path = fs.file_path(self.kernel, file, self.processes.mounts, root) if file is not None else None
        if file is not None and path is None:
            self.warnings.append(f"the path of the file mapped at {start:#x} cannot be read")
        pgoff = view.find_uint("vm_pgoff", self.kernel.arch.pointer_size)
        anon_vma = bool(view.pointer("anon_vma")) if view.has("anon_vma") else None
        name = mm.vma_name(self.mm, view) if file is None else ""
        dumped = vma_dumped(flags, is_file=file is not None, anon_vma=anon_vma)
        backing = FileBacking(self.processes.cache, file) if file is not None and pgoff is not None else None
        # A special mapping ([vvar], [uprobes]) has operations, but no file: its pages are not zero-filled either.
        special = view.has("vm_ops") and bool(view.pointer("vm_ops"))
        region = Region(start, end, zero_fill=file is None and not special, pgoff=pgoff or 0, backing=backing)
        device, inode = fs.device_and_inode(file) if file is not None else (None, None)
        vma = Vma(
            start=start,
            end=end,
            p_flags=vma_p_flags(flags),
            vm_flags=flags,
            pgoff=pgoff if file is not None else None,
            path=path,
            name=name,
            device=device,
            inode=inode,
            dumped=dumped,
        )
        return vma, region

    def _vdso_region(self, region: Region) -> Region:
        backing = VdsoBacking(self.kernel.memory, self.spec, self.pgd, region)
        return replace(region, zero_fill=False, pgoff=0, backing=backing)

    def _gate_vma(self) -> Vma | None:
        """Return the mapping that is in no mm (x86: vsyscall); the kernel gives it no readable page."""
        address = self.kernel.arch.gate_vma(self.kernel.memory, self.kernel.layout)
        if address is None or self.elf_class != 64:
            return None
        view = self.kernel.view("vm_area_struct", address)
        try:
            flags = view.ulong("vm_flags")
            start, end = UserAddr(mm.vma_start(view)), UserAddr(mm.vma_end(view))
        except MemoryFault:
            return None
        if (start | end) % self.spec.page_size or not self.kernel.arch.user_end <= start < end:
            return None
        return Vma(start, end, vma_p_flags(flags), vm_flags=flags, name="[vsyscall]", dumped=False)


def absent_runs(survey: Survey) -> tuple[AbsentRun, ...]:
    """Return a survey's unknown pages with the reasons that the core gives."""
    return tuple(AbsentRun(run.start, run.end, _REASONS[run.state]) for run in survey.unknown)


def refresh_absent(captured: Captured) -> Captured:
    """Return the process with its pages surveyed again, after reading showed that some are damaged."""
    regions = {region.start: region for region in captured.memory.regions}
    vmas = tuple(
        replace(vma, absent=absent_runs(captured.memory.survey(regions[vma.start]))) if vma.dumped else vma
        for vma in captured.snapshot.vmas
    )
    return Captured(replace(captured.snapshot, vmas=vmas), captured.memory)

"""The registers of each thread, and where they were found.

A task that was off the CPU entered the kernel through a system call or an exception, and its user registers are at
the top of its kernel stack. If a task was on a CPU in user mode, the registers on its kernel stack are stale, and the
CPU's crash note has the current ones. kdump's notes carry the running task's PID; QEMU's carry the CPU's number. If the
layout does not tell which tasks were on a CPU (as from VMCOREINFO's export), tasks that may have been in user mode have
no registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.spec import CpuNote
from vmcore2core.arch.task import stack_sizes
from vmcore2core.elf.notes import Note
from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel import mm, runqueue
from vmcore2core.kernel.crash_notes import crash_notes
from vmcore2core.kernel.pid import for_each_process, for_each_thread, nr_cpus_seen
from vmcore2core.kernel.sched import (
    PF_EXITING,
    task_comm,
    task_cpu,
    task_flags,
    task_on_cpu,
    task_pid,
    task_state,
    task_state_char,
)
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.printable import counted, text
from vmcore2core.process.kernelstack import kernel_stack

THREAD_SIZE_MIN = 1 << 14  # of x86-64
KERNEL_STACK = "kernel stack"
"""``ThreadRegs.source`` of a thread that was off the CPU."""


class ThreadRegs(NamedTuple):
    """General registers of one thread by native name; ``unknown`` names the registers that no source has.

    ``note`` is the note of the CPU that was running it, or None; ``note_label`` names that CPU. ``doubt`` is a sentence
    about registers from the CPU that may belong to another thread.
    """

    regs: Mapping[str, int]
    source: str
    unknown: tuple[str, ...]
    note: CpuNote | None = None
    note_label: str = ""
    doubt: str | None = None


class CpuTask(NamedTuple):
    """A CPU's note.

    Attributes:
        cpu: the kernel's number of the CPU, or None if it is not known.
        pid: of the task that it ran, 0 if it was idle, None if it is not known.
    """

    note: CpuNote
    cpu: int | None
    pid: int | None


class CpuNotes:
    """The dump's CPU notes, by the task that ran on the CPU."""

    def __init__(self, kernel: Kernel, notes: tuple[Note, ...]) -> None:
        self.kernel = kernel
        self.notes = kernel.arch.cpus.notes(notes)
        self._found: dict[int, int | None] = {}  # number of a note -> address of the task
        # QEMU's notes have CPU numbers; if kdump's have PIDs that look like them, those tasks are on those CPUs.
        self.by_cpu = all(note.pr_pid == note.number + 1 for note in self.notes)

    @cached_property
    def running(self) -> tuple[CpuTask, ...]:
        """Each note's CPU, and the PID of the task that it ran."""
        return tuple(self._named_by_cpu() if self.by_cpu else self._named_by_pid())

    def _named_by_cpu(self) -> Iterator[CpuTask]:
        found: dict[int, CpuTask] = {}
        for cpu, pid in self._on_cpus():
            note = self._note_of(cpu)
            if note is not None:
                found[note.number] = CpuTask(note, cpu, pid)
        return (found.get(note.number, CpuTask(note, note.number, None)) for note in self.notes)

    def _named_by_pid(self) -> Iterator[CpuTask]:
        """Yield kdump's notes: the kernel's own copy of the notes tells the CPU, else the task that was on it."""
        arch, cpus = self.kernel.arch, {pid: cpu for cpu, pid in self._on_cpus() if pid}
        kept = [(cpu, note) for cpu, found in crash_notes(self.kernel) for note in arch.cpus.notes((found,))]
        for note in self.notes:
            same = [cpu for cpu, other in kept if (other.pr_pid, other.regs) == (note.pr_pid, note.regs)]
            yield CpuTask(note, same[0] if len(same) == 1 else cpus.get(note.pr_pid), note.pr_pid)

    def _on_cpus(self) -> Iterator[tuple[int, int]]:
        """Yield the CPU and the PID of each task that was on one."""
        for task in runqueue.running(self.kernel):
            try:
                cpu = task_cpu(task)
                if cpu is not None:
                    yield cpu, task_pid(task)
            except MemoryFault:
                continue

    def of(self, task: StructView, pgd: int | None, thread_base: int | None) -> CpuNote | None:
        """Return the note of the CPU that was running ``task``, or None if none was.

        Args:
            task: ``struct task_struct``.
            pgd: physical address of the task's top page table, for layouts that know no ``on_cpu``.
            thread_base: the task's thread pointer as saved when it last left a CPU, likewise.
        """
        on_cpu = task_on_cpu(task)
        if on_cpu is False:
            return None
        if not self.by_cpu:
            pid = task_pid(task)
            # All idle CPUs have PID 0, but such a task never gets here: it has no user memory.
            return next((note for note in self.notes if note.pr_pid == pid), None)
        cpu = task_cpu(task)
        if on_cpu and cpu is not None:
            note = self._note_of(cpu)
            return None if note is not None and note.user_mode and self._is_anothers(note, pgd) else note
        # Without on_cpu or cpu (VMCOREINFO's export lacks them), the registers of a CPU in user mode still show which
        # address space and which thread it was running.
        for note in self.notes:
            if not note.user_mode or thread_base is None or self._pointer(note) != thread_base:
                continue
            if (pgd is not None and self.kernel.arch.cpus.uses_pgd(note, pgd)) or self._ran(note) == task.address:
                return note
        return None

    def _pointer(self, note: CpuNote) -> int | None:
        return self.kernel.arch.registers.thread_pointer(note.regs)

    def _ran(self, note: CpuNote) -> int | None:
        """Return the address of the only task that a CPU in user mode can have been running, or None.

        That task is runnable, has the CPU's thread pointer, and has code at the CPU's program counter. Several tasks
        may match: a forked process has its parent's thread pointer. If programs can change the thread pointer without a
        system call, it proves nothing.
        """
        if not self.kernel.arch.registers.tp_register:
            return None
        if note.number not in self._found:
            pc, pointer = self.kernel.arch.cpus.assumed_user_pc(note), self._pointer(note)
            same = [task for task, own in self._runnable if own == pointer] if pointer is not None else []
            fits = [task for task in same if pc is None or _is_code(task, pc)]
            self._found[note.number] = fits[0].address if len(fits) == 1 else None
        return self._found[note.number]

    @cached_property
    def _runnable(self) -> tuple[tuple[StructView, int | None], ...]:
        """Each task with user memory that may have been on a CPU, and its thread pointer; empty if any is not known.

        A task that the lists have lost, or that cannot be read, may be the one on the CPU.
        """
        try:
            return tuple(
                (task, _saved(self.kernel, task)[1])
                for leader in for_each_process(self.kernel)
                for task in for_each_thread(leader)
                if not task_state(task) and task.pointer("mm")
            )
        except (CorruptStructure, MemoryFault):
            return ()

    def bases(self, note: CpuNote, task: StructView, saved: Mapping[str, int | None]) -> dict[str, int | None]:
        """Return the ``thread_bases`` registers of a task that was on a note's CPU; None for unknown ones.

        In context_switch(), two tasks are on a CPU, which has the registers of one. Until __switch_to() makes the next
        task current, the next task's saved registers are right; afterwards, those of the previous task are. If the CPU
        already uses the next task's stack but has not yet made it current, we cannot tell whose registers it has.

        Args:
            note: as ``of`` returned it.
            task: ``struct task_struct``.
            saved: of its ``thread_struct``.
        """
        live = self.kernel.arch.cpus.bases(note)
        cpu = task_cpu(task)
        try:
            if live and not note.user_mode and cpu is not None:
                current = runqueue.current(self.kernel, cpu)
                if current not in (None, task.address):
                    return dict(saved)
                following = None if current is None else runqueue.curr(self.kernel, cpu)
                if following not in (None, task.address) and not self._is_on_stack(note, task):
                    return {**saved, **_agreed(live, saved)}
        except MemoryFault:
            return {**saved, **_agreed(live, saved)}
        return {**saved, **live}

    def _is_on_stack(self, note: CpuNote, task: StructView) -> bool:
        """Tell whether a CPU is known to have had a task's kernel stack."""
        size = max(stack_sizes(self.kernel.layout, (THREAD_SIZE_MIN,)))
        return 0 <= note.regs.get(self.kernel.arch.cpus.sp, 0) - task.pointer("stack") < size

    def cpu_of(self, note: CpuNote, task: StructView) -> str:
        """Return "CPU 3" for messages, or "a CPU" if its number is not known.

        Args:
            note: as ``of`` returned it.
            task: ``struct task_struct`` that it was running.
        """
        cpu = task_cpu(task)
        if cpu is None and self.by_cpu:
            cpu = note.number
        return "a CPU" if cpu is None else f"CPU {cpu}"

    def lost(self, task: StructView, pgd: int | None, thread_base: int | None, siblings: ThreadPointers) -> str | None:
        """Return a sentence if a task for which ``of`` found no note may have been on a CPU in user mode, or None.

        If it was, the registers on its kernel stack are stale.

        Args:
            task: ``struct task_struct``.
            pgd: physical address of its top page table.
            thread_base: its thread pointer as saved when it last left a CPU.
            siblings: those of its thread group.
        """
        on_cpu, cpu = task_on_cpu(task), task_cpu(task)
        # A task sets itself TASK_RUNNING before it returns to user mode.
        if on_cpu is False or (on_cpu is None and task_state(task)):
            return None
        numbered = bool(self.notes) and self.by_cpu
        if on_cpu and not (numbered and cpu is None):
            where = "a CPU" if cpu is None else f"CPU {cpu}"
            lacks = "whose registers the dump does not have; those on its kernel stack are older"
            return f"it was running on {where}, {lacks}"
        if numbered:
            others = siblings.saved - {thread_base}
            suspect = next((note for note in self.notes if self._may_be_of(note, task, pgd, others)), None)
            if suspect is None:
                return None
            why: str | None = f"CPU {suspect.number} was in user mode, maybe with this thread"
        else:
            why = self._unknown_cpus
            if why is None:
                return None
        unknown = "which CPU it was on" if on_cpu else "whether it was on a CPU"
        return f"the layout does not tell {unknown}, and {why}; registers on its kernel stack may be older"

    @cached_property
    def _unknown_cpus(self) -> str | None:
        """Why a runnable task that no note names may have been on a CPU; None if all CPUs have notes."""
        if not self.notes:
            return "the dump has no CPU's registers"
        count = nr_cpus_seen(self.kernel)
        if count is not None and len(self.notes) >= count:
            return None
        all_cpus = "an unknown number" if count is None else count
        return f"the dump has registers of {counted(len(self.notes), 'CPU')}, of {all_cpus}"

    def _note_of(self, cpu: int) -> CpuNote | None:
        """Return the note of a CPU, if the architecture can find it."""
        return self.kernel.arch.cpu_numbers.note_of(cpu, self.notes, self.kernel)

    def _is_anothers(self, note: CpuNote, pgd: int | None) -> bool:
        """Tell whether a note says that its CPU used another page table than the one at physical ``pgd``."""
        return pgd is not None and self.kernel.arch.cpus.uses_pgd(note, pgd) is False

    def _may_be_of(self, note: CpuNote, task: StructView, pgd: int | None, others: Set[int | None]) -> bool:
        """Tell whether a CPU's note may belong to a task: it rules out neither the address space nor the thread."""
        arch = self.kernel.arch
        if not note.user_mode or self._is_anothers(note, pgd) or self._ran(note) not in (None, task.address):
            return False
        pc, pointer = arch.cpus.assumed_user_pc(note), arch.registers.thread_pointer(note.regs)
        if pc is not None and not _is_code(task, pc):
            return False
        return pointer is None or pointer not in others


class ThreadPointers:
    """The thread pointers that a group's threads had when they last left a CPU.

    Args:
        kernel: the dumped kernel.
        group: ``struct task_struct`` of each thread.
    """

    def __init__(self, kernel: Kernel, group: Sequence[StructView]) -> None:
        self._kernel, self._group = kernel, group

    @cached_property
    def saved(self) -> frozenset[int | None]:
        """The thread pointers of the threads that can be read."""
        found = set()
        for task in self._group:
            try:
                found.add(_saved(self._kernel, task)[1])
            except MemoryFault:
                continue
        return frozenset(found)


def _saved(kernel: Kernel, task: StructView) -> tuple[Mapping[str, int | None], int | None]:
    """Return the registers in a task's ``thread_struct``, and its thread pointer.

    If the thread pointer is a general register, it is on the kernel stack, and is right there even if the others are
    stale.

    Raises:
        MemoryFault: they cannot be read.
    """
    arch = kernel.arch
    saved = arch.registers.thread_bases(KernelAddr(task.address), kernel)
    pointer = arch.registers.thread_pointer({name: value for name, value in saved.items() if value is not None})
    # This is needed if the layout does not tell which task was on which CPU.
    if pointer is None and arch.registers.tp_register and (task_on_cpu(task) is None or task_cpu(task) is None):
        try:
            stack, _ = kernel_stack(task)
            found = arch.registers.user_regs(KernelAddr(task.address), stack, kernel)
        except (CorruptStructure, MemoryFault):
            return saved, None  # the caller that needs these registers reports it
        pointer = None if found is None else arch.registers.thread_pointer(found)
    return saved, pointer


def _agreed(live: Mapping[str, int], saved: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the CPU's registers that equal those in the task's ``thread_struct``; None for the others."""
    return {name: value if saved.get(name) == value else None for name, value in live.items()}


def thread_regs(
    kernel: Kernel, task: StructView, cpus: CpuNotes, pgd: int | None, siblings: ThreadPointers
) -> ThreadRegs | str:
    """Return the user registers of a thread, or a sentence that says why they are not known.

    Args:
        task: ``struct task_struct`` of a task with user memory.
        cpus: the dump's CPU notes.
        pgd: physical address of its top page table.
        siblings: of its thread group.
    """
    arch = kernel.arch
    try:
        saved, base = _saved(kernel, task)
    except MemoryFault as fault:
        return f"its task_struct cannot be read: {fault}"
    note = cpus.of(task, pgd, base)
    cpu = cpus.cpu_of(note, task) if note is not None else ""
    label = f"crash note of {cpu}"
    doubt = None
    if note is not None:
        saved = cpus.bases(note, task, saved)
        hidden = [name for name in arch.cpus.bases(note) if saved[name] is None]
        if hidden:
            doubt = f"{', '.join(hidden)} of thread {describe(task)} not known: {cpu} was switching from or to it"
    if note is not None and note.user_mode:
        pc = arch.cpus.assumed_user_pc(note)
        if pc is not None and not _is_code(task, pc):
            return f"{cpu}, which was running it, was at {pc:#x}: firmware, none of the process's code"
        regs, source = {**note.regs}, label
    else:
        lost = cpus.lost(task, pgd, base, siblings) if note is None else None
        if lost is not None:
            return lost
        try:
            stack, _ = kernel_stack(task)
        except CorruptStructure as error:
            return f"its kernel stack is not known: {error}"
        found = arch.registers.user_regs(KernelAddr(task.address), stack, kernel)
        if found is None:
            if task_flags(task) & PF_EXITING:
                return "it is exiting, and its user registers are gone"
            return f"no user registers are at the top of its kernel stack at {stack:#x}"
        regs, source = dict(found), KERNEL_STACK
        if note is not None:
            source += f", running in the kernel on {cpu}"
    regs |= {name: value for name, value in saved.items() if value is not None}
    unknown = tuple(name for name in arch.registers.names if name not in regs)
    known = {name: regs[name] for name in arch.registers.names if name in regs}
    return ThreadRegs(known, source, unknown, note, label, doubt)


def _is_code(task: StructView, address: int) -> bool:
    """Tell whether a task's user address is in an executable mapping."""
    owner = task.follow("mm", "mm_struct")
    try:
        vmas = mm.for_each_vma(owner) if owner is not None else ()
        return any(mm.vma_start(v) <= address < mm.vma_end(v) and v.ulong("vm_flags") & mm.VM_EXEC for v in vmas)
    except (CorruptStructure, MemoryFault):
        return False


def describe(task: StructView) -> str:
    """Return "PID (comm)" for messages."""
    return f"{task_pid(task)} ({task_comm(task).decode('utf-8', 'replace')})"


@dataclass(frozen=True, slots=True)
class ThreadRow:
    """One thread, with its user registers; if they are not known, ``registers`` is None and ``source`` says why."""

    tid: int
    comm: str
    state: str
    cpu: int | None
    source: str
    registers: dict[str, int] | None
    unknown: tuple[str, ...]


def thread_rows(answers: Iterable[tuple[StructView, ThreadRegs | str]]) -> Iterator[ThreadRow]:
    """Yield a row for each thread, as ``Processes.thread_registers`` yields them."""
    for task, answer in answers:
        regs = None if isinstance(answer, str) else dict(answer.regs)
        yield ThreadRow(
            tid=task_pid(task),
            comm=text(task_comm(task)),
            state=task_state_char(task),
            cpu=task_cpu(task),
            source=answer if isinstance(answer, str) else answer.source,
            registers=regs,
            unknown=() if isinstance(answer, str) else answer.unknown,
        )

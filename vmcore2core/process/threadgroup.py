"""The threads of a process, read together if there are many.

Most threads were off the CPU, and their structures are as they should be: numpy finds these, and reads their members in
columns. All others are left to ``threads.thread_regs``, ``Consistency.of_task`` and so on, one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.formats._cabi import NUMPY_ORDER
from vmcore2core.kernel.sched import PID_MAX_LIMIT
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.tasks import Tasks
from vmcore2core.process.kernelstack import kernel_stacks
from vmcore2core.process.model import RegSetData, ThreadSnapshot
from vmcore2core.process.regsets import SOURCE
from vmcore2core.process.status_fields import NANOSECONDS, PrStatus, prstatus
from vmcore2core.process.threads import KERNEL_STACK, ThreadRegs

MANY = 32
"""Fewest threads to read together: numpy takes as long for one as for some dozens."""
AT_ONCE = 512
"""Threads whose registers are read together: those of x86-64 with AVX-512 take 2 MiB."""


class _OffCpu(NamedTuple):
    """The general registers of threads that were off the CPU.

    Attributes:
        regs: uint64[n, len(Registers.names)].
        known: bool[n], the threads whose registers are known.
    """

    regs: U64Array
    known: NDArray[np.bool_]


class ThreadGroup:
    """The threads of a process.

    Args:
        kernel: the dumped kernel.
        views: ``struct task_struct`` of each.
    """

    def __init__(self, kernel: Kernel, views: Sequence[StructView]) -> None:
        self.kernel, self.views = kernel, views

    @cached_property
    def tasks(self) -> Tasks | None:
        """The threads' members in columns; None if the threads are few, or the machine's code cannot use columns."""
        is_worth_it = len(self.views) >= MANY and self.kernel.arch.many_threads is not None
        return Tasks(self.kernel, self.views) if is_worth_it else None

    @cached_property
    def _off_cpu(self) -> _OffCpu | None:
        tasks, many = self.tasks, self.kernel.arch.many_threads
        on_cpu = None if tasks is None else tasks.find_uint("on_cpu", 4)
        if tasks is None or many is None or on_cpu is None:
            return None
        stacks, certain = kernel_stacks(tasks)
        layout, read_parts = self.kernel.layout, self.kernel.memory.read_parts
        if not all(tasks.has(f"thread.{name}") for name in many.saved):
            return None
        columns = {name: tasks.column(f"thread.{name}", size) for name, size in many.saved.items()}
        saved = {name: raw for name, (raw, _) in columns.items()}
        regs, found = many.registers(saved, stacks, layout, read_parts)
        for there in (tasks.named, *(there for _, there in columns.values())):
            found &= there
        return _OffCpu(regs, tasks.whole & (on_cpu == 0) & certain & found)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which threads' registers ``answers`` has, bool[n]."""
        return np.zeros(len(self.views), np.bool_) if self._off_cpu is None else self._off_cpu.known

    def answers(self) -> list[ThreadRegs | None]:
        """Return the registers of each thread that was off the CPU; None for a thread that must be read by itself."""
        if self._off_cpu is None:
            return [None] * len(self.views)
        names = self.kernel.arch.registers.names
        return [
            ThreadRegs(dict(zip(names, regs, strict=True)), KERNEL_STACK, ()) if known else None
            for regs, known in zip(self._off_cpu.regs.tolist(), self._off_cpu.known.tolist(), strict=True)
        ]

    def snapshots(self, machine: CoreMachine, wanted: NDArray[np.bool_]) -> list[ThreadSnapshot | None]:
        """Return the threads that columns describe; None for a thread that must be captured by itself.

        Args:
            machine: of the process's core.
            wanted: bool[n]: intact threads with the same parent and ``signal_struct``.
        """
        found: list[ThreadSnapshot | None] = [None] * len(self.views)
        tasks, off_cpu, cores = self.tasks, self._off_cpu, self.kernel.arch.cores
        if tasks is None or off_cpu is None or machine.greg_names != self.kernel.arch.registers.names:
            return found
        rows = np.flatnonzero(wanted & off_cpu.known)
        alike = self._alike(rows)
        if alike is None:
            return found
        word = NUMPY_ORDER[cores.byte_order] + f"u{machine.greg_size or machine.elf_class // 8}"
        signals = [tasks.sigset(name) for name in ("pending.signal", "blocked")]
        times = [tasks.find_uint(name, NANOSECONDS) for name in ("utime", "stime")]
        made = map(
            _thread,
            tasks.uint("pid", size=4)[rows].tolist(),
            tasks.comms(rows),
            [gregs.tobytes() for gregs in off_cpu.regs[rows].astype(word)],
            self._notes(rows, machine),
            repeat(alike),
            *([None] * len(rows) if column is None else column[rows].tolist() for column in (*signals, *times)),
        )
        for row, thread in zip(rows.tolist(), made, strict=True):
            found[row] = thread
        return found

    def _notes(self, rows: NDArray[np.intp], machine: CoreMachine) -> Iterator[Sequence[Note] | None]:
        """Yield the notes of some threads besides NT_PRSTATUS; None for a thread that must be read by itself."""
        addresses = np.array([int(view.address) for view in self.views], np.uint64)[rows]
        many, read_parts = self.kernel.arch.many_threads, self.kernel.memory.read_parts
        for at in range(0, len(rows), AT_ONCE):
            some = addresses[at : at + AT_ONCE]
            notes = many and many.regsets(some, machine, self.kernel, read_parts)
            yield from notes or [None] * len(some)

    def _alike(self, rows: NDArray[np.intp]) -> PrStatus | None:
        """Return the contents of the first thread's NT_PRSTATUS; in the others', only signals and times differ."""
        try:
            return prstatus(self.views[rows[0]], self) if len(rows) else None
        except (MemoryFault, CorruptStructure):
            return None

    def time(self, name: str) -> int | None:
        """Return the sum of all threads' times in nanoseconds, or None if the layout does not know the member.

        Args:
            name: of the member of ``struct task_struct``.

        Raises:
            MemoryFault: one cannot be read.
        """
        if self.tasks is not None and self.tasks.whole.all():
            column = self.tasks.find_uint(name, NANOSECONDS)
            return None if column is None else sum(column.tolist())
        times = [view.find_uint(name, NANOSECONDS) for view in self.views]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None


def _thread(
    tid: int,
    comm: bytes,
    gregs: bytes,
    notes: Sequence[Note] | None,
    alike: PrStatus,
    sigpend: int | None,
    sighold: int | None,
    utime: int | None,
    stime: int | None,
) -> ThreadSnapshot | None:
    if notes is None or tid >= PID_MAX_LIMIT:
        return None
    own = PrStatus(**{**alike, "pr_sigpend": sigpend, "pr_sighold": sighold, "pr_utime": utime, "pr_stime": stime})
    regsets = tuple(RegSetData(note.name, note.n_type, note.desc, SOURCE) for note in notes)
    return ThreadSnapshot(tid=tid, comm=comm, gregs=gregs, gregs_source=KERNEL_STACK, regsets=regsets, **own)

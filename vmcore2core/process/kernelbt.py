"""Kernel stacks of threads, and the system calls that the threads are in, as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.kernel_stack import LIMIT, KernelFrame, KernelStackEnd, KernelUnwinder, ModuleText
from vmcore2core.arch.spec import CpuNote
from vmcore2core.errors import CorruptStructure, MemoryFault, TaskError, Vmcore2coreError
from vmcore2core.kernel import sched
from vmcore2core.kernel.kallsyms import KernelNames
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.syscall import NamedCall as NamedCall
from vmcore2core.kernel.syscall import SystemCalls
from vmcore2core.process.kernelstack import kernel_stack
from vmcore2core.process.threads import CpuNotes


@dataclass(frozen=True, slots=True)
class KernelFrameRow:
    """One line of the kernel's part of ``bt``; None means "not known".

    Attributes:
        number: from 0, innermost first.
        address: program counter.
        function: the function that contains it.
        offset: of the address from the function's start, in bytes.
        size: of the function.
        module: the function's module; None for the kernel itself.
        found_by: which method found the frame.
        width: hexadecimal digits of an address.
    """

    number: int
    address: int
    function: str | None
    offset: int | None
    size: int | None
    module: str | None
    found_by: str
    width: int

    def line(self) -> str:
        """Return the line as ``bt`` prints it, with the name as in the kernel's own messages."""
        name = "??" if self.function is None else f"{self.function}+{self.offset:#x}/{self.size:#x}"
        module = f" [{self.module}]" if self.module else ""
        return f"#{self.number:<3}{self.address:#0{self.width + 2}x} {name}{module} [{self.found_by}]"


@dataclass(frozen=True, slots=True)
class KernelStack:
    """The kernel's frames of a thread.

    Attributes:
        frames: innermost first; empty for a thread that was in user mode.
        complete: whether the last one is the outermost, or the thread has no kernel frames.
        end: why the frames end here.
    """

    frames: tuple[KernelFrameRow, ...]
    complete: bool
    end: str


class KernelStacks:
    """The kernel's stacks of a dump's threads.

    Args:
        kernel: the dumped kernel.
        cpus: the dump's CPU notes.
        needed: whether to raise an error if stacks cannot be unwound; otherwise each stack is empty and says why.

    Raises:
        TaskError: this machine's kernel stacks cannot be unwound: the method is not known.
        LayoutUnknown: likewise, for this kernel.
        MemoryFault, LayoutInvalid: the kernel's unwind information cannot be used.
    """

    def __init__(self, kernel: Kernel, cpus: CpuNotes, *, needed: bool = True) -> None:
        self._kernel, self._cpus = kernel, cpus
        self.names = KernelNames(kernel)
        self._calls = SystemCalls(kernel, self.names)
        self._unwinder: KernelUnwinder | None = None
        self._problem = ""
        try:
            self._unwinder = self._opened()
        except Vmcore2coreError as error:
            if needed:
                raise
            self._problem = str(error)

    def _opened(self) -> KernelUnwinder:
        kernel = self._kernel
        texts = [ModuleText(one.text, one.view.address) for one in self.names.modules]
        if kernel.arch.kernel_stacks is None:
            raise TaskError(0, f"how the kernel's own stacks of {kernel.arch.name} unwind is not known yet")
        return kernel.arch.kernel_stacks.unwinder(kernel, texts)

    def of(self, task: StructView, limit: int = LIMIT) -> KernelStack:
        """Return the kernel's frames of a thread.

        Args:
            task: ``struct task_struct``.
            limit: most frames.
        """
        if self._unwinder is None:
            return KernelStack((), complete=False, end=self._problem)
        try:
            first = self._first(task, self._unwinder)
            if isinstance(first, KernelStackEnd):
                return KernelStack((), first.complete, first.why)
            trace = self._unwinder.trace(first, limit)
        except Vmcore2coreError as error:
            return KernelStack((), complete=False, end=str(error))
        rows = tuple(self._row(number, frame) for number, frame in enumerate(trace.frames))
        return KernelStack(rows, trace.end.complete, trace.end.why)

    def with_call(
        self, task: StructView, registers: Mapping[str, int] | None, limit: int = LIMIT
    ) -> tuple[KernelStack, NamedCall | None]:
        """Return the kernel's frames of a thread, and the system call that it is in, or None if it is in none.

        Args:
            task: ``struct task_struct``.
            registers: its user registers, if they are known.
            limit: most frames.
        """
        stack = self.of(task, limit)
        in_kernel = bool(stack.frames) or (self._unwinder is None and not sched.task_on_cpu(task))
        return stack, self._call(task, registers) if in_kernel and registers is not None else None

    def _call(self, task: StructView, registers: Mapping[str, int]) -> NamedCall | None:
        kernel, address = self._kernel, KernelAddr(task.address)
        if kernel.arch.kernel_stacks is None:
            return None
        try:
            base, _ = kernel_stack(task)
            call = kernel.arch.kernel_stacks.system_call(registers, address, base, kernel)
        except (MemoryFault, CorruptStructure):
            return None
        return None if call is None else self._calls.named(call)

    def _first(self, task: StructView, unwinder: KernelUnwinder) -> KernelFrame | KernelStackEnd:
        if not sched.task_on_cpu(task):
            if not task.pointer("stack"):
                return KernelStackEnd(complete=True, why="it has exited, and its stack is gone")
            return unwinder.switched_out(KernelAddr(task.address))
        cpu = sched.task_cpu(task)
        idle = not sched.task_pid(task) and not self._cpus.by_cpu
        note = self._note_of_idle(cpu) if idle else self._cpus.of(task, None, None)
        if note is None:
            where = "a CPU" if cpu is None else f"CPU {cpu}"
            return KernelStackEnd(complete=False, why=f"it was running on {where}, whose registers the dump lacks")
        if note.user_mode and sched.is_kthread(task):
            pc = self._kernel.arch.cpus.assumed_user_pc(note)
            where = "" if pc is None else f" at {pc:#x}"
            return KernelStackEnd(complete=False, why=f"{self._cpus.cpu_of(note, task)} was{where} in firmware")
        if note.user_mode:
            return KernelStackEnd(complete=True, why=f"{self._cpus.cpu_of(note, task)} was in user mode")
        return unwinder.running(note)

    def _note_of_idle(self, cpu: int | None) -> CpuNote | None:
        """Return kdump's note of an idle CPU, found by the CPU's number, as all idle tasks have PID 0."""
        return next((one.note for one in self._cpus.running if cpu is not None and one.cpu == cpu), None)

    def _row(self, number: int, frame: KernelFrame) -> KernelFrameRow:
        try:
            symbol = self.names.of(frame.pc, frame.lookup_pc)
        except MemoryFault:
            symbol = None
        return KernelFrameRow(
            number=number,
            address=frame.pc,
            function=None if symbol is None else symbol.name,
            offset=None if symbol is None else symbol.offset,
            size=None if symbol is None else symbol.size,
            module=None if symbol is None else symbol.module,
            found_by=frame.found_by,
            width=2 * self._kernel.arch.pointer_size,
        )

"""The kernel's own stacks: code that the unwinders of all machines share.

References: arch/*/kernel/stacktrace.c, arch/x86/kernel/unwind_orc.c (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from vmcore2core.addresses import AddressRange, KernelAddr
from vmcore2core.arch.spec import CpuNote
from vmcore2core.errors import CorruptStructure, MemoryFault

LIMIT = 256


@dataclass(frozen=True, slots=True)
class KernelFrame:
    """One frame of the kernel.

    Attributes:
        pc: program counter: the next instruction to run when control returns to this frame.
        sp: stack pointer.
        found_by: how it was found.
        exact: whether ``pc`` was interrupted; otherwise it is a return address, which may belong to the next function.
    """

    pc: int
    sp: int
    found_by: str
    exact: bool

    @property
    def lookup_pc(self) -> int:
        """An address that is certainly within the function."""
        return self.pc if self.exact else self.pc - 1


class KernelStackEnd(NamedTuple):
    """Why there are no more frames; ``complete`` if the last one is the outermost."""

    complete: bool
    why: str


class KernelTrace(NamedTuple):
    """The kernel's frames of one task, innermost first, and why there are no more."""

    frames: tuple[KernelFrame, ...]
    end: KernelStackEnd


class ModuleText(NamedTuple):
    """The code of a loaded module, and its ``struct module``."""

    range: AddressRange
    module: KernelAddr


class KernelUnwinder(ABC):
    """Unwinds one machine's kernel stacks."""

    @abstractmethod
    def switched_out(self, task: KernelAddr) -> KernelFrame:
        """Return the frame in which a task left its CPU.

        Args:
            task: ``struct task_struct *``.

        Raises:
            MemoryFault: it cannot be read.
            LayoutUnknown: the layout does not tell where the kernel saved it.
        """

    @abstractmethod
    def running(self, note: CpuNote) -> KernelFrame:
        """Return the kernel frame that a CPU was executing."""

    @abstractmethod
    def caller(self, frame: KernelFrame) -> KernelFrame | KernelStackEnd:
        """Return the frame that called the given one, or that was interrupted by it.

        Args:
            frame: as one of these methods returned it.

        Raises:
            MemoryFault: it cannot be read.
            CorruptStructure: the unwind data for this frame is damaged.
        """

    def trace(self, first: KernelFrame, limit: int = LIMIT) -> KernelTrace:
        """Return a frame and all its callers.

        Args:
            first: the innermost.
            limit: largest number of frames.
        """
        frames, seen = [first], {(first.pc, first.sp)}
        while True:
            try:
                following = self.caller(frames[-1])
            except MemoryFault as fault:
                following = KernelStackEnd(complete=False, why=f"the stack cannot be read: {fault}")
            except CorruptStructure as error:
                following = KernelStackEnd(complete=False, why=str(error))
            if isinstance(following, KernelStackEnd):
                return KernelTrace(tuple(frames), following)
            if (following.pc, following.sp) in seen:
                why = f"the stack comes back to {following.sp:#x}"
                return KernelTrace(tuple(frames), KernelStackEnd(complete=False, why=why))
            if len(frames) >= limit:
                why = f"there are more than {limit} frames"
                return KernelTrace(tuple(frames), KernelStackEnd(complete=False, why=why))
            seen.add((following.pc, following.sp))
            frames.append(following)


class SystemCall(NamedTuple):
    """The system call that a thread is in.

    Attributes:
        number: in the machine's table of system calls.
        arguments: the six argument registers, in order.
        table: symbol of the table of functions.
        native: whether the number is from the native table, not from the compat one.
    """

    number: int
    arguments: tuple[int, ...]
    table: str = "sys_call_table"
    native: bool = True

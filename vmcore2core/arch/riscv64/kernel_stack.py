"""Kernel stacks of RISC-V, by frame pointers: the caller's s0 and the return address are just below the address in s0.

References: arch/riscv/kernel/stacktrace.c: walk_stackframe(); arch/riscv/kernel/entry.S: handle_exception (Linux 6.1 to
7.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import KernelStacks
from vmcore2core.arch.kernel_stack import KernelFrame, KernelStackEnd, KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.riscv64.registers import Riscv64Registers
from vmcore2core.arch.spec import CpuNote
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.interfaces import KernelView, Memory
from vmcore2core.overrides import override

STACKFRAME = 16
"""sizeof(struct stackframe)"""
FRAME_MAX = 1 << 16
OUTERMOST_MAX = 64
"""Bytes of the code in which a kernel thread begins."""
EXC_SYSCALL = 8
WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class PointerFrame(KernelFrame):
    """A frame.

    Attributes:
        fp: s0.
        ra: of an interrupted first frame: a function that calls no other has not saved it.
    """

    fp: int
    ra: int | None = None


class Riscv64Unwinder(KernelUnwinder):
    """Unwinds kernel stacks by frame pointers.

    Args:
        kernel: the dumped one.

    Raises:
        LayoutUnknown: the layout does not tell where a task left its CPU.
    """

    def __init__(self, kernel: KernelView) -> None:
        self._kernel, self._layout = kernel, kernel.layout
        self._thread = {
            name: kernel.layout.member("task_struct", f"thread.{name}").offset for name in ("ra", "sp", "s")
        }
        start = kernel.layout.find_symbol("handle_exception")
        end = kernel.layout.find_symbol("ret_from_exception_end") or kernel.layout.find_symbol("ret_from_fork") or start
        self._entry = range(start or 0, end or 0)
        starts = (kernel.layout.find_symbol(name) for name in ("ret_from_fork_kernel_asm", "ret_from_fork"))
        self._outermost = [range(start, start + OUTERMOST_MAX) for start in starts if start is not None]
        self._outermost.append(
            range(kernel.layout.find_symbol("_start") or 0, kernel.layout.find_symbol("_stext") or 0)
        )
        names = ("epc", "sp", "s0", "ra", "status")
        members = {name: kernel.layout.find_member("pt_regs", name) for name in names}
        self._regs = {name: member.offset for name, member in members.items() if member is not None}

    @override
    def switched_out(self, task: KernelAddr) -> PointerFrame:
        pc, sp, fp = (self._word(task + self._thread[name]) for name in ("ra", "sp", "s"))
        return PointerFrame(pc, sp, "switch frame", exact=False, fp=fp)

    @override
    def running(self, note: CpuNote) -> PointerFrame:
        regs = note.regs
        return PointerFrame(regs["pc"], regs["sp"], "crash note", exact=True, fp=regs["s0"], ra=regs["ra"])

    @override
    def caller(self, frame: KernelFrame) -> KernelFrame | KernelStackEnd:
        assert isinstance(frame, PointerFrame)  # noqa: S101 - of this class's own methods
        if frame.pc in self._entry and len(self._regs) == 5:
            return self._interrupted(frame.sp)
        fp = frame.fp
        if fp == 0 or any(frame.pc in one for one in self._outermost):
            return KernelStackEnd(complete=True, why="the end of the stack")
        if not self._is_above(fp, frame.sp):
            return KernelStackEnd(complete=False, why=f"the frame pointer of {frame.pc:#x} is {fp:#x}")
        following, pc = self._word(fp - STACKFRAME), self._word(fp - STACKFRAME + 8)
        if frame.ra is not None and self._is_above(pc, fp):
            # This function has saved only s0, in the place where others save ra.
            return PointerFrame(frame.ra, fp, "frame pointer", exact=False, fp=pc)
        if pc == 0:
            return KernelStackEnd(complete=True, why="the end of the stack")
        return PointerFrame(pc, fp, "frame pointer", exact=False, fp=following)

    def _interrupted(self, regs: int) -> KernelFrame | KernelStackEnd:
        """Return the frame that was interrupted, from the ``struct pt_regs`` of the entry code."""
        pc, sp, fp, ra, status = (self._word(regs + self._regs[name]) for name in ("epc", "sp", "s0", "ra", "status"))
        if not status & fmt.SR_SPP:
            return KernelStackEnd(complete=True, why="user mode")
        return PointerFrame(pc, sp, "exception frame", exact=True, fp=fp, ra=ra)

    @staticmethod
    def _is_above(fp: int, sp: int) -> bool:
        """Tell whether a frame pointer is on the same stack, further out: fp_is_valid()."""
        return fp % 8 == 0 and sp + STACKFRAME <= fp <= sp + FRAME_MAX

    def _word(self, address: int) -> int:
        return _at(self._kernel.memory, address)


def system_call(regs: Mapping[str, int], pt_regs: int, kernel: KernelView) -> SystemCall | None:
    """Return the system call that a thread is in; None if it is in none, or if that is not known.

    Args:
        regs: its user registers.
        pt_regs: address of its ``struct pt_regs``.
        kernel: the dumped one.

    Raises:
        MemoryFault: it cannot be read.
    """
    cause, first = (kernel.layout.find_member("pt_regs", name) for name in ("cause", "orig_a0"))
    if cause is None or first is None or _at(kernel.memory, pt_regs + cause.offset) != EXC_SYSCALL:
        return None
    arguments = (_at(kernel.memory, pt_regs + first.offset), *(regs[f"a{i}"] for i in range(1, 6)))
    return SystemCall(regs["a7"], arguments)


def _at(memory: Memory, address: int) -> int:
    return int.from_bytes(memory.read(address & WORD, 8), "little")


class Riscv64KernelStacks(KernelStacks):
    """Kernel stacks of RISC-V."""

    registers = Riscv64Registers()

    @override
    def unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return Riscv64Unwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        found = next(self.registers.saved_frames(stack, kernel), None)
        return None if found is None else system_call(found[1], found[0], kernel)

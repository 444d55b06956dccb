"""loongarch64's register notes besides NT_PRSTATUS: loongarch64_regsets in arch/loongarch/kernel/ptrace.c.

switch_to() saves the FPU of a task that owns it, so ``thread.fpu`` is current while the task is off the CPU.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vmcore2core.arch.regsets import RegisterSet, notes_of
from vmcore2core.arch.spec import keys_of
from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import elf_core
from vmcore2core.formats import loongarch64 as fmt

LAYOUT_KEYS = keys_of(
    {
        "task_struct": "thread.fpu thread.lbt thread.hbp_break thread.hbp_watch thread.reg03 thread_info flags",
        "thread_info": "flags",
        "cpuinfo_loongarch": "watch_ireg_count watch_dreg_count",
        "perf_event": "hw.info",
    },
    symbols="init_task _save_lsx _save_lasx _save_lbt hw_breakpoint_slots cpu_data",
)


class Thread(ThreadStruct):
    """The notes of one task that is off the CPU."""

    @cached_property
    def fpu(self) -> np.void | None:
        """``struct loongarch_fpu``; None if the layout does not tell where it is."""
        raw = self.raw("fpu", fmt.loongarch_fpu.itemsize)
        return None if raw is None else np.frombuffer(raw, fmt.loongarch_fpu)[0]

    def scalars(self) -> bytes | None:
        """Return NT_FPREGSET: fpr_get()."""
        fpu = self.fpu
        return None if fpu is None else fpu["fpr"][:, :8].tobytes() + fpu["fcc"].tobytes() + fpu["fcsr"].tobytes()

    def owns_fpu(self) -> bool | None:
        """Tell whether the task's floating-point registers are in its CPU; None if that is not known."""
        tif, fixade = self._thread_flags(self.task), self._fixade()
        return None if tif is None or fixade is None else bool(tif >> fmt.TIF_USEDFPU[fixade] & 1)

    def has_function(self, function: str) -> bool:
        """Tell whether the kernel has the option that this function is part of."""
        return self.layout.find_symbol(function) is not None

    def vectors(self, function: str, size: int) -> bytes | None:
        """Return NT_LOONGARCH_LSX or _LASX; parts of registers that the task has not used are all ones: simd_get()."""
        live = self._live() if self.has_function(function) else None
        if live is None or self.fpu is None:
            return None
        registers = np.full((fmt.NUM_FPU_REGS, size), 0xFF, np.uint8)
        used = min(live, size)
        registers[:, :used] = self.fpu["fpr"][:, :used]
        return registers.tobytes()

    def _live(self) -> int | None:
        """Return how many bytes of each register the task has used; None if that is not known."""
        flags = self.layout.find_member("task_struct", "flags")
        tif = self._thread_flags(self.task)
        fixade = self._fixade()
        if flags is None or tif is None or fixade is None:
            return None
        if not self.kernel.uint(self.task + flags.offset, 4) & fmt.PF_USED_MATH:
            return 0
        if not tif >> fixade + fmt.TIF_LSX_CTX_LIVE & 1:
            return 8
        return 32 if self.has_function("_save_lasx") and tif >> fixade + fmt.TIF_LASX_CTX_LIVE & 1 else 16

    def _fixade(self) -> int | None:
        """Return the number of TIF_FIXADE, from the flags of init_task, which the source sets."""
        init_task = self.layout.find_symbol("init_task")
        flags = None if init_task is None else self._thread_flags(init_task)
        if flags is None:
            return None
        found = [bit for bit in fmt.TIF_USEDFPU if flags >> bit & 1]
        return found[0] if len(found) == 1 else None

    def _thread_flags(self, task: int) -> int | None:
        """Return thread_info.flags; older kernels have the structure at the bottom of the stack."""
        flags = self.layout.find_member("thread_info", "flags")
        if flags is None:
            return None
        place, stack = (self.layout.find_member("task_struct", name) for name in ("thread_info", "stack"))
        if place is not None:
            address = task + place.offset
        elif stack is not None:
            address = self.kernel.uint(task + stack.offset, 8)
        else:
            return None
        return self.kernel.uint(address + flags.offset, 8)

    def lbt(self) -> bytes | None:
        """Return NT_LOONGARCH_LBT: lbt_get()."""
        raw = self.raw("lbt", fmt.loongarch_lbt.itemsize) if self.has_function("_save_lbt") else None
        return None if raw is None or self.fpu is None else raw[:36] + self.fpu["ftop"].tobytes()

    def breakpoints(self, member: str, count: str) -> bytes | None:
        """Return NT_LOONGARCH_HW_BREAK or _HW_WATCH: hw_break_get()."""
        slots = self.layout.find_member("task_struct", f"thread.{member}")
        cpu_data, counter = self.layout.find_symbol("cpu_data"), self.layout.find_member("cpuinfo_loongarch", count)
        if slots is None or not slots.size or cpu_data is None or counter is None:
            return None
        if not self.has_function("hw_breakpoint_slots"):
            return None
        if not 0 < slots.size <= 0x100:
            raise LayoutInvalid(f"thread_struct.{member} has {slots.size:#x} bytes, expected at most 32 pointers")
        number = self.kernel.memory.read(cpu_data + counter.offset, 1)
        pointers = np.frombuffer(self.kernel.memory.read(self.task + slots.offset, slots.size), "<u8").tolist()
        made = [self._breakpoint(pointer) for pointer in pointers]
        if None in made:
            return None
        body = b"".join(one for one in made if one is not None)
        return number.ljust(8, b"\0") + body

    def _breakpoint(self, event: int) -> bytes | None:
        """Return address, mask and control word of a ``struct perf_event *``; zeros of NULL."""
        if not event:
            return bytes(fmt.arch_hw_breakpoint.itemsize)
        info = self.layout.find_member("perf_event", "hw.info")
        if info is None:
            return None
        raw = self.kernel.memory.read(event + info.offset, fmt.arch_hw_breakpoint.itemsize)
        one = np.frombuffer(raw, fmt.arch_hw_breakpoint).copy()
        ctrl = int(one["ctrl"][0])
        one["ctrl"], one["pad"] = (ctrl >> 28 & 3) << 10 | (ctrl >> 30) << 8, 0
        return one.tobytes()


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, Thread.scalars, elf_core.NOTE_CORE),
    RegisterSet(fmt.NT_LOONGARCH_LSX, lambda thread: thread.vectors("_save_lsx", 16)),
    RegisterSet(fmt.NT_LOONGARCH_LASX, lambda thread: thread.vectors("_save_lasx", 32)),
    RegisterSet(fmt.NT_LOONGARCH_LBT, Thread.lbt),
    RegisterSet(fmt.NT_LOONGARCH_HW_BREAK, lambda thread: thread.breakpoints("hbp_break", "watch_ireg_count")),
    RegisterSet(fmt.NT_LOONGARCH_HW_WATCH, lambda thread: thread.breakpoints("hbp_watch", "watch_dreg_count")),
)
"""loongarch64_regsets[] without NT_LOONGARCH_CPUCFG, for which the kernel asks the processor."""


def regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return the notes of a thread that is off the CPU; None if the layout does not tell where the FPU's state is."""
    return None if thread.fpu is None else notes_of(REGSETS, thread)

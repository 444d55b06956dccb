"""loongarch64's register notes besides NT_PRSTATUS, as loongarch64_regsets in arch/loongarch/kernel/ptrace.c has them.

switch_to() saves the FPU of a task that owns it, so that ``thread.fpu`` is current while the task is off the CPU.
"""

from __future__ import annotations

import numpy as np

from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import elf_core
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.interfaces import KernelView

LAYOUT_KEYS = (
    "OFFSET(task_struct.thread.fpu)",
    "OFFSET(task_struct.thread.lbt)",
    "OFFSET(task_struct.thread.hbp_break)",
    "OFFSET(task_struct.thread.hbp_watch)",
    "OFFSET(task_struct.thread_info)",
    "OFFSET(task_struct.flags)",
    "OFFSET(thread_info.flags)",
    "SYMBOL(init_task)",
    "SYMBOL(_save_lsx)",
    "SYMBOL(_save_lasx)",
    "SYMBOL(_save_lbt)",
    "SYMBOL(hw_breakpoint_slots)",
    "SYMBOL(cpu_data)",
    "OFFSET(cpuinfo_loongarch.watch_ireg_count)",
    "OFFSET(cpuinfo_loongarch.watch_dreg_count)",
    "OFFSET(perf_event.hw.info)",
)


class Regsets:
    """The notes of one task that is off the CPU."""

    def __init__(self, task: int, kernel: KernelView) -> None:
        self.task, self.kernel, self.layout = task, kernel, kernel.layout
        self.thread = ThreadStruct(task, kernel)

    def notes(self) -> tuple[Note, ...] | None:
        """Return them in the kernel's order, None where the layout does not tell where the FPU's registers are.

        NT_LOONGARCH_CPUCFG is not made: the kernel asks the processor.

        Raises:
            MemoryFault, LayoutInvalid: as ``Cores.regsets``.
        """
        raw = self.thread.raw("fpu", fmt.loongarch_fpu.itemsize)
        if raw is None:
            return None
        fpu = np.frombuffer(raw, fmt.loongarch_fpu)[0]
        scalars = fpu["fpr"][:, :8].tobytes() + fpu["fcc"].tobytes() + fpu["fcsr"].tobytes()
        return (
            Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, scalars),
            *self._vectors(fpu["fpr"]),
            *self._lbt(fpu["ftop"].tobytes()),
            *self._breakpoints(fmt.NT_LOONGARCH_HW_BREAK, "hbp_break", "watch_ireg_count"),
            *self._breakpoints(fmt.NT_LOONGARCH_HW_WATCH, "hbp_watch", "watch_dreg_count"),
        )

    def owns_fpu(self) -> bool | None:
        """Tell whether the task's floating-point registers are in the CPU that it is on; None where nothing tells."""
        tif, fixade = self._thread_flags(self.task), self._fixade()
        return None if tif is None or fixade is None else bool(tif >> fmt.TIF_USEDFPU[fixade] & 1)

    def _has(self, function: str) -> bool:
        """Tell whether the kernel was configured with what has this function."""
        return self.layout.find_symbol(function) is not None

    def _vectors(self, fpr: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[Note]:
        """Return NT_LOONGARCH_LSX and _LASX; what a task has not used of its registers is all ones: simd_get()."""
        live = self._live()
        if live is None:
            return []
        result = []
        for function, n_type, size in (
            ("_save_lsx", fmt.NT_LOONGARCH_LSX, 16),
            ("_save_lasx", fmt.NT_LOONGARCH_LASX, 32),
        ):
            if self._has(function):
                registers = np.full((fmt.NUM_FPU_REGS, size), 0xFF, np.uint8)
                used = min(live, size)
                registers[:, :used] = fpr[:, :used]
                result.append(Note(elf_core.NOTE_LINUX, n_type, registers.tobytes()))
        return result

    def _live(self) -> int | None:
        """Return how many bytes of each register the task has used, None where that is not known."""
        flags = self.layout.find_member("task_struct", "flags")
        tif = self._thread_flags(self.task)
        fixade = self._fixade()
        if flags is None or tif is None or fixade is None:
            return None
        if not self.kernel.uint(self.task + flags.offset, 4) & fmt.PF_USED_MATH:
            return 0
        if not tif >> fixade + fmt.TIF_LSX_CTX_LIVE & 1:
            return 8
        return 32 if self._has("_save_lasx") and tif >> fixade + fmt.TIF_LASX_CTX_LIVE & 1 else 16

    def _fixade(self) -> int | None:
        """Return the number of TIF_FIXADE, by the one task whose flags the source has: init_task."""
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

    def _lbt(self, ftop: bytes) -> list[Note]:
        """Return NT_LOONGARCH_LBT: lbt_get()."""
        raw = self.thread.raw("lbt", fmt.loongarch_lbt.itemsize) if self._has("_save_lbt") else None
        if raw is None:
            return []
        return [Note(elf_core.NOTE_LINUX, fmt.NT_LOONGARCH_LBT, raw[:36] + ftop)]

    def _breakpoints(self, n_type: int, member: str, count: str) -> list[Note]:
        """Return NT_LOONGARCH_HW_BREAK or _HW_WATCH: hw_break_get()."""
        slots = self.layout.find_member("task_struct", f"thread.{member}")
        cpu_data, counter = self.layout.find_symbol("cpu_data"), self.layout.find_member("cpuinfo_loongarch", count)
        if slots is None or not slots.size or cpu_data is None or counter is None:
            return []
        if not self._has("hw_breakpoint_slots"):
            return []
        if not 0 < slots.size <= 0x100:
            raise LayoutInvalid(f"thread_struct.{member} has {slots.size:#x} bytes, expected at most 32 pointers")
        number = self.kernel.memory.read(cpu_data + counter.offset, 1)
        pointers = np.frombuffer(self.kernel.memory.read(self.task + slots.offset, slots.size), "<u8").tolist()
        made = [self._breakpoint(pointer) for pointer in pointers]
        if None in made:
            return []
        body = b"".join(one for one in made if one is not None)
        return [Note(elf_core.NOTE_LINUX, n_type, number.ljust(8, b"\0") + body)]

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

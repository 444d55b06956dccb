"""RISC-V: the register notes other than NT_PRSTATUS.

References: arch/riscv/kernel/ptrace.c: riscv_user_regset[] (Linux 7.2).
"""

from __future__ import annotations

import numpy as np

from vmcore2core.arch.regsets import RegisterSet, notes_of
from vmcore2core.arch.riscv64.registers import Riscv64Registers
from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import elf_core
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.interfaces import KernelView


class Thread(ThreadStruct):
    """``struct thread_struct`` of a task, and related structures."""

    def __init__(self, task: int, kernel: KernelView, registers: Riscv64Registers) -> None:
        super().__init__(task, kernel)
        self.registers = registers

    def floats(self) -> bytes | None:
        """Return NT_FPREGSET: riscv_fpr_get()."""
        raw = self.raw("fstate", fmt.d_ext_state.itemsize)
        return None if raw is None else raw.ljust(fmt.FPREGSET_SIZE, b"\0")

    def vector(self) -> bytes | None:
        """Return NT_RISCV_VECTOR; None for a thread that has not used vector registers; riscv_vr_get().

        Raises:
            LayoutInvalid: no kernel can have this state.
        """
        task, kernel, layout = self.task, self.kernel, self.layout
        stack, vstate = layout.find_member("task_struct", "stack"), layout.find_member("task_struct", "thread.vstate")
        variable = layout.find_symbol("riscv_v_vsize")
        if stack is None or vstate is None or variable is None:
            return None
        if layout.find_member("__riscv_v_ext_state", "vlenb") is None:  # the note's form in the first kernels
            return None
        frame = self.registers.saved_frame(kernel.uint(task + stack.offset, 8), kernel)
        if frame is None or not frame["status"] & fmt.SR_VS:
            return None
        size = kernel.uint(variable, 8)
        raw = kernel.memory.read(task + vstate.offset, fmt.v_ext_state.itemsize)
        state = np.frombuffer(raw, fmt.v_ext_state)[0]
        if not 0 < size <= fmt.NR_VECTOR_REGS * fmt.VLENB_MAX or size % fmt.NR_VECTOR_REGS:
            raise LayoutInvalid(f"riscv_v_vsize at {variable:#x} is {size:#x}, expected 32 registers of at most 8 KiB")
        data = kernel.memory.read(int(state["datap"]), size)
        return raw[: fmt.V_REGSET_HEADER] + data

    def tagged_addr_ctrl(self) -> bytes | None:
        """Return NT_RISCV_TAGGED_ADDR_CTRL: get_tagged_addr_ctrl(); None if the processor has no tagged addresses."""
        task, kernel, layout = self.task, self.kernel, self.layout
        envcfg, mm = layout.find_member("task_struct", "thread.envcfg"), layout.find_member("task_struct", "mm")
        pmlen = layout.find_member("mm_struct", "context.pmlen")
        able = [layout.find_symbol(name) for name in ("have_user_pmlen_7", "have_user_pmlen_16")]
        if envcfg is None or mm is None or pmlen is None or None in able:
            return None
        if not any(kernel.memory.read(symbol, 1)[0] for symbol in able if symbol is not None):
            return None
        mode = kernel.uint(task + envcfg.offset, 8) & fmt.ENVCFG_PMM
        owner = kernel.uint(task + mm.offset, 8)
        enabled = kernel.memory.read(owner + pmlen.offset, 1)[0] != 0
        value = fmt.ENVCFG_PMLEN.get(mode, 0) << fmt.PR_PMLEN_SHIFT | (fmt.PR_TAGGED_ADDR_ENABLE if enabled else 0)
        return value.to_bytes(8, "little")


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, Thread.floats, elf_core.NOTE_CORE),
    RegisterSet(fmt.NT_RISCV_VECTOR, Thread.vector),
    RegisterSet(fmt.NT_RISCV_TAGGED_ADDR_CTRL, Thread.tagged_addr_ctrl),
)
"""riscv_user_regset[] without NT_RISCV_USER_CFI."""


def regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return the notes of a thread that is off the CPU; None if the layout does not tell where they are."""
    return notes_of(REGSETS, thread) if thread.has("fstate") else None

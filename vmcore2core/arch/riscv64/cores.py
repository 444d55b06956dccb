"""RISC-V: what a process's core is, and which notes it has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.riscv64.registers import Riscv64Registers
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import elf_core
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.formats.elf import EM_RISCV
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Riscv64Cores(Cores):
    """What a core of RISC-V has."""

    def __init__(self, registers: Riscv64Registers) -> None:
        self.registers = registers

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A compat process has TASK_SIZE_32."""
        if task_size is not None and task_size <= fmt.TASK_SIZE_32_MAX:
            return CoreMachine(EM_RISCV, 32, self.registers.names, "a 32-bit (rv32) process, which is not supported")
        return CoreMachine(EM_RISCV, 64, self.registers.names)

    @override
    def flags(self, mm: KernelAddr, kernel: KernelView) -> int:
        """Those of the executable, as the kernel keeps them for its own cores.

        Since Linux kernel commit 8c94db0ae97c ("binfmt_elf: preserve original ELF e_flags for core dumps") (in v6.18);
        cores of kernels before have 0.
        """
        found = kernel.layout.find_member("mm_struct", "saved_e_flags")
        return 0 if found is None else kernel.uint(mm + found.offset, 8) & 0xFFFF_FFFF

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        """Follows riscv_user_regset in arch/riscv/kernel/ptrace.c.

        Not made: NT_RISCV_USER_CFI.
        """
        fstate = kernel.layout.find_member("task_struct", "thread.fstate")
        if fstate is None:
            return None
        raw = kernel.memory.read(task + fstate.offset, fmt.d_ext_state.itemsize)
        notes = [Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, raw.ljust(fmt.FPREGSET_SIZE, b"\0"))]
        for made in (self._vector(task, kernel), self._tagged_addr_ctrl(task, kernel)):
            notes += [] if made is None else [made]
        return tuple(notes)

    def _vector(self, task: int, kernel: KernelView) -> Note | None:
        """Return NT_RISCV_VECTOR; None for a thread that has not used vector registers; riscv_vr_get().

        Raises:
            LayoutInvalid: the state is not one that the kernel can have.
        """
        layout = kernel.layout
        stack, vstate = layout.find_member("task_struct", "stack"), layout.find_member("task_struct", "thread.vstate")
        variable = layout.find_symbol("riscv_v_vsize")
        if stack is None or vstate is None or variable is None:
            return None
        if layout.find_member("__riscv_v_ext_state", "vlenb") is None:  # the form of the note in its first kernels
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
        return Note(elf_core.NOTE_LINUX, fmt.NT_RISCV_VECTOR, raw[: fmt.V_REGSET_HEADER] + data)

    def _tagged_addr_ctrl(self, task: int, kernel: KernelView) -> Note | None:
        """Return NT_RISCV_TAGGED_ADDR_CTRL; None where the processor cannot do it; get_tagged_addr_ctrl()."""
        layout = kernel.layout
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
        return Note(elf_core.NOTE_LINUX, fmt.NT_RISCV_TAGGED_ADDR_CTRL, value.to_bytes(8, "little"))

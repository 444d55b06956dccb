"""LoongArch: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import CpuNumbers
from vmcore2core.arch.loongarch64 import regsets
from vmcore2core.arch.loongarch64.registers import Loongarch64Registers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Loongarch64Cpus(Cpus):
    """LoongArch's CPU notes in a dump."""

    def __init__(self, registers: Loongarch64Registers) -> None:
        self.registers = registers

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """Only kdump's notes have the program counter, not QEMU's.

        The kernel's crash_save_cpu() also writes the CSRs, and its era is the program counter. QEMU's
        loongarch_cpu_write_elf64_note() leaves the CSRs zero and writes the CSR itself into era: the place of the last
        exception, not of the CPU. The stack pointer tells the mode.
        """
        result: list[CpuNote] = []
        for name, n_type, desc in notes:
            if name not in ("CORE", ""):
                continue
            if n_type == elf_core.NT_PRSTATUS and len(desc) >= fmt.PRSTATUS_SIZE:
                result.append(self._cpu_note(len(result), desc))
            elif n_type == elf_core.NT_FPREGSET and len(desc) == fmt.FPREGSET_SIZE and result:
                last = result[-1]
                note = Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, desc)
                result[-1] = CpuNote(last.number, last.pr_pid, last.regs, last.user_mode, (note,))
        return tuple(result)

    def _cpu_note(self, number: int, desc: bytes) -> CpuNote:
        record = np.frombuffer(desc, fmt.user_pt_regs, 1, fmt.PRSTATUS_REGS)[0]
        pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
        csrs = [int(record[name]) for name in fmt.RESERVED]
        regs = {name: int(record[name]) for name in self.registers.names} | dict.fromkeys(fmt.RESERVED, 0)
        if csrs[fmt.CRMD_REGS]:
            user_mode = csrs[fmt.PRMD_REGS] & fmt.PRMD_PPLV == fmt.PRMD_PPLV
        else:
            user_mode = regs["sp"] < fmt.TASK_SIZE_MAX
            for name in ("csr_era", "orig_a0", "zero"):
                del regs[name]
        return CpuNote(number, pid, regs, user_mode)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[Note, ...], str | None]:
        """After it comes to a CPU, a thread gets the FPU at its first use.

        Until then its registers are in memory, and QEMU's NT_FPREGSET has another thread's.
        """
        thread = regsets.Thread(task, kernel)
        owner = thread.owns_fpu()
        if owner is False:
            return regsets.regsets(thread) or (), None
        if owner and note.user_mode and note.regsets:
            return note.regsets, "its vector registers were in the processor: the dump has their lowest 64 bits"
        return (), None


class Loongarch64CpuNumbers(CpuNumbers):
    """How the CPUs of LoongArch are numbered in notes."""

    @override
    def number(self, cpu: int, kernel: KernelView) -> int:
        """``__cpu_logical_map`` has the hardware's numbers (int)."""
        table = kernel.layout.find_symbol("__cpu_logical_map")
        return cpu if table is None else kernel.uint(table + 4 * cpu, 4)

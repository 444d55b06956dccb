"""RISC-V: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

import numpy as np

from vmcore2core.arch.capabilities import CpuNumbers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.riscv64.registers import Riscv64Registers
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Riscv64Cpus(Cpus):
    """RISC-V's CPU notes in a dump."""

    def __init__(self, registers: Riscv64Registers) -> None:
        self.registers = registers

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """QEMU's riscv_cpu_write_elf64_note() and the kernel's crash_save_cpu() write the same.

        Neither has the privilege mode; the kernel's addresses are in the upper half.
        """
        result: list[CpuNote] = []
        for name, n_type, desc in notes:
            if name not in ("CORE", "") or n_type != elf_core.NT_PRSTATUS or len(desc) < fmt.PRSTATUS_SIZE:
                continue
            record = np.frombuffer(desc, fmt.user_regs_struct, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) for name in self.registers.names}
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            result.append(CpuNote(len(result), pid, regs, user_mode=regs["pc"] < fmt.TASK_SIZE_MAX))
        return tuple(result)

    @override
    def assumed_user_pc(self, note: CpuNote) -> int | None:
        """Machine mode runs at low addresses, too."""
        return note.regs["pc"] if note.user_mode else None


class Riscv64CpuNumbers(CpuNumbers):
    """How the CPUs of RISC-V are numbered in notes."""

    @override
    def number(self, cpu: int, kernel: KernelView) -> int:
        """CPU 0 is the hart that booted first: setup_smp() in arch/riscv/kernel/smp.c."""
        table = kernel.layout.find_symbol("__cpuid_to_hartid_map")
        return cpu if table is None else kernel.uint(table + 8 * cpu, 8)

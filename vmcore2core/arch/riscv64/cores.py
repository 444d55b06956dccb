"""RISC-V: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.riscv64 import regsets
from vmcore2core.arch.riscv64.registers import Riscv64Registers
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.formats.elf import EM_RISCV
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Riscv64Cores(Cores):
    """The kind and the notes of RISC-V cores."""

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
        """Returns the executable's e_flags, which the kernel keeps for its own cores.

        It does so since Linux kernel commit 8c94db0ae97c ("binfmt_elf: preserve original ELF e_flags for core dumps")
        (in v6.18); cores of older kernels have 0.
        """
        found = kernel.layout.find_member("mm_struct", "saved_e_flags")
        return 0 if found is None else kernel.uint(mm + found.offset, 8) & 0xFFFF_FFFF

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        return regsets.regsets(regsets.Thread(task, kernel, self.registers))

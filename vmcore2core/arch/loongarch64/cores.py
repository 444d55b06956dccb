"""LoongArch: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.loongarch64 import regsets
from vmcore2core.arch.loongarch64.registers import Loongarch64Registers
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.formats.elf import EM_LOONGARCH
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Loongarch64Cores(Cores):
    """The kind and the notes of LoongArch cores."""

    def __init__(self, registers: Loongarch64Registers) -> None:
        self.registers = registers

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """These kernels run no 32-bit processes."""
        return CoreMachine(EM_LOONGARCH, 64, self.registers.names)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        return regsets.regsets(regsets.Thread(task, kernel))

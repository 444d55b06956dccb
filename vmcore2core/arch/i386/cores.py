"""i386: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.i386.registers import I386Registers
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.arch.x86 import regsets as x86_regsets
from vmcore2core.elf.notes import Note
from vmcore2core.formats.elf import EM_386
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class I386Cores(Cores):
    """The kind and the notes of i386 cores."""

    def __init__(self, registers: I386Registers) -> None:
        self.registers = registers

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        return x86_regsets.regsets(x86_regsets.Thread32(task, kernel))

    @override
    def process_notes(self, kernel: KernelView) -> tuple[Note, ...]:
        return x86_regsets.process_notes(kernel)

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """These kernels run one kind of process."""
        return CoreMachine(EM_386, 32, self.registers.names)

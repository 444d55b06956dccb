"""x86-64: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.arch.x86 import regsets
from vmcore2core.arch.x86_64.registers import X86_64Registers
from vmcore2core.elf.notes import Note
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.formats.elf import EM_386, EM_X86_64
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class X86_64Cores(Cores):
    """The kind and the notes of x86-64 cores."""

    def __init__(self, registers: X86_64Registers) -> None:
        self.registers = registers

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        return regsets.regsets(regsets.Thread(task, regs, kernel, is_64=machine.e_machine == EM_X86_64))

    @override
    def process_notes(self, kernel: KernelView) -> tuple[Note, ...]:
        return regsets.process_notes(kernel)

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A process's kind does not change while it runs code of the other kind (wine does).

        An x32 process has 64-bit registers in an address space that ends at 4 GiB.
        """
        small = task_size <= 1 << 32 if task_size is not None else regs.get("cs") == fmt.USER32_CS
        if not small:
            return CoreMachine(EM_X86_64, 64, self.registers.names)
        if regs.get("cs") == fmt.USER_CS:
            return CoreMachine(EM_X86_64, 32, self.registers.names, greg_size=8)
        return CoreMachine(EM_386, 32, fmt.user_regs_struct32.names or ())

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Follows genregs32_get() in arch/x86/kernel/ptrace.c for 32-bit processes other than x32."""
        if machine.e_machine == EM_386:
            regs = {name: regs.get(fmt.REG32.get(name, name), 0) for name in machine.greg_names}
        return super().gregs(regs, machine)

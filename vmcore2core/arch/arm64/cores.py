"""arm64: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.arm64 import compat, regsets
from vmcore2core.arch.arm64.registers import Arm64Registers
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats.elf import EM_AARCH64, EM_ARM
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Arm64Cores(Cores):
    """The kind and the notes of arm64 cores."""

    def __init__(self, registers: Arm64Registers) -> None:
        self.registers = registers

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A 32-bit process has TASK_SIZE_32, and PSTATE.M[4] set."""
        small = task_size <= fmt.TASK_SIZE_32_MAX if task_size is not None else None
        if small if small is not None else regs.get("pstate", 0) & fmt.PSR_MODE32_BIT:
            return CoreMachine(EM_ARM, 32, fmt.COMPAT_REGS)
        return CoreMachine(EM_AARCH64, 64, fmt.user_pt_regs.names or ())

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Follows compat_get_user_reg() in arch/arm64/kernel/ptrace.c for 32-bit processes."""
        if machine.elf_class == 32 and regs.get("pstate", 0) & fmt.PSR_AA32_DIT_BIT:
            regs = {**regs, "pstate": regs["pstate"] & ~fmt.PSR_AA32_DIT_BIT | fmt.COMPAT_PSR_DIT_BIT}
        return super().gregs(regs, machine)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        thread = self.registers.thread(task, regs, kernel)
        return compat.regsets(thread) if machine.elf_class == 32 else regsets.regsets(thread)

"""POWER: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.ppc64le.registers import Ppc64leRegisters
from vmcore2core.arch.ppc64le.regsets import Thread, saved_regsets
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.formats.elf import EM_PPC, EM_PPC64
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Ppc64leCores(Cores):
    """The kind and the notes of POWER cores."""

    def __init__(self, registers: Ppc64leRegisters) -> None:
        self.registers = registers

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A compat process runs with SF clear in MSR, and has TASK_SIZE_USER32."""
        small = task_size <= fmt.TASK_SIZE_32_MAX if task_size is not None else not regs.get("msr", fmt.MSR_SF) >> 63
        if small:
            return CoreMachine(EM_PPC, 32, self.registers.names, "a 32-bit (ppc) process, which is not supported")
        return CoreMachine(EM_PPC64, 64, self.registers.names)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        """Follows native_regsets in arch/powerpc/kernel/ptrace/ptrace-view.c.

        Left out: NT_PPC_TM_* (threads in a transaction), NT_PPC_PKEY (hash MMU), NT_PPC_DEXCR and NT_PPC_HASHKEYR
        (Power10; only the processor has one half of the former).
        """
        return saved_regsets(Thread(task, kernel))

"""32-bit ARM: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.arm import regsets
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.formats import arm as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class ArmCores(Cores):
    """The kind and the notes of 32-bit ARM cores."""

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        return regsets.Thread(task, kernel).notes()

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """These kernels run one kind of process."""
        return CoreMachine(fmt.EM_ARM, 32, fmt.REGS)

"""MIPS64: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.mips64 import regsets
from vmcore2core.arch.mips64.registers import Mips64Registers
from vmcore2core.arch.mips64.unwind import Abi, abi_of
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

_MACHINES: Mapping[Abi, CoreMachine] = MappingProxyType(
    {
        "n64": CoreMachine(fmt.EM_MIPS, 64, fmt.ELF_GREGS_64),
        "n32": CoreMachine(fmt.EM_MIPS, 32, fmt.ELF_GREGS_64, e_flags=fmt.EF_MIPS_ABI2, greg_size=8, uid_size=4),
        "o32": CoreMachine(fmt.EM_MIPS, 32, fmt.ELF_GREGS_32, uid_size=4),
    }
)


class Mips64Cores(Cores):
    """The kind and the notes of MIPS64 cores."""

    def __init__(self, registers: Mips64Registers) -> None:
        self.registers, self.byte_order = registers, registers.byte_order

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """``process_machine`` tells the ABI of a 32-bit process."""
        if task_size is None or task_size > fmt.TASK_SIZE32:
            return _MACHINES["n64"]
        return CoreMachine(fmt.EM_MIPS, 32, fmt.ELF_GREGS_64, "a 32-bit process (n32 or o32: nothing tells which)")

    @override
    def process_machine(
        self, task: KernelAddr, regs: Mapping[str, int], task_size: int | None, kernel: KernelView
    ) -> CoreMachine:
        """thread_info's flags tell (SET_PERSONALITY2())."""
        flags = self._thread_flags(task, kernel)
        if flags is None:
            return self.machine(regs, task_size)
        if flags >> fmt.TIF_32BIT_REGS & 1:
            return _MACHINES["o32"]
        return _MACHINES["n32" if flags >> fmt.TIF_32BIT_ADDR & 1 else "n64"]

    def _thread_flags(self, task: int, kernel: KernelView) -> int | None:
        """Return ``thread_info.flags``; the structure is at the bottom of the stack and begins with its task."""
        member = kernel.layout.find_member("task_struct", "stack")
        if member is None:
            return None
        stack = kernel.uint(task + member.offset, 8)
        declared = fmt.thread_info(self.registers.order)
        record = np.frombuffer(kernel.memory.read(stack, declared.itemsize), declared)[0]
        return int(record["flags"]) if int(record["task"]) == task else None

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Follows mips_dump_regs64(), mips_dump_regs32()."""
        return super().gregs({**regs, "zero": 0, "k0": 0, "k1": 0}, machine)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        flags = self._thread_flags(task, kernel)
        if flags is None:
            return None
        narrow = abi_of(machine) == "o32"
        return regsets.regsets(regsets.Thread(task, flags, kernel, self.byte_order, narrow=narrow))

"""MIPS64: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

import numpy as np

from vmcore2core.arch.mips64.registers import Mips64Registers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import mips64 as fmt
from vmcore2core.overrides import override


class Mips64Cpus(Cpus):
    """MIPS64's CPU notes in a dump."""

    def __init__(self, registers: Mips64Registers) -> None:
        self.registers, self.byte_order = registers, registers.byte_order

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """crash_save_cpu() writes them; QEMU cannot dump a MIPS machine."""
        result: list[CpuNote] = []
        declared = fmt.elf_gregset(self.registers.order)
        for name, n_type, desc in notes:
            if name in ("CORE", "") and n_type == elf_core.NT_PRSTATUS and len(desc) >= fmt.PRSTATUS_SIZE:
                record = np.frombuffer(desc, declared, 1, fmt.PRSTATUS_REGS)[0]
                regs = {name: int(record[name]) for name in fmt.GREGS}
                pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], self.byte_order)
                user_mode = regs["status"] & fmt.STATUS_KSU == fmt.STATUS_USER
                result.append(CpuNote(len(result), pid, regs, user_mode))
        return tuple(result)

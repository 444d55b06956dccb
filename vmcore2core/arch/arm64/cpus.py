"""arm64: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.arm64 import compat, regsets
from vmcore2core.arch.arm64.registers import Arm64Registers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats import elf_core
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Arm64Cpus(Cpus):
    """arm64's CPU notes in a dump."""

    def __init__(self, registers: Arm64Registers) -> None:
        self.registers = registers

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """QEMU's arm_cpu_write_elf64_note() and the kernel's crash_save_cpu() write the same.

        QEMU writes the CPU's NT_FPREGSET and NT_ARM_SVE behind each NT_PRSTATUS.
        """
        result: list[CpuNote] = []
        for at, (name, n_type, desc) in enumerate(notes):
            if name not in ("CORE", "") or n_type != elf_core.NT_PRSTATUS or len(desc) < fmt.PRSTATUS_SIZE:
                continue
            record = np.frombuffer(desc, fmt.user_pt_regs, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) for name in fmt.user_pt_regs.names or ()}
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            user = regs["pstate"] & fmt.PSR_MODE_MASK == 0
            further = []
            for other_name, other_type, other in notes[at + 1 : at + 3]:
                if (other_name, other_type) not in fmt.CPU_REGSETS:
                    break
                further.append(Note(other_name, other_type, other))
            result.append(CpuNote(len(result), pid, regs, user_mode=user, regsets=tuple(further)))
        return tuple(result)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[Note, ...], str | None]:
        if not note.user_mode or not note.regsets:
            return (), None
        if regs.get("pstate", 0) & fmt.PSR_MODE32_BIT:
            return compat.live_regsets(note.regsets), None
        thread = self.registers.thread(task, regs, kernel)
        return regsets.live_regsets(thread, note.regsets), regsets.LOST

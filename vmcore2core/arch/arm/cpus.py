"""32-bit ARM: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.arm import regsets
from vmcore2core.arch.arm.registers import ArmRegisters
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.formats import arm as fmt
from vmcore2core.formats import elf_core
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class ArmCpus(Cpus):
    """32-bit ARM's CPU notes in a dump."""

    def __init__(self, registers: ArmRegisters) -> None:
        self.registers = registers

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """QEMU's arm_cpu_write_elf32_note() writes the CPU's NT_ARM_VFP behind each NT_PRSTATUS.

        QEMU leaves orig_r0 zero; the kernel writes -1 there for a CPU that it stopped in user mode.
        """
        result: list[CpuNote] = []
        for at, (name, n_type, desc) in enumerate(notes):
            if name not in (elf_core.NOTE_CORE, "") or n_type != elf_core.NT_PRSTATUS or len(desc) < fmt.PRSTATUS_SIZE:
                continue
            regs = self.registers.regs(desc[fmt.PRSTATUS_REGS :][: fmt.pt_regs.itemsize])
            if not regs["orig_r0"]:
                del regs["orig_r0"]
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            further = [
                Note(*note)
                for note in notes[at + 1 : at + 2]
                if note[:2] == (elf_core.NOTE_LINUX, fmt.NT_ARM_VFP) and len(note[2]) == fmt.user_vfp.itemsize
            ]
            user_mode = regs["cpsr"] & fmt.PSR_MODE_MASK == fmt.PSR_USR_MODE
            result.append(CpuNote(len(result), pid, regs, user_mode, tuple(further)))
        return tuple(result)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[Note, ...], str | None]:
        return regsets.Thread(task, kernel).live(note.regsets, user_mode=note.user_mode), None

"""i386: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.arch.i386.registers import I386Registers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.spec import CpuNote
from vmcore2core.arch.x86.cpus import each_cpu
from vmcore2core.elf.notes import Note
from vmcore2core.formats import i386 as fmt
from vmcore2core.overrides import override


class I386Cpus(Cpus):
    """i386's CPU notes in a dump."""

    def __init__(self, registers: I386Registers) -> None:
        self.registers = registers

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """The "QEMU" note at the same position adds control registers to an NT_PRSTATUS."""
        result = []
        for number, desc, control in each_cpu(notes, fmt.PRSTATUS_SIZE):
            record = np.frombuffer(desc, fmt.pt_regs, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) & (0xFFFF if name in fmt.SEGMENTS else ~0) for name in self.registers.names}
            regs |= {name: value for name, value in control.items() if name.startswith("cr")}
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            # In virtual-8086 mode, cs is no selector.
            user_mode = regs["cs"] & 3 == 3 or bool(regs["eflags"] & fmt.EFLAGS_VM)
            result.append(CpuNote(number, pid, regs, user_mode=user_mode))
        return tuple(result)

    @override
    def bases(self, note: CpuNote) -> Mapping[str, int]:
        """Returns the user's gs, unless the kernel has its own selector there (before Linux 5.13).

        The kernel's selector has privilege level 0.
        """
        gs = note.regs["gs"]
        return {"gs": gs} if gs & 3 == 3 or gs == 0 else {}

    @override
    def uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """With page-table isolation, bit 12 of CR3 selects the user's copy."""
        if "cr3" not in note.regs:
            return None
        root = note.regs["cr3"] & fmt.CR3_ROOT_MASK
        return pgd in (root, root & ~(1 << 12))

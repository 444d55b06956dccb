"""s390x: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import CpuNumbers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.s390x.registers import S390xRegisters, peek_user
from vmcore2core.arch.s390x.regsets import Thread, cpu_regsets, live_regsets
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.formats import s390x as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override

NR_CPUS_MAX = 512  # CONFIG_NR_CPUS at its largest


class S390xCpus(Cpus):
    """s390x's CPU notes in a dump."""

    def __init__(self, registers: S390xRegisters) -> None:
        self.registers = registers

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """Written by QEMU's s390_cpu_write_elf64_note() or kdump's fill_cpu_elf_notes().

        In both, pr_pid is the position of the note, from 1; QEMU's is in its host's byte order. Both have further
        notes behind each CPU's NT_PRSTATUS.
        """
        cpus = self.by_cpu(notes, ("CORE", "LINUX", ""), fmt.PRSTATUS_SIZE)
        return tuple(self._cpu_note(number, desc, more) for number, (desc, more) in enumerate(cpus))

    def _cpu_note(self, number: int, desc: bytes, more: Mapping[int, bytes]) -> CpuNote:
        record = np.frombuffer(desc, fmt.s390_regs, 1, fmt.PRSTATUS_REGS)[0]
        regs = {name: int(record[name]) for name in self.registers.names}
        user_mode = bool(regs["pswm"] & fmt.PSW_MASK_PSTATE)
        if user_mode:
            regs |= peek_user(regs)
        del regs["orig_r2"]  # no CPU has this register, and both write zero
        prefix, ctrs = more.get(fmt.NT_S390_PREFIX, b""), more.get(fmt.NT_S390_CTRS, b"")
        if len(prefix) == 4:
            regs["prefix"] = int.from_bytes(prefix, "big")
        if len(ctrs) == fmt.CTRS_SIZE:
            regs["cr1"] = int.from_bytes(ctrs[fmt.CR1_OFFSET : fmt.CR1_OFFSET + 8], "big")
        return CpuNote(number, number + 1, regs, user_mode, cpu_regsets(more))

    @override
    def bases(self, note: CpuNote) -> Mapping[str, int]:
        """The kernel does not change the access registers."""
        return {name: note.regs[name] for name in fmt.ACRS}

    @override
    def uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """User code runs in the primary address space."""
        if "cr1" not in note.regs:
            return None
        return note.user_mode and note.regs["cr1"] & fmt.ASCE_ORIGIN == pgd

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[Note, ...], str | None]:
        """In the kernel, vector registers may be the kernel's own."""
        if not note.user_mode:
            return (), None
        return live_regsets(Thread(task, kernel, system_call=0), note.regsets)


class S390xCpuNumbers(CpuNumbers):
    """How the CPUs of s390x are numbered in notes."""

    @override
    def note_of(self, cpu: int, notes: Sequence[CpuNote], kernel: KernelView) -> CpuNote | None:
        """Each CPU has its lowcore at the address in its prefix register."""
        layout = kernel.layout
        table, size = layout.find_symbol("lowcore_ptr"), layout.find_constant("lowcore_ptr") or NR_CPUS_MAX
        if table is None or not all("prefix" in note.regs for note in notes):
            return super().note_of(cpu, notes, kernel)
        if not 0 <= cpu < min(size, NR_CPUS_MAX):
            return None
        lowcore = kernel.uint(table + 8 * cpu, 8) & fmt.LOWCORE_ADDRESS
        return next((note for note in notes if note.regs["prefix"] == lowcore), None) if lowcore else None

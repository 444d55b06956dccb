"""x86-64: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vmcore2core.arch.capabilities import CpuNumbers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.spec import CpuNote
from vmcore2core.arch.x86.cpus import each_cpu
from vmcore2core.elf.notes import Note
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class X86_64Cpus(Cpus):
    """x86-64's CPU notes in a dump."""

    sp = "rsp"

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """The "QEMU" note at the same position adds control registers to an NT_PRSTATUS."""
        result = []
        for number, desc, control in each_cpu(notes, fmt.PRSTATUS_SIZE):
            record = np.frombuffer(desc, fmt.user_regs_struct, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) for name in fmt.user_regs_struct.names or ()}
            regs |= control
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            result.append(CpuNote(number, pid, regs, user_mode=regs["cs"] & 3 == 3))
        return tuple(result)

    @override
    def bases(self, note: CpuNote) -> Mapping[str, int]:
        """In the kernel, swapgs has put the user's gs_base into MSR_KERNEL_GS_BASE.

        kdump's notes repeat ``thread.fsbase`` (ELF_CORE_COPY_REGS in arch/x86/include/asm/elf.h); QEMU's are live.
        """
        if "cr3" not in note.regs or "apic_id" in note.regs:
            return {}
        bases = {"fs_base": note.regs["fs_base"]}
        gs_base = note.regs.get("gs_base" if note.user_mode else "kernel_gs_base")
        if gs_base is not None:
            bases["gs_base"] = gs_base
        if note.user_mode:
            bases |= {name: note.regs[name] & 0xFFFF for name in ("ds", "es", "fs", "gs")}
        return bases

    @override
    def uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """Compares Compares CR3 without PCID; with page-table isolation, bit 12 selects the user's copy."""
        if "cr3" not in note.regs:
            return None
        root = note.regs["cr3"] & fmt.PTE_PFN_MASK
        return pgd in (root, root & ~(1 << 12))


class X86_64CpuNumbers(CpuNumbers):
    """How the CPUs of x86-64 are numbered in notes."""

    @override
    def note_of(self, cpu: int, notes: Sequence[CpuNote], kernel: KernelView) -> CpuNote | None:
        """Compares APIC IDs if the notes have them: ``x86_cpu_to_apicid``, of 16 bits before Linux 6.7."""
        layout = kernel.layout
        if not any("apic_id" in note.regs for note in notes):
            return super().note_of(cpu, notes, kernel)
        table, offsets = layout.find_symbol("x86_cpu_to_apicid"), layout.find_symbol("__per_cpu_offset")
        if table is None or offsets is None:
            return None
        offset = kernel.uint(offsets + 8 * cpu, 8)
        apic_id = kernel.uint((table + offset) & (1 << 64) - 1, 2)
        return next((note for note in notes if note.regs["apic_id"] == apic_id), None)

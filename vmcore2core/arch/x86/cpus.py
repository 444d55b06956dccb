"""x86: the CPUs' notes of a dump, 64-bit and 32-bit.

References: QEMU's target/i386/arch_dump.c (10.0).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import x86_64 as fmt


def each_cpu(notes: tuple[Note, ...], size: int) -> Iterator[tuple[int, bytes, dict[str, int]]]:
    """Yield each CPU's number, its NT_PRSTATUS, and the control registers from the "QEMU" note at the same position.

    Args:
        notes: name, type, descriptor.
        size: smallest size of NT_PRSTATUS in bytes; shorter ones are skipped.

    Yields:
        Number from 0; descriptor; "cr0" to "cr4" and, for 64-bit mode, "fs_base", "gs_base", "kernel_gs_base" (not
        if the note ends before it). These are missing if there are fewer "QEMU" notes than CPUs. An "X86CPU" note gives
        "apic_id" and "cr3", and no bases.
    """
    prstatus = [n[2] for n in notes if n[0] in ("CORE", "") and n[1] == elf_core.NT_PRSTATUS and len(n[2]) >= size]
    qemu = [n[2] for n in notes if n[0] == "QEMU" and len(n[2]) >= fmt.QEMU_STATE_SIZE_MIN]
    others = [n[2] for n in notes if n[0] == fmt.CPU_NOTE and len(n[2]) == fmt.cpu_state.itemsize]
    for number, desc in enumerate(prstatus):
        regs: dict[str, int] = {}
        if len(others) == len(prstatus):
            state = np.frombuffer(others[number], fmt.cpu_state)[0]
            regs = {name: int(state[name]) for name in ("apic_id", "cr3")}
        if len(qemu) == len(prstatus):
            state = np.frombuffer(qemu[number].ljust(fmt.QEMUCPUState.itemsize, b"\0"), fmt.QEMUCPUState, 1)[0]
            regs = {f"cr{i}": int(state["cr"][i]) for i in range(5)}
            regs |= {"fs_base": int(state["fs"]["base"]), "gs_base": int(state["gs"]["base"])}
            if len(qemu[number]) >= fmt.QEMUCPUState.itemsize:
                regs["kernel_gs_base"] = int(state["kernel_gs_base"])
        yield number, desc, regs

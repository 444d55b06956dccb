"""x86: the CPUs' notes of a dump, in both sizes.

References: QEMU's target/i386/arch_dump.c (10.0).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vmcore2core.formats import elf_core
from vmcore2core.formats import x86_64 as fmt


def each_cpu(notes: tuple[tuple[str, int, bytes], ...], size: int) -> Iterator[tuple[int, bytes, dict[str, int]]]:
    """Yield each CPU's number, its NT_PRSTATUS, and the control registers that a "QEMU" note of its position has.

    Args:
        notes: name, type, descriptor.
        size: the least bytes of NT_PRSTATUS; shorter ones are passed over.

    Yields:
        Number from 0; descriptor; "cr0" to "cr4", and "fs_base", "gs_base", "kernel_gs_base", which mean something in
        64-bit mode alone: nothing where there are not as many "QEMU" notes, and no
        "kernel_gs_base" where a note ends before it. Of a "X86CPU" note, "apic_id" and "cr3", and no bases.
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

"""Registers of x86-64 CPUs from a virtual machine's file, in the form of QEMU's notes.

References: QEMU's target/i386/arch_dump.c: x86_64_write_elf64_note(), qemu_get_cpustate() (10.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vmcore2core.elf.notes import Note
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.formats.elf_core import NT_PRSTATUS

NOT_REAL = "orig_rax"
"""Not a CPU's register but the kernel's value: 0, as in QEMU's notes."""

REQUIRED = (*(name for name in fmt.user_regs_struct.names or () if name != NOT_REAL), "cr3")

CPUS_MAX = 8192
"""CONFIG_NR_CPUS' largest value."""


def cpu_notes(cpus: Sequence[Mapping[str, int]]) -> tuple[Note, ...]:
    """Return NT_PRSTATUS and a "QEMU" note of each CPU; none at all if a register of one CPU is not known.

    All or none, because a note's position is its CPU's number.

    Args:
        cpus: by number, name -> value of ``user_regs_struct``'s registers, "cr0" to "cr4" as far as they are known, and
            "kernel_gs_base" (MSR_KERNEL_GS_BASE), without which the note ends before it, as before QEMU 3.0.
    """
    if any(name not in cpu for cpu in cpus for name in REQUIRED):
        return ()
    notes = [prstatus(number, cpu) for number, cpu in enumerate(cpus)]
    return (*notes, *(Note("QEMU", 0, _state(cpu)) for cpu in cpus))


def prstatus(number: int, cpu: Mapping[str, int]) -> Note:
    """Return NT_PRSTATUS of a CPU; registers that are not in ``cpu`` are zero."""
    desc = bytearray(fmt.PRSTATUS_SIZE)
    desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4] = (number + 1).to_bytes(4, "little")
    regs = np.array(tuple(cpu.get(name, 0) for name in fmt.user_regs_struct.names or ()), fmt.user_regs_struct)
    desc[fmt.PRSTATUS_REGS : fmt.PRSTATUS_REGS + regs.nbytes] = regs.tobytes()
    return Note("CORE", NT_PRSTATUS, bytes(desc))


def _state(cpu: Mapping[str, int]) -> bytes:
    """Return QEMUCPUState: the fields that the architecture's ``cpu_notes`` reads, and zeros."""
    state = np.zeros((), fmt.QEMUCPUState)
    state["version"], state["size"] = 1, fmt.QEMUCPUState.itemsize
    state["cr"] = [cpu.get(f"cr{i}", 0) for i in range(5)]
    for name in ("fs", "gs"):
        state[name]["base"] = cpu[f"{name}_base"]
    if "kernel_gs_base" not in cpu:
        state["size"] = fmt.QEMU_STATE_SIZE_MIN
        return state.tobytes()[: fmt.QEMU_STATE_SIZE_MIN]
    state["kernel_gs_base"] = cpu["kernel_gs_base"]
    return state.tobytes()

"""The register notes besides NT_PRSTATUS: floating point, vectors, and others of an architecture.

The kernel saves these registers when a task leaves a CPU. While the task is on a CPU, the copy in memory is stale: then
we write no note.
"""

from __future__ import annotations

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.errors import LayoutInvalid, MemoryFault
from vmcore2core.kernel.sched import task_on_cpu
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.process.model import RegSetData
from vmcore2core.process.threads import ThreadRegs

SOURCE = "thread_struct"


def regsets(
    kernel: Kernel, task: StructView, regs: ThreadRegs, machine: CoreMachine, warnings: list[str]
) -> tuple[tuple[RegSetData, ...], str | None]:
    """Return a thread's further notes in the kernel's order, and a sentence that says why some are missing, or None.

    If the saved registers are broken, ``warnings`` gets the sentence as well.
    """
    address, arch = KernelAddr(task.address), kernel.arch
    if regs.note is not None:
        try:
            live, missing = arch.cpus.regsets(address, regs.regs, regs.note, kernel)
        except (MemoryFault, LayoutInvalid) as error:
            return _broken(task, error, warnings)
        if live:
            return tuple(RegSetData(n.name, n.n_type, n.desc, regs.note_label) for n in live), missing
    on_cpu = task_on_cpu(task)
    if on_cpu is None:
        return (), "its floating-point registers may be in a processor: the layout has no task_struct.on_cpu"
    if on_cpu:
        return (), "its floating-point registers were in the processor, which the dump does not have"
    try:
        notes = arch.cores.regsets(address, regs.regs, machine, kernel)
    except (MemoryFault, LayoutInvalid) as error:
        return _broken(task, error, warnings)
    if notes is None:
        return (), "where the kernel keeps its floating-point registers is not known"
    return tuple(RegSetData(note.name, note.n_type, note.desc, SOURCE) for note in notes), None


def _broken(task: StructView, error: Exception, warnings: list[str]) -> tuple[tuple[RegSetData, ...], str]:
    sentence = f"its floating-point registers cannot be read: {error}"
    warnings.append(f"the thread at {task.address:#x}: {sentence}")
    return (), sentence


def last_notes(kernel: Kernel, warnings: list[str]) -> tuple[RegSetData, ...]:
    """Return the architecture's notes that a core has once; if they cannot be read, add a warning and return none."""
    try:
        notes = kernel.arch.cores.process_notes(kernel)
    except (MemoryFault, LayoutInvalid) as error:
        warnings.append(f"the notes of the whole process cannot be read: {error}")
        return ()
    return tuple(RegSetData(note.name, note.n_type, note.desc, SOURCE) for note in notes)

"""The CPUs' registers in VirtualBox's ELF cores; their memory is as in any ELF vmcore.

Built from the description alone: no file of VirtualBox's own was seen.

References: see ``formats.virtualbox``.
"""

from __future__ import annotations

import numpy as np

from vmcore2core.containers.x86_cpus import cpu_notes
from vmcore2core.elf.notes import Note
from vmcore2core.formats import virtualbox as fmt


def virtualbox_notes(notes: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return the CPUs' registers in the form of QEMU's notes; no notes if the file has no registers in a known form.

    Other versions of the structure are not known, nor are registers of a CPU outside of 64-bit mode.

    Args:
        notes: of the file.
    """
    core = next(
        (n.desc for n in notes if n.name == fmt.VBCORE and len(n.desc) >= fmt.DBGFCOREDESCRIPTOR.itemsize), None
    )
    if core is None:
        return ()
    header = np.frombuffer(core, fmt.DBGFCOREDESCRIPTOR, 1)[0]
    descs = [n.desc for n in notes if n.name == fmt.VBCPU and len(n.desc) >= fmt.DBGFCORECPU.itemsize]
    known = (int(header["u32Magic"]), int(header["u32FmtVersion"])) == (fmt.DBGFCORE_MAGIC, fmt.DBGFCORE_FMT_VERSION)
    if not known or len(descs) != int(header["cCpus"]):
        return ()
    records = [np.frombuffer(desc, fmt.DBGFCORECPU, 1)[0] for desc in descs]
    if not all(int(record["msrEFER"]) & fmt.EFER_LMA for record in records):
        return ()
    return cpu_notes([_registers(record) for record in records])


def _registers(record: np.void) -> dict[str, int]:
    regs = {name: int(record[name]) for name in (*fmt.GENERAL, "cr0", "cr2", "cr3", "cr4")}
    regs["eflags"] = int(record["rflags"])
    regs |= {name: int(record[name]["uSel"]) for name in fmt.SEGMENTS}
    regs |= {f"{name}_base": int(record[name]["uBase"]) for name in ("fs", "gs")}
    regs["kernel_gs_base"] = int(record["msrKernelGSBase"])
    return regs

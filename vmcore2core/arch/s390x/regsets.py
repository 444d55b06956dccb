"""Floating-point, vector and further registers of IBM Z, as the kernel's cores have them.

The floating-point registers are the high halves of the first sixteen vector registers, if the machine has those.

References: arch/s390/kernel/ptrace.c: s390_regsets[] and its get functions; arch/s390/include/asm/fpu-types.h
(Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.regsets import RegisterSet, in_order, notes_of
from vmcore2core.arch.spec import keys_of
from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import s390x as fmt
from vmcore2core.interfaces import KernelView

LAYOUT_KEYS = keys_of(
    {
        "task_struct": (
            "thread.acrs thread.ufpu.fpc thread.ufpu.vxrs thread.last_break thread.trap_tdb thread.gs_cb "
            "thread.gs_bc_cb thread.ri_cb"
        ),
    },
    symbols="stfle_fac_list",
)
LOST = "the address of its last branch was in the processor"


class Thread(ThreadStruct):
    """``struct thread_struct`` of a task, and values from its ``struct pt_regs``.

    Args:
        task: ``struct task_struct *``.
        kernel: the dumped one.
        int_code: from its ``struct pt_regs``.
        system_call: ``int_code`` if it is in a system call, else 0; None if that is not known.
    """

    def __init__(self, task: int, kernel: KernelView, int_code: int = 0, system_call: int | None = None) -> None:
        super().__init__(task, kernel)
        self.int_code, self.system_call = int_code, system_call

    def pointed(self, member: str, size: int) -> bytes | None:
        """Return the bytes to which a member points; None if it is NULL or not known."""
        raw = self.raw(member, 8)
        return self.kernel.memory.read(int.from_bytes(raw, "big"), size) if raw is not None and any(raw) else None

    def has_vx(self) -> bool:
        """Tell whether the machine has vector registers: cpu_has_vx()."""
        found = self.layout.find_symbol("stfle_fac_list")
        if found is None:
            return False
        byte, bit = divmod(fmt.FACILITY_VX, 8)
        return bool(self.kernel.memory.read(found + byte, 1)[0] & 0x80 >> bit)


def _floats(thread: Thread) -> bytes | None:
    """Return FPC and the floating-point registers.

    Since Linux 6.9, thread.ufpu has the vector registers, or on machines without them the floating-point registers.
    """
    fpc, vxrs = thread.raw("ufpu.fpc", 4), _vxrs(thread)
    if fpc is None or vxrs is None:
        return None
    return fpc.ljust(8, b"\0") + b"".join(register[:8] for register in vxrs[: fmt.NR_FPRS])


def _vxrs(thread: Thread) -> list[bytes] | None:
    raw = thread.raw("ufpu.vxrs", fmt.NR_VXRS * fmt.VXR_SIZE)
    return None if raw is None else [raw[at : at + fmt.VXR_SIZE] for at in range(0, len(raw), fmt.VXR_SIZE)]


def _vxrs_low(thread: Thread) -> bytes | None:
    vxrs = _vxrs(thread) if thread.has_vx() else None
    return None if vxrs is None else b"".join(register[8:] for register in vxrs[: fmt.NR_FPRS])


def _vxrs_high(thread: Thread) -> bytes | None:
    vxrs = _vxrs(thread) if thread.has_vx() else None
    return None if vxrs is None else b"".join(vxrs[fmt.NR_FPRS :])


def _tdb(thread: Thread) -> bytes | None:
    tdb = thread.raw("trap_tdb", fmt.TDB_SIZE)
    return tdb if thread.int_code & fmt.INT_CODE_TDB else None


def _system_call(thread: Thread) -> bytes | None:
    return None if thread.system_call is None else thread.system_call.to_bytes(4, "big")


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, _floats, elf_core.NOTE_CORE),
    RegisterSet(fmt.NT_S390_SYSTEM_CALL, _system_call),
    RegisterSet(fmt.NT_S390_LAST_BREAK, lambda thread: thread.raw("last_break", 8)),
    RegisterSet(fmt.NT_S390_TDB, _tdb),
    RegisterSet(fmt.NT_S390_VXRS_LOW, _vxrs_low),
    RegisterSet(fmt.NT_S390_VXRS_HIGH, _vxrs_high),
    RegisterSet(fmt.NT_S390_GS_CB, lambda thread: thread.pointed("gs_cb", fmt.GS_CB_SIZE)),
    RegisterSet(fmt.NT_S390_GS_BC, lambda thread: thread.pointed("gs_bc_cb", fmt.GS_CB_SIZE)),
    RegisterSet(fmt.NT_S390_RI_CB, lambda thread: thread.pointed("ri_cb", fmt.RI_CB_SIZE)),
)
"""s390_regsets[]; only threads that use them have guarded storage and runtime instrumentation."""


def saved_regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return all notes of a thread that is off the CPU, in the kernel's order; None if they cannot be found."""
    known = thread.has("ufpu.fpc") and thread.has("ufpu.vxrs")
    return notes_of(REGSETS, thread) if known else None


def cpu_regsets(notes: Mapping[int, bytes]) -> tuple[Note, ...]:
    """Return those of a CPU's notes that a core has, too; those of another size than the kernel's are left out.

    Args:
        notes: type -> descriptor, of the CPU.
    """
    sizes = {
        elf_core.NT_FPREGSET: fmt.FPREGSET_SIZE,
        fmt.NT_S390_VXRS_LOW: fmt.VXRS_LOW_SIZE,
        fmt.NT_S390_VXRS_HIGH: fmt.VXRS_HIGH_SIZE,
        fmt.NT_S390_GS_CB: fmt.GS_CB_SIZE,
    }
    name = {elf_core.NT_FPREGSET: elf_core.NOTE_CORE}
    return tuple(
        Note(name.get(n_type, elf_core.NOTE_LINUX), n_type, notes[n_type])
        for n_type, size in sizes.items()
        if len(notes.get(n_type, b"")) == size
    )


def live_regsets(thread: Thread, of_cpu: tuple[Note, ...]) -> tuple[tuple[Note, ...], str | None]:
    """Return the notes of a thread that was in user mode on a CPU, and what they lack (``Cpus.regsets``).

    Args:
        thread: the thread, in no system call.
        of_cpu: as ``cpu_regsets`` returns them.
    """
    if not of_cpu:
        return (), None
    left_out = set() if thread.has_vx() else {fmt.NT_S390_VXRS_LOW, fmt.NT_S390_VXRS_HIGH}
    if thread.pointed("gs_cb", fmt.GS_CB_SIZE) is None:
        left_out.add(fmt.NT_S390_GS_CB)  # the thread does not use it, and the kernel writes no note
    live = tuple(note for note in of_cpu if note.n_type not in left_out)
    # Memory has GS_CB and RI_CB from when the thread last left a CPU.
    saved = notes_of(REGSETS, thread, (fmt.NT_S390_SYSTEM_CALL, fmt.NT_S390_GS_BC))
    return in_order(REGSETS, (*live, *saved)), LOST

"""Floating-point, vector and further registers of IBM Z, as the kernel's cores have them.

The floating-point registers are the high halves of the first sixteen vector registers, where there are such.

References: arch/s390/kernel/ptrace.c: s390_regsets[] and its get functions; arch/s390/include/asm/fpu-types.h
(Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import s390x as fmt

LAYOUT_KEYS = (
    *(
        f"OFFSET(task_struct.thread.{name})"
        for name in (
            *("acrs", "ufpu.fpc", "ufpu.vxrs", "last_break", "trap_tdb"),
            *("gs_cb", "gs_bc_cb", "ri_cb"),
        )
    ),
    "SYMBOL(stfle_fac_list)",
)
LOST = "the address of its last branch was in the processor"


class Thread(ThreadStruct):
    """``struct thread_struct`` of a task."""

    def pointed(self, member: str, size: int) -> bytes | None:
        """Return bytes that a member points to; None where it is NULL, too."""
        raw = self.raw(member, 8)
        return self.kernel.memory.read(int.from_bytes(raw, "big"), size) if raw is not None and any(raw) else None

    def has_vx(self) -> bool:
        """Tell whether the machine has vector registers: cpu_has_vx()."""
        found = self.layout.find_symbol("stfle_fac_list")
        if found is None:
            return False
        byte, bit = divmod(fmt.FACILITY_VX, 8)
        return bool(self.kernel.memory.read(found + byte, 1)[0] & 0x80 >> bit)


def saved_regsets(thread: Thread, int_code: int, system_call: int | None) -> tuple[Note, ...] | None:
    """Return all notes of a thread that is off the CPU, in the kernel's order; None where they cannot be found.

    Since Linux 6.9, thread.ufpu has the vector registers, of machines without them the floating-point ones there.

    Args:
        thread: its ``struct thread_struct``.
        int_code: of its ``struct pt_regs``.
        system_call: the same where it is in a system call, else 0; None where this is not known.
    """
    fpc, vxrs = thread.raw("ufpu.fpc", 4), thread.raw("ufpu.vxrs", fmt.NR_VXRS * fmt.VXR_SIZE)
    if fpc is None or vxrs is None:
        return None
    registers = [vxrs[at : at + fmt.VXR_SIZE] for at in range(0, len(vxrs), fmt.VXR_SIZE)]
    floats = b"".join(register[:8] for register in registers[: fmt.NR_FPRS])
    notes = [Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, fpc.ljust(8, b"\0") + floats)]
    if thread.has_vx():
        low = b"".join(register[8:] for register in registers[: fmt.NR_FPRS])
        notes.append(Note(elf_core.NOTE_LINUX, fmt.NT_S390_VXRS_LOW, low))
        notes.append(Note(elf_core.NOTE_LINUX, fmt.NT_S390_VXRS_HIGH, b"".join(registers[fmt.NR_FPRS :])))
    last_break = thread.raw("last_break", 8)
    if last_break is not None:
        notes.append(Note(elf_core.NOTE_LINUX, fmt.NT_S390_LAST_BREAK, last_break))
    tdb = thread.raw("trap_tdb", fmt.TDB_SIZE)
    if tdb is not None and int_code & fmt.INT_CODE_TDB:
        notes.append(Note(elf_core.NOTE_LINUX, fmt.NT_S390_TDB, tdb))
    if system_call is not None:
        notes.append(_system_call(system_call))
    return in_order((*notes, *_pointed(thread)))


def _system_call(number: int) -> Note:
    return Note(elf_core.NOTE_LINUX, fmt.NT_S390_SYSTEM_CALL, number.to_bytes(4, "big"))


def _pointed(thread: Thread) -> Iterator[Note]:
    """Yield what a thread has that uses guarded storage or runtime instrumentation."""
    for member, n_type, size in (
        ("gs_cb", fmt.NT_S390_GS_CB, fmt.GS_CB_SIZE),
        ("gs_bc_cb", fmt.NT_S390_GS_BC, fmt.GS_CB_SIZE),
        ("ri_cb", fmt.NT_S390_RI_CB, fmt.RI_CB_SIZE),
    ):
        raw = thread.pointed(member, size)
        if raw is not None:
            yield Note(elf_core.NOTE_LINUX, n_type, raw)


def in_order(notes: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return notes as s390_regsets[] has them."""
    order = (
        *(elf_core.NT_FPREGSET, fmt.NT_S390_SYSTEM_CALL, fmt.NT_S390_LAST_BREAK, fmt.NT_S390_TDB),
        *(fmt.NT_S390_VXRS_LOW, fmt.NT_S390_VXRS_HIGH),
        *(fmt.NT_S390_GS_CB, fmt.NT_S390_GS_BC, fmt.NT_S390_RI_CB),
    )
    return tuple(sorted(notes, key=lambda note: order.index(note.n_type)))


def cpu_regsets(notes: Mapping[int, bytes]) -> tuple[Note, ...]:
    """Return a CPU's notes that a core has, too; of another size than the kernel's they are left out.

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
    """Return the notes of a thread that was in user mode on a CPU, and what they lack, as ``Cpus.regsets``.

    Args:
        thread: its ``struct thread_struct``.
        of_cpu: as ``cpu_regsets`` returns them.
    """
    if not of_cpu:
        return (), None
    left_out = set() if thread.has_vx() else {fmt.NT_S390_VXRS_LOW, fmt.NT_S390_VXRS_HIGH}
    if thread.pointed("gs_cb", fmt.GS_CB_SIZE) is None:
        left_out.add(fmt.NT_S390_GS_CB)  # the thread does not use it, and the kernel writes none
    live = tuple(note for note in of_cpu if note.n_type not in left_out)
    stale = (fmt.NT_S390_GS_CB, fmt.NT_S390_RI_CB)  # what memory has is as it was when the thread last left a CPU
    saved = tuple(note for note in _pointed(thread) if note.n_type not in stale)
    return in_order((*live, _system_call(0), *saved)), LOST

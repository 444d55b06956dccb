"""arm64: which register notes a thread of a 32-bit process has.

A core has fewer notes than ptrace(2) has register sets: it follows user_aarch32_view, which lacks the thread pointer
and the breakpoints of user_aarch32_ptrace_view.

References: arch/arm64/kernel/ptrace.c: task_user_regset_view(), aarch32_regsets[], compat_vfp_get() (Linux 4.18 to
7.2).
"""

from __future__ import annotations

from vmcore2core.arch.arm.regsets import user_vfp
from vmcore2core.arch.arm64.regsets import Thread
from vmcore2core.arch.regsets import RegisterSet, notes_of
from vmcore2core.elf.notes import Note
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats import elf_core
from vmcore2core.formats.arm import NT_ARM_VFP


def regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return the notes of a thread that is off the CPU; None if the layout does not know where they are."""
    return notes_of(REGSETS, thread) or None


def live_regsets(of_cpu: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return the notes of a thread that was on a CPU, from the CPU's notes, which use AArch64's register names."""
    return tuple(
        Note(elf_core.NOTE_LINUX, NT_ARM_VFP, _user_vfp(note.desc))
        for note in of_cpu
        if note.n_type == elf_core.NT_FPREGSET and len(note.desc) == fmt.user_fpsimd_state.itemsize
    )


def _vfp(thread: Thread) -> bytes | None:
    state = thread.raw("uw.fpsimd_state", fmt.user_fpsimd_state.itemsize)
    return None if state is None else _user_vfp(state)


def _user_vfp(state: bytes) -> bytes:
    """Return ``struct user_vfp`` from ``struct user_fpsimd_state``: d0 to d31 are v0 to v15."""
    at = fmt.FPSIMD_FPSR
    fpsr, fpcr = (int.from_bytes(state[start : start + 4], "little") for start in (at, at + 4))
    return user_vfp(state[:at], fpsr & fmt.VFP_FPSCR_STAT_MASK | fpcr & fmt.VFP_FPSCR_CTRL_MASK)


REGSETS: tuple[RegisterSet[Thread], ...] = (RegisterSet(NT_ARM_VFP, _vfp),)
"""aarch32_regsets[]."""

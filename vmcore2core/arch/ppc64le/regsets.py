"""Floating-point, vector and special registers of 64-bit POWER, little-endian, as the kernel's cores have them.

While a thread runs, the FP and VEC bits in MSR tell whether the processor has its floating-point and vector registers.
The kernel loads them at or before their first use, and saves them and clears the bits when the thread leaves its CPU.
So a thread's saved MSR tells where they are, not whether it was on a CPU.

References: arch/powerpc/kernel/ptrace/{ptrace-view,ptrace-fpu,ptrace-altivec,ptrace-vsx}.c,
arch/powerpc/kernel/process.c: giveup_all(), restore_math(), save_sprs(); arch/powerpc/include/asm/processor.h: struct
thread_fp_state, struct thread_vr_state, TS_FPROFFSET (Linux 4.7 to 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmcore2core.arch.regsets import RegisterSet, in_order, notes_of
from vmcore2core.arch.spec import keys_of
from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import elf_core
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.interfaces import ByteOrder

LAYOUT_KEYS = keys_of(
    {
        "task_struct": (
            "thread.regs thread.fp_state.fpr thread.fp_state.fpscr thread.vr_state thread.vrsave thread.used_vr "
            "thread.used_vsr thread.fpexc_mode thread.dscr thread.tar thread.used_ebb thread.ebbrr thread.siar "
            "thread.ppr"
        ),
        "pt_regs": "ppr",
        "cpu_spec": "cpu_user_features2",
    },
    symbols="cur_cpu_spec",
)

LOST = (
    "its PPR, DSCR, TAR and performance-monitor registers were in the processor, which the dump does not have, and "
    "VRSAVE is as it was when it last left one"
)
"""Registers that are not known of a thread on a CPU."""


class Thread(ThreadStruct):
    """``struct thread_struct`` of a task."""

    @property
    def ppr(self) -> bytes | None:
        """The program priority register: in struct pt_regs, or in struct thread_struct of older kernels."""
        found, regs = self.layout.find_member("pt_regs", "ppr"), self.uint("regs", 8)
        if found is None:
            return self.raw("ppr", 8)
        return self.kernel.memory.read(regs + found.offset, 8) if regs else None


def _halves(thread: Thread) -> list[bytes] | None:
    """Return the halves of VSX registers 0 to 31: the low one (TS_VSRLOWOFFSET), then the other.

    Raises:
        LayoutInvalid: the kernel has no VSX, so its registers are laid out differently.
    """
    found = thread.layout.find_member("task_struct", "thread.fp_state.fpr")
    pairs = thread.raw("fp_state.fpr", 2 * 8 * fmt.NR_REGS)
    if found is None or pairs is None or not thread.has("fp_state.fpscr"):
        return None
    if found.size not in (None, len(pairs)):
        raise LayoutInvalid(f"task_struct.thread.fp_state.fpr has {found.size} bytes, expected {len(pairs)} (with VSX)")
    return [pairs[at : at + 8] for at in range(0, len(pairs), 8)]


def _fpr(thread: Thread) -> bytes | None:
    """Return NT_FPREGSET: fpr_get()."""
    halves, fpscr = _halves(thread), thread.raw("fp_state.fpscr", 8)
    return None if halves is None or fpscr is None else b"".join(halves[1::2]) + fpscr


def _vsr(thread: Thread) -> bytes | None:
    """Return NT_PPC_VSX of a thread that has ever used these registers: vsr_get()."""
    halves = _halves(thread)
    return b"".join(halves[::2]) if halves is not None and thread.uint("used_vsr", 4) else None


def _vr(thread: Thread) -> bytes | None:
    """Return NT_PPC_VMX of a thread that has ever used these registers: vr_get()."""
    state, vrsave = thread.raw("vr_state", fmt.VMX_VRSAVE), thread.raw("vrsave", 4)
    if state is None or vrsave is None or not thread.uint("used_vr", 4):
        return None
    return state + vrsave.ljust(fmt.VR_SIZE, b"\0")


def _ebb(thread: Thread) -> bytes | None:
    return thread.raw("ebbrr", fmt.EBB_SIZE) if _arch_2_07(thread) and thread.uint("used_ebb", 4) else None


def _pmu(thread: Thread) -> bytes | None:
    # The kernel copies eight bytes for each register; mmcr0 has only four, and used_ebb follows it.
    return thread.raw("siar", fmt.PMU_SIZE) if _arch_2_07(thread) else None


def _arch_2_07(thread: Thread) -> bool:
    """Tell whether the processor has Power ISA 2.07 (CPU_FTR_ARCH_207S), as programs are told in AT_HWCAP2."""
    variable = thread.layout.find_symbol("cur_cpu_spec")
    found = thread.layout.find_member("cpu_spec", "cpu_user_features2")
    if variable is None or found is None:
        return False
    spec = thread.kernel.uint(variable, 8)
    features = thread.kernel.uint(spec + found.offset, 4)
    return bool(features & fmt.PPC_FEATURE2_ARCH_2_07)


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, _fpr, elf_core.NOTE_CORE),
    RegisterSet(fmt.NT_PPC_VMX, _vr),
    RegisterSet(fmt.NT_PPC_VSX, _vsr),
    RegisterSet(fmt.NT_PPC_PPR, lambda thread: thread.ppr),
    RegisterSet(fmt.NT_PPC_DSCR, lambda thread: thread.raw("dscr", 8)),
    RegisterSet(fmt.NT_PPC_TAR, lambda thread: thread.raw("tar", 8)),
    RegisterSet(fmt.NT_PPC_EBB, _ebb),
    RegisterSet(fmt.NT_PPC_PMU, _pmu),
)
"""native_regsets[]."""
FLOATS = (elf_core.NT_FPREGSET, fmt.NT_PPC_VSX)


def saved_regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return all notes of a thread that is off the CPU, in the kernel's order; None if they cannot be found."""
    if not thread.has("fp_state.fpr"):
        return None
    return notes_of(REGSETS, thread)


def qemu_regsets(notes: Mapping[int, bytes], order: ByteOrder) -> tuple[Note, ...]:
    """Return NT_FPREGSET, NT_PPC_VMX and NT_PPC_VSX of a CPU from QEMU's notes, in a little-endian kernel's form.

    VRSAVE, which QEMU leaves out, is zero.

    Args:
        notes: type -> descriptor, of the CPU.
        order: of the descriptors.
    """
    made = []
    for n_type, size in ((elf_core.NT_FPREGSET, fmt.FPREGSET_SIZE), (fmt.NT_PPC_VSX, fmt.VSX_SIZE)):
        desc = notes.get(n_type, b"")
        if len(desc) == size:
            made.append((n_type, _reversed(desc, 8) if order == "big" else desc))
    desc = notes.get(fmt.NT_PPC_VMX, b"")
    if len(desc) == fmt.VMX_SIZE:
        registers, vscr = desc[: fmt.VMX_VSCR], desc[fmt.QEMU_VSCR : fmt.QEMU_VSCR + 4]
        if order == "big":
            registers, vscr = _reversed(registers, fmt.VR_SIZE), vscr[::-1]
        made.append((fmt.NT_PPC_VMX, registers + vscr.ljust(fmt.VMX_SIZE - fmt.VMX_VSCR, b"\0")))
    name = {elf_core.NT_FPREGSET: elf_core.NOTE_CORE}
    return in_order(REGSETS, tuple(Note(name.get(t, elf_core.NOTE_LINUX), t, desc) for t, desc in made))


def _reversed(raw: bytes, size: int) -> bytes:
    """Return values of ``size`` bytes each in the other byte order."""
    return b"".join(raw[at : at + size][::-1] for at in range(0, len(raw), size))


def live_regsets(thread: Thread, msr: int, of_cpu: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return the notes of a thread that was on a CPU: the CPU's, and from memory those that the CPU had not loaded.

    PPR, DSCR, TAR and the like were in the CPU, and QEMU does not write them.

    Args:
        thread: its ``struct thread_struct``.
        msr: its MSR in user mode.
        of_cpu: as ``qemu_regsets`` returns them; empty if the dump does not have them.
    """
    cpu = {note.n_type: note for note in of_cpu}
    made: list[Note] = []
    if not msr & fmt.MSR_FP:
        made += notes_of(REGSETS, thread, FLOATS)
    else:
        used = (elf_core.NT_FPREGSET, *((fmt.NT_PPC_VSX,) if thread.uint("used_vsr", 4) else ()))
        made += [cpu[n_type] for n_type in used if n_type in cpu]
    vrsave = thread.raw("vrsave", 4)
    if not msr & fmt.MSR_VEC:
        made += notes_of(REGSETS, thread, (fmt.NT_PPC_VMX,))
    elif fmt.NT_PPC_VMX in cpu and vrsave is not None:
        # VRSAVE, a mask that no ABI in use gives a meaning, is from when the thread last left a CPU.
        desc = bytearray(cpu[fmt.NT_PPC_VMX].desc)
        desc[fmt.VMX_VRSAVE : fmt.VMX_VRSAVE + 4] = vrsave
        made.append(Note(elf_core.NOTE_LINUX, fmt.NT_PPC_VMX, bytes(desc)))
    return in_order(REGSETS, made)

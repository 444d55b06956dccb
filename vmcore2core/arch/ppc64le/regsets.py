"""Floating-point, vector and special registers of 64-bit POWER, little-endian, as the kernel's cores have them.

While a thread runs, MSR's FP and VEC bits tell whether the processor has its floating-point and vector registers:
they are loaded when they are first used or expected to be, and a thread that leaves a CPU has them saved and the bits
cleared. So the saved MSR of a thread, not whether it was on a CPU, tells where they are.

References: arch/powerpc/kernel/ptrace/{ptrace-view,ptrace-fpu,ptrace-altivec,ptrace-vsx}.c,
arch/powerpc/kernel/process.c: giveup_all(), restore_math(), save_sprs(); arch/powerpc/include/asm/processor.h: struct
thread_fp_state, struct thread_vr_state, TS_FPROFFSET (Linux 4.7 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import elf_core
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.interfaces import ByteOrder

LAYOUT_KEYS = (
    *(
        f"OFFSET(task_struct.thread.{name})"
        for name in (
            *("regs", "fp_state.fpr", "fp_state.fpscr", "vr_state", "vrsave", "used_vr", "used_vsr", "fpexc_mode"),
            *("dscr", "tar", "used_ebb", "ebbrr", "siar", "ppr"),
        )
    ),
    "OFFSET(pt_regs.ppr)",
    "SYMBOL(cur_cpu_spec)",
    "OFFSET(cpu_spec.cpu_user_features2)",
)

LOST = (
    "its PPR, DSCR, TAR and performance-monitor registers were in the processor, which the dump does not have, and "
    "VRSAVE is as it was when it last left one"
)
"""What is not known of a thread that was on a CPU."""


class Thread(ThreadStruct):
    """``struct thread_struct`` of a task."""

    @property
    def ppr(self) -> bytes | None:
        """The program priority: in struct pt_regs, in older kernels in struct thread_struct."""
        found, regs = self.layout.find_member("pt_regs", "ppr"), self.uint("regs", 8)
        if found is None:
            return self.raw("ppr", 8)
        return self.kernel.memory.read(regs + found.offset, 8) if regs else None


def saved_floats(thread: Thread) -> Iterator[Note]:
    """Yield NT_FPREGSET and NT_PPC_VSX from memory; fpr_get(), vsr_get().

    Each of the 32 doubleword pairs has the low half of a VSX register first, TS_VSRLOWOFFSET, and the floating-point
    register second.

    Raises:
        LayoutInvalid: the kernel has no VSX, so that its registers lie otherwise.
    """
    found = thread.layout.find_member("task_struct", "thread.fp_state.fpr")
    pairs, fpscr = thread.raw("fp_state.fpr", 2 * 8 * fmt.NR_REGS), thread.raw("fp_state.fpscr", 8)
    if found is None or pairs is None or fpscr is None:
        return
    if found.size not in (None, len(pairs)):
        raise LayoutInvalid(f"task_struct.thread.fp_state.fpr has {found.size} bytes, expected {len(pairs)} (with VSX)")
    halves = [pairs[at : at + 8] for at in range(0, len(pairs), 8)]
    yield Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, b"".join(halves[1::2]) + fpscr)
    if thread.uint("used_vsr", 4):
        yield Note(elf_core.NOTE_LINUX, fmt.NT_PPC_VSX, b"".join(halves[::2]))


def saved_vectors(thread: Thread) -> Iterator[Note]:
    """Yield NT_PPC_VMX from memory, of a thread that has ever used these registers; vr_get()."""
    state, vrsave = thread.raw("vr_state", fmt.VMX_VRSAVE), thread.raw("vrsave", 4)
    if state is not None and vrsave is not None and thread.uint("used_vr", 4):
        yield Note(elf_core.NOTE_LINUX, fmt.NT_PPC_VMX, state + vrsave.ljust(fmt.VR_SIZE, b"\0"))


def special(thread: Thread) -> Iterator[Note]:
    """Yield NT_PPC_PPR, DSCR, TAR, EBB and PMU from memory; ppr_get() and its like."""
    for n_type, raw in (
        (fmt.NT_PPC_PPR, thread.ppr),
        (fmt.NT_PPC_DSCR, thread.raw("dscr", 8)),
        (fmt.NT_PPC_TAR, thread.raw("tar", 8)),
    ):
        if raw is not None:
            yield Note(elf_core.NOTE_LINUX, n_type, raw)
    if not _arch_2_07(thread):
        return
    ebb = thread.raw("ebbrr", fmt.EBB_SIZE) if thread.uint("used_ebb", 4) else None
    # The kernel copies eight bytes for each register, of which mmcr0 has only four and used_ebb follows it.
    for n_type, raw in ((fmt.NT_PPC_EBB, ebb), (fmt.NT_PPC_PMU, thread.raw("siar", fmt.PMU_SIZE))):
        if raw is not None:
            yield Note(elf_core.NOTE_LINUX, n_type, raw)


def _arch_2_07(thread: Thread) -> bool:
    """Tell whether the processor has Power ISA 2.07 (CPU_FTR_ARCH_207S), as programs are told in AT_HWCAP2."""
    variable = thread.layout.find_symbol("cur_cpu_spec")
    found = thread.layout.find_member("cpu_spec", "cpu_user_features2")
    if variable is None or found is None:
        return False
    spec = thread.kernel.uint(variable, 8)
    features = thread.kernel.uint(spec + found.offset, 4)
    return bool(features & fmt.PPC_FEATURE2_ARCH_2_07)


def saved_regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return all notes of a thread that is off the CPU, in the kernel's order; None where they cannot be found."""
    if not thread.has("fp_state.fpr"):
        return None
    return in_order((*saved_floats(thread), *saved_vectors(thread), *special(thread)))


def in_order(notes: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return notes as native_regsets[] has them."""
    order = (
        elf_core.NT_FPREGSET,
        *(fmt.NT_PPC_VMX, fmt.NT_PPC_VSX, fmt.NT_PPC_PPR, fmt.NT_PPC_DSCR),
        *(fmt.NT_PPC_TAR, fmt.NT_PPC_EBB, fmt.NT_PPC_PMU),
    )
    return tuple(sorted(notes, key=lambda note: order.index(note.n_type)))


def qemu_regsets(notes: Mapping[int, bytes], order: ByteOrder) -> tuple[Note, ...]:
    """Return NT_FPREGSET, NT_PPC_VMX and NT_PPC_VSX of a CPU as QEMU wrote them, as a little-endian kernel would.

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
    return in_order(tuple(Note(name.get(t, elf_core.NOTE_LINUX), t, desc) for t, desc in made))


def _reversed(raw: bytes, size: int) -> bytes:
    """Return values of ``size`` bytes each in the other byte order."""
    return b"".join(raw[at : at + size][::-1] for at in range(0, len(raw), size))


def live_regsets(thread: Thread, msr: int, of_cpu: tuple[Note, ...]) -> tuple[Note, ...]:
    """Return the notes of a thread that was on a CPU: what the CPU had, and from memory what it had not taken over.

    PPR, DSCR, TAR and the like were in the CPU, and QEMU does not write them.

    Args:
        thread: its ``struct thread_struct``.
        msr: its MSR in user mode.
        of_cpu: as ``qemu_regsets`` returns them; empty where the dump does not have them.
    """
    cpu = {note.n_type: note for note in of_cpu}
    made: list[Note] = []
    if not msr & fmt.MSR_FP:
        made += saved_floats(thread)
    else:
        used = (elf_core.NT_FPREGSET, *((fmt.NT_PPC_VSX,) if thread.uint("used_vsr", 4) else ()))
        made += [cpu[n_type] for n_type in used if n_type in cpu]
    vrsave = thread.raw("vrsave", 4)
    if not msr & fmt.MSR_VEC:
        made += saved_vectors(thread)
    elif fmt.NT_PPC_VMX in cpu and vrsave is not None:
        # VRSAVE, a mask that no ABI in use has a meaning for, is as it was when the thread last left a CPU.
        desc = bytearray(cpu[fmt.NT_PPC_VMX].desc)
        desc[fmt.VMX_VRSAVE : fmt.VMX_VRSAVE + 4] = vrsave
        made.append(Note(elf_core.NOTE_LINUX, fmt.NT_PPC_VMX, bytes(desc)))
    return in_order(tuple(made))

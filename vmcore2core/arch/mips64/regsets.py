"""MIPS64's register notes besides NT_PRSTATUS: mips64_regsets and mips_regsets in arch/mips/kernel/ptrace.c.

resume() and switch_to() save the FPU of a task that owns it, and the DSP's registers, so ``thread_struct`` is current
while the task is off the CPU.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vmcore2core.arch.regsets import RegisterSet, notes_of
from vmcore2core.arch.spec import keys_of
from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView

LAYOUT_KEYS = keys_of(
    {
        "task_struct": "thread.fpu thread.dsp flags",
        "cpuinfo_mips": "fpu_id",
    },
    symbols="cpu_data",
)


class Thread(ThreadStruct):
    """``struct thread_struct`` of a task that is off the CPU, and related structures.

    Args:
        task: ``struct task_struct *``.
        flags: its ``thread_info.flags``.
        narrow: whether its process is o32, whose DSP registers have 32 bits.
        kernel: the dumped one.
        byte_order: of the kernel.
    """

    def __init__(self, task: int, flags: int, kernel: KernelView, byte_order: ByteOrder, *, narrow: bool) -> None:
        super().__init__(task, kernel)
        self.flags, self.narrow = flags, narrow
        self.byte_order: ByteOrder = byte_order
        self.order = "<" if byte_order == "little" else ">"

    @cached_property
    def fpu(self) -> np.void | None:
        """``struct mips_fpu_struct``; None if the layout does not tell where it is and how wide its registers are."""
        found = self.layout.find_member("task_struct", "thread.fpu")
        widths = {fmt.mips_fpu_struct(self.order, width).itemsize: width for width in (8, fmt.MSA_REG_SIZE)}
        width = widths.get(found.size or 0) if found is not None else None
        if found is None or width is None:
            return None
        declared = fmt.mips_fpu_struct(self.order, width)
        record: np.void = np.frombuffer(self.kernel.memory.read(self.task + found.offset, declared.itemsize), declared)[
            0
        ]
        return record

    def scalars(self) -> bytes | None:
        """Return NT_FPREGSET: fpr_get()."""
        cpu, fpu = self.cpu, self.fpu
        if cpu is None or fpu is None:
            return None
        fcr31, fir = (self._u32(int(value)) for value in (fpu["fcr31"], cpu["fpu_id"]))
        return bytes(fpu["fpr"][:, :8].tobytes() + fcr31 + fir)

    def mode(self) -> bytes:
        """Return NT_MIPS_FP_MODE: fp_mode_get()."""
        narrow = 0 if self._has(fmt.TIF_32BIT_FPREGS) else fmt.PR_FP_MODE_FR
        return self._u32(narrow | (fmt.PR_FP_MODE_FRE if self._has(fmt.TIF_HYBRID_FPREGS) else 0))

    def _has(self, flag: int) -> bool:
        return bool(self.flags >> flag & 1)

    def _u32(self, value: int) -> bytes:
        return value.to_bytes(4, self.byte_order)

    @cached_property
    def cpu(self) -> np.void | None:
        """The needed part of ``boot_cpu_data``."""
        cpu_data, fpu_id = self.layout.find_symbol("cpu_data"), self.layout.find_member("cpuinfo_mips", "fpu_id")
        if cpu_data is None or fpu_id is None:
            return None
        declared = fmt.cpuinfo_mips(self.order)
        raw = self.kernel.memory.read(cpu_data + fpu_id.offset - fmt.CPUINFO_FPU_ID, declared.itemsize)
        record: np.void = np.frombuffer(raw, declared)[0]
        return record

    def dsp(self) -> bytes | None:
        """Return NT_MIPS_DSP: dsp32_get(), dsp64_get(); None if the processor has no DSP: dsp_active()."""
        declared = fmt.mips_dsp_state(self.order)
        able = self.cpu is not None and int(self.cpu["ases"]) & fmt.MIPS_ASE_DSP
        raw = self.raw("dsp", declared.itemsize) if able else None
        if raw is None:
            return None
        state = np.frombuffer(raw, declared)[0]
        values = np.array([*state["dspr"].tolist(), int(state["dspcontrol"])], np.uint64)
        return values.astype(self.order + ("u4" if self.narrow else "u8")).tobytes()

    def msa(self) -> bytes | None:
        """Return NT_MIPS_MSA: msa_get(); parts of registers that the task has not used are all ones."""
        flags, cpu, fpu = self.layout.find_member("task_struct", "flags"), self.cpu, self.fpu
        if flags is None or cpu is None or fpu is None or fpu["fpr"].shape[1] != fmt.MSA_REG_SIZE:
            return None
        used = 0
        if self.kernel.uint(self.task + flags.offset, 4) & fmt.PF_USED_MATH:
            used = fmt.MSA_REG_SIZE if self._has(fmt.TIF_MSA_CTX_LIVE) else 8
        registers = np.full((fmt.NUM_FPU_REGS, fmt.MSA_REG_SIZE), 0xFF, np.uint8)
        registers[:, :used] = fpu["fpr"][:, :used]
        control = (cpu["fpu_id"], fpu["fcr31"], cpu["msa_id"], fpu["msacsr"])
        return registers.tobytes() + b"".join(self._u32(int(word)) for word in control)


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(fmt.NT_MIPS_DSP, Thread.dsp),
    RegisterSet(elf_core.NT_FPREGSET, Thread.scalars, elf_core.NOTE_CORE),
    RegisterSet(fmt.NT_MIPS_FP_MODE, Thread.mode),
    RegisterSet(fmt.NT_MIPS_MSA, Thread.msa),
)
"""mips64_regsets[] and mips_regsets[]."""


def regsets(thread: Thread) -> tuple[Note, ...] | None:
    """Return the notes of a thread; None if the layout does not tell where its registers are."""
    return None if thread.cpu is None or thread.fpu is None else notes_of(REGSETS, thread)

"""MIPS64's register notes besides NT_PRSTATUS: mips64_regsets and mips_regsets in arch/mips/kernel/ptrace.c.

resume() and switch_to() save the FPU of a task that owns it, and the DSP's registers, so that ``thread_struct`` is
current while the task is off the CPU.
"""

from __future__ import annotations

import numpy as np

from vmcore2core.arch.task import ThreadStruct
from vmcore2core.elf.notes import Note
from vmcore2core.formats import elf_core
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView

LAYOUT_KEYS = (
    "OFFSET(task_struct.thread.fpu)",
    "OFFSET(task_struct.thread.dsp)",
    "OFFSET(task_struct.flags)",
    "OFFSET(cpuinfo_mips.fpu_id)",
    "SYMBOL(cpu_data)",
)


class Regsets:
    """The notes of one task that is off the CPU.

    Args:
        task: ``struct task_struct *``.
        flags: its ``thread_info.flags``.
        narrow: whether its process is of o32, whose DSP registers have 32 bits.
        kernel: the dumped one.
        byte_order: of the kernel.
    """

    def __init__(self, task: int, flags: int, kernel: KernelView, byte_order: ByteOrder, *, narrow: bool) -> None:
        self.task, self.flags, self.narrow, self.kernel, self.layout = task, flags, narrow, kernel, kernel.layout
        self.byte_order: ByteOrder = byte_order
        self.order = "<" if byte_order == "little" else ">"
        self.thread = ThreadStruct(task, kernel)

    def notes(self) -> tuple[Note, ...] | None:
        """Return them in the kernel's order, None where the layout does not tell where they are.

        Raises:
            MemoryFault: as ``Cores.regsets``.
        """
        cpu = self._cpuinfo()
        found = self.layout.find_member("task_struct", "thread.fpu")
        widths = {fmt.mips_fpu_struct(self.order, width).itemsize: width for width in (8, fmt.MSA_REG_SIZE)}
        width = widths.get(found.size or 0) if found is not None else None
        if cpu is None or found is None or width is None:
            return None
        declared = fmt.mips_fpu_struct(self.order, width)
        fpu = np.frombuffer(self.kernel.memory.read(self.task + found.offset, declared.itemsize), declared)[0]
        fcr31, fir = (self._u32(int(value)) for value in (fpu["fcr31"], cpu["fpu_id"]))
        scalars = fpu["fpr"][:, :8].tobytes() + fcr31 + fir
        mode = (0 if self._has(fmt.TIF_32BIT_FPREGS) else fmt.PR_FP_MODE_FR) | (
            fmt.PR_FP_MODE_FRE if self._has(fmt.TIF_HYBRID_FPREGS) else 0
        )
        return (
            *self._dsp(cpu),
            Note(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, scalars),
            Note(elf_core.NOTE_LINUX, fmt.NT_MIPS_FP_MODE, self._u32(mode)),
            *(self._msa(fpu, fir + fcr31 + self._u32(int(cpu["msa_id"]))) if width == fmt.MSA_REG_SIZE else ()),
        )

    def _has(self, flag: int) -> bool:
        return bool(self.flags >> flag & 1)

    def _u32(self, value: int) -> bytes:
        return value.to_bytes(4, self.byte_order)

    def _cpuinfo(self) -> np.void | None:
        """Return ``boot_cpu_data`` as far as it is needed."""
        cpu_data, fpu_id = self.layout.find_symbol("cpu_data"), self.layout.find_member("cpuinfo_mips", "fpu_id")
        if cpu_data is None or fpu_id is None:
            return None
        declared = fmt.cpuinfo_mips(self.order)
        raw = self.kernel.memory.read(cpu_data + fpu_id.offset - fmt.CPUINFO_FPU_ID, declared.itemsize)
        record: np.void = np.frombuffer(raw, declared)[0]
        return record

    def _dsp(self, cpu: np.void) -> tuple[Note, ...]:
        """Return NT_MIPS_DSP: dsp32_get(), dsp64_get(); dsp_active() wants a processor that has it."""
        declared = fmt.mips_dsp_state(self.order)
        raw = self.thread.raw("dsp", declared.itemsize) if int(cpu["ases"]) & fmt.MIPS_ASE_DSP else None
        if raw is None:
            return ()
        state = np.frombuffer(raw, declared)[0]
        values = np.array([*state["dspr"].tolist(), int(state["dspcontrol"])], np.uint64)
        narrowed = values.astype(np.uint32) if self.narrow else values
        return (
            Note(
                elf_core.NOTE_LINUX,
                fmt.NT_MIPS_DSP,
                narrowed.astype(narrowed.dtype.newbyteorder("<" if self.byte_order == "little" else ">")).tobytes(),
            ),
        )

    def _msa(self, fpu: np.void, control: bytes) -> tuple[Note, ...]:
        """Return NT_MIPS_MSA: msa_get(); what a task has not used of its registers is all ones."""
        flags = self.layout.find_member("task_struct", "flags")
        if flags is None:
            return ()
        task_flags = self.kernel.uint(self.task + flags.offset, 4)
        used = 0
        if task_flags & fmt.PF_USED_MATH:
            used = fmt.MSA_REG_SIZE if self._has(fmt.TIF_MSA_CTX_LIVE) else 8
        registers = np.full((fmt.NUM_FPU_REGS, fmt.MSA_REG_SIZE), 0xFF, np.uint8)
        registers[:, :used] = fpu["fpr"][:, :used]
        body = registers.tobytes() + control + self._u32(int(fpu["msacsr"]))
        return (Note(elf_core.NOTE_LINUX, fmt.NT_MIPS_MSA, body),)

"""32-bit ARM: the register notes other than NT_PRSTATUS.

References: arch/arm/kernel/ptrace.c: arm_regsets[], fpa_get(), vfp_get(); arch/arm/vfp/vfpmodule.c:
vfp_state_in_hw(), vfp_notifier(); arch/arm/include/asm/{thread_info,fpstate}.h (Linux 4.18 to 6.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmcore2core.arch.regsets import RegisterSet, notes_of
from vmcore2core.arch.spec import keys_of
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats import arm as fmt
from vmcore2core.formats import elf_core
from vmcore2core.interfaces import KernelView

WORD = 4
LAYOUT_KEYS = keys_of(
    {
        "task_struct": "thread_info.cpu thread_info.fpstate thread_info.vfpstate",
        "thread_info": "cpu fpstate vfpstate",
        "vfp_hard_struct": "fpregs fpscr cpu",
    },
    symbols="vfp_current_hw_state vfp_sync_hwstate",
)


def user_vfp(fpregs: bytes, fpscr: int) -> bytes:
    """Return ``struct user_vfp``, the descriptor of NT_ARM_VFP.

    Args:
        fpregs: d0 to d15 or d31, 8 bytes each; the note has 32.
        fpscr: status and control.
    """
    made = np.zeros(1, fmt.user_vfp)
    count = min(len(fpregs) // 8, fmt.VFP_REGS)
    made["fpregs"][0, :count] = np.frombuffer(fpregs, "<u8", count)
    made["fpscr"] = fpscr
    return made.tobytes()


@dataclass(frozen=True)
class Thread:
    """``struct thread_info`` of a task of a 32-bit kernel."""

    task: int
    kernel: KernelView

    def _thread_info(self, member: str) -> int | None:
        """Return the address of a member.

        Since Linux kernel commit 18ed1c01a7dd ("ARM: smp: Enable THREAD_INFO_IN_TASK") (in v5.16), thread_info is in
        the task_struct. Before that, or if that is not enabled, it is at the lowest address of the kernel stack.
        """
        inside = self.kernel.layout.find_member("task_struct", f"thread_info.{member}")
        if inside is not None:
            return self.task + inside.offset
        found = self.kernel.layout.find_member("thread_info", member)
        stack = self.kernel.layout.find_member("task_struct", "stack")
        return None if found is None or stack is None else self._uint(self.task + stack.offset) + found.offset

    def _uint(self, address: int) -> int:
        return self.kernel.uint(address, WORD)

    def fpa(self) -> bytes | None:
        """Return NT_FPREGSET: fpa_get()."""
        address = self._thread_info("fpstate")
        return None if address is None else self.kernel.memory.read(address, fmt.USER_FP_SIZE)

    def vfp(self) -> bytes | None:
        """Return NT_ARM_VFP: vfp_get()."""
        address = self._thread_info("vfpstate")
        fpregs, fpscr = (self.kernel.layout.find_member("vfp_hard_struct", name) for name in ("fpregs", "fpscr"))
        if address is None or fpregs is None or fpscr is None:
            return None
        # A VFP with 16 registers needs half the room.
        size = fpregs.size or min(fpscr.offset - fpregs.offset, 8 * fmt.VFP_REGS) & ~0x7F
        registers = self.kernel.memory.read(address + fpregs.offset, min(size, 8 * fmt.VFP_REGS))
        return user_vfp(registers, self._uint(address + fpscr.offset))

    @property
    def has_vfp(self) -> bool:
        """Whether the kernel has CONFIG_VFP."""
        return any(
            self.kernel.layout.find_symbol(name) is not None for name in ("vfp_current_hw_state", "vfp_sync_hwstate")
        )

    def in_processor(self) -> bool | None:
        """Tell whether the newest VFP registers are in a processor: vfp_state_in_hw(); None if that is not known."""
        owners, state = self.kernel.layout.find_symbol("vfp_current_hw_state"), self._thread_info("vfpstate")
        if owners is None or state is None:
            return None
        last = self.kernel.layout.find_member("vfp_hard_struct", "cpu")
        if last is None:  # one CPU without CONFIG_SMP
            return self._uint(owners) == state
        running = self._thread_info("cpu")
        if running is None:
            return None
        cpu = self._uint(running)
        return self._uint(state + last.offset) == cpu and self._uint(owners + WORD * cpu) == state

    def saved(self) -> tuple[Note, ...] | None:
        """Return the notes as memory has them; None if the layout does not know where they are."""
        table = REGSETS if self.has_vfp else REGSETS[:1]
        notes = notes_of(table, self)
        return notes if len(notes) == len(table) else None

    def notes(self) -> tuple[Note, ...] | None:
        """Return the notes of a thread that is off the CPU.

        Raises:
            LayoutInvalid: the processor still had its registers.
        """
        # With CONFIG_SMP the kernel saves them when a thread leaves its CPU, else when another thread needs the VFP.
        if (
            self.has_vfp
            and self.kernel.layout.find_member("vfp_hard_struct", "cpu") is None
            and self.in_processor()
            in (
                None,
                True,
            )
        ):
            raise LayoutInvalid("they may be in the processor: this kernel, without CONFIG_SMP, saves them late")
        return self.saved()

    def live(self, of_cpu: tuple[Note, ...], *, user_mode: bool) -> tuple[Note, ...]:
        """Return the notes of a thread that was on a CPU; none if its registers were lost with the processor.

        After it comes to a CPU, a thread gets the VFP at its first use. Until then, its registers are in memory, and
        the processor has another thread's.

        Args:
            of_cpu: the CPU's notes besides NT_PRSTATUS.
            user_mode: whether the CPU was executing user code: the kernel may have been loading registers.
        """
        owner = self.in_processor() if self.has_vfp else False
        if owner is False:
            return self.saved() or ()
        fpa = notes_of(REGSETS, self, (elf_core.NT_FPREGSET,))
        return (*fpa, *of_cpu) if owner and user_mode and of_cpu and fpa else ()


REGSETS: tuple[RegisterSet[Thread], ...] = (
    RegisterSet(elf_core.NT_FPREGSET, Thread.fpa, elf_core.NOTE_CORE),
    RegisterSet(fmt.NT_ARM_VFP, Thread.vfp),
)
"""arm_regsets[]; kernels without CONFIG_VFP lack the second."""

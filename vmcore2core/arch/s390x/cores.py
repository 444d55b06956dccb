"""s390x: the kind of a process's core, and its notes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.parts import Cores
from vmcore2core.arch.s390x.registers import S390xRegisters
from vmcore2core.arch.s390x.regsets import Thread, saved_regsets
from vmcore2core.arch.spec import CoreMachine
from vmcore2core.elf.notes import Note
from vmcore2core.formats import s390x as fmt
from vmcore2core.formats.elf import EM_S390
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class S390xCores(Cores):
    """The kind and the notes of s390x cores."""

    def __init__(self, registers: S390xRegisters) -> None:
        self.registers = registers

    @override
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A 31-bit process runs with EA clear in the PSW, and has 2 GiB."""
        small = task_size <= fmt.TASK_SIZE_31 if task_size is not None else not regs.get("pswm", -1) & fmt.PSW_MASK_EA
        if small:
            return CoreMachine(EM_S390, 32, self.registers.names, "a 31-bit process, which is not supported")
        return CoreMachine(EM_S390, 64, self.registers.names)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        """Follows s390_regsets in arch/s390/kernel/ptrace.c.

        thread.system_call is only set when a signal is delivered: until then it is from an earlier signal, maybe of the
        thread that forked this one. NT_S390_SYSTEM_CALL gets what arch_do_signal_or_restart() would put there.
        """
        frame = self.registers.frame_of(task, kernel)
        if frame is None:
            return None
        address, saved = frame
        flags = kernel.layout.find_member("pt_regs", "flags")
        if flags is None:
            system_call = None
        else:
            inside = kernel.uint(address + flags.offset, 8) & fmt.PIF_SYSCALL
            system_call = saved["int_code"] if inside else 0
        return saved_regsets(Thread(task, kernel, saved["int_code"], system_call))

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Access registers have four bytes."""
        record = np.zeros(1, fmt.s390_regs)
        for name in self.registers.names:
            record[name] = regs.get(name, 0)
        return record.tobytes()

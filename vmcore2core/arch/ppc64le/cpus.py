"""POWER: the registers of the CPUs, from a dump's notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.capabilities import CpuNumbers
from vmcore2core.arch.parts import Cpus
from vmcore2core.arch.ppc64le.registers import gregs_of
from vmcore2core.arch.ppc64le.regsets import LOST, Thread, live_regsets, qemu_regsets
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.interfaces import ByteOrder, KernelView
from vmcore2core.overrides import override

NR_CPUS_MAX = 1 << 14


def _byte_order(prstatus: Sequence[bytes]) -> ByteOrder:
    """Return the byte order of NT_PRSTATUS descriptors: the one in which MSR says "64 bits"."""
    for desc in prstatus:
        found: list[ByteOrder] = []
        orders: tuple[ByteOrder, ByteOrder] = ("little", "big")
        for order in orders:
            msr = gregs_of(desc[fmt.PRSTATUS_REGS :], order, ("msr",))["msr"]
            if msr & fmt.MSR_SF:  # in the wrong order, MSR_NEVER stands there
                found.append(order)
        if len(found) == 1:
            return found[0]
    return "little"


class Ppc64leCpus(Cpus):
    """POWER's CPU notes in a dump."""

    @override
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """QEMU's notes may have another byte order than the kernel.

        QEMU writes headers and registers in the byte order in which its first CPU takes interrupts. That may be
        big-endian although the kernel is little-endian; MSR tells. QEMU's NT_PRSTATUS has no pr_pid and nothing that is
        not a register, such as trap. Further notes follow it, unlike kdump's.
        """
        cpus = self.by_cpu(notes, ("CORE", ""), fmt.PRSTATUS_SIZE)
        order = _byte_order([desc for desc, _ in cpus])
        return tuple(self._cpu_note(number, desc, more, order) for number, (desc, more) in enumerate(cpus))

    def _cpu_note(self, number: int, desc: bytes, more: Mapping[int, bytes], order: ByteOrder) -> CpuNote:
        by_qemu = fmt.NT_PPC_VMX in more
        pid = number + 1 if by_qemu else int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], order)
        regs = gregs_of(desc[fmt.PRSTATUS_REGS :], order, fmt.QEMU_GREGS if by_qemu else fmt.PT_REGS)
        user_mode = bool(regs["msr"] & fmt.MSR_PR)
        if user_mode:
            regs["softe"] = fmt.SOFTE_USER
        return CpuNote(number, pid, regs, user_mode, qemu_regsets(more, order) if by_qemu else ())

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[Note, ...], str | None]:
        """A CPU in the kernel still has the thread's registers if the thread's MSR says so."""
        msr = regs.get("msr", fmt.MSR_FP | fmt.MSR_VEC)
        return live_regsets(Thread(task, kernel), msr, note.regsets), LOST


class Ppc64leCpuNumbers(CpuNumbers):
    """How the CPUs of POWER are numbered in notes."""

    @override
    def number(self, cpu: int, kernel: KernelView) -> int:
        """Any CPU may boot as CPU 0; paca_struct has the hardware's number.

        Follows smp_setup_cpu_maps() in arch/powerpc/kernel/setup-common.c.
        """
        layout = kernel.layout
        table, found = layout.find_symbol("paca_ptrs"), layout.find_member("paca_struct", "hw_cpu_id")
        count = layout.find_symbol("nr_cpu_ids")
        if table is None or found is None or count is None:
            return cpu
        size = min(kernel.uint(count, 4), NR_CPUS_MAX)
        if not cpu < size:
            return cpu
        pacas = np.frombuffer(kernel.memory.read(kernel.uint(table, 8), 8 * size), "<u8").tolist()
        numbers = [kernel.uint(paca + found.offset, 2) if paca else None for paca in pacas]
        own = numbers[cpu]
        if own is None or own == fmt.HW_CPU_ID_NONE:
            return cpu
        return sum(1 for number in numbers if number is not None and number < own)

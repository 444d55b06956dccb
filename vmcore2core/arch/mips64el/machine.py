"""MIPS64, little-endian (Debian's port mips64el): ``mips64`` in the other byte order."""

from __future__ import annotations

from vmcore2core.arch.mips64.cores import Mips64Cores
from vmcore2core.arch.mips64.cpus import Mips64Cpus
from vmcore2core.arch.mips64.machine import Mips64
from vmcore2core.arch.mips64.paging import Mips64Paging
from vmcore2core.arch.mips64.registers import Mips64Registers
from vmcore2core.arch.mips64.unwind import Mips64Unwind
from vmcore2core.arch.spec import ArchDoc
from vmcore2core.interfaces import ByteOrder


class Mips64el(Mips64):
    """MIPS, 64 bits, little-endian."""

    DOC = ArchDoc(
        page_tables="4, 8, 16, 32 and 64 KiB pages; two to four levels",
        tested="Debian's 6.1 (5kc-malta), 4 KiB pages, three levels, n64, n32 and o32; a 7.2 for malta with the task "
        "and VMA export alone",
        limitations=(
            "Debian's kernel has no BTF: --vmlinux is needed",
            "$s0 to $s7 and $fp of a thread whose system call a page fault or a preemption interrupted",
            "kdump files were not tried: Debian's kernels for MIPS write none (no CONFIG_CRASH_DUMP)",
            "swapped pages, 16 and 64 KiB pages, and two and four levels were not compared with a kernel's core",
            "pages of files that were not mapped in, with CONFIG_SPARSEMEM (loongson-3, octeon)",
            "signal frames of microMIPS and MIPS release 6 programs",
        ),
    )

    name = "mips64el"
    byte_order: ByteOrder = "little"
    machine_names = ("mips64",)
    registers = Mips64Registers(byte_order)
    paging = Mips64Paging(registers)
    cpus = Mips64Cpus(registers)
    cores = Mips64Cores(registers)
    unwind = Mips64Unwind(byte_order)


ARCH = Mips64el()

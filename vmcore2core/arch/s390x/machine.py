"""s390x: IBM Z, 64 bits, the one big-endian architecture here.

References: arch/s390/include/asm/{pgtable,processor,ptrace,thread_info,page}.h,
arch/s390/kernel/{ptrace,process,setup,signal,vmcore_info,crash_dump}.c, arch/s390/boot/startup.c (Linux 7.2); QEMU's
target/s390x/arch_dump.c (10.0).
"""

from __future__ import annotations

from vmcore2core.arch.base import Arch
from vmcore2core.arch.s390x.cores import S390xCores
from vmcore2core.arch.s390x.cpus import S390xCpuNumbers, S390xCpus
from vmcore2core.arch.s390x.kernel_stack import S390xKernelStacks
from vmcore2core.arch.s390x.paging import S390xPaging, S390xSwapEntries
from vmcore2core.arch.s390x.registers import S390xRegisters
from vmcore2core.arch.s390x.regsets import LAYOUT_KEYS
from vmcore2core.arch.s390x.unwind import S390xUnwind
from vmcore2core.arch.spec import ArchDoc, LayoutKeys, keys_of
from vmcore2core.formats import s390x as fmt
from vmcore2core.formats.elf import EM_S390
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override


class S390x(Arch):
    """IBM Z."""

    DOC = ArchDoc(
        page_tables="three to five levels; 1 MiB and 2 GiB pages",
        tested="Debian's 7.2, three levels",
        limitations=("31-bit processes", "floating-point registers before Linux 6.9"),
    )
    name = "s390x"
    e_machine = EM_S390
    byte_order: ByteOrder = "big"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    layout_keys = (
        *LAYOUT_KEYS,
        *keys_of(
            {
                "pt_regs": "flags gprs int_code psw",
                "stack_frame": "back_chain gprs",
                "task_struct": "thread.ksp",
            },
            symbols="lowcore_ptr vmemmap",
            numbers="lowcore_ptr",
        ),
    )
    registers = S390xRegisters()
    paging = S390xPaging()
    swap_entries = S390xSwapEntries()
    cpus = S390xCpus(registers)
    cpu_numbers = S390xCpuNumbers()
    cores = S390xCores(registers)
    unwind = S390xUnwind()
    kernel_stacks = S390xKernelStacks()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """This is in arch/s390/kernel/vmcore_info.c (older: machine_kexec.c) only."""
        return vmcoreinfo.symbol("lowcore_ptr") is not None


ARCH = S390x()

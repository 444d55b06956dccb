"""loongarch64: one direct-mapped window has the linear mapping and the kernel image; page tables map the rest.

References: arch/loongarch/include/asm/{addrspace,pgtable,processor,ptrace}.h, arch/loongarch/kernel/{process,ptrace,
signal}.c (Linux 7.2). There is no arch_crash_save_vmcoreinfo(): VMCOREINFO has only the keys that all machines share.
"""

from __future__ import annotations

from vmcore2core.arch.base import Arch
from vmcore2core.arch.loongarch64.cores import Loongarch64Cores
from vmcore2core.arch.loongarch64.cpus import Loongarch64CpuNumbers, Loongarch64Cpus
from vmcore2core.arch.loongarch64.paging import INVALID_TABLES, LINEAR_END, Loongarch64Paging, Loongarch64SwapEntries
from vmcore2core.arch.loongarch64.registers import Loongarch64Registers
from vmcore2core.arch.loongarch64.regsets import LAYOUT_KEYS
from vmcore2core.arch.loongarch64.unwind import Loongarch64Unwind
from vmcore2core.arch.spec import ArchDoc, LayoutKeys
from vmcore2core.arch.task import STACK_KEYS
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.formats.elf import EM_LOONGARCH
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override


class Loongarch64(Arch):
    """LoongArch, 64 bits."""

    DOC = ArchDoc(
        page_tables="4, 16 and 64 KiB pages; two to four levels",
        tested="Debian's 7.2, 16 KiB pages, three levels",
        limitations=(
            "NT_LOONGARCH_CPUCFG; the program counter of a thread that QEMU dumped in user mode, which its notes lack",
            "Debian's kernel has no BTF: --vmlinux is needed",
            "swapped pages and huge pages were not compared with a kernel's core",
            "vmalloc and vmemmap of kernels with more or less than three levels (64 KiB pages: two)",
        ),
    )
    name = "loongarch64"
    e_machine = EM_LOONGARCH
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    layout_keys = (
        *STACK_KEYS,
        *(f"SYMBOL({name})" for name in INVALID_TABLES),
        "SYMBOL(__cpu_logical_map)",
        *LAYOUT_KEYS,
    )
    registers = Loongarch64Registers()
    paging = Loongarch64Paging()
    swap_entries = Loongarch64SwapEntries()
    cpus = Loongarch64Cpus(registers)
    cpu_numbers = Loongarch64CpuNumbers()
    cores = Loongarch64Cores(registers)
    unwind = Loongarch64Unwind()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """No other kernel's image is in this window."""
        pgd = vmcoreinfo.symbol("swapper_pg_dir")
        return pgd is not None and fmt.CACHE_BASE <= pgd < LINEAR_END


ARCH = Loongarch64()

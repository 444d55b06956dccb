"""arm64, and the 32-bit processes that run on its kernels.

References: arch/arm64/include/asm/{pgtable,pgtable-hwdef,processor,ptrace,thread_info,memory}.h,
arch/arm64/kernel/{ptrace,process,signal,vmcore_info}.c (Linux 7.2).
"""

from __future__ import annotations

from vmcore2core.arch.arm64 import paging, regsets
from vmcore2core.arch.arm64.cores import Arm64Cores
from vmcore2core.arch.arm64.cpus import Arm64Cpus
from vmcore2core.arch.arm64.kernel_stack import Arm64KernelStacks
from vmcore2core.arch.arm64.paging import Arm64Paging, Arm64SwapEntries
from vmcore2core.arch.arm64.registers import Arm64Registers
from vmcore2core.arch.arm64.tags import Arm64Tags
from vmcore2core.arch.arm64.unwind import Arm64Unwind
from vmcore2core.arch.arm64.vdso import Arm64Vdso
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import ArchDoc, LayoutKeys, keys_of
from vmcore2core.arch.task import STACK_KEYS
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats.elf import EM_AARCH64
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override


class Arm64(Arch):
    """AArch64, little-endian."""

    DOC = ArchDoc(
        page_tables="4, 16 and 64 KiB pages; 36 to 52 bits of an address",
        tested="Debian's 7.2, 4 and 16 KiB pages, 52 bits; 6.1, 4 KiB, 48 bits; 32-bit processes too, with 4 KiB",
        limitations=(
            "stacks of 32-bit processes (bt, --redact stacks)",
            "MTE tags, except those of swapped pages: they are apart from memory (a saved QEMU machine has them)",
            "Debian's 6.1 has no data symbols in kallsyms: --vmlinux is needed",
            "64 KiB pages, and swapped pages before Linux 5.19, were not compared with a kernel's core",
        ),
    )
    name = "aarch64"
    e_machine = EM_AARCH64
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    layout_keys = (
        *STACK_KEYS,
        *paging.LAYOUT_KEYS,
        *regsets.LAYOUT_KEYS,
        *keys_of(
            {
                "pt_regs": "syscallno pc regs sp stackframe",
                "frame_record_meta": "type",
                "task_struct": "thread.cpu_context.fp thread.cpu_context.pc thread.cpu_context.sp",
            },
            symbols="vdso_start vdso32_start vmemmap",
            numbers="VMEMMAP_START PHYS_OFFSET TCR_EL1_T1SZ VA_BITS PAGESIZE",
        ),
    )
    registers = Arm64Registers()
    paging = Arm64Paging()
    swap_entries = Arm64SwapEntries()
    tags = Arm64Tags()
    cpus = Arm64Cpus(registers)
    cores = Arm64Cores(registers)
    unwind = Arm64Unwind()
    kernel_stacks = Arm64KernelStacks()
    vdso = Arm64Vdso()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These keys are in arch/arm64/kernel/vmcore_info.c only."""
        return any(vmcoreinfo.number(key) is not None for key in ("kimage_voffset", "TCR_EL1_T1SZ"))


ARCH = Arm64()

"""i386: 32-bit x86 kernels, with and without PAE.

References: arch/x86/include/asm/{page_32_types,processor,ptrace,elf}.h, arch/x86/kernel/{ptrace,process_32}.c,
arch/x86/kernel/vmcore_info_32.c (Linux 6.1 to 7.2).
"""

from __future__ import annotations

from vmcore2core.arch.base import Arch
from vmcore2core.arch.i386.cores import I386Cores
from vmcore2core.arch.i386.cpus import I386Cpus
from vmcore2core.arch.i386.paging import I386Paging
from vmcore2core.arch.i386.registers import I386Registers
from vmcore2core.arch.i386.unwind import I386Unwind
from vmcore2core.arch.spec import ArchDoc, LayoutKeys, keys_of
from vmcore2core.arch.task import STACK_KEYS
from vmcore2core.arch.x86 import regsets as x86_regsets
from vmcore2core.arch.x86.vdso import X86Vdso
from vmcore2core.formats import i386 as fmt
from vmcore2core.formats.elf import EM_386
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override

WORD = 4


class I386(Arch):
    """i386 with page tables of two levels, or of three (CONFIG_X86_PAE)."""

    DOC = ArchDoc(
        page_tables="two levels, 4 MiB; PAE, 2 MiB",
        tested="Debian's 5.10 with PAE, 6.1 with and without: no BTF, so with the debug packages' layout",
        limitations=(
            "swapped pages",
            "pages of files that were not mapped in, with CONFIG_SPARSEMEM (NUMA)",
            "threads in virtual-8086 mode that are off the CPU",
        ),
    )
    name = "i386"
    e_machine = EM_386
    byte_order: ByteOrder = "little"
    pointer_size = WORD
    user_end = fmt.PAGE_OFFSETS[0]
    machine_names = ("i486", "i586", "i686")
    type_units = ("arch/x86/kernel/fpu/xstate.c", "arch/x86/kernel/process.c")
    layout_keys = (
        *STACK_KEYS,
        *x86_regsets.LAYOUT_KEYS,
        *keys_of(
            {
                "task_struct": "thread.gs",
                "mm_struct": "context.vdso_image",
                "vdso_image": "data",
            },
            sizes="stack_canary",
        ),
    )
    registers = I386Registers()
    paging = I386Paging()
    cpus = I386Cpus(registers)
    cores = I386Cores(registers)
    unwind = I386Unwind()
    vdso = X86Vdso(pointer_size)

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """CONFIG_X86_PAE is the only key that arch_crash_save_vmcoreinfo() of i386 writes without NUMA."""
        return vmcoreinfo.string("CONFIG_X86_PAE") == "y"


ARCH = I386()

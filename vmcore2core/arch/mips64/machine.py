"""MIPS64: segments without page tables have the linear mapping and the kernel image; page tables map the rest.

References: arch/mips/include/asm/{addrspace,mach-generic/spaces,pgtable-64,processor,ptrace,stackframe,thread_info}.h,
arch/mips/kernel/{process,ptrace,entry,scall64-n64,vdso}.[cS] (Linux 6.1). There is no arch_crash_save_vmcoreinfo():
VMCOREINFO has only the keys that all machines share, unless the kernel has the export's keys for MIPS.
"""

from __future__ import annotations

from types import MappingProxyType

from vmcore2core.arch.base import Arch
from vmcore2core.arch.mips64 import paging, saved
from vmcore2core.arch.mips64.cores import Mips64Cores
from vmcore2core.arch.mips64.cpus import Mips64Cpus
from vmcore2core.arch.mips64.paging import Mips64Paging, Mips64SwapEntries
from vmcore2core.arch.mips64.registers import Mips64Registers
from vmcore2core.arch.mips64.regsets import LAYOUT_KEYS
from vmcore2core.arch.mips64.unwind import Mips64Unwind
from vmcore2core.arch.mips64.vdso import VDSO_IMAGES, Mips64Vdso
from vmcore2core.arch.spec import ArchDoc, LayoutKeys
from vmcore2core.arch.task import STACK_KEYS
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override

OTHERS_KEYS = ("phys_base", "va_kernel_pa_offset", "kimage_voffset", "VA_BITS", "phys_ram_base")
"""NUMBERs that only other architectures write; some of their kernels are at addresses like these."""
OWN_KEYS = ("_PFN_MASK", "_PAGE_VALID", "_PAGE_GLOBAL")


class Mips64(Arch):
    """MIPS, 64 bits, of one byte order."""

    DOC = ArchDoc(
        page_tables="4, 8, 16, 32 and 64 KiB pages; two to four levels",
        tested="only built samples: no distribution has a big-endian kernel any more",
        limitations=("as mips64el",),
    )
    name = "mips64"
    e_machine = fmt.EM_MIPS
    byte_order: ByteOrder = "big"
    both_orders = True
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    exported_abi = MappingProxyType(
        {
            "OFFSET(rt_sigframe.rs_uc)": fmt.RT_SIGFRAME_UC_64,
            "OFFSET(ucontext.uc_mcontext)": fmt.RT_SIGFRAME_MCONTEXT_64 - fmt.RT_SIGFRAME_UC_64,
            "OFFSET(sigcontext.sc_regs)": 0,
            "NUMBER(__NR_rt_sigreturn)": fmt.NR_N64_RT_SIGRETURN,
            "NUMBER(_PAGE_PRESENT)": fmt.PAGE_PRESENT,
        }
    )
    layout_keys = (
        *("NUMBER(PAGESIZE)", "NUMBER(CONFIG_PGTABLE_LEVELS)"),
        *STACK_KEYS,
        "SIZE(pt_regs)",
        "SYMBOL(mem_map)",
        *(f"SYMBOL({name})" for name in VDSO_IMAGES.values()),
        *paging.LAYOUT_KEYS,
        *saved.LAYOUT_KEYS,
        *LAYOUT_KEYS,
    )
    registers = Mips64Registers(byte_order)
    paging = Mips64Paging(registers)
    swap_entries = Mips64SwapEntries()
    cpus = Mips64Cpus(registers)
    cores = Mips64Cores(registers)
    unwind = Mips64Unwind(byte_order)
    vdso = Mips64Vdso()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """x86-64 and riscv64 have their images at such addresses, too, but also keys of their own."""
        if any(vmcoreinfo.number(key) is not None for key in OWN_KEYS):
            return True
        pgd = vmcoreinfo.symbol("swapper_pg_dir")
        if pgd is None or not fmt.CKSEG0 <= pgd < fmt.CKSEG1 or vmcoreinfo.symbol("init_top_pgt") is not None:
            return False
        return all(vmcoreinfo.number(key) is None for key in OTHERS_KEYS)


ARCH = Mips64()

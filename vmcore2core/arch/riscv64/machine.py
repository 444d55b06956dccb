"""riscv64 with Sv39, Sv48 or Sv57 page tables.

References: arch/riscv/include/asm/{pgtable,pgtable-64,pgtable-bits,processor,ptrace,switch_to,vector}.h,
arch/riscv/kernel/{ptrace,process,vmcore_info}.c, arch/riscv/mm/init.c (Linux 7.2).
"""

from __future__ import annotations

from types import MappingProxyType

from vmcore2core.arch.base import Arch
from vmcore2core.arch.riscv64.cores import Riscv64Cores
from vmcore2core.arch.riscv64.cpus import Riscv64CpuNumbers, Riscv64Cpus
from vmcore2core.arch.riscv64.kernel_stack import Riscv64KernelStacks
from vmcore2core.arch.riscv64.paging import Riscv64Paging, Riscv64SwapEntries
from vmcore2core.arch.riscv64.registers import Riscv64Registers
from vmcore2core.arch.riscv64.unwind import Riscv64Unwind
from vmcore2core.arch.spec import ArchDoc, LayoutKeys, keys_of
from vmcore2core.arch.task import STACK_KEYS
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.formats.elf import EM_RISCV
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override


class Riscv64(Arch):
    """RISC-V, 64 bits."""

    DOC = ArchDoc(
        page_tables="Sv39, Sv48, Sv57; Svnapot, Svpbmt",
        tested="Debian's 7.2, and a 7.2 with the task and VMA export alone; Sv48",
        limitations=("rv32 processes", "NT_RISCV_USER_CFI", "swapped pages before Linux 6.3"),
    )
    name = "riscv64"
    e_machine = EM_RISCV
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    exported_abi = MappingProxyType(
        {
            "OFFSET(rt_sigframe.uc)": fmt.RT_SIGFRAME_UC,
            "OFFSET(ucontext.uc_mcontext)": fmt.RT_SIGFRAME_MCONTEXT - fmt.RT_SIGFRAME_UC,
            "OFFSET(sigcontext.sc_regs)": 0,
            "NUMBER(__NR_rt_sigreturn)": fmt.NR_RT_SIGRETURN,
            "NUMBER(_PAGE_PFN_SHIFT)": fmt.PFN_SHIFT,
        }
    )
    layout_keys = (
        *STACK_KEYS,
        *keys_of(
            {
                "task_struct": "thread.fstate thread.vstate thread.envcfg mm_cid thread.ra thread.s thread.sp",
                "__riscv_v_ext_state": "vlenb",
                "mm_struct": "context.pmlen saved_e_flags",
                "pt_regs": "cause epc orig_a0 ra s0 sp status",
            },
            symbols=(
                "__cpuid_to_hartid_map riscv_v_vsize have_user_pmlen_7 have_user_pmlen_16 vmemmap_start_pfn mem_map "
                "handle_exception ret_from_exception_end vmemmap ret_from_fork ret_from_fork_kernel_asm"
            ),
            numbers="STACK_ALIGN VMEMMAP_START phys_ram_base",
        ),
    )
    registers = Riscv64Registers()
    paging = Riscv64Paging()
    swap_entries = Riscv64SwapEntries()
    cpus = Riscv64Cpus(registers)
    cpu_numbers = Riscv64CpuNumbers()
    cores = Riscv64Cores(registers)
    unwind = Riscv64Unwind()
    kernel_stacks = Riscv64KernelStacks()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These keys are in arch/riscv/kernel/vmcore_info.c only."""
        return any(vmcoreinfo.number(key) is not None for key in ("va_kernel_pa_offset", "phys_ram_base"))


ARCH = Riscv64()

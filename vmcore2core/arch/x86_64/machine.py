"""x86-64, and the 32-bit processes that run on its kernels.

References: arch/x86/include/asm/{pgtable_64,pgtable-invert,processor,ptrace}.h, arch/x86/kernel/{ptrace,process_64}.c,
Documentation/arch/x86/x86_64/mm.rst (Linux 7.2).
"""

from __future__ import annotations

from types import MappingProxyType

from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import ArchDoc, LayoutKeys, keys_of
from vmcore2core.arch.task import STACK_KEYS
from vmcore2core.arch.x86 import regsets
from vmcore2core.arch.x86.inference import FpuInference
from vmcore2core.arch.x86.vdso import X86Vdso
from vmcore2core.arch.x86_64.cores import X86_64Cores
from vmcore2core.arch.x86_64.cpus import X86_64CpuNumbers, X86_64Cpus
from vmcore2core.arch.x86_64.gate import X86_64Gate
from vmcore2core.arch.x86_64.kernel_stack import X86_64KernelStacks
from vmcore2core.arch.x86_64.many_threads import X86_64ManyThreads
from vmcore2core.arch.x86_64.paging import X86_64Paging, X86_64SwapEntries
from vmcore2core.arch.x86_64.registers import X86_64Registers
from vmcore2core.arch.x86_64.unwind import X86_64Unwind
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.formats.elf import EM_X86_64
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override


class X86_64(Arch):
    """x86-64 with 4 or 5 page-table levels."""

    DOC = ArchDoc(
        page_tables="4 and 5 levels; 4 KiB, 2 MiB, 1 GiB",
        tested="Debian's 5.10, 6.1, 6.12, 7.2, 7.3-rc7 (6.12, 7.3 for real time too), and a 7.2 with the task and VMA "
        "export alone; 64-bit, i386 and x32; RHEL 8.1's 4.18 and 5.15.135 in a small configuration (12,244 pages "
        "of two processes against their kernel's cores, for each: 0 wrong), "
        "and 5.4.286 (5,945 pages of one process: 0 wrong)",
        limitations=(
            "no test on a real processor with shadow stacks (NT_X86_SHSTK)",
            "without BTF, as 4.18, --vmlinux is needed; vmcore-tasks info has no kernel messages before 5.10",
        ),
    )
    name = "x86_64"
    e_machine = EM_X86_64
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX_5LEVEL
    exported_abi = MappingProxyType(
        {
            "OFFSET(ucontext.uc_mcontext)": fmt.RT_SIGFRAME_MCONTEXT,
            "NUMBER(__NR_rt_sigreturn)": fmt.NR_RT_SIGRETURN,
        }
    )
    type_units = ("arch/x86/kernel/fpu/xstate.c", "arch/x86/kernel/process.c")
    layout_keys = (
        *STACK_KEYS,
        *regsets.LAYOUT_KEYS,
        *keys_of(
            {
                "task_struct": (
                    "thread.fsbase thread.gsbase thread.ds thread.es thread.fsindex thread.gsindex thread.sp"
                ),
                "inactive_task_frame": "bp ret_addr",
                "module": "arch.num_orcs arch.orc_unwind arch.orc_unwind_ip",
                "orc_entry": "bp_offset bp_reg end signal sp_offset sp_reg type",
                "mm_struct": "context.vdso_image",
                "vdso_image": "data",
            },
            symbols=(
                "__start_orc_unwind __start_orc_unwind_ip __stop_orc_unwind_ip ret_from_fork ret_from_fork_asm "
                "schedule x86_cpu_to_apicid gate_vma vsyscall_mode vmemmap vmemmap_base"
            ),
        ),
    )
    registers = X86_64Registers()
    paging = X86_64Paging()
    many_threads = X86_64ManyThreads()
    swap_entries = X86_64SwapEntries()
    cpus = X86_64Cpus()
    cpu_numbers = X86_64CpuNumbers()
    cores = X86_64Cores(registers)
    unwind = X86_64Unwind()
    kernel_stacks = X86_64KernelStacks()
    gate = X86_64Gate()
    vdso = X86Vdso(pointer_size)
    inference = FpuInference()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These two keys are in arch/x86/kernel/vmcore_info_64.c only."""
        return vmcoreinfo.symbol("init_top_pgt") is not None or vmcoreinfo.number("pgtable_l5_enabled") is not None


ARCH = X86_64()

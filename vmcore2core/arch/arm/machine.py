"""32-bit ARM kernels, with and without LPAE.

References: arch/arm/include/asm/{memory,processor,ptrace,thread_info,elf}.h, arch/arm/kernel/{ptrace,process,
machine_kexec}.c, arch/arm/vdso (Linux 6.1).
"""

from __future__ import annotations

from vmcore2core.arch.arm import regsets
from vmcore2core.arch.arm.cores import ArmCores
from vmcore2core.arch.arm.cpus import ArmCpus
from vmcore2core.arch.arm.gate import ArmGate
from vmcore2core.arch.arm.paging import ArmPaging
from vmcore2core.arch.arm.registers import ArmRegisters
from vmcore2core.arch.arm.vdso import ArmVdso
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import ArchDoc, LayoutKeys
from vmcore2core.arch.task import STACK_KEYS
from vmcore2core.formats import arm as fmt
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override

WORD = 4


class Arm(Arch):
    """Little-endian ARM with page tables of two levels, or of three (CONFIG_ARM_LPAE)."""

    DOC = ArchDoc(
        page_tables="two levels, 1 and 16 MiB; LPAE, 2 MiB",
        tested="Debian's 5.10, 6.1 with LPAE and without, 7.2: no BTF, so with the debug packages' layout",
        limitations=(
            "swapped pages",
            "big-endian kernels",
            "stacks (vmcore-tasks bt): programs have .ARM.exidx instead of .eh_frame; gdb shows them",
            "pages of files that were not mapped in, with CONFIG_SPARSEMEM, or without CONFIG_ARM_PATCH_PHYS_VIRT",
        ),
    )
    name = "arm"
    e_machine = fmt.EM_ARM
    byte_order: ByteOrder = "little"
    pointer_size = WORD
    user_end = fmt.PAGE_OFFSETS[0]
    machine_names = ("armv5tel", "armv6l", "armv7l", "armv8l")
    layout_keys = (
        "SYMBOL(mem_map)",
        "SYMBOL(__pv_phys_pfn_offset)",
        *("SYMBOL(vdso_start)", "SYMBOL(gate_vma)"),
        *STACK_KEYS,
        *regsets.LAYOUT_KEYS,
    )
    registers = ArmRegisters()
    paging = ArmPaging()
    cpus = ArmCpus(registers)
    cores = ArmCores()
    gate = ArmGate()
    vdso = ArmVdso()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """CONFIG_ARM_LPAE is the only key that arch_crash_save_vmcoreinfo() of 32-bit ARM writes."""
        return vmcoreinfo.string("CONFIG_ARM_LPAE") == "y"


ARCH = Arm()

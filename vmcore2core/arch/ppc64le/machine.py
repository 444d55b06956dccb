"""64-bit POWER servers (Book3S), little-endian, with the radix or the hash MMU.

With the hash MMU, kernel addresses that are not of the linear mapping (vmalloc, vmemmap) are not read.

References: arch/powerpc/include/asm/{ptrace,processor,reg,paca}.h, arch/powerpc/include/asm/book3s/64/pgtable.h,
arch/powerpc/kernel/{process,paca}.c, arch/powerpc/kernel/ptrace/ptrace-view.c, arch/powerpc/kexec/vmcore_info.c (Linux
7.2); QEMU's target/ppc/arch_dump.c (10.0).
"""

from __future__ import annotations

from vmcore2core.arch.base import Arch
from vmcore2core.arch.ppc64le.cores import Ppc64leCores
from vmcore2core.arch.ppc64le.cpus import Ppc64leCpuNumbers, Ppc64leCpus
from vmcore2core.arch.ppc64le.kernel_stack import Ppc64leKernelStacks
from vmcore2core.arch.ppc64le.paging import VMEMMAP_KEYS, Ppc64lePaging, Ppc64leSwapEntries
from vmcore2core.arch.ppc64le.registers import Ppc64leRegisters
from vmcore2core.arch.ppc64le.regsets import LAYOUT_KEYS
from vmcore2core.arch.ppc64le.unwind import Ppc64leUnwind
from vmcore2core.arch.spec import ArchDoc, LayoutKeys, keys_of
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.formats.elf import EM_PPC64
from vmcore2core.interfaces import ByteOrder
from vmcore2core.overrides import override


class Ppc64le(Arch):
    """64-bit POWER, little-endian."""

    DOC = ArchDoc(
        page_tables="radix and hash MMU; 4 and 64 KiB pages",
        tested="Debian's 7.2, radix and hash MMU, 4 and 64 KiB pages",
        limitations=(
            "32-bit processes",
            "notes of transactional memory",
        ),
    )
    name = "ppc64le"
    e_machine = EM_PPC64
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    layout_keys = (
        *LAYOUT_KEYS,
        *VMEMMAP_KEYS,
        *(f"SYMBOL({name})" for name in fmt.INDEX_SIZES),
        *keys_of(
            {
                "task_struct": "thread.ksp",
                "pt_regs": "gpr msr nip",
                "paca_struct": "hw_cpu_id",
            },
            symbols="vmemmap __pmd_val_bits paca_ptrs",
            numbers="RADIX_MMU",
        ),
    )
    registers = Ppc64leRegisters()
    paging = Ppc64lePaging()
    swap_entries = Ppc64leSwapEntries()
    cpus = Ppc64leCpus()
    cpu_numbers = Ppc64leCpuNumbers()
    cores = Ppc64leCores(registers)
    unwind = Ppc64leUnwind()
    kernel_stacks = Ppc64leKernelStacks()

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These keys are in arch/powerpc/kexec/vmcore_info.c only."""
        return vmcoreinfo.number("RADIX_MMU") is not None or vmcoreinfo.symbol("mmu_psize_defs") is not None


ARCH = Ppc64le()

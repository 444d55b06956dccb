"""32-bit ARM kernels, with and without LPAE.

References: arch/arm/include/asm/{memory,processor,ptrace,thread_info,elf}.h, arch/arm/kernel/{ptrace,process,
machine_kexec}.c, arch/arm/vdso (Linux 6.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr
from vmcore2core.arch.arm import paging, registers
from vmcore2core.arch.base import Arch
from vmcore2core.arch.spec import ArchDoc, CoreMachine, CoreNote, CpuNote, KernelMap, LayoutKeys, LinearMapping
from vmcore2core.arch.task import STACK_KEYS, mem_map, stack_sizes
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import arm as fmt
from vmcore2core.formats import elf_core
from vmcore2core.interfaces import ByteOrder, KernelView
from vmcore2core.overrides import override

WORD = 4
IMAGE_STEP = 2 << 20  # the kernel's mappings of itself are in steps of this
MASK_32 = 0xFFFF_FFFF


class Arm(Arch):
    """Little-endian ARM with page tables of two levels, or of three (CONFIG_ARM_LPAE)."""

    DOC = ArchDoc(
        page_tables="two levels, 1 and 16 MiB; LPAE, 2 MiB",
        tested="Debian's 5.10, 6.1 with LPAE and without, 7.2: no BTF, so with the debug packages' layout",
        limitations=(
            "swapped pages",
            "big-endian kernels",
            "stacks (vmcore-tasks bt), as programs have .ARM.exidx instead of .eh_frame; gdb shows them",
            "pages of files that were not mapped in, with CONFIG_SPARSEMEM, or without CONFIG_ARM_PATCH_PHYS_VIRT",
        ),
    )

    name = "arm"
    e_machine = fmt.EM_ARM
    byte_order: ByteOrder = "little"
    pointer_size = WORD
    user_end = fmt.PAGE_OFFSETS[0]
    greg_names = fmt.REGS
    thread_members: Mapping[str, int] = MappingProxyType({})
    machine_names = ("armv5tel", "armv6l", "armv7l", "armv8l")
    gate_name = "[vectors]"
    gate_readable = True
    # No kernel exports it, as each finds out where it was loaded.
    image_keys = ("NUMBER(__pv_offset)",)
    layout_keys = (
        "SYMBOL(mem_map)",
        "SYMBOL(__pv_phys_pfn_offset)",
        "SYMBOL(vdso_start)",
        *STACK_KEYS,
        *registers.LAYOUT_KEYS,
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """CONFIG_ARM_LPAE is all that arch_crash_save_vmcoreinfo() of 32-bit ARM has."""
        return vmcoreinfo.string("CONFIG_ARM_LPAE") == "y"

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The direct map ends where nothing tells, so that all goes through the page table.

        Raises:
            LayoutUnknown: VMCOREINFO lacks a key that this needs.
            LayoutInvalid: the kernel is at none of the addresses where one may be.
        """
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        offset = vmcoreinfo.number("__pv_offset")
        for item, value in (("SYMBOL(swapper_pg_dir)", pgd), ("SYMBOL(_stext)", stext), (self.image_keys[0], offset)):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert pgd is not None and stext is not None and offset is not None  # noqa: S101, PT018 - for mypy
        start = stext & ~(IMAGE_STEP - 1)
        if min(pgd, stext) < fmt.PAGE_OFFSETS[-1] or max(pgd, stext) > MASK_32 or min(pgd, start) + offset < 0:
            raise LayoutInvalid(
                f"SYMBOL(_stext) is {stext:#x} and SYMBOL(swapper_pg_dir) {pgd:#x}, expected both from "
                f"{max(fmt.PAGE_OFFSETS[-1], -offset):#x} to {MASK_32:#x}"
            )
        image = LinearMapping(
            AddressRange(start, min(start + fmt.KERNEL_IMAGE_SIZE, MASK_32 + 1)), PhysAddr(start + offset)
        )
        spec = paging.LPAE if vmcoreinfo.string("CONFIG_ARM_LPAE") == "y" else paging.TWO_LEVELS
        return KernelMap(spec=spec, root=PhysAddr(pgd + offset), linear=(), image=(image,))

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """__pv_offset is PHYS_OFFSET less PAGE_OFFSET."""
        yield {self.image_keys[0]: str(paddr - address)}

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """There is none; FLATMEM's array begins with the first page of memory (PHYS_OFFSET)."""
        layout = kernel.layout
        first, size = layout.find_symbol("__pv_phys_pfn_offset"), layout.find_size("page")
        array = mem_map(kernel, WORD)
        if first is None or size is None or array is None:
            return None
        return array - kernel.uint(first, WORD) * size

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/arm/include/asm/processor.h.

        In a system call, pc is behind the svc, and r0 is still the first argument. The kernel's own core has pc at
        the svc: the signal that ends a process prepares its restart (do_signal() in arch/arm/kernel/signal.c).
        """
        for size in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            try:
                raw = kernel.memory.read(
                    stack + size - fmt.THREAD_START_SP - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize
                )
            except MemoryFault:
                continue
            regs = self._regs(raw)
            if self._plausible(regs):
                return regs
        return None

    @staticmethod
    def _regs(raw: bytes) -> dict[str, int]:
        record = np.frombuffer(raw, fmt.pt_regs, 1)[0]
        return {name: int(record[name]) for name in fmt.REGS}

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this in user mode; valid_user_regs() in arch/arm/include/asm/ptrace.h.

        Code of the kernel's at the vectors (kuser helpers) runs in user mode, too.
        """
        cpsr, pc = regs["cpsr"], regs["pc"]
        return (
            cpsr & (fmt.PSR_MODE_MASK | fmt.PSR_I_BIT | fmt.PSR_F_BIT) == fmt.PSR_USR_MODE
            and pc % (2 if cpsr & fmt.PSR_T_BIT else 4) == 0
            and (0 < pc < self.user_end or 0 <= pc - fmt.GATE_START < fmt.GATE_SIZE)
            and regs["sp"] < self.user_end
        )

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """QEMU's arm_cpu_write_elf32_note() has the CPU's NT_ARM_VFP behind each.

        It leaves orig_r0 zero: in user mode, a CPU that stopped for the kernel has -1 there.
        """
        result: list[CpuNote] = []
        for at, (name, n_type, desc) in enumerate(notes):
            if name not in (elf_core.NOTE_CORE, "") or n_type != elf_core.NT_PRSTATUS or len(desc) < fmt.PRSTATUS_SIZE:
                continue
            regs = self._regs(desc[fmt.PRSTATUS_REGS :][: fmt.pt_regs.itemsize])
            if not regs["orig_r0"]:
                del regs["orig_r0"]
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            further = [
                CoreNote(*note)
                for note in notes[at + 1 : at + 2]
                if note[:2] == (elf_core.NOTE_LINUX, fmt.NT_ARM_VFP) and len(note[2]) == fmt.user_vfp.itemsize
            ]
            user_mode = regs["cpsr"] & fmt.PSR_MODE_MASK == fmt.PSR_USR_MODE
            result.append(CpuNote(len(result), pid, regs, user_mode, tuple(further)))
        return tuple(result)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        return registers.Regsets(task, kernel).notes()

    @override
    def note_regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[CoreNote, ...], str | None]:
        return registers.Regsets(task, kernel).live(note.regsets, user_mode=note.user_mode), None

    @override
    def gate_vma(self, kernel: KernelView) -> KernelAddr | None:
        """With CONFIG_KUSER_HELPERS; get_gate_vma() in arch/arm/kernel/process.c."""
        found = kernel.layout.find_symbol("gate_vma")
        return None if found is None else KernelAddr(found)

    @override
    def vdso_image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """Follows vdso_init() in arch/arm/kernel/vdso.c."""
        found = kernel.layout.find_symbol("vdso_start")
        return None if found is None else KernelAddr(found)

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """There is but one kind of process."""
        return CoreMachine(fmt.EM_ARM, 32, fmt.REGS)


ARCH = Arm()

"""i386: 32-bit x86 kernels, with and without PAE.

References: arch/x86/include/asm/{page_32_types,processor,ptrace,elf}.h, arch/x86/kernel/{ptrace,process_32}.c,
arch/x86/kernel/vmcore_info_32.c (Linux 6.1 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr
from vmcore2core.arch.base import Arch
from vmcore2core.arch.i386 import paging
from vmcore2core.arch.spec import (
    ArchDoc,
    CoreMachine,
    CoreNote,
    CpuNote,
    KernelMap,
    LayoutKeys,
    LinearMapping,
    UnwindSpec,
)
from vmcore2core.arch.task import STACK_KEYS, ThreadStruct, mem_map, stack_sizes
from vmcore2core.arch.x86 import registers as x86_registers
from vmcore2core.arch.x86 import vdso
from vmcore2core.arch.x86.cpu_notes import each_cpu
from vmcore2core.arch.x86.unwind import unwind_32
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import i386 as fmt
from vmcore2core.formats.elf import EM_386
from vmcore2core.interfaces import ByteOrder, KernelView
from vmcore2core.overrides import override

WORD = 4
IMAGE_STEP = 2 << 20  # the kernel image begins in a page of this size
_UNWIND = unwind_32(fmt.DWARF_REGS)


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
    greg_names = fmt.pt_regs.names or ()
    saved_sp = "sp"
    thread_members: Mapping[str, int] = {}
    machine_names = ("i486", "i586", "i686")
    # No kernel exports it, as PAGE_OFFSET is fixed when it is built.
    image_keys = ("NUMBER(PAGE_OFFSET)",)
    layout_keys = (
        "OFFSET(task_struct.thread.gs)",
        "SIZE(stack_canary)",
        "OFFSET(mm_struct.context.vdso_image)",
        "OFFSET(vdso_image.data)",
        *STACK_KEYS,
        *x86_registers.LAYOUT_KEYS,
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """CONFIG_X86_PAE is all that arch_crash_save_vmcoreinfo() of i386 has without NUMA."""
        return vmcoreinfo.string("CONFIG_X86_PAE") == "y"

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The direct map ends where nothing tells, so that all goes through the page table.

        Raises:
            LayoutUnknown: VMCOREINFO lacks a key that this needs.
            LayoutInvalid: the kernel is below each PAGE_OFFSET that there may be.
        """
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        if pgd is None or stext is None:
            raise LayoutUnknown(f"SYMBOL({'swapper_pg_dir' if pgd is None else '_stext'})", ("VMCOREINFO",))
        page_offset = vmcoreinfo.number("PAGE_OFFSET")
        if page_offset is None:
            page_offset = next((at for at in fmt.PAGE_OFFSETS if at <= stext), 0)
        if not 0 < page_offset <= min(pgd, stext) or max(pgd, stext) >> 32:
            raise LayoutInvalid(
                f"SYMBOL(_stext) is {stext:#x} and SYMBOL(swapper_pg_dir) {pgd:#x}, expected both from PAGE_OFFSET "
                f"{page_offset:#x} to 0xffffffff"
            )
        start = stext & ~(IMAGE_STEP - 1)
        end = min(page_offset + fmt.KERNEL_IMAGE_SIZE, 1 << 32)
        image = LinearMapping(AddressRange(start, max(start, end)), PhysAddr(start - page_offset))
        spec = paging.PAE if vmcoreinfo.string("CONFIG_X86_PAE") == "y" else paging.TWO_LEVELS
        # mm->pgd and swapper_pg_dir are the kernel's copies with page-table isolation too; the user's is at +4096.
        return KernelMap(spec=spec, root=PhysAddr(pgd - page_offset), linear=(), image=(image,))

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """PAGE_OFFSET; KASLR moves the image in the direct map, virtual and physical."""
        if address - paddr in fmt.PAGE_OFFSETS:
            yield {"NUMBER(PAGE_OFFSET)": str(address - paddr)}

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """There is none; FLATMEM's array begins with page frame 0."""
        return mem_map(kernel, WORD)

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/x86/include/asm/processor.h.

        The saved selectors tell the padding: no other word pair of a frame reads as user CS and SS.
        """
        for size in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            for padding in fmt.STACK_PADDINGS:
                try:
                    raw = kernel.memory.read(stack + size - padding - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize)
                except MemoryFault:
                    continue
                regs = self._plausible(raw)
                if regs is not None:
                    return self._with_gs(regs, ThreadStruct(task, kernel))
        return None

    @staticmethod
    def _with_gs(regs: dict[str, int], thread: ThreadStruct) -> dict[str, int]:
        """Return registers with the user's gs, or without gs where that is not known."""
        # Since Linux kernel commit 3fb0fdb3bbe7 ("x86/stackprotector/32: Make the canary into a regular percpu
        # variable") (in v5.13), the kernel does not use gs: it leaves the user's in the register, and saves it when the
        # thread leaves its CPU; on the stack, an interrupt's vector is there. Before that, with CONFIG_X86_32_LAZY_GS.
        if thread.layout.find_size("stack_canary") is not None:
            return regs
        gs = thread.uint("gs", WORD)
        others = {name: value for name, value in regs.items() if name != "gs"}
        return others if gs is None else {**others, "gs": gs & 0xFFFF}

    def _plausible(self, raw: bytes) -> dict[str, int] | None:
        record = np.frombuffer(raw, fmt.pt_regs)[0]
        regs = {name: int(record[name]) & (0xFFFF if name in fmt.SEGMENTS else 0xFFFF_FFFF) for name in self.greg_names}
        user = (
            (regs["cs"] == fmt.USER_CS or regs["cs"] & fmt.LDT_RPL_3 == fmt.LDT_RPL_3)
            and (regs["ss"] == fmt.USER_DS or regs["ss"] & fmt.LDT_RPL_3 == fmt.LDT_RPL_3)
            and regs["eflags"] & fmt.EFLAGS_FIXED
            and regs["eflags"] >> fmt.EFLAGS_BITS == 0
            and regs["eip"] < self.user_end
            and regs["esp"] < self.user_end
        )
        return regs if user else None

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """A "QEMU" note adds control registers to the NT_PRSTATUS of the same position."""
        result = []
        for number, desc, control in each_cpu(notes, fmt.PRSTATUS_SIZE):
            record = np.frombuffer(desc, fmt.pt_regs, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) & (0xFFFF if name in fmt.SEGMENTS else ~0) for name in self.greg_names}
            regs |= {name: value for name, value in control.items() if name.startswith("cr")}
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            # In virtual-8086 mode, cs is no selector.
            user_mode = regs["cs"] & 3 == 3 or bool(regs["eflags"] & fmt.EFLAGS_VM)
            result.append(CpuNote(number, pid, regs, user_mode=user_mode))
        return tuple(result)

    @override
    def note_bases(self, note: CpuNote) -> Mapping[str, int]:
        """The user's gs, unless the kernel has its own there (before Linux 5.13).

        The kernel's has privilege level 0.
        """
        gs = note.regs["gs"]
        return {"gs": gs} if gs & 3 == 3 or gs == 0 else {}

    @override
    def note_uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """With page-table isolation, bit 12 of CR3 selects the user's copy."""
        if "cr3" not in note.regs:
            return None
        root = note.regs["cr3"] & fmt.CR3_ROOT_MASK
        return pgd in (root, root & ~(1 << 12))

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        return x86_registers.regsets_of_32_bit(task, kernel)

    @override
    def process_notes(self, kernel: KernelView) -> tuple[CoreNote, ...]:
        return x86_registers.process_notes(kernel)

    @override
    def vdso_image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """The image is a ``struct vdso_image`` in arch/x86/include/asm/vdso.h."""
        return vdso.vdso_image(mm, kernel, WORD)

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """There is but one kind of process."""
        return CoreMachine(EM_386, 32, self.greg_names)

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        return _UNWIND


ARCH = I386()

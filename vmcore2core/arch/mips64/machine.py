"""MIPS64: the linear mapping and the kernel image are in segments that need no page table, the rest is in page tables.

References: arch/mips/include/asm/{addrspace,mach-generic/spaces,pgtable-64,processor,ptrace,stackframe,thread_info}.h,
arch/mips/kernel/{process,ptrace,entry,scall64-n64,vdso}.[cS] (Linux 6.1). There is no arch_crash_save_vmcoreinfo():
VMCOREINFO has only what it has everywhere, unless the kernel has the VMCOREINFO export's keys for MIPS.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U64Array
from vmcore2core.arch.base import Arch
from vmcore2core.arch.mips64 import paging, saved
from vmcore2core.arch.mips64.paging import INVALID_TABLES, find_cache_shift, page_table_spec, table_form
from vmcore2core.arch.mips64.registers import LAYOUT_KEYS, Regsets
from vmcore2core.arch.mips64.unwind import Abi, unwind_spec
from vmcore2core.arch.spec import (
    ArchDoc,
    CoreMachine,
    CoreNote,
    CpuNote,
    KernelMap,
    LayoutKeys,
    LinearMapping,
    PageTableSpec,
    UnwindSpec,
)
from vmcore2core.arch.task import STACK_KEYS, mem_map, stack_sizes
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import elf_core
from vmcore2core.formats import mips64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView, Layout
from vmcore2core.overrides import override

IMAGE_ALIGN = 64 << 10
IMAGE_MAX = 256 << 20
OTHERS_KEYS = ("phys_base", "va_kernel_pa_offset", "kimage_voffset", "VA_BITS", "phys_ram_base")
"""NUMBERs of other architectures, some of whose kernels are at addresses like these."""
OWN_KEYS = ("_PFN_MASK", "_PAGE_VALID", "_PAGE_GLOBAL")

_CKSEGS = tuple(
    LinearMapping(AddressRange(start, start + fmt.CKSEG_SIZE), PhysAddr(0)) for start in (fmt.CKSEG0, fmt.CKSEG1)
)
_XKPHYS = tuple(
    LinearMapping(AddressRange(start, start + (1 << fmt.XKPHYS_PABITS)), PhysAddr(0))
    for start in (fmt.XKPHYS | cca << fmt.XKPHYS_CCA_SHIFT for cca in range(fmt.XKPHYS_CCAS))
)
LINEAR = (*_CKSEGS, *_XKPHYS)

_MACHINES: Mapping[Abi, CoreMachine] = MappingProxyType(
    {
        "n64": CoreMachine(fmt.EM_MIPS, 64, fmt.ELF_GREGS_64),
        "n32": CoreMachine(fmt.EM_MIPS, 32, fmt.ELF_GREGS_64, e_flags=fmt.EF_MIPS_ABI2, greg_size=8, uid_size=4),
        "o32": CoreMachine(fmt.EM_MIPS, 32, fmt.ELF_GREGS_32, uid_size=4),
    }
)
_VDSO_IMAGES: Mapping[Abi, str] = MappingProxyType(
    {"n64": "vdso_image", "n32": "vdso_image_n32", "o32": "vdso_image_o32"}
)


def abi_of(machine: CoreMachine) -> Abi:
    """Return which ABI a core's machine is."""
    if machine.elf_class == 64:
        return "n64"
    return "n32" if machine.e_flags & fmt.EF_MIPS_ABI2 else "o32"


def linear_paddr(address: int) -> int | None:
    """Return the physical address of one in a segment that needs no page table, or None for others."""
    for mapping in LINEAR:
        if mapping.range.start <= address < mapping.range.end:
            return mapping.paddr + address - mapping.range.start
    return None


class Mips64(Arch):
    """MIPS, 64 bits, of one byte order."""

    DOC = ArchDoc(
        page_tables="4, 8, 16, 32 and 64 KiB pages; two to four levels",
        tested="built samples alone: no distribution has a big-endian kernel any more",
        limitations=("as mips64el",),
    )

    name = "mips64"
    e_machine = fmt.EM_MIPS
    byte_order: ByteOrder = "big"
    both_orders = True
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    greg_names = fmt.GREGS
    thread_members: Mapping[str, int] = MappingProxyType({})
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
        "OFFSET(task_struct.stack)",
        *STACK_KEYS,
        "SIZE(pt_regs)",
        "SYMBOL(mem_map)",
        *(f"SYMBOL({name})" for name in _VDSO_IMAGES.values()),
        *paging.LAYOUT_KEYS,
        *saved.LAYOUT_KEYS,
        *LAYOUT_KEYS,
    )

    @property
    def _order(self) -> str:
        return "<" if self.byte_order == "little" else ">"

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """x86-64 and riscv64 have their images at such addresses, too, and keys of their own."""
        if any(vmcoreinfo.number(key) is not None for key in OWN_KEYS):
            return True
        pgd = vmcoreinfo.symbol("swapper_pg_dir")
        if pgd is None or not fmt.CKSEG0 <= pgd < fmt.CKSEG1 or vmcoreinfo.symbol("init_top_pgt") is not None:
            return False
        return all(vmcoreinfo.number(key) is None for key in OTHERS_KEYS)

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The segments are the same in every kernel, wherever it was loaded.

        Nothing in VMCOREINFO tells how many levels the kernel's page table has: they are the fewest that there may be.
        Entries of a level do not pass for another's, so that a wrong number finds nothing, and not other memory.

        Raises:
            LayoutInvalid: the page size is none that these kernels have, or a symbol is in none of the segments.
        """
        pgd, stext = self._linear(vmcoreinfo, "swapper_pg_dir"), self._linear(vmcoreinfo, "_stext")
        page_size = vmcoreinfo.string("PAGESIZE")
        if page_size is None:
            raise LayoutUnknown("PAGESIZE", ("VMCOREINFO",))
        size = {str(size): size for size in fmt.PGTABLE_LEVELS}.get(page_size)
        if size is None:
            known = ", ".join(map(str, fmt.PGTABLE_LEVELS))
            raise LayoutInvalid(f"PAGESIZE is {page_size} in VMCOREINFO, expected one of {known}")
        start = (vmcoreinfo.symbol("_stext") or 0) & ~(IMAGE_ALIGN - 1)
        paddr = stext & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(AddressRange(start, start + min(IMAGE_MAX, fmt.CKSEG_SIZE - paddr)), PhysAddr(paddr))
        form = table_form(size, None, None, vmcoreinfo.number)
        return KernelMap(spec=page_table_spec(form, self._order), root=PhysAddr(pgd), linear=LINEAR, image=(image,))

    @staticmethod
    def _linear(vmcoreinfo: LayoutKeys, name: str) -> int:
        """Return the physical address of a symbol."""
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        paddr = linear_paddr(address)
        if paddr is None or paddr >= fmt.CKSEG_SIZE:
            raise LayoutInvalid(
                f"{name} is at {address:#x} in VMCOREINFO, expected {fmt.CKSEG0:#x} to {fmt.CKSEG1:#x} (CKSEG0) or "
                f"as low in XKPHYS; 32-bit kernels are not read"
            )
        return paddr

    @override
    def whole_map(self, kernel_map: KernelMap, kernel: KernelView) -> KernelMap:
        """The invalid tables tell how many levels there are."""
        invalid = self._invalid_tables(kernel_map, kernel)
        levels = len(invalid) + 1 if invalid else None
        form = table_form(kernel_map.spec.page_size, levels, None, kernel.layout.find_constant)
        spec = page_table_spec(form, self._order)
        return KernelMap(spec, kernel_map.root, kernel_map.linear, kernel_map.image)

    def _invalid_tables(self, kernel_map: KernelMap, kernel: KernelView) -> tuple[int, ...]:
        """Return the addresses of the tables that stand for "nothing": one for each level but the first.

        Where no symbol tells, the kernel's page table does: most of it leads to nothing.
        """
        named = [kernel.layout.find_symbol(name) for name in INVALID_TABLES]
        if any(address is not None for address in named):
            return tuple(address for address in named if address is not None)
        spec = kernel_map.spec
        found: list[int] = []
        table, size = fmt.CKSEG0 + kernel_map.root, 8 << spec.levels[0].bits
        try:
            for _ in INVALID_TABLES:
                entries, counts = np.unique(
                    np.frombuffer(kernel.memory.read(table, size), spec.entry_dtype), return_counts=True
                )
                table = int(entries[counts.argmax()])
                if 2 * counts.max() <= size // 8 or linear_paddr(table) is None or table % spec.page_size:
                    break
                found.append(table)
                size = spec.page_size
        except MemoryFault:
            return ()
        return tuple(reversed(found))

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """The invalid tables and ``mm_struct.task_size`` tell the number of levels.

        Raises:
            LayoutUnknown: nothing tells where page frame numbers are in an entry.
        """
        layout = kernel.layout
        page_size = kernel_map.spec.page_size
        if find_cache_shift(page_size, layout.find_constant) is None:
            raise LayoutUnknown("NUMBER(_CACHE_SHIFT)")
        member = layout.find_member("mm_struct", "task_size")
        task_size = None
        if member is not None:
            task_size = kernel.uint(mm + member.offset, 8)
        invalid = self._invalid_tables(kernel_map, kernel)
        form = table_form(page_size, len(invalid) + 1 if invalid else None, task_size, layout.find_constant)
        return page_table_spec(form, self._order, invalid)

    @override
    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        types = entries >> np.uint64(fmt.SWP_TYPE_SHIFT) & np.uint64(fmt.SWP_TYPE_MASK)
        return types, entries >> np.uint64(fmt.SWP_OFFSET_SHIFT)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Kernels with CONFIG_FLATMEM have an array, from physical page 0 on."""
        return mem_map(kernel, self.pointer_size)

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/mips/include/asm/processor.h.

        A system call saves some registers alone (SAVE_SOME): $s0 to $s7 and $fp are as the kernel's functions saved
        them, and are left out where those do not tell. $at, $t0 to $t3, $t8, hi and lo are older there, as they are in
        the kernel's own core.
        """
        found = self._pt_regs(stack, kernel)
        if found is None:
            return None
        address, regs = found
        if regs["cause"] & fmt.CAUSE_EXCCODE == fmt.CAUSE_SYSCALL:
            kept = saved.KernelStack(task, stack, address, kernel, self.byte_order).static_regs()
            if kept is not None:
                regs = {
                    **{name: value for name, value in regs.items() if name not in saved.STATIC_NAMES},
                    **kept,
                }
        return {**regs, "zero": 0, "k0": 0, "k1": 0}

    def _pt_regs(self, stack: int, kernel: KernelView) -> tuple[int, dict[str, int]] | None:
        """Return where ``struct pt_regs`` of user mode is, and what it has; None where there is not exactly one."""
        layout = kernel.layout
        told = layout.find_size("pt_regs")
        page_size = layout.find_constant("PAGESIZE")
        possible = fmt.THREAD_SIZES if page_size is None else (max(page_size, fmt.THREAD_SIZES[0]),)
        declared = fmt.pt_regs(self._order)
        found = []
        for top in stack_sizes(layout, possible):
            for size in fmt.PT_REGS_SIZES if told is None else (told,):
                address = stack + top - fmt.TOS_GAP - size
                try:
                    record = np.frombuffer(kernel.memory.read(address, declared.itemsize), declared)[0]
                except MemoryFault:
                    continue
                regs = {name: int(record[name]) for name in fmt.PT_REGS_FIELDS}
                if self._plausible(regs):
                    found.append((address, regs))
        # What is a frame by chance, in the wrong place, is told from the true one by nothing.
        return found[0] if len(found) == 1 else None

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this in user mode."""
        return (
            regs["status"] & fmt.STATUS_KSU == fmt.STATUS_USER
            and regs["status"] >> 32 in (0, 0xFFFF_FFFF)
            and 0 < regs["epc"] < self.user_end
            and regs["epc"] % 4 == 0
            and regs["sp"] < self.user_end
        )

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """crash_save_cpu() writes them, QEMU dumps no MIPS machine."""
        result: list[CpuNote] = []
        declared = fmt.elf_gregset(self._order)
        for name, n_type, desc in notes:
            if name in ("CORE", "") and n_type == elf_core.NT_PRSTATUS and len(desc) >= fmt.PRSTATUS_SIZE:
                record = np.frombuffer(desc, declared, 1, fmt.PRSTATUS_REGS)[0]
                regs = {name: int(record[name]) for name in fmt.GREGS}
                pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], self.byte_order)
                user_mode = regs["status"] & fmt.STATUS_KSU == fmt.STATUS_USER
                result.append(CpuNote(len(result), pid, regs, user_mode))
        return tuple(result)

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """Of a 32-bit process, ``process_machine`` tells the ABI."""
        if task_size is None or task_size > fmt.TASK_SIZE32:
            return _MACHINES["n64"]
        return CoreMachine(
            fmt.EM_MIPS, 32, fmt.ELF_GREGS_64, "a 32-bit process of n32 or o32: nothing tells which of these"
        )

    @override
    def process_machine(
        self, task: KernelAddr, regs: Mapping[str, int], task_size: int | None, kernel: KernelView
    ) -> CoreMachine:
        """thread_info's flags tell (SET_PERSONALITY2())."""
        flags = self._thread_flags(task, kernel)
        if flags is None:
            return self.core_machine(regs, task_size)
        if flags >> fmt.TIF_32BIT_REGS & 1:
            return _MACHINES["o32"]
        return _MACHINES["n32" if flags >> fmt.TIF_32BIT_ADDR & 1 else "n64"]

    def _thread_flags(self, task: int, kernel: KernelView) -> int | None:
        """Return ``thread_info.flags``; the structure is at the bottom of the stack, and begins with its task."""
        member = kernel.layout.find_member("task_struct", "stack")
        if member is None:
            return None
        stack = kernel.uint(task + member.offset, 8)
        declared = fmt.thread_info(self._order)
        record = np.frombuffer(kernel.memory.read(stack, declared.itemsize), declared)[0]
        return int(record["flags"]) if int(record["task"]) == task else None

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Follows mips_dump_regs64(), mips_dump_regs32()."""
        return super().gregs({**regs, "zero": 0, "k0": 0, "k1": 0}, machine)

    @override
    def vdso_image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """``struct mips_vdso_image`` begins with its address."""
        found = kernel.layout.find_symbol(_VDSO_IMAGES[abi_of(machine)])
        if found is None:
            return None
        return KernelAddr(kernel.uint(found, 8))

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec:
        return unwind_spec(abi_of(machine), self.byte_order)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        flags = self._thread_flags(task, kernel)
        if flags is None:
            return None
        narrow = abi_of(machine) == "o32"
        return Regsets(task, flags, kernel, self.byte_order, narrow=narrow).notes()


ARCH = Mips64()

"""loongarch64: the linear mapping and the kernel image are in one direct-mapped window, the rest in page tables.

References: arch/loongarch/include/asm/{addrspace,pgtable,processor,ptrace}.h, arch/loongarch/kernel/{process,ptrace,
signal}.c (Linux 7.2). There is no arch_crash_save_vmcoreinfo(): VMCOREINFO has only what it has everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U64Array
from vmcore2core.arch.base import Arch
from vmcore2core.arch.loongarch64.paging import page_table_spec
from vmcore2core.arch.loongarch64.registers import LAYOUT_KEYS, Regsets
from vmcore2core.arch.spec import (
    ArchDoc,
    CoreMachine,
    CoreNote,
    CpuNote,
    KernelMap,
    LayoutKeys,
    LinearMapping,
    PageTableSpec,
    SignalTrampoline,
    UnwindSpec,
)
from vmcore2core.arch.task import STACK_KEYS, stack_sizes
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import elf_core
from vmcore2core.formats import loongarch64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView, Layout
from vmcore2core.overrides import override

EM_LOONGARCH = 258
IMAGE_ALIGN = 2 << 20
IMAGE_MAX = 256 << 20
INVALID_TABLES = ("invalid_pte_table", "invalid_pmd_table", "invalid_pud_table")
LINEAR_END = fmt.CACHE_BASE + (1 << fmt.DMW_PABITS)


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call instruction: bl, or jirl that writes ra."""
    word = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    return word & fmt.CALL_BL_MASK == fmt.CALL_BL or word & fmt.CALL_JIRL_MASK == fmt.CALL_JIRL_RA


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("csr_era"),
    stack_pointer=fmt.DWARF_REGS.index("sp"),
    frame_pointer=fmt.DWARF_REGS.index("fp"),
    preserved=frozenset(
        i for i, name in enumerate(fmt.GPRS) if name in ("tp", "u0", "fp") or (name[0] == "s" and name != "sp")
    ),
    trampolines=tuple(
        SignalTrampoline(
            fmt.RT_SIGRETURN,
            entry,
            fmt.RT_SIGFRAME_MCONTEXT,
            None,
            fmt.sigcontext,
            {"csr_era": "sc_pc", **{name: name for name in fmt.GPRS}},
        )
        for entry in (0, 4)
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("ra"),
    frame_record=-16,
)


class Loongarch64(Arch):
    """LoongArch, 64 bits."""

    DOC = ArchDoc(
        page_tables="4, 16 and 64 KiB pages; two to four levels",
        tested="Debian's 7.2, 16 KiB pages, three levels",
        limitations=(
            "NT_LOONGARCH_CPUCFG; the program counter of a thread that QEMU dumped in user mode, which its notes lack",
            "Debian's kernel has no BTF: --vmlinux is needed",
            "swapped pages and huge pages were compared with no kernel's core",
            "vmalloc and vmemmap where a kernel has other than three levels (64 KiB pages: two)",
        ),
    )

    name = "loongarch64"
    e_machine = EM_LOONGARCH
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    greg_names = fmt.user_pt_regs.names or ()
    tp_register = "tp"
    saved_sp = "reg03"
    thread_members: Mapping[str, int] = MappingProxyType({})
    layout_keys = (
        "OFFSET(task_struct.stack)",
        *STACK_KEYS,
        *(f"SYMBOL({name})" for name in INVALID_TABLES),
        "SYMBOL(__cpu_logical_map)",
        *LAYOUT_KEYS,
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """No other kernel's image is in this window."""
        pgd = vmcoreinfo.symbol("swapper_pg_dir")
        return pgd is not None and fmt.CACHE_BASE <= pgd < LINEAR_END

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """The window is physical 0 on in every kernel, wherever it was loaded.

        Nothing in VMCOREINFO tells how many levels the kernel's page table has: it is the first that there may be.
        Entries of a level do not pass for another's, so that a wrong number finds nothing, and not other memory.

        Raises:
            LayoutInvalid: the page size is none that these kernels have, or a symbol is not in the window.
        """
        pgd, stext = self._linear(vmcoreinfo, "swapper_pg_dir"), self._linear(vmcoreinfo, "_stext")
        page_size = vmcoreinfo.string("PAGESIZE")
        if page_size is None:
            raise LayoutUnknown("PAGESIZE", ("VMCOREINFO",))
        size = {str(size): size for size in fmt.PGTABLE_LEVELS}.get(page_size)
        if size is None:
            raise LayoutInvalid(f"PAGESIZE is {page_size} in VMCOREINFO, expected 4096, 16384 or 65536")
        start = stext & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(
            AddressRange(start, min(start + IMAGE_MAX, LINEAR_END)), PhysAddr(start & fmt.TO_PHYS_MASK)
        )
        return KernelMap(
            spec=page_table_spec(size, fmt.PGTABLE_LEVELS[size][0]),
            root=PhysAddr(pgd & fmt.TO_PHYS_MASK),
            linear=(LinearMapping(AddressRange(fmt.CACHE_BASE, LINEAR_END), PhysAddr(0)),),
            image=(image,),
        )

    @staticmethod
    def _linear(vmcoreinfo: LayoutKeys, name: str) -> int:
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        if not fmt.CACHE_BASE <= address < LINEAR_END:
            raise LayoutInvalid(
                f"{name} is at {address:#x} in VMCOREINFO, "
                f"expected {fmt.CACHE_BASE:#x} to {LINEAR_END:#x} (the direct-mapped window)"
            )
        return address

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """A kernel has an invalid table for each level but the first, by its name."""
        found = [kernel.layout.find_symbol(name) for name in INVALID_TABLES]
        known = tuple(address for address in found if address is not None)
        if not known:
            return kernel_map.spec
        levels = max(i for i, address in enumerate(found) if address is not None) + 2
        return page_table_spec(kernel_map.spec.page_size, levels, known)

    @override
    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        types = entries >> np.uint64(fmt.SWP_TYPE_SHIFT) & np.uint64(fmt.SWP_TYPE_MASK)
        return types, entries >> np.uint64(fmt.SWP_OFFSET_SHIFT)

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/loongarch/include/asm/processor.h, gpr_get().

        In a system call, a0 is -ENOSYS or still the first argument until it returns; the kernel's own core has what
        the signal that ended the process made of it.
        """
        for top in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            try:
                raw = kernel.memory.read(stack + top - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize)
            except MemoryFault:
                continue
            record = np.frombuffer(raw, fmt.pt_regs)[0]
            regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
            if self._plausible(regs):
                return {name: regs.get(name, 0) for name in self.greg_names}
        return None

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this in user mode, with interrupts on as they always are."""
        return (
            regs["csr_prmd"] & (fmt.PRMD_PPLV | fmt.PRMD_PIE | fmt.PRMD_RESERVED) == fmt.PRMD_PPLV | fmt.PRMD_PIE
            and regs["csr_era"] < self.user_end
            and regs["sp"] < self.user_end
        )

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """The program counter is known in kdump's notes only, not in QEMU's.

        The kernel's crash_save_cpu() also writes the CSRs, and its era is the program counter. QEMU's
        loongarch_cpu_write_elf64_note() leaves the CSRs zero and writes the CSR itself into era: the place of the last
        exception, not of the CPU. The stack pointer tells the mode.
        """
        result: list[CpuNote] = []
        for name, n_type, desc in notes:
            if name not in ("CORE", ""):
                continue
            if n_type == elf_core.NT_PRSTATUS and len(desc) >= fmt.PRSTATUS_SIZE:
                result.append(self._cpu_note(len(result), desc))
            elif n_type == elf_core.NT_FPREGSET and len(desc) == fmt.FPREGSET_SIZE and result:
                last = result[-1]
                note = CoreNote(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, desc)
                result[-1] = CpuNote(last.number, last.pr_pid, last.regs, last.user_mode, (note,))
        return tuple(result)

    def _cpu_note(self, number: int, desc: bytes) -> CpuNote:
        record = np.frombuffer(desc, fmt.user_pt_regs, 1, fmt.PRSTATUS_REGS)[0]
        pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
        csrs = [int(record[name]) for name in fmt.RESERVED]
        regs = {name: int(record[name]) for name in self.greg_names} | dict.fromkeys(fmt.RESERVED, 0)
        if csrs[fmt.CRMD_REGS]:
            user_mode = csrs[fmt.PRMD_REGS] & fmt.PRMD_PPLV == fmt.PRMD_PPLV
        else:
            user_mode = regs["sp"] < self.user_end
            for name in ("csr_era", "orig_a0", "zero"):
                del regs[name]
        return CpuNote(number, pid, regs, user_mode)

    @override
    def note_number(self, cpu: int, kernel: KernelView) -> int:
        """``__cpu_logical_map`` has the hardware's numbers (int)."""
        table = kernel.layout.find_symbol("__cpu_logical_map")
        return cpu if table is None else kernel.uint(table + 4 * cpu, 4)

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """These kernels run no 32-bit processes."""
        return CoreMachine(EM_LOONGARCH, 64, self.greg_names)

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec:
        """Follows ladwarf.adoc and lapcs.adoc ("Register Convention")."""
        return _UNWIND

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        return Regsets(task, kernel).notes()

    @override
    def note_regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[CoreNote, ...], str | None]:
        """A thread gets the FPU when it first uses it after it came to the CPU.

        Until then its registers are in memory, and QEMU's NT_FPREGSET has another thread's.
        """
        regsets = Regsets(task, kernel)
        owner = regsets.owns_fpu()
        if owner is False:
            return regsets.notes() or (), None
        if owner and note.user_mode and note.regsets:
            return note.regsets, "its vector registers were in the processor: the dump has their lowest 64 bits"
        return (), None


ARCH = Loongarch64()

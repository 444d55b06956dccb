"""x86-64, and the 32-bit processes that run on its kernels.

References: arch/x86/include/asm/{pgtable_64,pgtable-invert,processor,ptrace}.h, arch/x86/kernel/{ptrace,process_64}.c,
Documentation/arch/x86/x86_64/mm.rst (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U64Array
from vmcore2core.arch.base import Arch
from vmcore2core.arch.kernel_stack import KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.spec import (
    ArchDoc,
    CoreMachine,
    CoreNote,
    CpuNote,
    KernelMap,
    LayoutKeys,
    LinearMapping,
    PageTableLevel,
    PageTableSpec,
    UnwindSpec,
)
from vmcore2core.arch.task import stack_sizes
from vmcore2core.arch.x86 import inference, registers, vdso
from vmcore2core.arch.x86.cpu_notes import each_cpu
from vmcore2core.arch.x86.paging import decode, swap_entry
from vmcore2core.arch.x86.unwind import UNWIND_64, UNWIND_X32, unwind_32
from vmcore2core.arch.x86_64.kernel_stack import OrcUnwinder
from vmcore2core.errors import LayoutUnknown, MemoryFault
from vmcore2core.formats import x86_64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView, Layout
from vmcore2core.overrides import override

EM_386, EM_X86_64 = 3, 62

_LEVELS = (
    PageTableLevel("pgd", 48, 9),
    PageTableLevel("p4d", 39, 9),
    PageTableLevel("pud", 30, 9),
    PageTableLevel("pmd", 21, 9),
    PageTableLevel("pte", 12, 9),
)
_UNWIND_32 = unwind_32(fmt.DWARF_REGS32)


class X86_64(Arch):  # noqa: N801 - the architecture's own spelling
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
    greg_names = fmt.user_regs_struct.names or ()
    # {es, ds, fsindex, gsindex; fsbase, gsbase} since Linux kernel commit 296f781a4b7f ("x86/asm/64: Rename
    # thread_struct's fs and gs to fsbase and gsbase") (in v4.7).
    exported_abi = MappingProxyType(
        {
            "OFFSET(ucontext.uc_mcontext)": fmt.RT_SIGFRAME_MCONTEXT,
            "NUMBER(__NR_rt_sigreturn)": fmt.NR_RT_SIGRETURN,
        }
    )
    image_keys = ("NUMBER(phys_base)", "NUMBER(pgtable_l5_enabled)")
    layout_keys = (
        *(f"OFFSET(task_struct.thread.{name})" for name in ("fsbase", "gsbase", "ds", "es", "fsindex", "gsindex")),
        "OFFSET(mm_struct.context.vdso_image)",
        "OFFSET(vdso_image.data)",
        *registers.LAYOUT_KEYS,
    )
    inferable = inference.MEMBERS
    gate_name = "[vsyscall]"
    saved_sp, note_sp = "sp", "rsp"
    prot_valid = 1 << 0
    prot_noexec = 1 << 63  # _PAGE_NX
    pte_write = 1 << 1
    vm_shadow_stack = 1 << 37  # VM_HIGH_ARCH_5
    own_tables = "context.ldt"  # map_ldt_struct(), with page table isolation
    thread_members: Mapping[str, int] = MappingProxyType(
        {"fsbase": 0, "gsbase": 8, "es": -8, "ds": -6, "fsindex": -4, "gsindex": -2}
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These two keys are in arch/x86/kernel/vmcore_info_64.c alone."""
        return vmcoreinfo.symbol("init_top_pgt") is not None or vmcoreinfo.number("pgtable_l5_enabled") is not None

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """All from arch_crash_save_vmcoreinfo() of x86-64."""
        phys_base = vmcoreinfo.number("phys_base")
        pgd = vmcoreinfo.symbol("swapper_pg_dir") or vmcoreinfo.symbol("init_top_pgt")
        stext = vmcoreinfo.symbol("_stext")
        for item, value in (
            ("NUMBER(phys_base)", phys_base),
            ("SYMBOL(swapper_pg_dir)", pgd),
            ("SYMBOL(_stext)", stext),
        ):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert phys_base is not None and pgd is not None and stext is not None  # noqa: S101, PT018 - for mypy
        levels = _LEVELS if vmcoreinfo.number("pgtable_l5_enabled") else _LEVELS[1:]
        pfn_mask = fmt.PTE_PFN_MASK & ~(vmcoreinfo.number("sme_mask") or 0)
        spec = PageTableSpec(
            levels=levels,
            entry_dtype=np.dtype("<u8"),
            decode=partial(decode, levels=levels, pfn_mask=pfn_mask),
        )
        start = max(fmt.START_KERNEL_MAP, stext & ~0x1FFFFF, fmt.START_KERNEL_MAP - phys_base)
        size = vmcoreinfo.number("KERNEL_IMAGE_SIZE") or fmt.KERNEL_IMAGE_SIZE
        end = min(fmt.START_KERNEL_MAP + size, 1 << 64)
        to_phys = phys_base - fmt.START_KERNEL_MAP
        image = LinearMapping(AddressRange(start, end), PhysAddr(start + to_phys))
        # mm->pgd and swapper_pg_dir are the kernel's copies with page-table isolation too; the user's is at +4096.
        return KernelMap(spec=spec, root=PhysAddr(pgd + to_phys), linear=(image,))

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """phys_base, and whether there is a fifth level."""
        base = paddr - (address - fmt.START_KERNEL_MAP)
        known, level_5 = vmcoreinfo.number("phys_base"), vmcoreinfo.number("pgtable_l5_enabled")
        if known in (None, base):
            for enabled in (0, 1) if level_5 is None else (level_5,):
                yield {"NUMBER(phys_base)": str(base), "NUMBER(pgtable_l5_enabled)": str(enabled)}

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """User and kernel tables have one form."""
        return kernel_map.spec

    @override
    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        return swap_entry(entries)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Its base is random; VMCOREINFO's SYMBOL(vmemmap) is that (since Linux 5.13)."""
        layout = kernel.layout
        found = layout.find_symbol("vmemmap_base")
        if found is not None:
            return kernel.uint(found, 8)
        return layout.find_symbol("vmemmap")

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/x86/include/asm/processor.h.

        TOP_OF_KERNEL_STACK_PADDING is 16 with CONFIG_X86_FRED in newer kernels and 0 before; the saved selectors
        tell which: no other word pair of a frame reads as user CS and SS.
        """
        for size in stack_sizes(kernel.layout, fmt.THREAD_SIZES):
            for padding in (0, 16):
                top = stack + size - padding
                try:
                    raw = kernel.memory.read(top - fmt.pt_regs.itemsize, fmt.pt_regs.itemsize)
                except MemoryFault:
                    continue
                regs = self._plausible(raw)
                if regs is not None:
                    return regs
        return None

    def _plausible(self, raw: bytes) -> Mapping[str, int] | None:
        record = np.frombuffer(raw, fmt.pt_regs)[0]
        regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
        # Since Linux kernel commit ee63291aa82e ("x86/ptrace: Cleanup the definition of the pt_regs structure")
        # (in v6.9), FRED's event data stands above the selectors' 16 bits.
        regs["cs"] &= 0xFFFF
        regs["ss"] &= 0xFFFF
        user = (
            regs["cs"] in (fmt.USER_CS, fmt.USER32_CS)
            and regs["ss"] & 3 == 3
            and regs["eflags"] & fmt.EFLAGS_FIXED
            and regs["eflags"] >> 32 == 0
            and regs["rip"] < self.user_end
            and regs["rsp"] < self.user_end
        )
        return regs if user else None

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """A "QEMU" note adds control registers to the NT_PRSTATUS of the same position."""
        result = []
        for number, desc, control in each_cpu(notes, fmt.PRSTATUS_SIZE):
            record = np.frombuffer(desc, fmt.user_regs_struct, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) for name in fmt.user_regs_struct.names or ()}
            regs |= control
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            result.append(CpuNote(number, pid, regs, user_mode=regs["cs"] & 3 == 3))
        return tuple(result)

    @override
    def thread_bases(self, task: KernelAddr, kernel: KernelView) -> Mapping[str, int | None]:
        """Follows current_save_fsgs() in arch/x86/kernel/process_64.c keeps them at each switch."""
        bases: dict[str, int | None] = {}
        for reg, member, size in (
            ("fs_base", "fsbase", 8),
            ("gs_base", "gsbase", 8),
            ("ds", "ds", 2),
            ("es", "es", 2),
            ("fs", "fsindex", 2),
            ("gs", "gsindex", 2),
        ):
            found = kernel.layout.find_member("task_struct", f"thread.{member}")
            bases[reg] = kernel.uint(task + found.offset, size) if found else None
        return bases

    @override
    def implausible(self, regs: Mapping[str, int]) -> str | None:
        """No instruction loads a base that is not canonical, or a selector beyond the GDT."""
        for name in ("fs_base", "gs_base"):
            if regs.get(name, 0) >> fmt.CANONICAL_SHIFT not in fmt.CANONICAL_TOPS:
                return f"{name} is {regs[name]:#x}, which is not canonical"
        for name in ("ds", "es", "fs", "gs"):
            selector = regs.get(name, 0)
            if not selector & fmt.SELECTOR_LDT and selector >> 3 >= fmt.GDT_ENTRIES:
                return f"{name} is {selector:#x}, a selector beyond the GDT"
        return None

    @override
    def infer(self, tasks: Sequence[KernelAddr], kernel: KernelView) -> Mapping[tuple[str, str], int]:
        return inference.infer(tasks, kernel)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        return registers.regsets(task, regs, machine.e_machine == EM_X86_64, kernel)

    @override
    def process_notes(self, kernel: KernelView) -> tuple[CoreNote, ...]:
        return registers.process_notes(kernel)

    @override
    def note_bases(self, note: CpuNote) -> Mapping[str, int]:
        """In the kernel, swapgs has put the user's gs_base into MSR_KERNEL_GS_BASE.

        kdump's notes repeat ``thread.fsbase`` (ELF_CORE_COPY_REGS in arch/x86/include/asm/elf.h); QEMU's are live.
        """
        if "cr3" not in note.regs or "apic_id" in note.regs:
            return {}
        bases = {"fs_base": note.regs["fs_base"]}
        gs_base = note.regs.get("gs_base" if note.user_mode else "kernel_gs_base")
        if gs_base is not None:
            bases["gs_base"] = gs_base
        if note.user_mode:
            bases |= {name: note.regs[name] & 0xFFFF for name in ("ds", "es", "fs", "gs")}
        return bases

    @override
    def note_uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """CR3 without PCID; with page-table isolation, bit 12 selects the user's copy."""
        if "cr3" not in note.regs:
            return None
        root = note.regs["cr3"] & fmt.PTE_PFN_MASK
        return pgd in (root, root & ~(1 << 12))

    @override
    def note_of(self, cpu: int, notes: Sequence[CpuNote], kernel: KernelView) -> CpuNote | None:
        """Sadump's notes are by APIC ID: ``x86_cpu_to_apicid``, of 16 bits before Linux 6.7."""
        layout = kernel.layout
        if not any("apic_id" in note.regs for note in notes):
            return super().note_of(cpu, notes, kernel)
        table, offsets = layout.find_symbol("x86_cpu_to_apicid"), layout.find_symbol("__per_cpu_offset")
        if table is None or offsets is None:
            return None
        offset = kernel.uint(offsets + 8 * cpu, 8)
        apic_id = kernel.uint((table + offset) & (1 << 64) - 1, 2)
        return next((note for note in notes if note.regs["apic_id"] == apic_id), None)

    @override
    def thread_pointer(self, regs: Mapping[str, int]) -> int | None:
        return regs.get("fs_base")

    @override
    def is_thread_pointer(self, value: int, read_user: Callable[[int, int], bytes | None]) -> bool:
        """A TCB's first and third words point to itself (tcbhead_t of all libcs)."""
        if value % 8 or not 0x1000 <= value < self.user_end:
            return False
        tcb = read_user(value, 24)
        return tcb is not None and tcb[:8] == tcb[16:24] == value.to_bytes(8, "little")

    @override
    def gate_vma(self, kernel: KernelView) -> KernelAddr | None:
        """Follows get_gate_vma() in arch/x86/entry/vsyscall/vsyscall_64.c."""
        layout = kernel.layout
        address, mode = layout.find_symbol("gate_vma"), layout.find_symbol("vsyscall_mode")
        if address is None or mode is None:
            return None
        try:
            value = kernel.uint(mode, 4)
        except MemoryFault:
            return None
        return KernelAddr(address) if value in fmt.VSYSCALL_MAPPED else None

    @override
    def vdso_image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """The image is a ``struct vdso_image`` in arch/x86/include/asm/vdso.h."""
        return vdso.vdso_image(mm, kernel, self.pointer_size)

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """What a process is does not change when it runs code of the other kind (wine does).

        An x32 process has 64-bit registers in an address space that ends at 4 GiB.
        """
        small = task_size <= 1 << 32 if task_size is not None else regs.get("cs") == fmt.USER32_CS
        if not small:
            return CoreMachine(EM_X86_64, 64, self.greg_names)
        if regs.get("cs") == fmt.USER_CS:
            return CoreMachine(EM_X86_64, 32, self.greg_names, greg_size=8)
        return CoreMachine(EM_386, 32, fmt.user_regs_struct32.names or ())

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        known = {(EM_386, 32): _UNWIND_32, (EM_X86_64, 32): UNWIND_X32, (EM_X86_64, 64): UNWIND_64}
        return known.get((machine.e_machine, machine.elf_class))

    @override
    def kernel_unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        """CONFIG_UNWINDER_ORC, as all distributions have it."""
        return OrcUnwinder(kernel, modules)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        """orig_rax is -1 after an interrupt or an exception."""
        number = regs.get("orig_rax", -1) & 0xFFFF_FFFF
        if number >> 31:
            return None
        if regs.get("cs") == fmt.USER32_CS:
            arguments = tuple(regs[name] & 0xFFFF_FFFF for name in fmt.SYSCALL_ARGUMENTS32)
            return SystemCall(number, arguments, "ia32_sys_call_table", native=False)
        arguments = tuple(regs[name] for name in fmt.SYSCALL_ARGUMENTS)
        return SystemCall(number & ~fmt.X32_SYSCALL_BIT, arguments, native=not number & fmt.X32_SYSCALL_BIT)

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Follows genregs32_get() in arch/x86/kernel/ptrace.c for 32-bit processes, but x32 ones."""
        if machine.e_machine == EM_386:
            regs = {name: regs.get(fmt.REG32.get(name, name), 0) for name in machine.greg_names}
        return super().gregs(regs, machine)


ARCH = X86_64()

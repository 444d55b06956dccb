"""riscv64 with Sv39, Sv48 or Sv57 page tables.

References: arch/riscv/include/asm/{pgtable,pgtable-64,pgtable-bits,processor,ptrace,switch_to,vector}.h,
arch/riscv/kernel/{ptrace,process,vmcore_info}.c, arch/riscv/mm/init.c (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U64Array, align_up
from vmcore2core.arch.base import Arch
from vmcore2core.arch.kernel_stack import KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.riscv64.kernel_stack import Riscv64Unwinder, system_call
from vmcore2core.arch.riscv64.paging import LEVELS, decode, napot_address_bits, swap_entry
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
from vmcore2core.arch.task import mem_map, stack_sizes
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import elf_core
from vmcore2core.formats import riscv64 as fmt
from vmcore2core.interfaces import ByteOrder, KernelView, Layout
from vmcore2core.overrides import override

EM_RISCV = 243
ADDRESS_MASK = (1 << 64) - 1
PHYS_MASK = (1 << 56) - 1
PMD_SIZE = 2 << 20
IMAGE_MAX = 256 << 20


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call instruction: jal, jalr or c.jalr that write ra."""
    whole = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    half = int.from_bytes(code[-2:], "little") if len(code) >= 2 else 0
    return (
        whole & fmt.CALL_JAL_MASK == fmt.CALL_JAL_RA
        or whole & fmt.CALL_JALR_MASK == fmt.CALL_JALR_RA
        or (half & fmt.CALL_C_JALR_MASK == fmt.CALL_C_JALR and half != fmt.CALL_C_JALR)
    )


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("pc"),
    stack_pointer=fmt.DWARF_REGS.index("sp"),
    frame_pointer=fmt.DWARF_REGS.index("s0"),
    preserved=frozenset(
        i for i, name in enumerate(fmt.DWARF_REGS) if name in ("gp", "tp") or (name[:1] == "s" and name[1:].isdigit())
    ),
    trampolines=tuple(
        SignalTrampoline(
            fmt.RT_SIGRETURN,
            entry,
            fmt.RT_SIGFRAME_MCONTEXT,
            None,
            fmt.user_regs_struct,
            {name: name for name in fmt.user_regs_struct.names or ()},
        )
        for entry in (0, 4)
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("ra"),
    frame_record=-16,
)


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
    greg_names = fmt.user_regs_struct.names or ()
    tp_register = "tp"
    saved_sp = "sp"
    prot_valid = 1 << 0
    pte_write = 1 << 2
    vm_shadow_stack = 1 << 37  # VM_HIGH_ARCH_5
    thread_members: Mapping[str, int] = MappingProxyType({})
    exported_abi = MappingProxyType(
        {
            "OFFSET(rt_sigframe.uc)": fmt.RT_SIGFRAME_UC,
            "OFFSET(ucontext.uc_mcontext)": fmt.RT_SIGFRAME_MCONTEXT - fmt.RT_SIGFRAME_UC,
            "OFFSET(sigcontext.sc_regs)": 0,
            "NUMBER(__NR_rt_sigreturn)": fmt.NR_RT_SIGRETURN,
            "NUMBER(_PAGE_PFN_SHIFT)": fmt.PFN_SHIFT,
        }
    )
    image_keys = ("NUMBER(va_kernel_pa_offset)", "NUMBER(VA_BITS)")
    layout_keys = (
        "OFFSET(task_struct.stack)",
        "SIZE(pt_regs)",
        "SIZE(thread_union)",
        "SYMBOL(__start_init_stack)",
        "SYMBOL(__end_init_stack)",
        "SYMBOL(__cpuid_to_hartid_map)",
        "OFFSET(task_struct.thread.fstate)",
        "OFFSET(task_struct.thread.vstate)",
        "OFFSET(__riscv_v_ext_state.vlenb)",
        "SYMBOL(riscv_v_vsize)",
        "OFFSET(task_struct.thread.envcfg)",
        "OFFSET(mm_struct.context.pmlen)",
        "SYMBOL(have_user_pmlen_7)",
        "SYMBOL(have_user_pmlen_16)",
        "OFFSET(mm_struct.saved_e_flags)",
        "SYMBOL(vmemmap_start_pfn)",
        "SYMBOL(mem_map)",
        "SIZE(page)",
        "OFFSET(task_struct.mm_cid)",
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These keys are in arch/riscv/kernel/vmcore_info.c alone."""
        return any(vmcoreinfo.number(key) is not None for key in ("va_kernel_pa_offset", "phys_ram_base"))

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """All from arch_crash_save_vmcoreinfo() and crash_save_vmcoreinfo_init().

        No range is ``linear``: VMCOREINFO does not tell where the image ends.
        """
        offset = vmcoreinfo.number("va_kernel_pa_offset")
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        va_bits = self._va_bits(vmcoreinfo)
        for item, value in (
            ("NUMBER(va_kernel_pa_offset)", offset),
            ("SYMBOL(swapper_pg_dir)", pgd),
            ("SYMBOL(_stext)", stext),
            ("NUMBER(VA_BITS)", va_bits),
        ):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert offset is not None and pgd is not None and stext is not None  # noqa: S101, PT018 - for mypy
        assert va_bits is not None  # noqa: S101
        levels = LEVELS[va_bits]
        spec = PageTableSpec(
            levels=levels,
            entry_dtype=np.dtype("<u8"),
            decode=partial(decode, levels=levels),
            address_bits=partial(napot_address_bits, levels=levels),
        )
        start = stext & ADDRESS_MASK & ~(PMD_SIZE - 1)
        end = min(start + IMAGE_MAX, 1 << 64)
        image = LinearMapping(AddressRange(start, end), PhysAddr((start - offset) & PHYS_MASK))
        return KernelMap(spec=spec, root=PhysAddr((pgd - offset) & PHYS_MASK), linear=(), image=(image,))

    @staticmethod
    def _va_bits(vmcoreinfo: LayoutKeys) -> int | None:
        """Return the bits of a virtual address: 39, 48, 57, or None.

        Newer kernels tell NUMBER(satp), too; VA_BITS is as old as the text, and says the same.
        """
        satp = vmcoreinfo.number("satp")
        mode = None if satp is None else fmt.SATP_VA_BITS.get((satp & ADDRESS_MASK) >> fmt.SATP_MODE_SHIFT)
        told = vmcoreinfo.number("VA_BITS") if mode is None else mode
        return told if told in LEVELS else None

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """va_kernel_pa_offset, and how many levels there are."""
        offset = (address - paddr) & ADDRESS_MASK
        known, va_bits = vmcoreinfo.number("va_kernel_pa_offset"), self._va_bits(vmcoreinfo)
        if known is None or known & ADDRESS_MASK == offset:
            for bits in LEVELS if va_bits is None else (va_bits,):
                yield {"NUMBER(va_kernel_pa_offset)": f"{offset:#x}", "NUMBER(VA_BITS)": str(bits)}

    @override
    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array] | None:
        """Only the form of Linux 6.3 and later is known.

        It came with Linux kernel commit 51a1007d4113 ("riscv/mm: support __HAVE_ARCH_PTE_SWP_EXCLUSIVE") (in v6.3).
        The entry itself does not tell its form, so a member of the same age does: task_struct.mm_cid.
        """
        return None if layout.find_member("task_struct", "mm_cid") is None else swap_entry(entries)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Follows ``vmemmap`` in arch/riscv/include/asm/pgtable.h.

        Since Linux kernel commit f754f27e98f8 ("riscv: mm: Fix the out of bound issue of vmemmap address") (in v6.14
        and stable kernels), the page at VMEMMAP_START is that of vmemmap_start_pfn; since a11dd49dcb93 ("riscv:
        Sparse-Memory/vmemmap out-of-bounds fix") (in v6.8 and stable kernels), that of phys_ram_base; before that,
        that of page 0, so that nothing is mapped there where no memory is at physical 0. A kernel with CONFIG_FLATMEM
        has mem_map instead, whose first page is that of phys_ram_base.
        """
        layout = kernel.layout
        start, size = layout.find_constant("VMEMMAP_START"), layout.find_size("page")
        array, base = mem_map(kernel, self.pointer_size), layout.find_constant("phys_ram_base")
        if array is not None:
            if not size or base is None:
                return None
            return (array - ((base & ADDRESS_MASK) >> fmt.PAGE_SHIFT) * size) & ADDRESS_MASK
        if start is None:
            return layout.find_symbol("vmemmap")
        if not size:
            return None
        start &= ADDRESS_MASK
        variable = layout.find_symbol("vmemmap_start_pfn")
        if variable is not None:
            first = kernel.uint(variable, 8)
        else:
            try:
                kernel.memory.read(start, 1)
            except MemoryFault:
                return start
            if base is None:
                return None
            first = (base & ADDRESS_MASK) >> fmt.PAGE_SHIFT
        return (start - first * size) & ADDRESS_MASK

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/riscv/include/asm/processor.h.

        In a system call, pc is behind the ecall, and a0 is -ENOSYS or, in older kernels, still the first argument.
        The kernel's own core has pc at the ecall and a0 = orig_a0: the signal that ends a process prepares its restart
        (arch_do_signal_or_restart() in arch/riscv/kernel/signal.c).
        """
        found = self._saved_frame(stack, kernel)
        return None if found is None else {name: found[name] for name in self.greg_names}

    def _saved_frame(self, stack: int, kernel: KernelView) -> Mapping[str, int] | None:
        return next((regs for _, regs in self._saved_frames(stack, kernel)), None)

    def _saved_frames(self, stack: int, kernel: KernelView) -> Iterator[tuple[int, Mapping[str, int]]]:
        """Yield address and registers of ``struct pt_regs`` at the top of a kernel stack, if it is of user mode."""
        layout = kernel.layout
        size = layout.find_size("pt_regs") or fmt.PT_REGS_SIZE
        align = layout.find_constant("STACK_ALIGN")
        align = align if align in fmt.STACK_ALIGNS else fmt.STACK_ALIGN
        for top in stack_sizes(layout, fmt.THREAD_SIZES):
            at = stack + top - align_up(size, align)
            try:
                raw = kernel.memory.read(at, fmt.pt_regs.itemsize)
            except MemoryFault:
                continue
            record = np.frombuffer(raw, fmt.pt_regs)[0]
            regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
            if self._plausible(regs):
                yield at, regs

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether a trap saved this in user mode: SPP is clear, and interrupts were on, as they always are."""
        return (
            regs["status"] & (fmt.SR_SPP | fmt.SR_SPIE | fmt.SR_SIE | fmt.SR_RESERVED) == fmt.SR_SPIE
            and regs["status"] & fmt.SR_UXL != fmt.SR_UXL_32
            and regs["pc"] % 2 == 0
            and regs["pc"] < self.user_end
            and regs["sp"] < self.user_end
        )

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """QEMU's riscv_cpu_write_elf64_note() and the kernel's crash_save_cpu() write the same.

        Neither tells the privilege mode; the kernel's addresses are in the upper half.
        """
        result: list[CpuNote] = []
        for name, n_type, desc in notes:
            if name not in ("CORE", "") or n_type != elf_core.NT_PRSTATUS or len(desc) < fmt.PRSTATUS_SIZE:
                continue
            record = np.frombuffer(desc, fmt.user_regs_struct, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) for name in self.greg_names}
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            result.append(CpuNote(len(result), pid, regs, user_mode=regs["pc"] < self.user_end))
        return tuple(result)

    @override
    def note_number(self, cpu: int, kernel: KernelView) -> int:
        """CPU 0 is whichever hart came first; arch/riscv/kernel/smp.c, setup_smp()."""
        table = kernel.layout.find_symbol("__cpuid_to_hartid_map")
        return cpu if table is None else kernel.uint(table + 8 * cpu, 8)

    @override
    def assumed_user_pc(self, note: CpuNote) -> int | None:
        """Machine mode runs at low addresses, too."""
        return note.regs["pc"] if note.user_mode else None

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A compat process has TASK_SIZE_32."""
        if task_size is not None and task_size <= fmt.TASK_SIZE_32_MAX:
            return CoreMachine(EM_RISCV, 32, self.greg_names, "a 32-bit (rv32) process, which is not supported")
        return CoreMachine(EM_RISCV, 64, self.greg_names)

    @override
    def kernel_unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return Riscv64Unwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        found = next(self._saved_frames(stack, kernel), None)
        return None if found is None else system_call(found[1], found[0], kernel)

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Follows riscv-cc.adoc ("Register Convention", "Frame Pointer Convention"), psABI 1.0."""
        return _UNWIND if machine.elf_class == 64 else None

    @override
    def core_flags(self, mm: KernelAddr, kernel: KernelView) -> int:
        """Those of the executable, as the kernel keeps them for its own cores.

        Since Linux kernel commit 8c94db0ae97c ("binfmt_elf: preserve original ELF e_flags for core dumps") (in v6.18);
        cores of kernels before have 0.
        """
        found = kernel.layout.find_member("mm_struct", "saved_e_flags")
        return 0 if found is None else kernel.uint(mm + found.offset, 8) & 0xFFFF_FFFF

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        """Follows riscv_user_regset in arch/riscv/kernel/ptrace.c.

        Not made: NT_RISCV_USER_CFI.
        """
        fstate = kernel.layout.find_member("task_struct", "thread.fstate")
        if fstate is None:
            return None
        raw = kernel.memory.read(task + fstate.offset, fmt.d_ext_state.itemsize)
        notes = [CoreNote(elf_core.NOTE_CORE, elf_core.NT_FPREGSET, raw.ljust(fmt.FPREGSET_SIZE, b"\0"))]
        for made in (self._vector(task, kernel), self._tagged_addr_ctrl(task, kernel)):
            notes += [] if made is None else [made]
        return tuple(notes)

    def _vector(self, task: int, kernel: KernelView) -> CoreNote | None:
        """Return NT_RISCV_VECTOR; None for a thread that has not used vector registers; riscv_vr_get().

        Raises:
            LayoutInvalid: the state is not one that the kernel can have.
        """
        layout = kernel.layout
        stack, vstate = layout.find_member("task_struct", "stack"), layout.find_member("task_struct", "thread.vstate")
        variable = layout.find_symbol("riscv_v_vsize")
        if stack is None or vstate is None or variable is None:
            return None
        if layout.find_member("__riscv_v_ext_state", "vlenb") is None:  # the form of the note in its first kernels
            return None
        frame = self._saved_frame(kernel.uint(task + stack.offset, 8), kernel)
        if frame is None or not frame["status"] & fmt.SR_VS:
            return None
        size = kernel.uint(variable, 8)
        raw = kernel.memory.read(task + vstate.offset, fmt.v_ext_state.itemsize)
        state = np.frombuffer(raw, fmt.v_ext_state)[0]
        if not 0 < size <= fmt.NR_VECTOR_REGS * fmt.VLENB_MAX or size % fmt.NR_VECTOR_REGS:
            raise LayoutInvalid(f"riscv_v_vsize at {variable:#x} is {size:#x}, expected 32 registers of at most 8 KiB")
        data = kernel.memory.read(int(state["datap"]), size)
        return CoreNote(elf_core.NOTE_LINUX, fmt.NT_RISCV_VECTOR, raw[: fmt.V_REGSET_HEADER] + data)

    def _tagged_addr_ctrl(self, task: int, kernel: KernelView) -> CoreNote | None:
        """Return NT_RISCV_TAGGED_ADDR_CTRL; None where the processor cannot do it; get_tagged_addr_ctrl()."""
        layout = kernel.layout
        envcfg, mm = layout.find_member("task_struct", "thread.envcfg"), layout.find_member("task_struct", "mm")
        pmlen = layout.find_member("mm_struct", "context.pmlen")
        able = [layout.find_symbol(name) for name in ("have_user_pmlen_7", "have_user_pmlen_16")]
        if envcfg is None or mm is None or pmlen is None or None in able:
            return None
        if not any(kernel.memory.read(symbol, 1)[0] for symbol in able if symbol is not None):
            return None
        mode = kernel.uint(task + envcfg.offset, 8) & fmt.ENVCFG_PMM
        owner = kernel.uint(task + mm.offset, 8)
        enabled = kernel.memory.read(owner + pmlen.offset, 1)[0] != 0
        value = fmt.ENVCFG_PMLEN.get(mode, 0) << fmt.PR_PMLEN_SHIFT | (fmt.PR_TAGGED_ADDR_ENABLE if enabled else 0)
        return CoreNote(elf_core.NOTE_LINUX, fmt.NT_RISCV_TAGGED_ADDR_CTRL, value.to_bytes(8, "little"))


ARCH = Riscv64()

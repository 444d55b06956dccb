"""arm64, and the 32-bit processes that run on its kernels.

References: arch/arm64/include/asm/{pgtable,pgtable-hwdef,processor,ptrace,thread_info,memory}.h,
arch/arm64/kernel/{ptrace,process,signal,vmcore_info}.c (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U64Array
from vmcore2core.arch.arm64 import compat, features, paging, registers
from vmcore2core.arch.arm64.kernel_stack import Arm64Unwinder, system_call
from vmcore2core.arch.arm64.paging import PAGE_SHIFTS, VA_BITS, TableForm, page_table_spec
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
    SignalTrampoline,
    TagSpec,
    UnwindSpec,
)
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import LayoutUnknown, MemoryFault
from vmcore2core.formats import arm64 as fmt
from vmcore2core.formats import elf_core
from vmcore2core.interfaces import ByteOrder, KernelView, Layout
from vmcore2core.overrides import override

EM_ARM, EM_AARCH64 = 40, 183
ADDRESS_MASK = (1 << 64) - 1
PHYS_MASK = (1 << 52) - 1
IMAGE_ALIGN = 2 << 20
IMAGE_MAX = 256 << 20


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call instruction: bl, blr, or blr with authentication."""
    word = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    calls = (
        (fmt.CALL_BL, fmt.CALL_BL_MASK),
        (fmt.CALL_BLR, fmt.CALL_BLR_MASK),
        (fmt.CALL_BLRA, fmt.CALL_BLRA_MASK),
    )
    return any(word & mask == call for call, mask in calls)


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("pc"),
    stack_pointer=fmt.DWARF_REGS.index("sp"),
    frame_pointer=fmt.DWARF_REGS.index("x29"),
    preserved=frozenset(range(19, 30)),
    trampolines=tuple(
        SignalTrampoline(
            fmt.RT_SIGRETURN,
            entry,
            fmt.RT_SIGFRAME_MCONTEXT,
            None,
            fmt.sigcontext,
            {name: name for name in fmt.DWARF_REGS},
        )
        for entry in (0, 4)
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("x30"),
    signed_bits=fmt.SIGNED_BITS,
)


class Arm64(Arch):
    """AArch64, little-endian."""

    DOC = ArchDoc(
        page_tables="4, 16 and 64 KiB pages; 36 to 52 bits of an address",
        tested="Debian's 7.2, 4 and 16 KiB pages, 52 bits; 6.1, 4 KiB, 48 bits; 32-bit processes too, with 4 KiB",
        limitations=(
            "stacks of 32-bit processes (bt, --redact stacks)",
            "MTE tags but of swapped pages: they are apart from memory (a saved QEMU machine has them)",
            "Debian's 6.1 has no data symbols in kallsyms: --vmlinux is needed",
            "64 KiB pages, and swapped pages before Linux 5.19, were compared with no kernel's core",
        ),
    )

    name = "aarch64"
    e_machine = EM_AARCH64
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    greg_names = (*(fmt.user_pt_regs.names or ()), "orig_x0", "syscallno")
    saved_sp = "cpu_context.sp"
    prot_valid = 1 << 0
    prot_noexec = 1 << 54  # PTE_UXN
    pte_write = 1 << 51
    vm_shadow_stack = 1 << 38  # VM_HIGH_ARCH_6
    thread_members: Mapping[str, int] = MappingProxyType({})
    image_keys = ("NUMBER(kimage_voffset)", "NUMBER(VA_BITS)")
    layout_keys = (
        "OFFSET(pt_regs.syscallno)",
        "SIZE(pt_regs)",
        "SIZE(thread_union)",
        "SYMBOL(__start_init_stack)",
        "SYMBOL(__end_init_stack)",
        "SYMBOL(vdso_start)",
        "SYMBOL(vdso32_start)",
        "SYMBOL(vmemmap)",
        "NUMBER(VMEMMAP_START)",
        "NUMBER(PHYS_OFFSET)",
        *paging.LAYOUT_KEYS,
        *registers.LAYOUT_KEYS,
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These keys are in arch/arm64/kernel/vmcore_info.c alone."""
        return any(vmcoreinfo.number(key) is not None for key in ("kimage_voffset", "TCR_EL1_T1SZ"))

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """All from arch_crash_save_vmcoreinfo() and crash_save_vmcoreinfo_init().

        No range is ``linear``: VMCOREINFO does not tell where the image ends, and vmalloc's addresses follow.
        """
        offset, va_bits = vmcoreinfo.number("kimage_voffset"), vmcoreinfo.number("VA_BITS")
        pgd, stext = vmcoreinfo.symbol("swapper_pg_dir"), vmcoreinfo.symbol("_stext")
        page_shift = self._page_shift(vmcoreinfo)
        for item, value in (
            ("NUMBER(kimage_voffset)", offset),
            ("SYMBOL(swapper_pg_dir)", pgd),
            ("SYMBOL(_stext)", stext),
            ("PAGESIZE", page_shift),
            ("NUMBER(VA_BITS)", va_bits if va_bits in VA_BITS.get(page_shift or 0, ()) else None),
        ):
            if value is None:
                raise LayoutUnknown(item, ("VMCOREINFO",))
        assert offset is not None and pgd is not None and stext is not None  # noqa: S101, PT018 - for mypy
        assert page_shift is not None and va_bits is not None  # noqa: S101, PT018
        # Since Linux kernel commit bbdbc11804ff ("arm64/crash_core: Export TCR_EL1.T1SZ in vmcoreinfo") (in v5.9),
        # VMCOREINFO tells what the processor does of VA_BITS.
        t1sz = vmcoreinfo.number("TCR_EL1_T1SZ")
        actual = va_bits if t1sz is None else 64 - t1sz
        if not page_shift + 9 < actual <= va_bits:
            raise LayoutUnknown("NUMBER(TCR_EL1_T1SZ)", ("VMCOREINFO",))
        start = stext & ADDRESS_MASK & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(
            AddressRange(start, min(start + IMAGE_MAX, 1 << 64)), PhysAddr((start - offset) & PHYS_MASK)
        )
        spec = page_table_spec(TableForm(page_shift, va_bits, actual))
        return KernelMap(spec=spec, root=PhysAddr((pgd - offset) & PHYS_MASK), linear=(), image=(image,))

    @staticmethod
    def _page_shift(vmcoreinfo: LayoutKeys) -> int | None:
        size = vmcoreinfo.string("PAGESIZE")
        return PAGE_SHIFTS.get(int(size)) if size is not None and size.isascii() and size.isdigit() else None

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """kimage_voffset, and how many bits addresses have."""
        offset = (address - paddr) & ADDRESS_MASK
        known, told = vmcoreinfo.number("kimage_voffset"), vmcoreinfo.number("VA_BITS")
        t1sz = vmcoreinfo.number("TCR_EL1_T1SZ")
        if known is not None and known & ADDRESS_MASK != offset:
            return
        page_shift = self._page_shift(vmcoreinfo)
        for va_bits in VA_BITS.get(page_shift or 0, ()) if told is None else (told,):
            # A kernel for 52 bits on a processor for 48 or, with 16 KiB pages, 47.
            fewer = (47 if page_shift == 14 else 48,) if va_bits == 52 else ()
            for actual in (va_bits, *fewer) if t1sz is None else (64 - t1sz,):
                yield {
                    "NUMBER(kimage_voffset)": f"{offset:#x}",
                    "NUMBER(VA_BITS)": str(va_bits),
                    "NUMBER(TCR_EL1_T1SZ)": f"{64 - actual:#x}",
                }

    @override
    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array] | None:
        return paging.swap_entry(entries, layout)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """Follows ``vmemmap`` in arch/arm64/include/asm/pgtable.h, which VMCOREINFO of 6.1 has in parts.

        VMEMMAP_START is the page structure of the first memory that there is (memstart_addr, a signed number).
        """
        layout = kernel.layout
        found = layout.find_symbol("vmemmap")
        if found is not None:
            return found
        start, first, page = (layout.find_constant(name) for name in ("VMEMMAP_START", "PHYS_OFFSET", "PAGESIZE"))
        size = layout.find_size("page")
        if start is None or first is None or not page or not size:
            return None
        signed = ((first & ADDRESS_MASK) ^ 1 << 63) - (1 << 63)
        return (start - signed // page * size) & ADDRESS_MASK

    @override
    def tag_spec(self, kernel: KernelView) -> TagSpec | None:
        return features.tag_spec(kernel)

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/arm64/include/asm/processor.h.

        In a system call, pc is behind the svc, and x0 is still the first argument. The kernel's own core has pc at
        the svc: the signal that ends a process prepares its restart (do_signal() in arch/arm64/kernel/signal.c).
        """
        frame = self._saved_frame(stack, kernel)
        return None if frame is None else {name: frame[name] for name in self.greg_names}

    def _saved_frame(self, stack: int, kernel: KernelView) -> Mapping[str, int] | None:
        """Return ``struct pt_regs`` at the top of a kernel stack, if it is of user mode."""
        layout = kernel.layout
        told = layout.find_size("pt_regs")
        found = []
        for top in stack_sizes(layout, fmt.THREAD_SIZES):
            for size in fmt.PT_REGS_SIZES if told is None else (told,):
                try:
                    raw = kernel.memory.read(stack + top - size, fmt.pt_regs.itemsize)
                except MemoryFault:
                    continue
                record = np.frombuffer(raw, fmt.pt_regs)[0]
                regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
                if self._plausible(regs):
                    found.append(regs)
        # What is a frame by chance, in the wrong place, is told from the true one by nothing.
        return found[0] if len(found) == 1 else None

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an exception saved this from EL0; valid_native_regs(), valid_compat_regs() in ptrace.c."""
        pstate = regs["pstate"]
        if pstate & (fmt.PSR_MODE_MASK | fmt.PSR_IL_BIT | fmt.PSR_RESERVED):
            return False
        if pstate & fmt.PSR_MODE32_BIT:
            limit, sp, align = fmt.TASK_SIZE_32_MAX, regs["x13"], 2
            masked = pstate & fmt.PSR_AA32_AIF
        else:
            limit, sp, align = self.user_end, regs["sp"], 4
            masked = pstate & fmt.PSR_DAIF
        return not masked and regs["pc"] % align == 0 and 0 < regs["pc"] < limit and sp < limit

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """QEMU's arm_cpu_write_elf64_note() and the kernel's crash_save_cpu() write the same.

        QEMU has the CPU's NT_FPREGSET, NT_ARM_SVE behind each.
        """
        result: list[CpuNote] = []
        for at, (name, n_type, desc) in enumerate(notes):
            if name not in ("CORE", "") or n_type != elf_core.NT_PRSTATUS or len(desc) < fmt.PRSTATUS_SIZE:
                continue
            record = np.frombuffer(desc, fmt.user_pt_regs, 1, fmt.PRSTATUS_REGS)[0]
            regs = {name: int(record[name]) for name in fmt.user_pt_regs.names or ()}
            pid = int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], "little")
            user = regs["pstate"] & fmt.PSR_MODE_MASK == 0
            further = []
            for other_name, other_type, other in notes[at + 1 : at + 3]:
                if (other_name, other_type) not in fmt.CPU_REGSETS:
                    break
                further.append(CoreNote(other_name, other_type, other))
            result.append(CpuNote(len(result), pid, regs, user_mode=user, regsets=tuple(further)))
        return tuple(result)

    @override
    def vdso_image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """Follows vdso_info[] in arch/arm64/kernel/vdso.c."""
        found = kernel.layout.find_symbol("vdso_start" if machine.elf_class == 64 else "vdso32_start")
        return None if found is None else KernelAddr(found)

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A 32-bit process has TASK_SIZE_32, and PSTATE.M[4] set."""
        small = task_size <= fmt.TASK_SIZE_32_MAX if task_size is not None else None
        if small if small is not None else regs.get("pstate", 0) & fmt.PSR_MODE32_BIT:
            return CoreMachine(EM_ARM, 32, fmt.COMPAT_REGS)
        return CoreMachine(EM_AARCH64, 64, fmt.user_pt_regs.names or ())

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Follows compat_get_user_reg() in arch/arm64/kernel/ptrace.c for 32-bit processes."""
        if machine.elf_class == 32 and regs.get("pstate", 0) & fmt.PSR_AA32_DIT_BIT:
            regs = {**regs, "pstate": regs["pstate"] & ~fmt.PSR_AA32_DIT_BIT | fmt.COMPAT_PSR_DIT_BIT}
        return super().gregs(regs, machine)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        thread = self._thread(task, regs, kernel)
        return compat.regsets(thread) if machine.elf_class == 32 else registers.regsets(thread)

    @override
    def note_regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[CoreNote, ...], str | None]:
        if not note.user_mode or not note.regsets:
            return (), None
        if regs.get("pstate", 0) & fmt.PSR_MODE32_BIT:
            return compat.live_regsets(note.regsets), None
        thread = self._thread(task, regs, kernel)
        return registers.live_regsets(thread, note.regsets), registers.LOST

    @staticmethod
    def _thread(task: KernelAddr, regs: Mapping[str, int], kernel: KernelView) -> registers.Thread:
        layout = kernel.layout
        t1sz = layout.find_constant("TCR_EL1_T1SZ")
        bits = layout.find_constant("VA_BITS") if t1sz is None else 64 - t1sz
        return registers.Thread(task, regs, bits or 48, kernel)

    @override
    def kernel_unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return Arm64Unwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        frame = self._saved_frame(stack, kernel)
        return None if frame is None else system_call(frame)

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Follows Procedure Call Standard for the Arm 64-bit Architecture, 6.1.1 and 6.4.6."""
        return _UNWIND if machine.elf_class == 64 else None


ARCH = Arm64()

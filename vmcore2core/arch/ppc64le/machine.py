"""64-bit POWER servers (Book3S), little-endian, with the radix or the hash MMU.

With the hash MMU, kernel addresses that are not of the linear mapping (vmalloc, vmemmap) are not read.

References: arch/powerpc/include/asm/{ptrace,processor,reg,paca}.h, arch/powerpc/include/asm/book3s/64/pgtable.h,
arch/powerpc/kernel/{process,paca}.c, arch/powerpc/kernel/ptrace/ptrace-view.c, arch/powerpc/kexec/vmcore_info.c (Linux
7.2); QEMU's target/ppc/arch_dump.c (10.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U64Array
from vmcore2core.arch.base import Arch
from vmcore2core.arch.kernel_stack import KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.ppc64le.kernel_stack import Ppc64leUnwinder, system_call
from vmcore2core.arch.ppc64le.paging import VMEMMAP_KEYS, kernel_spec, swap_entry, user_spec, vmemmap_backing
from vmcore2core.arch.ppc64le.registers import LAYOUT_KEYS, LOST, Thread, live_regsets, qemu_regsets, saved_regsets
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
from vmcore2core.arch.task import stack_sizes
from vmcore2core.errors import LayoutError, LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import elf_core
from vmcore2core.formats import ppc64le as fmt
from vmcore2core.interfaces import ByteOrder, KernelView, Layout
from vmcore2core.overrides import override

EM_PPC, EM_PPC64 = 20, 21
IMAGE_MAX = 256 << 20
IMAGE_ALIGN = 64 << 10  # of a kernel that is not loaded to 0: at least the page size
NR_CPUS_MAX = 1 << 14


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a branch that sets the link register: bl, bcl, bctrl, blrl (Power ISA, 2.4)."""
    word = int.from_bytes(code[-4:], "little") if len(code) >= 4 else 0
    form = word >> 26
    if form == fmt.OP_BRANCH_REG:
        return bool(word & fmt.LK) and word >> 1 & 0x3FF in fmt.BRANCH_REG_XO
    # A call that restores the TOC pointer has "ld r2,24(r1)" or a nop behind it; it is where the call returns to.
    return form in (fmt.OP_BRANCH, fmt.OP_BRANCH_CONDITIONAL) and bool(word & fmt.LK)


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("nip"),
    stack_pointer=fmt.DWARF_REGS.index("r1"),
    frame_pointer=fmt.DWARF_REGS.index("r31"),
    preserved=frozenset(fmt.DWARF_REGS.index(name) for name in fmt.PRESERVED),
    trampolines=tuple(
        SignalTrampoline(fmt.SIGTRAMP, entry, mcontext, None, fmt.pt_regs["little"], fmt.SIGCONTEXT_NAMES)
        for entry, mcontext in (
            (0, fmt.SIGNAL_FRAMESIZE + fmt.SIGFRAME_REGS),
            (4, fmt.SIGFRAME_REGS),
            (8, fmt.SIGFRAME_REGS),
        )
    ),
    call_size_max=4,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("link"),
    back_chain=fmt.STACK_FRAME_LR_SAVE,
)


class Ppc64le(Arch):
    """64-bit POWER, little-endian."""

    DOC = ArchDoc(
        page_tables="radix and hash MMU; 4 and 64 KiB pages",
        tested="Debian's 7.2, radix and hash MMU, 4 and 64 KiB pages",
        limitations=(
            "32-bit processes",
            "transactional memory's notes",
        ),
    )

    name = "ppc64le"
    e_machine = EM_PPC64
    byte_order: ByteOrder = "little"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    greg_names = fmt.ELF_GREGSET
    tp_register = "r13"
    saved_sp = "ksp"
    thread_members: Mapping[str, int] = MappingProxyType({})
    layout_keys = (
        "OFFSET(task_struct.stack)",
        "SIZE(pt_regs)",
        "SIZE(thread_union)",
        *LAYOUT_KEYS,
        *(f"SYMBOL({name})" for name in (*fmt.INDEX_SIZES, "__pmd_val_bits", "paca_ptrs", "nr_cpu_ids")),
        "OFFSET(paca_struct.hw_cpu_id)",
        *VMEMMAP_KEYS,
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """These keys are in arch/powerpc/kexec/vmcore_info.c alone."""
        return vmcoreinfo.number("RADIX_MMU") is not None or vmcoreinfo.symbol("mmu_psize_defs") is not None

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """0xc000000000000000 is physical 0 in every kernel, wherever it was loaded.

        Raises:
            LayoutInvalid: the page size is none that these kernels have, or a symbol is not in the linear mapping.
        """
        pgd, stext = self._linear(vmcoreinfo, "swapper_pg_dir"), self._linear(vmcoreinfo, "_stext")
        page_size = vmcoreinfo.string("PAGESIZE")
        if page_size is None:
            raise LayoutUnknown("PAGESIZE", ("VMCOREINFO",))
        size = {str(size): size for size in fmt.RADIX_INDEX_SIZES}.get(page_size)
        if size is None:
            raise LayoutInvalid(f"PAGESIZE is {page_size} in VMCOREINFO, expected 4096 or 65536")
        radix_mmu = vmcoreinfo.number("RADIX_MMU")
        # Where the MMU is not known, what is beyond the smaller mapping is in the radix MMU's page table as well.
        end = fmt.LINEAR_END_HASH_4K if radix_mmu != 1 and size == 4096 else fmt.LINEAR_END
        linear = LinearMapping(AddressRange(fmt.PAGE_OFFSET, end), PhysAddr(0))
        start = stext & ~(IMAGE_ALIGN - 1)
        image = LinearMapping(AddressRange(start, min(start + IMAGE_MAX, end)), PhysAddr(start - fmt.PAGE_OFFSET))
        root = PhysAddr(pgd - fmt.PAGE_OFFSET)
        return KernelMap(spec=kernel_spec(size, radix_mmu), root=root, linear=(linear,), image=(image,))

    @override
    def whole_map(self, kernel_map: KernelMap, kernel: KernelView) -> KernelMap:
        """With the hash MMU, the kernel's variables tell the form of its page table, too.

        Where they do not, what is beyond the linear mapping stays unknown.
        """
        if kernel.layout.find_constant("RADIX_MMU") == 1:
            return kernel_map
        try:
            spec = user_spec(kernel_map.spec.page_size, kernel)
        except (LayoutError, MemoryFault):
            return kernel_map
        if spec.levels == kernel_map.spec.levels:  # radix, which has vmemmap in it
            return kernel_map
        try:
            backing = vmemmap_backing(kernel)
        except (LayoutError, MemoryFault):
            backing = ()
        return replace(kernel_map, spec=spec, linear=(*kernel_map.linear, *backing))

    @staticmethod
    def _linear(vmcoreinfo: LayoutKeys, name: str) -> int:
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        if not fmt.PAGE_OFFSET <= address < fmt.LINEAR_END_HASH_4K:
            raise LayoutInvalid(
                f"{name} is at {address:#x} in VMCOREINFO, "
                f"expected {fmt.PAGE_OFFSET:#x} to {fmt.LINEAR_END_HASH_4K:#x} (the linear mapping)"
            )
        return address

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """One form for all processes."""
        return user_spec(kernel_map.spec.page_size, kernel)

    @override
    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        return swap_entry(entries, page_size)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """VMCOREINFO has the value of ``vmemmap`` (since Linux 5.13), kallsyms its address."""
        found = kernel.layout.find_symbol("vmemmap")
        if found is not None and fmt.PAGE_OFFSET <= found < fmt.LINEAR_END_HASH_4K:
            return kernel.uint(found, 8)
        return found

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """task_pt_regs() is ``thread.regs``, NULL in a kernel thread; gpr_get().

        They end where the stack ends, in all versions. In a system call, r3 is still the first argument, or -ERESTART*
        once a signal has interrupted it; trap tells that it is one.
        """
        layout = kernel.layout
        at = Thread(task, kernel).uint("regs", 8)
        if at is None:
            size = layout.find_size("pt_regs")
            tops = stack_sizes(layout, fmt.THREAD_SIZES)
            places: Sequence[int] = [stack + top - size for top in tops] if size else ()
        else:
            places = (at,) if stack <= at < stack + fmt.STACK_MAX else ()
        for place in places:
            try:
                regs = self._plausible(kernel.memory.read(place, fmt.pt_regs["little"].itemsize))
            except MemoryFault:
                continue
            if regs is not None:
                regs["msr"] |= Thread(task, kernel).uint("fpexc_mode", 4) or 0  # get_user_msr()
                return regs
        return None

    def _plausible(self, raw: bytes) -> dict[str, int] | None:
        """Return these registers if they were saved in user mode."""
        regs = _gregs(raw, "little", fmt.PT_REGS)
        user = (
            regs["msr"] & fmt.MSR_PR
            and regs["msr"] & fmt.MSR_LE
            and not regs["msr"] & fmt.MSR_NEVER
            and regs["nip"] % 4 == 0
            and regs["nip"] < self.user_end
            and regs["r1"] < self.user_end
        )
        return regs | {"softe": fmt.SOFTE_USER} if user else None

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """QEMU's notes may have another byte order than the kernel.

        QEMU writes headers and registers in the byte order in which its first CPU takes interrupts. That may be
        big-endian although the kernel is little-endian; MSR tells. QEMU's NT_PRSTATUS has no pr_pid and nothing that is
        not a register, such as trap. Further notes follow it, unlike kdump's.
        """
        cpus: list[tuple[bytes, dict[int, bytes]]] = []
        for name, n_type, desc in notes:
            if name not in ("CORE", ""):
                continue
            if n_type == elf_core.NT_PRSTATUS:
                cpus.append((desc, {}))
            elif cpus:
                cpus[-1][1].setdefault(n_type, desc)
        cpus = [cpu for cpu in cpus if len(cpu[0]) >= fmt.PRSTATUS_SIZE]
        order = _byte_order([desc for desc, _ in cpus])
        return tuple(self._cpu_note(number, desc, more, order) for number, (desc, more) in enumerate(cpus))

    def _cpu_note(self, number: int, desc: bytes, more: Mapping[int, bytes], order: ByteOrder) -> CpuNote:
        by_qemu = fmt.NT_PPC_VMX in more
        pid = number + 1 if by_qemu else int.from_bytes(desc[fmt.PRSTATUS_PID : fmt.PRSTATUS_PID + 4], order)
        regs = _gregs(desc[fmt.PRSTATUS_REGS :], order, fmt.QEMU_GREGS if by_qemu else fmt.PT_REGS)
        user_mode = bool(regs["msr"] & fmt.MSR_PR)
        if user_mode:
            regs["softe"] = fmt.SOFTE_USER
        return CpuNote(number, pid, regs, user_mode, qemu_regsets(more, order) if by_qemu else ())

    @override
    def note_number(self, cpu: int, kernel: KernelView) -> int:
        """0 may be whichever CPU booted, and paca_struct has the hardware's number.

        smp_setup_cpu_maps() in arch/powerpc/kernel/setup-common.c.
        """
        layout = kernel.layout
        table, found = layout.find_symbol("paca_ptrs"), layout.find_member("paca_struct", "hw_cpu_id")
        count = layout.find_symbol("nr_cpu_ids")
        if table is None or found is None or count is None:
            return cpu
        size = min(kernel.uint(count, 4), NR_CPUS_MAX)
        if not cpu < size:
            return cpu
        pacas = np.frombuffer(kernel.memory.read(kernel.uint(table, 8), 8 * size), "<u8").tolist()
        numbers = [kernel.uint(paca + found.offset, 2) if paca else None for paca in pacas]
        own = numbers[cpu]
        if own is None or own == fmt.HW_CPU_ID_NONE:
            return cpu
        return sum(1 for number in numbers if number is not None and number < own)

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A compat process runs with MSR's SF clear, and has TASK_SIZE_USER32."""
        small = task_size <= fmt.TASK_SIZE_32_MAX if task_size is not None else not regs.get("msr", fmt.MSR_SF) >> 63
        if small:
            return CoreMachine(EM_PPC, 32, self.greg_names, "a 32-bit (ppc) process, which is not supported")
        return CoreMachine(EM_PPC64, 64, self.greg_names)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        """Follows native_regsets in arch/powerpc/kernel/ptrace/ptrace-view.c.

        Not made: NT_PPC_TM_* (of a thread in a transaction), NT_PPC_PKEY (with the hash MMU), NT_PPC_DEXCR and
        NT_PPC_HASHKEYR (Power10; of the former, a half is in the processor alone).
        """
        return saved_regsets(Thread(task, kernel))

    @override
    def note_regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[CoreNote, ...], str | None]:
        """A CPU that is in the kernel has them as long as the thread's MSR says so."""
        msr = regs.get("msr", fmt.MSR_FP | fmt.MSR_VEC)
        return live_regsets(Thread(task, kernel), msr, note.regsets), LOST

    @override
    def kernel_unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return Ppc64leUnwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        return system_call(regs)

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        return _UNWIND if machine.elf_class == 64 else None


def _gregs(raw: bytes, order: ByteOrder, names: Sequence[str]) -> dict[str, int]:
    """Return registers of ``struct pt_regs``; those that elf_gregset_t has besides are zero."""
    record = np.frombuffer(raw, fmt.pt_regs[order], 1)[0]
    return {name: int(record[name]) for name in names} | dict.fromkeys(fmt.GREGSET_RESERVED, 0)


def _byte_order(prstatus: Sequence[bytes]) -> ByteOrder:
    """Return the byte order of NT_PRSTATUS descriptors: that in which MSR says "64 bits"."""
    for desc in prstatus:
        found: list[ByteOrder] = []
        orders: tuple[ByteOrder, ByteOrder] = ("little", "big")
        for order in orders:
            msr = _gregs(desc[fmt.PRSTATUS_REGS :], order, ("msr",))["msr"]
            if msr & fmt.MSR_SF:  # in the wrong order, MSR_NEVER stands there
                found.append(order)
        if len(found) == 1:
            return found[0]
    return "little"


ARCH = Ppc64le()

"""s390x: IBM Z, 64 bits, the one big-endian architecture here.

References: arch/s390/include/asm/{pgtable,processor,ptrace,thread_info,page}.h,
arch/s390/kernel/{ptrace,process,setup,signal,vmcore_info,crash_dump}.c, arch/s390/boot/startup.c (Linux 7.2); QEMU's
target/s390x/arch_dump.c (10.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U64Array
from vmcore2core.arch.base import Arch
from vmcore2core.arch.kernel_stack import KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.s390x.kernel_stack import S390xUnwinder, system_call
from vmcore2core.arch.s390x.paging import SPECS, swap_entry
from vmcore2core.arch.s390x.registers import LAYOUT_KEYS, Thread, cpu_regsets, live_regsets, saved_regsets
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
from vmcore2core.errors import LayoutInvalid, LayoutUnknown, MemoryFault
from vmcore2core.formats import elf_core
from vmcore2core.formats import s390x as fmt
from vmcore2core.interfaces import ByteOrder, KernelView, Layout
from vmcore2core.overrides import override

EM_S390 = 22
IMAGE_MAX = 256 << 20
NR_CPUS_MAX = 512  # CONFIG_NR_CPUS at its largest


def ends_with_call(code: bytes) -> bool:
    """Tell whether bytes end in a call: basr, bras, brasl or bas that write r14."""
    two, four, six = (int.from_bytes(code[-size:][:2], "big") if len(code) >= size else 0 for size in (2, 4, 6))
    return (
        # With register 0 there is no branch.
        (two & fmt.CALL_BASR_MASK == fmt.CALL_BASR and two != fmt.CALL_BASR)
        or four == fmt.CALL_BRAS
        or four & fmt.CALL_BAS_MASK == fmt.CALL_BAS
        or six == fmt.CALL_BRASL
    )


_UNWIND = UnwindSpec(
    word=8,
    registers=fmt.DWARF_REGS,
    return_address=fmt.DWARF_REGS.index("pswa"),
    stack_pointer=fmt.DWARF_REGS.index("r15"),
    frame_pointer=None,
    preserved=frozenset(fmt.DWARF_REGS.index(name) for name in fmt.PRESERVED),
    trampolines=tuple(
        SignalTrampoline(code, 0, mcontext, None, fmt.sigregs, fmt.SIGCONTEXT_NAMES)
        for code, mcontext in (
            (fmt.SIGRETURN, fmt.SIGFRAME_SREGS),
            (fmt.RT_SIGRETURN, fmt.RT_SIGFRAME_MCONTEXT),
        )
    ),
    call_size_max=6,
    ends_with_call=ends_with_call,
    link_register=fmt.DWARF_REGS.index("r14"),
    cfa_offset=fmt.STACK_FRAME_OVERHEAD,
)


class S390x(Arch):
    """IBM Z."""

    DOC = ArchDoc(
        page_tables="three to five levels; 1 MiB and 2 GiB pages",
        tested="Debian's 7.2, three levels",
        limitations=("31-bit processes", "floating-point registers before Linux 6.9"),
    )

    name = "s390x"
    e_machine = EM_S390
    byte_order: ByteOrder = "big"
    pointer_size = 8
    user_end = fmt.TASK_SIZE_MAX
    greg_names = fmt.s390_regs.names or ()
    saved_sp = "ksp"
    thread_members: Mapping[str, int] = MappingProxyType({"acrs": 0})
    layout_keys = (
        "OFFSET(task_struct.stack)",
        "SIZE(pt_regs)",
        "OFFSET(pt_regs.flags)",
        "SIZE(thread_union)",
        "SYMBOL(lowcore_ptr)",
        "LENGTH(lowcore_ptr)",
        "SYMBOL(vmemmap)",
        *LAYOUT_KEYS,
    )

    @override
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """This is in arch/s390/kernel/vmcore_info.c (older: machine_kexec.c) alone."""
        return vmcoreinfo.symbol("lowcore_ptr") is not None

    @override
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """Follows arch_crash_save_vmcoreinfo().

        Since Linux kernel commit c98d2ecae08f ("s390/mm: Uncouple physical vs virtual address spaces") (in v6.10),
        the image's physical and virtual addresses differ, and KERNELOFFPHYS tells how; before, they are the same.

        No range is ``linear``: VMCOREINFO does not tell where the image ends.

        Raises:
            LayoutInvalid: the offsets put the page table beyond what a machine has.
        """
        pgd, stext = self._symbol(vmcoreinfo, "swapper_pg_dir"), self._symbol(vmcoreinfo, "_stext")
        virtual, physical = (self._hex(vmcoreinfo, key) for key in ("KERNELOFFSET", "KERNELOFFPHYS"))
        offset = 0 if virtual is None or physical is None else virtual - physical
        start = stext & ~((1 << fmt.PAGE_SHIFT) - 1)
        for name, address in (("swapper_pg_dir", pgd), ("_stext", start)):
            if not 0 <= address - offset < fmt.REGION1_SIZE:
                raise LayoutInvalid(
                    f"{name} is at {address:#x} in VMCOREINFO, which KERNELOFFSET and KERNELOFFPHYS put at physical "
                    f"{address - offset:#x}, expected 0 to {fmt.REGION1_SIZE:#x}"
                )
        image = LinearMapping(AddressRange(start, min(start + IMAGE_MAX, 1 << 64)), PhysAddr(start - offset))
        return KernelMap(self._kernel_spec(vmcoreinfo, pgd, stext), PhysAddr(pgd - offset), linear=(), image=(image,))

    @staticmethod
    def _kernel_spec(vmcoreinfo: LayoutKeys, *addresses: int) -> PageTableSpec:
        """Return the form of the kernel's page table: its highest addresses tell how many levels it must have.

        vmalloc and modules are at the end of what it can map: setup_kernel_memory_layout(), in older kernels
        setup_memory_end(). Each entry tells its table's kind, so that a wrong guess does not translate anything.
        """
        told = (vmcoreinfo.number("VMALLOC_START"), vmcoreinfo.symbol("vmemmap"), *addresses)
        highest = max(address for address in told if address is not None)
        kind = "pud" if highest < fmt.REGION2_SIZE else "p4d" if highest < fmt.REGION1_SIZE else "pgd"
        return SPECS[fmt.TABLE_TYPES[kind]]

    @staticmethod
    def _symbol(vmcoreinfo: LayoutKeys, name: str) -> int:
        address = vmcoreinfo.symbol(name)
        if address is None:
            raise LayoutUnknown(f"SYMBOL({name})", ("VMCOREINFO",))
        return address

    @staticmethod
    def _hex(vmcoreinfo: LayoutKeys, key: str) -> int | None:
        text = vmcoreinfo.string(key)
        if text is None:
            return None
        try:
            return int(text, 16)
        except ValueError:
            raise LayoutInvalid(f"{key} is {text[:32]!r} in VMCOREINFO, expected a hexadecimal number") from None

    @override
    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """How far the image was moved, which is linked to where its text follows 1 MiB."""
        moved = self._symbol(vmcoreinfo, "_stext") - fmt.TEXT_OFFSET
        if address == paddr:
            yield {}
        else:
            yield {"KERNELOFFSET": f"{moved:x}", "KERNELOFFPHYS": f"{moved - (address - paddr):x}"}

    @override
    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """The first entry tells the top table's kind, as for pgd_offset_raw().

        Raises:
            LayoutInvalid: it is zero, which no entry is.
        """
        pgd = kernel.uint(mm + kernel.layout.member("mm_struct", "pgd").offset, 8)
        first = kernel.uint(pgd, 8)
        if first == 0:
            raise LayoutInvalid(f"the first entry of the page table at {pgd:#x} is 0, expected one with its type")
        return SPECS[(first & fmt.ENTRY_TYPE_MASK) >> fmt.TYPE_SHIFT]

    @override
    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        return swap_entry(entries, sizes)

    @override
    def vmemmap(self, kernel: KernelView) -> int | None:
        """VMCOREINFO has the value of ``vmemmap``, kallsyms its address, in the image."""
        layout = kernel.layout
        found, stext = layout.find_symbol("vmemmap"), layout.find_symbol("_stext")
        if found is not None and stext is not None and stext <= found < stext + IMAGE_MAX:
            return kernel.uint(found, 8)
        return found

    @override
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Follows task_pt_regs() in arch/s390/include/asm/processor.h, __peek_user().

        In a system call, the PSW's address is behind the svc, r2 is -ENOSYS or, in older kernels, still the first
        argument, which orig_r2 has. The kernel's own core has -ERESTART* in r2, of the signal that ends a process.
        """
        found = self._saved_frame(stack, kernel)
        return None if found is None else _peek(found[1])

    def _saved_frame(self, stack: int, kernel: KernelView) -> tuple[int, Mapping[str, int]] | None:
        """Return ``struct pt_regs`` at the top of a kernel stack, if it is of user mode, and its address."""
        layout = kernel.layout
        size = layout.find_size("pt_regs") or fmt.PT_REGS_SIZE
        for top in stack_sizes(layout, fmt.THREAD_SIZES):
            address = stack + top - size
            try:
                raw = kernel.memory.read(address, fmt.pt_regs.itemsize)
            except MemoryFault:
                continue
            record = np.frombuffer(raw, fmt.pt_regs)[0]
            regs = {name: int(record[name]) for name in fmt.pt_regs.names or ()}
            if self._plausible(regs):
                return address, regs
        return None

    def _frame_of(self, task: int, kernel: KernelView) -> tuple[int, Mapping[str, int]] | None:
        """Return the same of a ``struct task_struct *``."""
        found = kernel.layout.find_member("task_struct", "stack")
        if found is None:
            return None
        return self._saved_frame(kernel.uint(task + found.offset, 8), kernel)

    def _plausible(self, regs: Mapping[str, int]) -> bool:
        """Tell whether an interruption saved this in user mode."""
        mask = regs["pswm"]
        return (
            mask & fmt.PSW_USER_BITS == fmt.PSW_USER_BITS
            and not mask & (fmt.PSW_RESERVED | fmt.PSW_MASK_WAIT)
            and bool(mask & fmt.PSW_MASK_BA)
            and regs["pswa"] < self.user_end
        )

    @override
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """QEMU's s390_cpu_write_elf64_note(), kdump's fill_cpu_elf_notes().

        In both, pr_pid is the position of the note, from 1; QEMU's is in its host's byte order. Both have further
        notes behind each CPU's NT_PRSTATUS.
        """
        cpus: list[tuple[bytes, dict[int, bytes]]] = []
        for name, n_type, desc in notes:
            if name not in ("CORE", "LINUX", ""):
                continue
            if n_type == elf_core.NT_PRSTATUS:
                cpus.append((desc, {}))
            elif cpus:
                cpus[-1][1].setdefault(n_type, desc)
        cpus = [cpu for cpu in cpus if len(cpu[0]) >= fmt.PRSTATUS_SIZE]
        return tuple(self._cpu_note(number, desc, more) for number, (desc, more) in enumerate(cpus))

    def _cpu_note(self, number: int, desc: bytes, more: Mapping[int, bytes]) -> CpuNote:
        record = np.frombuffer(desc, fmt.s390_regs, 1, fmt.PRSTATUS_REGS)[0]
        regs = {name: int(record[name]) for name in self.greg_names}
        user_mode = bool(regs["pswm"] & fmt.PSW_MASK_PSTATE)
        if user_mode:
            regs |= _peek(regs)
        del regs["orig_r2"]  # no CPU has it, and they write zero
        prefix, ctrs = more.get(fmt.NT_S390_PREFIX, b""), more.get(fmt.NT_S390_CTRS, b"")
        if len(prefix) == 4:
            regs["prefix"] = int.from_bytes(prefix, "big")
        if len(ctrs) == fmt.CTRS_SIZE:
            regs["cr1"] = int.from_bytes(ctrs[fmt.CR1_OFFSET : fmt.CR1_OFFSET + 8], "big")
        return CpuNote(number, number + 1, regs, user_mode, cpu_regsets(more))

    @override
    def note_of(self, cpu: int, notes: Sequence[CpuNote], kernel: KernelView) -> CpuNote | None:
        """Each CPU has its lowcore at the address in its prefix register."""
        layout = kernel.layout
        table, size = layout.find_symbol("lowcore_ptr"), layout.find_constant("lowcore_ptr") or NR_CPUS_MAX
        if table is None or not all("prefix" in note.regs for note in notes):
            return super().note_of(cpu, notes, kernel)
        if not 0 <= cpu < min(size, NR_CPUS_MAX):
            return None
        lowcore = kernel.uint(table + 8 * cpu, 8) & fmt.LOWCORE_ADDRESS
        return next((note for note in notes if note.regs["prefix"] == lowcore), None) if lowcore else None

    @override
    def thread_bases(self, task: KernelAddr, kernel: KernelView) -> Mapping[str, int | None]:
        """The access registers, of which the first two have the thread pointer.

        And orig_r2, which is no register, but what the kernel keeps of the last system call, on a CPU or off it.
        """
        frame, found = self._frame_of(task, kernel), kernel.layout.find_member("task_struct", "thread.acrs")
        kept = {} if frame is None else {"orig_r2": frame[1]["orig_r2"]}
        if found is None:
            return {**dict.fromkeys(fmt.ACRS), **kept}
        record = np.frombuffer(kernel.memory.read(task + found.offset, fmt.acrs.itemsize), fmt.acrs)[0]
        return {name: int(record[name]) for name in fmt.ACRS} | kept

    @override
    def note_bases(self, note: CpuNote) -> Mapping[str, int]:
        """The kernel leaves the access registers alone."""
        return {name: note.regs[name] for name in fmt.ACRS}

    @override
    def note_uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """User code runs in the primary address space."""
        if "cr1" not in note.regs:
            return None
        return note.user_mode and note.regs["cr1"] & fmt.ASCE_ORIGIN == pgd

    @override
    def thread_pointer(self, regs: Mapping[str, int]) -> int | None:
        high, low = regs.get("acr0"), regs.get("acr1")
        return None if high is None or low is None else high << 32 | low

    @override
    def is_thread_pointer(self, value: int, read_user: Callable[[int, int], bytes | None]) -> bool:
        """Glibc's tcbhead_t begins with its own address."""
        return value != 0 and value % 8 == 0 and read_user(value, 8) == value.to_bytes(8, "big")

    @override
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """A 31-bit process runs with the PSW's EA clear, and has 2 GiB."""
        small = task_size <= fmt.TASK_SIZE_31 if task_size is not None else not regs.get("pswm", -1) & fmt.PSW_MASK_EA
        if small:
            return CoreMachine(EM_S390, 32, self.greg_names, "a 31-bit process, which is not supported")
        return CoreMachine(EM_S390, 64, self.greg_names)

    @override
    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        """Follows s390_regsets in arch/s390/kernel/ptrace.c.

        What thread.system_call has is of the last signal, maybe of the thread that this one was forked from, until a
        signal is delivered: NT_S390_SYSTEM_CALL is what arch_do_signal_or_restart() would put there.
        """
        frame = self._frame_of(task, kernel)
        if frame is None:
            return None
        address, saved = frame
        flags = kernel.layout.find_member("pt_regs", "flags")
        if flags is None:
            system_call = None
        else:
            inside = kernel.uint(address + flags.offset, 8) & fmt.PIF_SYSCALL
            system_call = saved["int_code"] if inside else 0
        return saved_regsets(Thread(task, kernel), saved["int_code"], system_call)

    @override
    def note_regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[CoreNote, ...], str | None]:
        """In the kernel, vector registers may be the kernel's own."""
        if not note.user_mode:
            return (), None
        return live_regsets(Thread(task, kernel), note.regsets)

    @override
    def kernel_unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        return S390xUnwinder(kernel)

    @override
    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        found = self._saved_frame(stack, kernel)
        return None if found is None else system_call(regs, found[0], kernel)

    @override
    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """ELF ABI s390x supplement, 1.6.1: frames have no pointers to each other."""
        return _UNWIND if machine.elf_class == 64 else None

    @override
    def unwind_registers(self, notes: Sequence[CoreNote]) -> Mapping[str, int]:
        """A leaf function may save general registers in floating-point ones."""
        for note in notes:
            if note.n_type == elf_core.NT_FPREGSET and len(note.desc) == fmt.FPREGSET_SIZE:
                record = np.frombuffer(note.desc, fmt.s390_fp_regs)[0]
                return {name: int(record[name]) for name in fmt.FREGS}
        return {}

    @override
    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Access registers have four bytes."""
        record = np.zeros(1, fmt.s390_regs)
        for name in self.greg_names:
            record[name] = regs.get(name, 0)
        return record.tobytes()


def _peek(regs: Mapping[str, int]) -> dict[str, int]:
    """Return the registers but for the access registers, with the PSW's mask as ptrace shows it; __peek_user()."""
    mask = regs["pswm"] & (fmt.PSW_MASK_USER | fmt.PSW_MASK_RI) | fmt.PSW_USER_BITS
    return {name: regs[name] for name in ("pswa", *fmt.GPRS, "orig_r2")} | {"pswm": mask}


ARCH = S390x()

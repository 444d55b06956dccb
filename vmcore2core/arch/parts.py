"""The parts of every machine: page tables, threads' registers, CPUs' registers, core files, user stacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType

from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.spec import (
    CodeFrame,
    CoreMachine,
    CpuNote,
    FramesByCode,
    KernelMap,
    LayoutKeys,
    PageTableSpec,
    UnwindSpec,
)
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.formats.elf_core import NT_PRSTATUS
from vmcore2core.interfaces import ByteOrder, KernelView


class Paging(ABC):
    """Address translation: ``arch/NAME/paging.py``.

    Attributes:
        image_keys: VMCOREINFO keys without which the kernel's memory cannot be read, for ``located_keys``.
        prot_valid: bit of ``vma->vm_page_prot`` set in exactly the mappings with any access; 0 if there is no such bit.
        prot_noexec: bit of ``vma->vm_page_prot`` clear in all mappings with VM_EXEC, except a driver's; 0 if none.
        pte_write: bit of a page-table entry set only for pages of mappings with VM_WRITE; 0 if none.
        own_tables: member of ``struct mm_struct`` that is not NULL if the kernel may keep its own page tables inside a
        process's; "" if it never does.
        vm_shadow_stack: VM_SHADOW_STACK in ``vma->vm_flags``; 0 if the machine has no shadow stacks.
        pgd_mm: (struct, member) that points from the page of a process's top table to its ``struct mm_struct``, the
        newest kernel's first; empty if the kernel does not keep it.
    """

    image_keys: tuple[str, ...] = ()
    prot_valid: int = 0
    prot_noexec: int = 0
    pte_write: int = 0
    own_tables: str = ""
    vm_shadow_stack: int = 0
    pgd_mm: tuple[tuple[str, str], ...] = ()

    @abstractmethod
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """Return the translation of kernel addresses.

        Raises:
            LayoutUnknown: VMCOREINFO lacks a required key.
        """

    @staticmethod
    def page_size(vmcoreinfo: LayoutKeys, sizes: Iterable[int]) -> int:
        """Return PAGESIZE of VMCOREINFO.

        Args:
            vmcoreinfo: of the kernel.
            sizes: the machine's page sizes.

        Raises:
            LayoutUnknown: VMCOREINFO lacks it.
            LayoutInvalid: it is none of ``sizes``.
        """
        told, known = vmcoreinfo.string("PAGESIZE"), {str(size): size for size in sizes}
        if told is None:
            raise LayoutUnknown("PAGESIZE", ("VMCOREINFO",))
        if told not in known:
            raise LayoutInvalid(f"PAGESIZE is {told} in VMCOREINFO, expected {' or '.join(known)}")
        return known[told]

    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """Yield VMCOREINFO keys that would put ``address`` of the kernel image at physical ``paddr``.

        They stand in for keys that the text lacks; the caller tries each and accepts those that the kernel's page table
        confirms. None are needed if the image is always at the same place.
        """
        return iter(({},))

    def whole_map(self, kernel_map: KernelMap, kernel: KernelView) -> KernelMap:
        """Complete ``kernel_map`` from memory where VMCOREINFO leaves gaps; return it.

        Args:
            kernel_map: of the kernel, from ``kernel_map``.
            kernel: the dumped one, as far as ``kernel_map`` translates it.
        """
        return kernel_map

    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, kernel: KernelView) -> PageTableSpec:
        """Return the form of a process's page table, whose root is ``mm->pgd``.

        Args:
            kernel_map: of the kernel.
            mm: its ``struct mm_struct *``.
            kernel: the dumped one.

        Raises:
            MemoryFault, LayoutInvalid: the data that determines the form cannot be read, or is broken.
        """
        return kernel_map.spec

    def vmemmap(self, kernel: KernelView) -> int | None:
        """Return where the ``struct page`` of physical page 0 is or would be; None if that is not known.

        Raises:
            MemoryFault: the kernel's data for it cannot be read.
        """
        return kernel.layout.find_symbol("vmemmap")


class Registers(ABC):
    """General registers of threads, where the kernel saved them: ``arch/NAME/registers.py``.

    Attributes:
        names: names of a native core's general registers, in elf_gregset_t's order.
        thread_members: members of ``struct thread_struct`` that ``thread_bases`` reads, with byte offsets from the
        one that holds the thread pointer: for kernels without type information.
        tp_register: general register that the ABI reserves for the thread pointer, so that no function changes it; ""
        if the thread pointer is elsewhere.
        saved_sp: member of ``struct thread_struct`` that holds the kernel stack pointer of a task off the CPU; "" if
        that is elsewhere.
    """

    names: tuple[str, ...]
    thread_members: Mapping[str, int] = MappingProxyType({})
    tp_register: str = ""
    saved_sp: str = ""

    @abstractmethod
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Return the user registers saved at the top of a kernel stack, without thread-local bases.

        Args:
            task: ``struct task_struct *``.
            stack: ``task_struct.stack``, the lowest address of the stack.

        Returns:
            Register name -> value, or None if the data there cannot be user registers (the task never was in user
            mode, or the layout does not fit).
        """

    def thread_bases(self, task: KernelAddr, kernel: KernelView) -> Mapping[str, int | None]:
        """Return the registers kept in ``struct thread_struct`` while a task is off the CPU (x86: fs_base, gs_base)."""
        return {}

    def thread_pointer(self, regs: Mapping[str, int]) -> int | None:
        """Return the user-space thread pointer among registers (x86: fs_base), or None."""
        return regs.get(self.tp_register)

    def is_thread_pointer(self, value: int, read_user: Callable[[int, int], bytes | None]) -> bool:
        """Tell whether a word must be a thread pointer: the data that it points to proves it."""
        return False

    def implausible(self, regs: Mapping[str, int]) -> str | None:
        """Return a sentence about registers that no thread in user mode can have had, or None."""
        return None


class Cpus(ABC):
    """Registers of the CPUs, from a dump's notes: ``arch/NAME/cpus.py``.

    Attributes:
        sp: register of a CPU's note that holds the stack pointer; "" if nothing needs it.
    """

    sp: str = ""

    @abstractmethod
    def notes(self, notes: tuple[Note, ...]) -> tuple[CpuNote, ...]:
        """Return the CPUs' registers from the dump's notes (name, type, descriptor)."""

    @staticmethod
    def by_cpu(notes: Iterable[Note], names: Container[str], size: int) -> list[tuple[bytes, dict[int, bytes]]]:
        """Return each CPU's NT_PRSTATUS, and by their types the notes behind it.

        Args:
            notes: of the dump.
            names: the CPU notes' names.
            size: a shorter NT_PRSTATUS is left out, with the notes behind it.
        """
        cpus: list[tuple[bytes, dict[int, bytes]]] = []
        for name, n_type, desc in notes:
            if name not in names:
                continue
            if n_type == NT_PRSTATUS:
                cpus.append((desc, {}))
            elif cpus:
                cpus[-1][1].setdefault(n_type, desc)
        return [cpu for cpu in cpus if len(cpu[0]) >= size]

    def bases(self, note: CpuNote) -> Mapping[str, int]:
        """Return the current values of ``thread_bases``' registers from a CPU note, for the task running there."""
        return {}

    def uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """Tell whether a CPU was using the page table at physical ``pgd``; None if the note does not say."""
        return None

    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[Note, ...], str | None]:
        """Return the notes, apart from NT_PRSTATUS, of a thread that was on a CPU.

        Args:
            task: its ``struct task_struct *``.
            regs: its general registers.
            note: the CPU's note.
            kernel: the dumped one.

        Returns:
            The notes, none if its registers were lost with the processor; a sentence about what they lack, or None.

        Raises:
            MemoryFault, LayoutInvalid: as ``regsets``.
        """
        return note.regsets if note.user_mode else (), None

    def assumed_user_pc(self, note: CpuNote) -> int | None:
        """Return the program counter of a note that does not say the CPU's mode; None if it does (most do).

        The note's ``user_mode`` is then a guess: firmware may run at such an address, too.
        """
        return None


class Cores(ABC):
    """The kind of a process's core, and its notes: ``arch/NAME/cores.py``.

    Attributes:
        byte_order: the cores' byte order.
    """

    byte_order: ByteOrder = "little"

    @abstractmethod
    def machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """Return the machine of a process's core: native or compat.

        Args:
            regs: user registers of one of its threads, by native names; may be empty.
            task_size: ``mm->task_size``, or None if it is not known.
        """

    def process_machine(
        self, task: KernelAddr, regs: Mapping[str, int], task_size: int | None, kernel: KernelView
    ) -> CoreMachine:
        """Return the machine of a process's core if ``machine`` alone cannot tell it.

        Args:
            task: ``struct task_struct *`` of one of its threads.
            regs: user registers of one of its threads, by native names; may be empty.
            task_size: ``mm->task_size``, or None if it is not known.
            kernel: the dumped one.

        Raises:
            MemoryFault: the kernel's data for it cannot be read.
        """
        return self.machine(regs, task_size)

    def flags(self, mm: KernelAddr, kernel: KernelView) -> int:
        """Return e_flags of a process's core.

        Raises:
            MemoryFault: the kernel's data for them cannot be read.
        """
        return 0

    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[Note, ...] | None:
        """Return the notes of a thread, apart from NT_PRSTATUS, in the kernel's order.

        Args:
            task: ``struct task_struct *`` of a task off the CPU; the registers of others are in the processor.
            regs: its general registers.
            machine: the core's machine.
            kernel: the dumped one.

        Returns:
            None if the layout does not know where the kernel keeps them.

        Raises:
            MemoryFault: they cannot be read.
            LayoutInvalid: the data there cannot be registers.
        """
        return None

    def process_notes(self, kernel: KernelView) -> tuple[Note, ...]:
        """Return the notes that a core has once, at the end, not for each thread.

        Raises:
            MemoryFault, LayoutInvalid: as ``regsets``.
        """
        return ()

    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Return these registers as elf_gregset_t; registers missing from ``regs`` are zero."""
        size = machine.greg_size or machine.elf_class // 8
        mask = (1 << (8 * size)) - 1
        return b"".join((regs.get(name, 0) & mask).to_bytes(size, self.byte_order) for name in machine.greg_names)


class Unwind:
    """How to unwind user stacks: ``arch/NAME/unwind.py``; the default is for machines that lack one."""

    def spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Return how to unwind the stacks of such a process, or None if this package cannot."""
        return None

    def registers(self, notes: Sequence[Note]) -> Mapping[str, int]:
        """Return the registers, by ``spec``'s names, from a thread's notes other than NT_PRSTATUS."""
        return {}


def code_of(machine: str) -> FramesByCode:
    """Return ``frames_by_code`` of ``arch/NAME/code.py``, which is imported when it is first called.

    A conversion does not need that module, nor capstone.
    """

    def frames_by_code(
        read: Callable[[int, int], bytes | None], pc: int, start: int | None, exact: bool
    ) -> Iterator[CodeFrame]:
        found: Iterator[CodeFrame] = import_module(f"vmcore2core.arch.{machine}.code").frames_by_code(
            read, pc, start, exact
        )
        return found

    return frames_by_code

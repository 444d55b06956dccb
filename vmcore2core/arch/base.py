"""What an architecture is to this tool: numbers and pure functions; no files, no memory of its own.

To add one, write ``arch/NAME/machine.py`` ending in ``ARCH = Name()``, and ``formats/NAME.py`` for its register
structures.

Bare minimum (memory can be read):
  - name, e_machine, byte_order, pointer_size
  - kernel_map(): where VMCOREINFO says that the kernel's page table and image are, and the form of page tables as
    data and one vectorised decode function
  - user_page_table(): the form of a process's page tables
To write cores:
  - user_regs(): the registers saved when a thread entered the kernel
  - thread_bases(): the registers kept in struct thread_struct
  - cpu_notes(): the registers in the CPUs' crash notes
  - core_machine(): e_machine and class of one process's core (compat processes)
  - regsets(): the notes besides NT_PRSTATUS
To show user backtraces:
  - unwind_spec(): DWARF's register numbers, signal frames, calls
To show the kernel's own stacks:
  - kernel_unwinder()
  - system_call()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from vmcore2core.addresses import KernelAddr, U64Array
from vmcore2core.arch.kernel_stack import KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.spec import (
    ArchDoc,
    CoreMachine,
    CoreNote,
    CpuNote,
    KernelMap,
    LayoutKeys,
    PageTableSpec,
    TagSpec,
    UnwindSpec,
)
from vmcore2core.interfaces import ByteOrder, KernelView, Layout, Memory, MemoryAndLayout


class Arch(ABC):
    """One architecture as a kernel runs on it (its processes may be of another: compat).

    Attributes:
        name: as ``uname -m`` prints it.
        e_machine: ELF machine number of the kernel's own programs.
        byte_order: of the kernel.
        both_orders: whether there is an ``Arch`` of the same ``e_machine`` for the other byte order.
        pointer_size: bytes of an ``unsigned long``.
        user_end: first address beyond what a process can map (TASK_SIZE_MAX at its largest).
        greg_names: names of a core's general registers, in elf_gregset_t's order.
        thread_members: members of ``struct thread_struct`` that ``thread_bases`` reads, and where they stand relative
            to the one that holds the thread pointer, in bytes: for kernels that do not tell.
        tp_register: general register that the ABI reserves for the thread pointer, so that no function changes it; ""
            where the thread pointer is elsewhere.
        saved_sp: member of ``struct thread_struct`` that has the kernel stack pointer of a task off the CPU; "" where
            that is elsewhere.
        note_sp: register of a CPU's note that has the stack pointer; "" where this is not asked.
        prot_valid: bit of ``vma->vm_page_prot`` that mappings with any access have, and no others; 0 where none is.
        prot_noexec: bit of ``vma->vm_page_prot`` that no mapping with VM_EXEC has, but for a driver's; 0 where none is.
        pte_write: bit of a page-table entry that only pages of mappings with VM_WRITE have; 0 where none is.
        own_tables: member of ``struct mm_struct`` that is not NULL where the kernel may have page tables of its own in
            a process's; "" where it never has.
        vm_shadow_stack: VM_SHADOW_STACK of ``vma->vm_flags``; 0 where there is none.
        layout_keys: what it asks of a layout, as VMCOREINFO keys: for a layout written to a file.
        machine_names: further names in a dump header's utsname.machine.
        exported_abi: keys of the VMCOREINFO export that tell what programs may rely on, and the value that the tables
            here have.
        image_keys: VMCOREINFO keys without which the kernel's memory cannot be read, for ``located_keys``.
        inferable: (struct, member) whose offsets ``infer`` may tell.
        gate_name: what /proc/PID/maps calls the mapping of ``gate_vma``.
        gate_readable: whether the kernel's own cores have what is there, which a process's page table tells.
    """

    DOC: ClassVar[ArchDoc]

    name: str
    e_machine: int
    byte_order: ByteOrder
    pointer_size: int
    user_end: int
    greg_names: tuple[str, ...]
    thread_members: Mapping[str, int]
    tp_register: str = ""
    saved_sp: str = ""
    note_sp: str = ""
    prot_valid: int = 0
    prot_noexec: int = 0
    pte_write: int = 0
    own_tables: str = ""
    vm_shadow_stack: int = 0
    layout_keys: tuple[str, ...] = ()
    machine_names: tuple[str, ...] = ()
    exported_abi: Mapping[str, int] = MappingProxyType({})
    image_keys: tuple[str, ...] = ()
    inferable: tuple[tuple[str, str], ...] = ()
    both_orders: bool = False
    gate_name: str = ""
    gate_readable: bool = False

    def view(self, memory: Memory, layout: Layout) -> KernelView:
        """Return the view of a kernel of this architecture, of which these two are known."""
        return MemoryAndLayout(memory, layout, self.byte_order)

    @abstractmethod
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """Tell whether a VMCOREINFO text is of this architecture; for dumps whose header does not say."""

    @abstractmethod
    def kernel_map(self, vmcoreinfo: LayoutKeys) -> KernelMap:
        """Return how kernel addresses translate.

        Raises:
            LayoutUnknown: VMCOREINFO lacks a key that this needs.
        """

    def located_keys(self, vmcoreinfo: LayoutKeys, address: int, paddr: int) -> Iterator[dict[str, str]]:
        """Yield VMCOREINFO keys that would put ``address`` of the kernel image at physical ``paddr``.

        For a text that lacks them; the caller tries each and believes what the kernel's page table confirms. None are
        needed where the image is always at the same place.
        """
        return iter(({},))

    def whole_map(self, kernel_map: KernelMap, kernel: KernelView) -> KernelMap:
        """Return ``kernel_map`` with what memory itself tells of it, where VMCOREINFO does not tell all.

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
            MemoryFault, LayoutInvalid: what tells the form cannot be read, or is broken.
        """
        return kernel_map.spec

    def swap_entry(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array] | None:
        """Return what page-table entries that are not present name: __swp_type() and __swp_offset().

        Args:
            entries: uint64[n], ``EntryKind.NOT_PRESENT``, of any level.
            sizes: uint64[n], bytes of memory that each entry stands for: ``page_size`` at the last level.
            page_size: of the kernel.
            layout: of the kernel.

        Returns:
            type, uint64[n]; offset, uint64[n]; None where this is not known of the architecture or of this kernel.
        """
        return None

    def tag_spec(self, kernel: KernelView) -> TagSpec | None:
        """Return how memory with tags is told; None where the processors have none.

        Raises:
            MemoryFault, LayoutInvalid: what tells it cannot be read, or is broken.
        """
        return None

    def vmemmap(self, kernel: KernelView) -> int | None:
        """Return the address that ``struct page`` of physical page 0 has or would have; None where it is not known.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        return kernel.layout.find_symbol("vmemmap")

    def infer(self, tasks: Sequence[KernelAddr], kernel: KernelView) -> Mapping[tuple[str, str], int]:
        """Return offsets of ``inferable`` members, told by what must be true of them; none where anything is amiss.

        Args:
            tasks: ``struct task_struct *`` of user threads that are off the CPU.
            kernel: the dumped one.

        Raises:
            MemoryFault: what tells cannot be read.
        """
        return {}

    @abstractmethod
    def user_regs(self, task: KernelAddr, stack: KernelAddr, kernel: KernelView) -> Mapping[str, int] | None:
        """Return the user registers saved at the top of a kernel stack, without thread-local bases.

        Args:
            task: ``struct task_struct *``.
            stack: ``task_struct.stack``, the lowest address of the stack.

        Returns:
            Register name -> value, or None where what is there cannot be user registers (a task that never was in
            user mode, or a layout that does not fit).
        """

    @abstractmethod
    def cpu_notes(self, notes: tuple[tuple[str, int, bytes], ...]) -> tuple[CpuNote, ...]:
        """Return the CPUs' registers from the dump's notes (name, type, descriptor)."""

    def thread_bases(self, task: KernelAddr, kernel: KernelView) -> Mapping[str, int | None]:
        """Return the registers kept in ``struct thread_struct`` while a task is off the CPU (x86: fs_base, gs_base)."""
        return {}

    def note_bases(self, note: CpuNote) -> Mapping[str, int]:
        """Return the registers of ``thread_bases`` that a CPU note has live, for the task that was running there."""
        return {}

    def note_uses_pgd(self, note: CpuNote, pgd: int) -> bool | None:
        """Tell whether a CPU was using the page table at physical ``pgd``; None where the note does not tell."""
        return None

    def note_number(self, cpu: int, kernel: KernelView) -> int:
        """Return the position of a CPU's note among QEMU's, which are in the order of the hardware's numbers.

        Args:
            cpu: the kernel's number.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        return cpu

    def note_of(self, cpu: int, notes: Sequence[CpuNote], kernel: KernelView) -> CpuNote | None:
        """Return the note of a CPU among those that are numbered, not named by a PID; None where there is none.

        Args:
            cpu: the kernel's number.
            notes: of all CPUs.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        number = self.note_number(cpu, kernel)
        return next((note for note in notes if note.number == number), None)

    def assumed_user_pc(self, note: CpuNote) -> int | None:
        """Return the program counter of a note that does not tell the CPU's mode; None where it does (most do).

        Its ``user_mode`` is only assumed then: firmware may run at such an address, too.
        """
        return None

    def thread_pointer(self, regs: Mapping[str, int]) -> int | None:
        """Return the user-space thread pointer among registers (x86: fs_base), or None."""
        return regs.get(self.tp_register)

    def is_thread_pointer(self, value: int, read_user: Callable[[int, int], bytes | None]) -> bool:
        """Tell whether a word must be a thread pointer: what it points to in user memory says so itself."""
        return False

    def gate_vma(self, kernel: KernelView) -> KernelAddr | None:
        """Return the ``struct vm_area_struct`` that all processes but compat ones have besides their own, or None."""
        return None

    def vdso_image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """Return where the image of a process's vDSO is in the kernel image, or None where nothing tells.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        return None

    @abstractmethod
    def core_machine(self, regs: Mapping[str, int], task_size: int | None) -> CoreMachine:
        """Return what the core of a process is: native or compat.

        Args:
            regs: user registers of one of its threads, by native names; may be empty.
            task_size: ``mm->task_size``, or None where it is not known.
        """

    def process_machine(
        self, task: KernelAddr, regs: Mapping[str, int], task_size: int | None, kernel: KernelView
    ) -> CoreMachine:
        """Return what the core of a process is, where ``core_machine`` alone cannot tell.

        Args:
            task: ``struct task_struct *`` of one of its threads.
            regs: user registers of one of its threads, by native names; may be empty.
            task_size: ``mm->task_size``, or None where it is not known.
            kernel: the dumped one.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        return self.core_machine(regs, task_size)

    def core_flags(self, mm: KernelAddr, kernel: KernelView) -> int:
        """Return e_flags of a process's core.

        Raises:
            MemoryFault: what tells them cannot be read.
        """
        return 0

    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, kernel: KernelView
    ) -> tuple[CoreNote, ...] | None:
        """Return the notes of a thread besides NT_PRSTATUS, in the kernel's order.

        Args:
            task: ``struct task_struct *`` of a task that is off the CPU: else its registers are in the processor.
            regs: its general registers.
            machine: of the core.
            kernel: the dumped one.

        Returns:
            None where the layout does not know where the kernel keeps them.

        Raises:
            MemoryFault: they cannot be read.
            LayoutInvalid: what is there cannot be they.
        """
        return None

    def note_regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, kernel: KernelView
    ) -> tuple[tuple[CoreNote, ...], str | None]:
        """Return the notes of a thread besides NT_PRSTATUS that was on a CPU.

        Args:
            task: its ``struct task_struct *``.
            regs: its general registers.
            note: the CPU's.
            kernel: the dumped one.

        Returns:
            The notes, none where its registers were lost with the processor; and a sentence that says what is not in
            them, or None.

        Raises:
            MemoryFault, LayoutInvalid: as ``regsets``.
        """
        return note.regsets if note.user_mode else (), None

    def process_notes(self, kernel: KernelView) -> tuple[CoreNote, ...]:
        """Return the notes that this architecture's cores have once, at the end.

        Raises:
            MemoryFault, LayoutInvalid: as ``regsets``.
        """
        return ()

    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Return how the stacks of such a process unwind, or None where this is not known yet."""
        return None

    def kernel_unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder | None:
        """Return how the kernel's own stacks unwind, or None where this is not known yet.

        Args:
            kernel: the dumped one.
            modules: the loaded ones.

        Raises:
            LayoutUnknown: the layout does not tell what it needs.
            LayoutInvalid, MemoryFault: what the kernel has for it cannot be used.
        """
        return None

    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        """Return the system call that a thread is in; None where it is in none, or that is not known.

        Args:
            regs: its user registers, by native names.
            task: its ``struct task_struct *``.
            stack: ``task_struct.stack``, the lowest address of its kernel stack.
            kernel: the dumped one.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        return None

    def unwind_registers(self, notes: Sequence[CoreNote]) -> Mapping[str, int]:
        """Return the registers by ``unwind_spec``'s names that a thread's notes have besides NT_PRSTATUS."""
        return {}

    def implausible(self, regs: Mapping[str, int]) -> str | None:
        """Return a sentence about registers that no thread in user mode can have had, or None."""
        return None

    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Return elf_gregset_t of these registers; a register that is not in ``regs`` is zero."""
        size = machine.greg_size or machine.elf_class // 8
        mask = (1 << (8 * size)) - 1
        return b"".join((regs.get(name, 0) & mask).to_bytes(size, self.byte_order) for name in machine.greg_names)

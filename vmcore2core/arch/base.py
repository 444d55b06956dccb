"""What an architecture is to this tool: numbers and pure functions; no files, no memory of its own.

To add one, write ``arch/NAME.py`` ending in ``ARCH = Name()``, and ``formats/NAME.py`` for its register structures.

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
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol

import numpy as np

from vmcore2core.addresses import AddressRange, KernelAddr, PhysAddr, U8Array, U64Array
from vmcore2core.interfaces import ByteOrder, Layout, Memory


class EntryKind(IntEnum):
    """What a page-table entry says; the values go into uint8 arrays."""

    NONE = 0
    """Nothing was ever mapped here."""
    TABLE = 1
    """The next table."""
    LEAF = 2
    """A page in memory; PROT_NONE and NUMA-hinting entries too."""
    NOT_PRESENT = 3
    """The page exists, but not here: swap, migration, device memory, markers. The entry itself tells which."""
    BAD = 4
    """Reserved bits are set, or an address beyond what the machine can have."""


@dataclass(frozen=True, slots=True)
class ArchDoc:
    """What the generated support table says of an architecture.

    Attributes:
        page_tables: those that are read.
        tested: kernels and kinds of processes whose cores were compared with the kernel's own.
        limitations: what is not done.
    """

    page_tables: str
    tested: str
    limitations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PageTableLevel:
    """One level: the kernel's name of an entry ("pud"), lowest address bit it decodes, and how many bits."""

    name: str
    shift: int
    bits: int


Decode = Callable[[U64Array, int], tuple[U8Array, U64Array]]


@dataclass(frozen=True)
class PageTableSpec:
    """The form of page tables.

    Attributes:
        levels: from the top table down to the PTE table.
        entry_dtype: of one entry as it is in memory.
        decode: (entries as uint64[n] in host order, index into ``levels``) -> (``EntryKind`` as uint8[n], physical
            address of the table or page as uint64[n], 0 where there is none).
        page_size: bytes of a page.
        address_bits: (entries, index as for ``decode``) -> the bits of the virtual address that stand in a leaf's
            physical address (uint64[n]); None where there are no such entries (RISC-V's Svnapot has them).
    """

    levels: tuple[PageTableLevel, ...]
    entry_dtype: np.dtype[np.unsignedinteger]
    decode: Decode
    page_size: int = 4096
    address_bits: Callable[[U64Array, int], U64Array] | None = None


@dataclass(frozen=True, slots=True)
class LinearMapping:
    """Virtual addresses ``range`` of the kernel lie in one piece from physical address ``paddr`` on."""

    range: AddressRange
    paddr: PhysAddr


@dataclass(frozen=True)
class KernelMap:
    """How kernel virtual addresses become physical ones.

    Attributes:
        spec: form of the kernel's page table.
        root: physical address of its top table (``swapper_pg_dir``).
        linear: ranges that need no walk; every address in them translates so.
        image: where the kernel image may be, to search it; pages in these ranges may be of something else, too. The
            same as ``linear`` where it is empty.
    """

    spec: PageTableSpec
    root: PhysAddr
    linear: tuple[LinearMapping, ...]
    image: tuple[LinearMapping, ...] = ()

    @property
    def searched(self) -> tuple[LinearMapping, ...]:
        """The ranges to search for what the kernel image has."""
        return self.image or self.linear


@dataclass(frozen=True, slots=True)
class CoreMachine:
    """What the core of one process is: its e_machine, class (32 or 64), and its registers' names in order.

    ``unsupported`` says what it is ("an x32 process, ...") where no core can be written, else None.
    """

    e_machine: int
    elf_class: int
    greg_names: tuple[str, ...]
    unsupported: str | None = None


@dataclass(frozen=True, slots=True)
class CoreNote:
    """A note of a core as an architecture makes it: owner, NT_* type, descriptor."""

    name: str
    n_type: int
    desc: bytes


@dataclass(frozen=True)
class SignalTrampoline:
    """The instructions that a signal handler returns to, and where the interrupted registers then are.

    Attributes:
        code: the whole trampoline.
        entry: offset of an instruction in it that a program counter may be at.
        mcontext: offset of the saved registers from the stack pointer there, or from ``pointer``'s target.
        pointer: offset from the stack pointer of a pointer to the user context, or None where the context is there
            itself.
        registers: the saved registers as they are in memory.
        names: register name -> field of ``registers``.
    """

    code: bytes
    entry: int
    mcontext: int
    pointer: int | None
    registers: np.dtype[np.void]
    names: Mapping[str, str]


@dataclass(frozen=True)
class UnwindSpec:
    """What stack unwinding must know of one kind of process.

    Attributes:
        word: bytes of an address.
        registers: DWARF register number -> native name.
        return_address: number of the program counter: DWARF's column of the return address where that has no
            register of its own, else any number that DWARF does not use.
        stack_pointer: its DWARF number.
        frame_pointer: its DWARF number; None where no register points to a frame record.
        preserved: DWARF numbers of the registers that a function leaves as they were.
        trampolines: ways back from a signal handler.
        call_size_max: longest call instruction in bytes.
        ends_with_call: tells whether the bytes before a return address are a call.
        link_register: DWARF number of the register that has the return address when a function is entered, or None
            where the call pushes it.
        frame_record: offset from the frame pointer of the saved one and the return address behind it.
        back_chain: where every frame begins with the address of its caller's: offset of the return address in that;
            None where frames are not chained so, and functions may keep a frame pointer instead.
        cfa_offset: how far the canonical frame address is above the caller's stack pointer.
        signed_bits: how many low bits of a return address may be the address alone, where the others may sign it.
    """

    word: int
    registers: tuple[str, ...]
    return_address: int
    stack_pointer: int
    frame_pointer: int | None
    preserved: frozenset[int]
    trampolines: tuple[SignalTrampoline, ...]
    call_size_max: int
    ends_with_call: Callable[[bytes], bool]
    link_register: int | None = None
    frame_record: int = 0
    back_chain: int | None = None
    cfa_offset: int = 0
    signed_bits: tuple[int, ...] = ()


class LayoutKeys(Protocol):
    """VMCOREINFO, as an architecture sees it."""

    def symbol(self, name: str) -> int | None:
        """Return SYMBOL(name)."""
        ...

    def number(self, name: str) -> int | None:
        """Return NUMBER(name)."""
        ...

    def string(self, key: str) -> str | None:
        """Return the value of another key."""
        ...


@dataclass(frozen=True)
class CpuNote:
    """Registers of one CPU when the machine stopped, from the dump's notes.

    Attributes:
        number: position among the CPU notes, from 0.
        pr_pid: as the note has it: the running task's PID from kdump, the CPU number plus 1 from QEMU.
        regs: register name -> value, as many as the note has ("rip", "fs_base", "cr3").
        user_mode: whether the CPU was executing user code.
        regsets: its further registers, as a core's notes have them.
    """

    number: int
    pr_pid: int
    regs: Mapping[str, int]
    user_mode: bool
    regsets: tuple[CoreNote, ...] = ()

    @property
    def label(self) -> str:
        """As provenance prints it."""
        return f"crash note of CPU {self.number}"


class Arch(ABC):
    """One architecture as a kernel runs on it (its processes may be of another: compat).

    Attributes:
        name: as ``uname -m`` prints it.
        e_machine: ELF machine number of the kernel's own programs.
        byte_order: of the kernel.
        pointer_size: bytes of an ``unsigned long``.
        user_end: first address beyond what a process can map (TASK_SIZE_MAX at its largest).
        greg_names: names of a core's general registers, in elf_gregset_t's order.
        thread_members: members of ``struct thread_struct`` that ``thread_bases`` reads, and where they stand relative
            to the one that holds the thread pointer, in bytes: for kernels that do not tell.
        layout_keys: what it asks of a layout, as VMCOREINFO keys: for a layout written to a file.
        machine_names: further names in a dump header's utsname.machine.
        image_keys: VMCOREINFO keys without which the kernel's memory cannot be read, for ``located_keys``.
        inferable: (struct, member) whose offsets ``infer`` may tell.
    """

    DOC: ClassVar[ArchDoc]

    name: str
    e_machine: int
    byte_order: ByteOrder
    pointer_size: int
    user_end: int
    greg_names: tuple[str, ...]
    thread_members: Mapping[str, int]
    layout_keys: tuple[str, ...] = ()
    machine_names: tuple[str, ...] = ()
    image_keys: tuple[str, ...] = ()
    inferable: tuple[tuple[str, str], ...] = ()

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

        For a text that lacks them; the caller tries each and believes what the kernel's page table confirms.
        """
        return iter(())

    def user_page_table(self, kernel_map: KernelMap, mm: KernelAddr, memory: Memory, layout: Layout) -> PageTableSpec:
        """Return the form of a process's page table, whose root is ``mm->pgd``.

        Args:
            kernel_map: of the kernel.
            mm: its ``struct mm_struct *``.
            memory: kernel virtual memory.
            layout: of the kernel.

        Raises:
            MemoryFault, LayoutInvalid: what tells the form cannot be read, or is broken.
        """
        return kernel_map.spec

    def swap_entry(self, entries: U64Array) -> tuple[U64Array, U64Array] | None:
        """Return what page-table entries that are not present name: __swp_type() and __swp_offset().

        Args:
            entries: uint64[n], ``EntryKind.NOT_PRESENT``, of any level.

        Returns:
            type, uint64[n]; offset, uint64[n]; None where this is not known of the architecture.
        """
        return None

    def vmemmap(self, memory: Memory, layout: Layout) -> int | None:
        """Return the address that ``struct page`` of physical page 0 has or would have; None where it is not known.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        return layout.find_symbol("vmemmap")

    def infer(self, tasks: Sequence[KernelAddr], memory: Memory, layout: Layout) -> Mapping[tuple[str, str], int]:
        """Return offsets of ``inferable`` members, told by what must be true of them; none where anything is amiss.

        Args:
            tasks: ``struct task_struct *`` of user threads that are off the CPU.
            memory: kernel virtual memory.
            layout: of the kernel.

        Raises:
            MemoryFault: what tells cannot be read.
        """
        return {}

    @abstractmethod
    def user_regs(
        self, task: KernelAddr, stack: KernelAddr, memory: Memory, layout: Layout
    ) -> Mapping[str, int] | None:
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

    def thread_bases(self, task: KernelAddr, memory: Memory, layout: Layout) -> Mapping[str, int | None]:
        """Return the registers kept in ``struct thread_struct`` while a task is off the CPU (x86: fs_base, gs_base)."""
        return {}

    def note_bases(self, note: CpuNote) -> Mapping[str, int]:
        """Return the registers of ``thread_bases`` that a CPU note has live, for the task that was running there."""
        return {}

    def note_uses_pgd(self, note: CpuNote, pgd: int) -> bool:
        """Tell whether a CPU was using the page table at physical ``pgd``; False where the note does not tell."""
        return False

    def note_number(self, cpu: int, memory: Memory, layout: Layout) -> int:
        """Return the position of a CPU's note among QEMU's, which are in the order of the hardware's numbers.

        Args:
            cpu: the kernel's number.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        return cpu

    def note_of(self, cpu: int, notes: Sequence[CpuNote], memory: Memory, layout: Layout) -> CpuNote | None:
        """Return the note of a CPU among those that are numbered, not named by a PID; None where there is none.

        Args:
            cpu: the kernel's number.
            notes: of all CPUs.

        Raises:
            MemoryFault: what tells it cannot be read.
        """
        number = self.note_number(cpu, memory, layout)
        return next((note for note in notes if note.number == number), None)

    def assumed_user_pc(self, note: CpuNote) -> int | None:
        """Return the program counter of a note that does not tell the CPU's mode; None where it does (most do).

        Its ``user_mode`` is only assumed then: firmware may run at such an address, too.
        """
        return None

    def thread_pointer(self, regs: Mapping[str, int]) -> int | None:
        """Return the user-space thread pointer among registers (x86: fs_base), or None."""
        return None

    def is_thread_pointer(self, value: int, read_user: Callable[[int, int], bytes | None]) -> bool:
        """Tell whether a word must be a thread pointer: what it points to in user memory says so itself."""
        return False

    def gate_vma(self, memory: Memory, layout: Layout) -> KernelAddr | None:
        """Return the ``struct vm_area_struct`` that all 64-bit processes have besides their own, or None."""
        return None

    def vdso_image(self, mm: KernelAddr, elf_class: int, memory: Memory, layout: Layout) -> KernelAddr | None:
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

    def core_flags(self, mm: KernelAddr, memory: Memory, layout: Layout) -> int:
        """Return e_flags of a process's core.

        Raises:
            MemoryFault: what tells them cannot be read.
        """
        return 0

    def regsets(
        self, task: KernelAddr, regs: Mapping[str, int], machine: CoreMachine, memory: Memory, layout: Layout
    ) -> tuple[CoreNote, ...] | None:
        """Return the notes of a thread besides NT_PRSTATUS, in the kernel's order.

        Args:
            task: ``struct task_struct *`` of a task that is off the CPU: else its registers are in the processor.
            regs: its general registers.
            machine: of the core.
            memory: kernel virtual memory.
            layout: of the kernel.

        Returns:
            None where the layout does not know where the kernel keeps them.

        Raises:
            MemoryFault: they cannot be read.
            LayoutInvalid: what is there cannot be they.
        """
        return None

    def note_regsets(
        self, task: KernelAddr, regs: Mapping[str, int], note: CpuNote, memory: Memory, layout: Layout
    ) -> tuple[tuple[CoreNote, ...], str | None]:
        """Return the notes of a thread besides NT_PRSTATUS that was on a CPU.

        Args:
            task: its ``struct task_struct *``.
            regs: its general registers.
            note: the CPU's.
            memory: kernel virtual memory.
            layout: of the kernel.

        Returns:
            The notes, none where its registers were lost with the processor; and a sentence that says what is not in
            them, or None.

        Raises:
            MemoryFault, LayoutInvalid: as ``regsets``.
        """
        return note.regsets if note.user_mode else (), None

    def process_notes(self, memory: Memory, layout: Layout) -> tuple[CoreNote, ...]:
        """Return the notes that this architecture's cores have once, at the end.

        Raises:
            MemoryFault, LayoutInvalid: as ``regsets``.
        """
        return ()

    def unwind_spec(self, machine: CoreMachine) -> UnwindSpec | None:
        """Return how the stacks of such a process unwind, or None where this is not known yet."""
        return None

    def unwind_registers(self, notes: Sequence[CoreNote]) -> Mapping[str, int]:
        """Return the registers by ``unwind_spec``'s names that a thread's notes have besides NT_PRSTATUS."""
        return {}

    def gregs(self, regs: Mapping[str, int], machine: CoreMachine) -> bytes:
        """Return elf_gregset_t of these registers; a register that is not in ``regs`` is zero."""
        size = machine.elf_class // 8
        mask = (1 << (8 * size)) - 1
        return b"".join((regs.get(name, 0) & mask).to_bytes(size, self.byte_order) for name in machine.greg_names)

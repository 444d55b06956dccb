"""Data classes that describe an architecture: page tables, the kernel's map, cores, register notes, unwinding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from vmcore2core.addresses import AddressRange, PhysAddr, U8Array, U64Array
from vmcore2core.elf.notes import Note


class EntryKind(IntEnum):
    """What a page-table entry says; the values go into uint8 arrays."""

    NONE = 0
    """Nothing was ever mapped here."""
    TABLE = 1
    """The next table."""
    LEAF = 2
    """A page in memory; PROT_NONE and NUMA-hinting entries too."""
    NOT_PRESENT = 3
    """The page exists, but not in memory: swap, migration, device memory, markers. The entry itself tells which."""
    BAD = 4
    """Reserved bits are set, or the address is beyond what the machine can have."""


class ArchDoc(NamedTuple):
    """An architecture's row in the generated support table.

    Attributes:
        page_tables: the page tables that can be read.
        tested: kernels and kinds of processes whose cores were compared with the kernel's own.
        limitations: features that are missing.
    """

    page_tables: str
    tested: str
    limitations: tuple[str, ...] = ()


class PageTableLevel(NamedTuple):
    """One level: the kernel's name of an entry ("pud"), lowest address bit it decodes, and how many bits."""

    name: str
    shift: int
    bits: int


Decode = Callable[[U64Array, int], tuple[U8Array, U64Array]]


class PageTableSpec(NamedTuple):
    """The form of page tables.

    Attributes:
        levels: from the top table down to the PTE table.
        entry_dtype: of one entry in memory.
        decode: (entries as uint64[n] in host order, index into ``levels``) -> (``EntryKind`` as uint8[n], physical
            address of the table or page as uint64[n], 0 where there is none).
        page_size: bytes of a page.
        address_bits: (entries, index as for ``decode``) -> the bits of the virtual address that become part of a leaf's
            physical address (uint64[n]); None if no entry does that (RISC-V's Svnapot entries do).
    """

    levels: tuple[PageTableLevel, ...]
    entry_dtype: np.dtype[np.unsignedinteger]
    decode: Decode
    page_size: int = 4096
    address_bits: Callable[[U64Array, int], U64Array] | None = None


class TagSpec(NamedTuple):
    """How to recognise memory with tags.

    Attributes:
        vm_flag: bit of ``vm_flags`` of a mapping that has tags, as a mask.
        page_flag: number of the bit of ``page->flags`` that marks a page with tags; None if it is not known.
        name: what the processor's documents call the tags.
        p_type: of a core's program headers that lead to tags.
        saved: symbol of the xarray that holds the tags of swapped pages.
    """

    vm_flag: int
    page_flag: int | None
    name: str
    p_type: int
    saved: str


class LinearMapping(NamedTuple):
    """The kernel's virtual addresses ``range`` map physical memory from ``paddr`` on, without gaps."""

    range: AddressRange
    paddr: PhysAddr


class KernelMap(NamedTuple):
    """How kernel virtual addresses translate to physical ones.

    Attributes:
        spec: form of the kernel's page table.
        root: physical address of its top table (``swapper_pg_dir``).
        linear: ranges that need no page-table walk.
        image: ranges to search for the kernel image; they may hold other pages, too. If it is empty, ``linear``
            is searched.
    """

    spec: PageTableSpec
    root: PhysAddr
    linear: tuple[LinearMapping, ...]
    image: tuple[LinearMapping, ...] = ()

    @property
    def searched(self) -> tuple[LinearMapping, ...]:
        """The ranges to search for the kernel image's contents."""
        return self.image or self.linear


class CoreMachine(NamedTuple):
    """The machine of one process's core.

    Attributes:
        e_machine: of the ELF header.
        elf_class: 32 or 64.
        greg_names: registers of elf_gregset_t in order; "" is one that is always zero.
        unsupported: the kind of process ("an n32 process, ...") if no core can be written, else None.
        e_flags: of the ELF header, as far as the machine determines them.
        greg_size: bytes of a register in elf_gregset_t if that is not the class's ``long`` (x32, n32), else None.
        uid_size: bytes of a uid in struct elf_prpsinfo if that is not usual for the class, else None.
    """

    e_machine: int
    elf_class: int
    greg_names: tuple[str, ...]
    unsupported: str | None = None
    e_flags: int = 0
    greg_size: int | None = None
    uid_size: int | None = None


class SignalTrampoline(NamedTuple):
    """The instructions to which a signal handler returns, and where the interrupted registers are then.

    Attributes:
        code: the whole trampoline.
        entry: offset of an instruction in it that a program counter may be at.
        mcontext: offset of the saved registers from the stack pointer there, or from ``pointer``'s target.
        pointer: offset from the stack pointer of a pointer to the user context; None if the context itself is there.
        registers: the saved registers as they are in memory.
        names: register name -> field of ``registers``.
    """

    code: bytes
    entry: int
    mcontext: int
    pointer: int | None
    registers: np.dtype[np.void]
    names: Mapping[str, str]


class CodeFrame(NamedTuple):
    """A frame, found from the instructions of its function.

    Attributes:
        size: bytes; the caller's stack pointer is that far above the base.
        saved: DWARF number of a register -> offset from the base where the caller's value is.
        changed: registers whose value in the caller is not known.
        outermost: whether the function's code marks it as one without a caller.
        base: DWARF number of the register from which offsets count; None for the stack pointer.
    """

    size: int
    saved: Mapping[int, int]
    changed: frozenset[int]
    outermost: bool = False
    base: int | None = None


class FramesByCode(Protocol):
    """Finds a frame from instructions, for ``UnwindSpec.frames_by_code``."""

    def __call__(
        self, read: Callable[[int, int], bytes | None], pc: int, start: int | None, exact: bool
    ) -> Iterator[CodeFrame]:
        """Yield the frame of the function at ``pc``, once for each way through its instructions; may yield nothing.

        Args:
            read: instructions: (address, size) -> bytes, or None.
            pc: program counter.
            start: where the function begins, or None if that is not known.
            exact: whether the function was interrupted at ``pc``; otherwise ``pc`` is a return address.
        """
        ...


class UnwindSpec(NamedTuple):
    """Facts that stack unwinding needs about one kind of process.

    Attributes:
        word: bytes of an address.
        registers: DWARF register number -> native name.
        return_address: number of the program counter: DWARF's column of the return address if that is no register,
            else any number that DWARF does not use.
        stack_pointer: its DWARF number.
        frame_pointer: its DWARF number; None if no register points to a frame record.
        preserved: DWARF numbers of the registers that a function must preserve.
        trampolines: ways back from a signal handler.
        call_size_max: longest call instruction in bytes.
        ends_with_call: tells whether the bytes before a return address are a call.
        link_register: DWARF number of the register that has the return address when a function is entered, or None
            if a call pushes it.
        frame_record: offset from the frame pointer of the saved frame pointer, which the return address follows.
        record_ends_frame: whether the frame ends with that frame record, which then tells the caller's stack pointer.
        back_chain: offset of the return address in the caller's frame, if each frame begins with the address of its
            caller's frame; None if frames are not chained, and functions may keep a frame pointer instead.
        cfa_offset: how far the canonical frame address is above the caller's stack pointer.
        signed_bits: number of low bits that hold the address in a return address whose other bits may be a signature.
        register_size: bytes of a register on the stack if that is more than an address (n32), else None.
        frames_by_code: finds a frame from instructions if there is no call frame information.
        has_cfi: whether programs normally have call frame information; gdb then gets the callers of a function without.
        gdb_names: register -> gdb's name, where that is another.
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
    record_ends_frame: bool = True
    back_chain: int | None = None
    cfa_offset: int = 0
    signed_bits: tuple[int, ...] = ()
    register_size: int | None = None
    frames_by_code: FramesByCode | None = None
    has_cfi: bool = False
    gdb_names: Mapping[str, str] = MappingProxyType({})


class LayoutKeys(Protocol):
    """The VMCOREINFO keys that an architecture reads."""

    def symbol(self, name: str) -> int | None:
        """Return SYMBOL(name)."""
        ...

    def number(self, name: str) -> int | None:
        """Return NUMBER(name)."""
        ...

    def string(self, key: str) -> str | None:
        """Return the value of another key."""
        ...


class CpuNote(NamedTuple):
    """Registers of one CPU when the machine stopped, from the dump's notes.

    Attributes:
        number: position among the CPU notes, from 0.
        pr_pid: the note's pr_pid: the running task's PID from kdump, the CPU number plus 1 from QEMU.
        regs: register name -> value, for all registers in the note ("rip", "fs_base", "cr3").
        user_mode: whether the CPU was executing user code.
        regsets: further registers of the CPU, in the form of a core's notes.
    """

    number: int
    pr_pid: int
    regs: Mapping[str, int]
    user_mode: bool
    regsets: tuple[Note, ...] = ()


def keys_of(members: Mapping[str, str], *, sizes: str = "", symbols: str = "", numbers: str = "") -> tuple[str, ...]:
    """Return what is asked of the layout as VMCOREINFO keys; blanks separate names.

    Args:
        members: of structures, whose sizes are asked, too.
        sizes: structures of which only the size is asked.
        symbols: of the kernel.
        numbers: constants and enumerators.
    """
    return (
        *(f"SYMBOL({name})" for name in symbols.split()),
        *(f"OFFSET({struct}.{name})" for struct, names in members.items() for name in names.split()),
        *(f"SIZE({struct})" for struct in (*members, *sizes.split())),
        *(f"NUMBER({name})" for name in numbers.split()),
    )

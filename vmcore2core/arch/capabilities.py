"""Capabilities that only some machines have; a machine's attribute is None if it lacks one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import KernelAddr, U8Array, U64Array
from vmcore2core.arch.kernel_stack import KernelUnwinder, ModuleText, SystemCall
from vmcore2core.arch.spec import CoreMachine, CpuNote, TagSpec
from vmcore2core.elf.notes import Note
from vmcore2core.interfaces import KernelView, Layout
from vmcore2core.overrides import override

ReadParts = Callable[[U64Array, Sequence[tuple[int, int]]], Sequence[tuple[U8Array, NDArray[np.bool_]]]]
"""``KernelMemory.read_parts``."""


class SwapEntries(ABC):
    """Page-table entries that name a place in swap."""

    @abstractmethod
    def type_and_offset(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array] | None:
        """Return the swap type and offset in entries that are not present: __swp_type() and __swp_offset().

        Args:
            entries: uint64[n], ``EntryKind.NOT_PRESENT``, of any level.
            sizes: uint64[n], bytes of memory that each entry stands for: ``page_size`` at the last level.
            page_size: the kernel's page size.
            layout: the kernel's layout.

        Returns:
            type, uint64[n]; offset, uint64[n]; None if this is not known for the architecture or this kernel.
        """


class PlainSwapEntries(SwapEntries):
    """Entries with the swap type in one bit field, and the offset in all bits above another bit.

    Attributes:
        type_shift, type_mask, offset_shift: where the two are.
    """

    type_shift: int
    type_mask: int
    offset_shift: int

    @override
    def type_and_offset(
        self, entries: U64Array, sizes: U64Array, page_size: int, layout: Layout
    ) -> tuple[U64Array, U64Array]:
        types = entries >> np.uint64(self.type_shift) & np.uint64(self.type_mask)
        return types, entries >> np.uint64(self.offset_shift)


class Tags(ABC):
    """Memory tags (arm64's MTE)."""

    @abstractmethod
    def spec(self, kernel: KernelView) -> TagSpec | None:
        """Return how to recognise tagged memory; None if the processors have no tags.

        Raises:
            MemoryFault, LayoutInvalid: the kernel's data for it cannot be read, or is broken.
        """


class Gate(ABC):
    """A mapping that the kernel adds to all processes but compat ones (x86's vsyscall page, ARM's vectors).

    Attributes:
        name: its name in /proc/PID/maps.
        readable: whether the kernel's own cores hold its bytes; a process's page table tells.
    """

    name: str
    readable: bool = False

    @abstractmethod
    def vma(self, kernel: KernelView) -> KernelAddr | None:
        """Return the ``struct vm_area_struct`` of this mapping, or None if the kernel has none."""


class Vdso(ABC):
    """The image of a process's vDSO in the kernel image."""

    @abstractmethod
    def image(self, mm: KernelAddr, machine: CoreMachine, kernel: KernelView) -> KernelAddr | None:
        """Return where the vDSO image of a process is in the kernel image, or None if that is not known.

        Raises:
            MemoryFault: the kernel's data for it cannot be read.
        """


class ManyThreads(ABC):
    """The registers of many threads, read together.

    They are those that ``Registers`` and ``Cores`` return of each thread. A thread that is in any way unlike the others
    is left to these.

    Attributes:
        saved: members of ``struct thread_struct`` that have general registers, and bytes of each.
    """

    saved: Mapping[str, int]

    @abstractmethod
    def registers(
        self, saved: Mapping[str, U8Array], stacks: U64Array, layout: Layout, read_parts: ReadParts
    ) -> tuple[U64Array, NDArray[np.bool_]]:
        """Return the general registers of threads that are off the CPU.

        Args:
            saved: uint8[n, size] of each member.
            stacks: uint64[n], ``task_struct.stack``.
            layout: of the kernel.
            read_parts: reads kernel memory.

        Returns:
            uint64[n, len(Registers.names)], and bool[n], of which threads it has all.
        """

    @abstractmethod
    def regsets(
        self, tasks: U64Array, machine: CoreMachine, kernel: KernelView, read_parts: ReadParts
    ) -> Sequence[tuple[Note, ...] | None] | None:
        """Return the notes of threads that are off the CPU, apart from NT_PRSTATUS.

        Args:
            tasks: uint64[n], their ``struct task_struct *``.
            machine: the core's machine.
            kernel: the dumped one.
            read_parts: reads its memory.

        Returns:
            Those of each thread, in the kernel's order; None for a thread that has other notes, or none for all.
        """


class Inference(ABC):
    """Offsets inferred from the structures' contents, for kernels without type information.

    Attributes:
        members: (struct, member) whose offsets ``infer`` may find.
    """

    members: tuple[tuple[str, str], ...]

    @abstractmethod
    def infer(self, tasks: Sequence[KernelAddr], kernel: KernelView) -> Mapping[tuple[str, str], int]:
        """Return the offsets of ``members`` that meet all conditions; nothing if any condition fails.

        Args:
            tasks: ``struct task_struct *`` of user threads that are off the CPU.
            kernel: the dumped one.

        Raises:
            MemoryFault: the structures cannot be read.
        """


class CpuNumbers:
    """The hardware's CPU numbers, by which notes are ordered or marked; the default: the same as Linux's numbers."""

    def number(self, cpu: int, kernel: KernelView) -> int:
        """Return the position of a CPU's note among QEMU's notes, which follow the hardware's numbers.

        Args:
            cpu: the kernel's number.

        Raises:
            MemoryFault: the kernel's data for it cannot be read.
        """
        return cpu

    def note_of(self, cpu: int, notes: Sequence[CpuNote], kernel: KernelView) -> CpuNote | None:
        """Return a CPU's note from notes that have CPU numbers, not PIDs; None if it has none.

        Args:
            cpu: the kernel's number.
            notes: the notes of all CPUs.

        Raises:
            MemoryFault: the kernel's data for it cannot be read.
        """
        number = self.number(cpu, kernel)
        return next((note for note in notes if note.number == number), None)


class KernelStacks(ABC):
    """The kernel's own stacks, and the system call at the bottom of one."""

    @abstractmethod
    def unwinder(self, kernel: KernelView, modules: Sequence[ModuleText]) -> KernelUnwinder:
        """Return the unwinder of the kernel's own stacks.

        Args:
            kernel: the dumped one.
            modules: the loaded modules.

        Raises:
            LayoutUnknown: the layout lacks an item that it needs.
            LayoutInvalid, MemoryFault: the kernel's unwind data cannot be used.
        """

    def system_call(
        self, regs: Mapping[str, int], task: KernelAddr, stack: KernelAddr, kernel: KernelView
    ) -> SystemCall | None:
        """Return the system call that a thread is in; None if it is in none, or if that is not known.

        Args:
            regs: its user registers, by native names.
            task: its ``struct task_struct *``.
            stack: ``task_struct.stack``, the lowest address of its kernel stack.
            kernel: the dumped one.

        Raises:
            MemoryFault: the kernel's data for it cannot be read.
        """
        return None

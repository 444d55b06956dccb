"""An architecture as this tool sees it: numbers and pure functions; it reads no files and keeps no state.

To add a machine NAME (tests/arch/test_machines.py checks this list):

  - ``formats/NAME.py``: its declarations: page-table bits, structures of registers, DWARF's numbers.
  - ``arch/NAME/machine.py``, which ends in ``ARCH = Name()``: what it is, and its parts, by these attributes.
  - ``arch/NAME/paging.py``: ``Paging``. Now memory can be read.
  - ``arch/NAME/registers.py``, ``cpus.py``, ``cores.py``: ``Registers``, ``Cpus``, ``Cores``. Now cores can be written.
    ``regsets.py`` has ``REGSETS``, the table of the register sets besides NT_PRSTATUS.
  - ``arch/NAME/unwind.py``: ``Unwind``. Now user stacks can be shown.
  - ``arch/NAME/kernel_stack.py``: ``KernelStacks``. Now the kernel's own stacks can be shown.
  - What else it has of ``arch/capabilities.py``.
  - A dump with the kernel's own cores, and its row in ``fixtures/README.md``; tests in ``tests/arch/NAME``.

What two machines share is in a folder without ``machine.py`` (``arch/x86``), or in one of theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from vmcore2core.arch.capabilities import (
    CpuNumbers,
    Gate,
    Inference,
    KernelStacks,
    ManyThreads,
    SwapEntries,
    Tags,
    Vdso,
)
from vmcore2core.arch.parts import Cores, Cpus, Paging, Registers, Unwind
from vmcore2core.arch.spec import ArchDoc, LayoutKeys
from vmcore2core.interfaces import ByteOrder, KernelView, Layout, Memory, MemoryAndLayout


class Arch(ABC):
    """One architecture as a kernel runs on it (its processes may be of another: compat).

    Attributes:
        name: as ``uname -m`` prints it.
        machine_names: further names in a dump header's utsname.machine.
        e_machine: ELF machine number of the kernel's own programs.
        byte_order: of the kernel.
        both_orders: whether another ``Arch`` has the same ``e_machine`` and the other byte order.
        pointer_size: bytes of an ``unsigned long``.
        user_end: first address beyond what a process can map (TASK_SIZE_MAX at its largest).
        layout_keys: layout items that it needs, as VMCOREINFO keys, for a layout written to a file.
        type_units: kernel source files whose DWARF holds the types that this machine's code needs.
        exported_abi: keys of the VMCOREINFO export that tell what programs may rely on, and the value that the tables
            here have.
    """

    DOC: ClassVar[ArchDoc]

    name: str
    machine_names: tuple[str, ...] = ()
    e_machine: int
    byte_order: ByteOrder
    both_orders: bool = False
    pointer_size: int
    user_end: int
    layout_keys: tuple[str, ...] = ()
    type_units: tuple[str, ...] = ()
    exported_abi: Mapping[str, int] = MappingProxyType({})

    paging: Paging
    registers: Registers
    cpus: Cpus
    cores: Cores
    unwind: Unwind = Unwind()
    cpu_numbers: CpuNumbers = CpuNumbers()

    many_threads: ManyThreads | None = None
    swap_entries: SwapEntries | None = None
    tags: Tags | None = None
    gate: Gate | None = None
    vdso: Vdso | None = None
    inference: Inference | None = None
    kernel_stacks: KernelStacks | None = None

    @abstractmethod
    def claims(self, vmcoreinfo: LayoutKeys) -> bool:
        """Tell whether a VMCOREINFO text comes from this architecture, for dumps whose header does not say."""

    def view(self, memory: Memory, layout: Layout) -> KernelView:
        """Return the view of a kernel of this architecture, of which these two are known."""
        return MemoryAndLayout(memory, layout, self.byte_order)

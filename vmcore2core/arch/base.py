"""The interface to one architecture: numbers and pure functions, without files and without state.

To add a machine NAME (tests/arch/test_machines.py checks this list):

  - ``formats/NAME.py``: declarations: page-table bits, structures of registers, DWARF register numbers.
  - ``arch/NAME/machine.py``, which ends in ``ARCH = Name()``: the attributes below, and the parts.
  - ``arch/NAME/paging.py``: ``Paging``. Now memory can be read.
  - ``arch/NAME/registers.py``, ``cpus.py``, ``cores.py``: ``Registers``, ``Cpus``, ``Cores``. Now cores can be written.
    ``regsets.py`` has ``REGSETS``, the table of the register sets besides NT_PRSTATUS.
  - ``arch/NAME/unwind.py``: ``Unwind``. Now user stacks can be shown.
  - ``arch/NAME/kernel_stack.py``: ``KernelStacks``. Now the kernel's own stacks can be shown.
  - The capabilities in ``arch/capabilities.py`` that the machine has.
  - A dump with the kernel's own cores, its row in ``fixtures/README.md``, and tests in ``tests/arch/NAME``.

Code that two machines share is in a folder without ``machine.py`` (``arch/x86``), or in the folder of one of them.
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
    """The architecture of a kernel; its processes may be of another one (compat).

    Attributes:
        name: as ``uname -m`` prints it.
        machine_names: further names in a dump header's utsname.machine.
        e_machine: ELF machine number of the kernel's own programs.
        byte_order: of the kernel.
        both_orders: whether another ``Arch`` has the same ``e_machine`` and the other byte order.
        pointer_size: bytes of an ``unsigned long``.
        user_end: first address beyond what a process can map (TASK_SIZE_MAX at its largest).
        layout_keys: what only this machine's code asks of the layout, as VMCOREINFO keys; layout/asked.py has the rest.
        type_units: kernel source files whose DWARF holds the types that this machine's code needs.
        exported_abi: keys of the VMCOREINFO export for numbers of the ABI of programs -> this package's value.
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
        """Return the view of a kernel of this architecture with this memory and layout."""
        return MemoryAndLayout(memory, layout, self.byte_order)

"""Names of kernel addresses, in the form of the kernel's own messages: ``name+0xoff/0xsize [module]``.

References: kernel/kallsyms.c: sprint_symbol(), kallsyms_lookup() (Linux 7.2).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel.module import Module, modules
from vmcore2core.kernel.struct import Kernel
from vmcore2core.overrides import override
from vmcore2core.printable import text

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelSymbol:
    """The function that an address lies in.

    Attributes:
        name: of the function.
        offset: of the address from its start, in bytes.
        size: of the function.
        module: its module, None for the kernel itself.
    """

    name: str
    offset: int
    size: int
    module: str | None

    @override
    def __str__(self) -> str:
        return f"{self.name}+{self.offset:#x}/{self.size:#x}" + (f" [{self.module}]" if self.module else "")


class KernelNames:
    """The functions of a kernel and its modules.

    Args:
        kernel: the dumped kernel.

    Attributes:
        problem: why some modules may not be known, or None.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self.problem = kernel, None
        find = kernel.layout.find_symbol
        # Code that runs once at boot is gone, but idle tasks were called from it, and its names stay; RISC-V has the
        # first of it before _stext.
        bounds = (("_stext", "_etext"), ("_sinittext", "_einittext"), ("_start", "_stext"))
        self._text = [range(find(start) or 0, find(end) or 0) for start, end in bounds]

    @cached_property
    def modules(self) -> Sequence[Module]:
        """The loaded modules, up to the point where their list is broken."""
        found: list[Module] = []
        try:
            found.extend(modules(self._kernel))
        except (CorruptStructure, MemoryFault, LayoutError) as error:
            log.info("modules may be missing: %s", error)
        return found

    def of(self, address: int, lookup: int | None = None) -> KernelSymbol | None:
        """Return the function that an address lies in; None if there is none, or if it is not known.

        Args:
            address: of code.
            lookup: the address to look up: for a return address, one byte before, because a call may be a function's
                last instruction.
        """
        wanted = address if lookup is None else lookup
        if any(wanted in part for part in self._text):
            found, name = self._kernel.layout.find_symbol_at(wanted), None
        else:
            module = next((one for one in self.modules if wanted in one.text), None)
            if module is None:
                return None
            found, name = module.symbol_at(wanted), text(module.name)
        return None if found is None else KernelSymbol(text(found.name), address - found.start, found.size, name)

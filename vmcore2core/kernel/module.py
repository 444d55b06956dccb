"""Loaded modules: the addresses of their code, and the names of their functions.

References: include/linux/module.h: struct module, struct module_memory, struct mod_kallsyms; kernel/module/kallsyms.c:
find_kallsyms_symbol() (Linux 4.18 to 7.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import AddressRange, U64Array
from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.formats.elf_dynamic import SYM_DTYPE
from vmcore2core.interfaces import SymbolAt
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import Kernel, StructView

MODULE_NAME_LEN = 64
MODULES_MAX = 1 << 14
SYMBOLS_MAX = 1 << 20
SYMBOL_NAME_MAX = 512  # KSYM_NAME_LEN
TEXT_SIZE_MAX = 1 << 30
SHN_UNDEF = 0


@dataclass(frozen=True)
class Module:
    """A loaded module.

    Attributes:
        name: as lsmod(8) has it.
        text: where its code is.
        view: ``struct module``.
    """

    name: bytes
    text: AddressRange
    view: StructView

    def symbol_at(self, address: int) -> SymbolAt | None:
        """Return the function that an address of its code belongs to; None if it is not known."""
        values, names = self._symbols
        after = int(np.searchsorted(values, np.uint64(address), "right"))
        if not after:
            return None
        start = int(values[after - 1])
        end = int(values[after]) if after < len(values) else self.text.end
        name = self.view.kernel.read_string(int(names[after - 1]), SYMBOL_NAME_MAX)
        return SymbolAt(name, start, end - start) if name else None

    @cached_property
    def _symbols(self) -> tuple[U64Array, U64Array]:
        """The addresses of its functions, ascending, and of their names; none if they cannot be read."""
        try:
            return self._read_symbols()
        except (LayoutError, MemoryFault):
            return np.zeros(0, np.uint64), np.zeros(0, np.uint64)

    def _read_symbols(self) -> tuple[U64Array, U64Array]:
        kernel = self.view.kernel
        kallsyms = self.view.follow("kallsyms", "mod_kallsyms")
        count = kallsyms.uint("num_symtab", size=4) if kallsyms is not None else 0
        if kallsyms is None or not 0 < count <= SYMBOLS_MAX:
            return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        dtype = SYM_DTYPE[64 if kernel.arch.pointer_size == 8 else 32, kernel.arch.byte_order]
        table = np.frombuffer(kernel.memory.read(kallsyms.pointer("symtab"), count * dtype.itemsize), dtype)
        strings = kallsyms.pointer("strtab")
        values = table["st_value"].astype(np.uint64)
        inside: NDArray[np.bool_] = (values >= self.text.start) & (values < self.text.end)
        table, values = (
            table[inside & (table["st_shndx"] != SHN_UNDEF)],
            values[inside & (table["st_shndx"] != SHN_UNDEF)],
        )
        order = np.argsort(values, kind="stable")
        names = table["st_name"].astype(np.uint64) + np.uint64(strings)
        # If several symbols have one address, the kernel takes the first.
        first = np.unique(values[order], return_index=True)[1]
        return values[order][first], names[order][first]


def modules(kernel: Kernel) -> Iterator[Module]:
    """Yield the loaded modules; none if the layout does not tell.

    Raises:
        CorruptStructure, MemoryFault: after the good ones: the list is broken.
    """
    head = kernel.layout.find_symbol("modules")
    if head is None or kernel.layout.find_member("module", "list") is None:
        return
    for count, view in enumerate(list_for_each_entry(kernel, head, "module", "list"), 1):
        if count > MODULES_MAX:
            raise CorruptStructure(f"more than {MODULES_MAX:#x} modules", head, "modules")
        text = _text(view)
        if text is not None and 0 < text.size <= TEXT_SIZE_MAX:
            yield Module(view.bytes_of("name", MODULE_NAME_LEN).split(b"\0", 1)[0], text, view)


def _text(view: StructView) -> AddressRange | None:
    """Return where a module's code is.

    Since Linux kernel commit ac3b43283923 ("module: replace module_layout with module_memory") (in v6.4), it is the
    first of ``mem``; before that, it is at the beginning of ``core_layout``.
    """
    if view.has("mem"):
        text = view.embedded("mem", "module_memory")
        return AddressRange(text.pointer("base"), text.pointer("base") + text.uint("size", size=4))
    if view.has("core_layout.base"):
        base = view.pointer("core_layout.base")
        return AddressRange(base, base + view.uint("core_layout.text_size", size=4))
    return None

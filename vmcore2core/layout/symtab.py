"""A vmlinux's .symtab as a layout source: kernel symbols, moved as KASLR moved the kernel.

numpy searches .strtab for a name, then the table for the name's place: a vmlinux has 200,000 symbols, and few are
needed.

References: System V gABI, "Symbol Table"; arch/x86/tools/relocs.c: is_reloc(), for what is not moved;
kernel/vmcore_info.c and arch/*/kernel/vmcore_info.c: KERNELOFFSET (Linux 7.2).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmcore2core.errors import LayoutInvalid
from vmcore2core.formats.elf_dynamic import (
    SHN_ABS,
    SHN_UNDEF,
    SHT_SYMTAB,
    STB_LOCAL,
    STB_SHIFT,
    STT_FILE,
    STT_MASK,
    STT_SECTION,
    SYM_DTYPE,
)
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.layout.vmlinux_file import Section, VmlinuxFile
from vmcore2core.overrides import override

NAME = "vmlinux .symtab"
PERCPU = ".data..percpu"
SYMBOLS_SIZE_MAX = 512 << 20  # some 5 MiB, each

# Symbols that VMCOREINFO gives by address; not those whose value it gives, such as mem_section.
WITNESSES = (
    "_stext",
    "init_uts_ns",
    "swapper_pg_dir",
    "node_online_map",
    "init_task",
    "prb",
    "clear_seq",
    "vmap_area_list",
    "kallsyms_names",
    "kallsyms_num_syms",
)


class SymtabSource(LayoutSource):
    """Symbols of a vmlinux.

    Args:
        file: the vmlinux.
        info: VMCOREINFO of the dump; it tells how far KASLR moved this kernel.

    Raises:
        LayoutInvalid: the tables are broken, or it is not known how far the kernel was moved.
    """

    def __init__(self, file: VmlinuxFile, info: VmcoreInfo) -> None:
        self.name = NAME
        self._file = file
        section = file.section(".symtab")
        if section is None or section.sh_type != SHT_SYMTAB:
            raise LayoutInvalid(f"{file.path} has no symbol table")
        if section.sh_link >= len(file.sections):
            raise LayoutInvalid(f"{file.path}: .symtab has sh_link {section.sh_link}, expected a section")
        dtype = SYM_DTYPE[file.elf_class, file.byte_order]
        table = file.data(section, SYMBOLS_SIZE_MAX)
        self._symbols = np.frombuffer(table, dtype, len(table) // dtype.itemsize)
        self._strings = file.data(file.sections[section.sh_link], SYMBOLS_SIZE_MAX)
        self.shift = self._kaslr_shift(info)

    @cached_property
    def _names(self) -> NDArray[np.uint32]:
        return self._symbols["st_name"].astype(np.uint32)  # contiguous, because it is compared for each question

    @cached_property
    def _fixed_sections(self) -> frozenset[int]:
        """Sections whose addresses are not in the kernel image: they are not moved.

        x86-64 before Linux 6.15 links per-CPU variables at 0: their symbols are offsets.
        """
        return frozenset(
            i for i, s in enumerate(self._file.sections) if not s.in_memory or (s.name == PERCPU and s.sh_addr == 0)
        )

    @cached_property
    def _image(self) -> list[Section]:
        return [s for i, s in enumerate(self._file.sections) if i not in self._fixed_sections]

    def _find(self, name: str) -> list[tuple[int, int, bool]]:
        """Return (st_value, st_shndx, whether it is local) of the defined symbols with this name."""
        needle = name.encode() + b"\0"
        places, at = [], self._strings.find(needle) if name else -1
        while at >= 0:  # also at the end of a longer name: linkers share such strings
            places.append(at)
            at = self._strings.find(needle, at + 1)
        found = self._symbols[np.isin(self._names, np.array(places, np.uint32))] if places else self._symbols[:0]
        return [
            (int(symbol["st_value"]), int(symbol["st_shndx"]), symbol["st_info"] >> STB_SHIFT == STB_LOCAL)
            for symbol in found
            if symbol["st_shndx"] != SHN_UNDEF and symbol["st_info"] & STT_MASK not in (STT_SECTION, STT_FILE)
        ]

    def _kaslr_shift(self, info: VmcoreInfo) -> int:
        """Return how many bytes run-time addresses are above the vmlinux's.

        KERNELOFFSET tells. Symbols in VMCOREINFO tell, too, and must agree.
        """
        shift, teller = info.kernel_offset, "KERNELOFFSET"
        for name in WITNESSES:
            address = info.symbol(name)
            linked = [value for value, shndx, _ in self._find(name) if self._moved(shndx)]
            if address is None or not linked:
                continue
            if shift is None and len(linked) == 1:
                shift, teller = address - linked[0], f"SYMBOL({name})"
            elif shift is not None and address not in {value + shift for value in linked}:
                raise LayoutInvalid(
                    f"{self._file.path} has {name} at {linked[0]:#x}, and VMCOREINFO at {address:#x}: expected it "
                    f"{shift:#x} above, as {teller} tells"
                )
        if shift is None:
            raise LayoutInvalid(f"{self._file.path}: VMCOREINFO does not tell by how much KASLR moved the kernel")
        return shift

    def _moved(self, shndx: int) -> bool:
        return shndx != SHN_ABS and shndx not in self._fixed_sections

    @override
    def symbol(self, name: str) -> int | None:
        """None also if several static symbols have this name."""
        found = self._find(name)
        found = [symbol for symbol in found if not symbol[2]] or found
        values = {self._address(value, shndx) for value, shndx, _ in found}
        return values.pop() if len(values) == 1 else None

    def _address(self, value: int, shndx: int) -> int | None:
        if self._moved(shndx):
            return (value + self.shift) & (1 << self._file.elf_class) - 1
        # A linker script's symbol outside of any section is absolute for the linker, but may mean a place in the
        # kernel image: relocs.c has a list of those that do.
        if shndx == SHN_ABS and self.shift and any(s.sh_addr <= value <= s.sh_addr + s.sh_size for s in self._image):
            return None
        return value

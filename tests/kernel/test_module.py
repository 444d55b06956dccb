"""Modules and the names of their functions, by a small fake kernel.

Tests kernel/btf_modules.py, kernel/kallsyms.py.
"""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import TEXT, KernelImage, Offsets, Table
from vmcore2core.errors import CorruptStructure
from vmcore2core.interfaces import SymbolAt
from vmcore2core.kernel.kallsyms import KernelNames
from vmcore2core.kernel.module import modules
from vmcore2core.layout.base import LayoutSource

CODE = 0xFFFF_FFFF_C000_0000
NEW: Offsets = {
    "module": {"list": (8, 16), "name": (24, 56), "mem": (80, 504), "kallsyms": (600, 8)},
    "module_memory": {"base": (0, 8), "size": (8, 4)},
    "mod_kallsyms": {"symtab": (0, 8), "num_symtab": (8, 4), "strtab": (16, 8)},
}
OLD: Offsets = {
    "module": {
        "list": (8, 16),
        "name": (24, 56),
        "core_layout.base": (80, 8),
        "core_layout.text_size": (92, 4),
        "kallsyms": (600, 8),
    },
    "mod_kallsyms": NEW["mod_kallsyms"],
}


class Core(LayoutSource):
    """One function of the kernel itself."""

    name = "kallsyms"

    def symbol_at(self, address: int) -> SymbolAt | None:
        return SymbolAt(b"schedule", TEXT + 0x100, 0x80) if address >= TEXT + 0x100 else None


class Image(KernelImage):
    """A kernel with modules."""

    def __init__(self, offsets: Offsets = NEW) -> None:
        super().__init__()
        self.table = Table(offsets)
        self.head = self.alloc(16)
        self.nodes: list[int] = []
        self.table.symbols |= {"modules": self.head, "_stext": TEXT, "_etext": TEXT + 0x1000}

    def module(self, name: bytes, base: int, *functions: tuple[bytes, int, int]) -> None:
        """Load a module with functions: name, address, section."""
        strings, symbols = b"\0", bytes(24)
        for function, value, section in functions:
            symbols += struct.pack("<IBBHQQ", len(strings), 2, 0, section, value, 0)
            strings += function + b"\0"
        symtab, strtab = self.alloc(len(symbols)), self.alloc(len(strings))
        self.write(symtab, symbols)
        self.write(strtab, strings)
        count = len(symbols) // 24
        kallsyms = self.make("mod_kallsyms", symtab=symtab, num_symtab=count, strtab=strtab)
        module = self.alloc(700, 64)
        self.set("module", module, name=name.ljust(56, b"\0"), kallsyms=kallsyms)
        self.words(module + 80, base, 0)
        self.write(module + (88 if "mem" in self.table.offsets["module"] else 92), struct.pack("<I", 0x1000))
        self.nodes.append(module + 8)
        self.link(self.head, *self.nodes)

    def names(self) -> KernelNames:
        return KernelNames(self.kernel(lambda _: Core()))


@pytest.mark.parametrize("offsets", [NEW, OLD], ids=["since 6.4", "before"])
def test_a_function_of_a_module_is_named_with_it(offsets: Offsets) -> None:
    image = Image(offsets)
    functions = [(b"late", CODE + 0x80, 1), (b"early", CODE + 0x40, 1), (b"also_early", CODE + 0x40, 1)]
    image.module(b"first", CODE, *functions, (b"undefined", CODE + 0x50, 0), (b"data", CODE + 0x8000, 2))
    image.module(b"second", CODE + 0x1000, (b"last", CODE + 0x1000, 1))
    names = image.names()
    assert [str(names.of(CODE + at)) for at in (0x40, 0x7F, 0x80, 0x1010)] == [
        *("early+0x0/0x40 [first]", "early+0x3f/0x40 [first]", "late+0x0/0xf80 [first]", "last+0x10/0x1000 [second]")
    ]
    assert names.of(CODE + 0x3F) is None
    assert names.of(CODE + 0x2000) is None
    assert str(names.of(CODE + 0x80, CODE + 0x7F)) == "early+0x40/0x40 [first]"


def test_a_function_of_the_kernel_is_named_by_its_own_table() -> None:
    names = Image().names()
    assert str(names.of(TEXT + 0x110)) == "schedule+0x10/0x80"
    assert names.of(TEXT + 0x50) is None
    assert names.of(TEXT + 0x1000) is None


def test_a_module_whose_names_cannot_be_read_has_none() -> None:
    image = Image()
    image.module(b"first", CODE, (b"function", CODE, 1))
    kallsyms = image.word(image.nodes[0] - 8 + 600)
    image.words(kallsyms, 0xFFFF_FFFF_8F00_0000)
    assert image.names().of(CODE) is None
    image.set("mod_kallsyms", kallsyms, num_symtab=1 << 24)
    assert image.names().of(CODE) is None
    image.set("module", image.nodes[0] - 8, kallsyms=0)
    assert image.names().of(CODE) is None


def test_a_torn_list_has_the_modules_before() -> None:
    image = Image()
    image.module(b"first", CODE, (b"function", CODE, 1))
    image.module(b"second", CODE + 0x1000, (b"other", CODE + 0x1000, 1))
    image.words(image.nodes[1] + 8, 0x1234)
    names = image.names()
    assert str(names.of(CODE)) == "function+0x0/0x1000 [first]"
    assert names.of(CODE + 0x1000) is None
    with pytest.raises(CorruptStructure):
        list(modules(image.kernel()))


def test_a_layout_without_modules_has_none() -> None:
    image = Image()
    del image.table.symbols["modules"]
    assert list(modules(image.kernel())) == []
    image.table.symbols["modules"] = image.head
    image.module(b"first", CODE)
    del image.table.offsets["module"]["mem"]
    assert list(modules(image.kernel())) == []

"""Go's table of functions, built by hand as Go's src/debug/gosym/pclntab.go reads it.

Tests handover/go_symbols.py.
"""

from __future__ import annotations

import struct
from typing import Literal

import pytest

from vmcore2core.elf.headers import ElfHeaders, Segment, parse_headers
from vmcore2core.formats.elf import PT_LOAD, PT_NOTE
from vmcore2core.formats.elf_dynamic import SYM_DTYPE
from vmcore2core.handover.go_symbols import go_symbols
from vmcore2core.unwind.gopclntab import GoTable, headers
from vmcore2core.unwind.image import Image
from vmcore2core.unwind.image_files import ImageSource
from vmcore2core.unwind.reading import PagedRead

TEXT, TABLE = 0x401000, 0x480000
FUNCTIONS = [
    (0x0, b"go:buildid", 0),
    (0x20, b"runtime.mcall", 2),
    (0x60, b"main.main", 0),
    (0x100, b"runtime.goexit", 1),
]
END = 0x140
Order = Literal["little", "big"]


def table(magic: int, *, order: Order = "little", text: int = TEXT) -> bytes:
    char = "<" if order == "little" else ">"
    old = magic == 0xFFFFFFFA
    names = b"".join(name + b"\0" for _, name, _ in FUNCTIONS)
    offsets = [names.index(name + b"\0") for _, name, _ in FUNCTIONS]
    entry = f"{char}QQ" if old else f"{char}II"
    size = struct.calcsize(entry)
    start = len(FUNCTIONS) * size + size // 2
    functab, funcs = b"", b""
    for (at, _, flag), name in zip(FUNCTIONS, offsets, strict=True):
        functab += struct.pack(entry, at + (TEXT if old else 0), start + len(funcs))
        one = struct.pack(char + "Q" if old else char + "I", at + (TEXT if old else 0)) + struct.pack(char + "i", name)
        one = one.ljust(41 if magic == 0xFFFFFFF1 else 37, b"\xaa") + bytes([flag]) + bytes(6)
        funcs += one
    functab += struct.pack(entry, END + (TEXT if old else 0), 0)[: size // 2]
    words = [len(FUNCTIONS), 0, *([] if old else [text]), 80, 0, 0, 0, 80 + len(names)]
    head = struct.pack(f"{char}I4B{len(words)}Q", magic, 0, 0, 1, 8, *words).ljust(80, b"\0")
    return head + names + functab + funcs


def opened(data: bytes, *, order: Order = "little", starts: tuple[int, ...] = ()) -> GoTable:
    def read(address: int, size: int) -> bytes | None:
        return data[address - TABLE : address - TABLE + size].ljust(size, b"\0") if address >= TABLE else None

    return GoTable(PagedRead(read, 4096), TABLE, order, 8, starts)


@pytest.mark.parametrize("magic", [0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1])
@pytest.mark.parametrize("order", ["little", "big"])
def test_each_address_has_its_function(magic: int, order: Order) -> None:
    found = opened(table(magic, order=order), order=order)
    assert found.good
    for at, name, _ in FUNCTIONS:
        for inside in (at, at + 0x1F):
            symbol = found.find(TEXT + inside)
            assert symbol is not None
            assert (symbol.name, symbol.value) == (name, TEXT + at)
    assert found.find(TEXT - 1) is None
    assert found.find(TEXT + END) is None


@pytest.mark.parametrize("magic", [0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1])
@pytest.mark.parametrize("order", ["little", "big"])
def test_all_functions_are_listed(magic: int, order: Order) -> None:
    ends = [*(at for at, _, _ in FUNCTIONS[1:]), END]
    wanted = [(TEXT + at, TEXT + end, name) for (at, name, _), end in zip(FUNCTIONS, ends, strict=True)]
    assert list(opened(table(magic, order=order), order=order).functions()) == wanted


def test_a_go_program_gets_its_symbols_from_the_table() -> None:
    data = table(0xFFFFFFF1)
    note = b"Go\0\0".join((struct.pack("<3I", 4, 4, 4), b"abcd"))
    text, read_only = 5, 4  # p_flags

    def read(address: int, size: int) -> bytes | None:
        for start, content in ((0x400000, note), (TABLE, data)):
            if start <= address < start + 4096:
                return content[address - start : address - start + size].ljust(size, b"\0")
        return None

    segments = (
        Segment(PT_NOTE, read_only, 0, 0x400000, len(note), len(note)),
        Segment(PT_LOAD, text, 0x1000, TEXT, 0x1000, 0x1000),
        Segment(PT_LOAD, read_only, 0x2000, TABLE, len(data), len(data)),
    )
    dtype = SYM_DTYPE[64, "little"]
    found, strings = go_symbols(PagedRead(read, 4096), ElfHeaders(segments, 0, 0, 0), "little", 8, dtype)
    names = [strings[int(row["st_name"]) :].partition(b"\0")[0] for row in found]
    assert names == [name for _, name, _ in FUNCTIONS]
    assert found["st_value"].tolist() == [TEXT + at for at, _, _ in FUNCTIONS]
    assert found["st_size"].tolist() == [0x20, 0x40, 0xA0, 0x40]
    without_note = ElfHeaders(segments[1:], 0, 0, 0)
    assert not len(go_symbols(PagedRead(read, 4096), without_note, "little", 8, dtype)[0])


def test_section_headers_without_names_do_not_hide_the_table() -> None:
    """As Go's linker writes them: headers of sections in the first page, their names behind everything."""
    data, note = table(0xFFFFFFF1), struct.pack("<3I4s4s", 4, 4, 4, b"Go\0\0", b"abcd")
    loads = [
        (PT_NOTE, 4, 0x400, 0x400400, len(note)),
        (PT_LOAD, 5, 0, 0x400000, 0x1140),
        (PT_LOAD, 4, 0x2000, TABLE, len(data)),
    ]
    ehdr = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, TEXT, 64, 0x300, 0, 64, 56, 3, 64, 2, 1)
    phdrs = b"".join(
        struct.pack("<IIQQQQQQ", kind, flags, at, to, to, size, size, 4096) for kind, flags, at, to, size in loads
    )
    strings = struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 0x9000, 64, 0, 0, 1, 0)  # .shstrtab, which is not known
    file = bytearray(0x3000)
    for at, piece in ((0, ehdr + phdrs), (0x340, strings), (0x400, note), (0x2000, data)):
        file[at : at + len(piece)] = piece

    def in_file(offset: int, size: int) -> bytes | None:
        return bytes(file[offset : offset + size]) if offset + size <= len(file) else None

    def in_memory(address: int, size: int) -> bytes | None:
        return in_file(address - (TABLE - 0x2000 if address >= TABLE else 0x400000), size)

    read = PagedRead(in_file, 4096)
    headers = parse_headers(read, 64, "little")
    assert headers is not None
    image = Image(headers, 0, ImageSource(PagedRead(in_memory, 4096), read, None, 64, "little", 4096))
    symbol = image.symbol(TEXT + 0x70)
    assert symbol is not None
    assert symbol.name == b"main.main"
    assert image.ends_stack(TEXT + 0x110)


@pytest.mark.parametrize("magic", [0xFFFFFFF0, 0xFFFFFFF1])
def test_functions_that_end_a_stack_say_so(magic: int) -> None:
    found = opened(table(magic))
    assert [found.ends_stack(TEXT + at) for at, _, _ in FUNCTIONS] == [False, True, False, True]
    assert not opened(table(0xFFFFFFFA)).ends_stack(TEXT + 0x100)  # its flag means nothing of the kind


def test_a_table_without_the_start_of_the_text_counts_from_the_section() -> None:
    found = opened(table(0xFFFFFFF1, text=0), starts=(TEXT,))
    symbol = found.find(TEXT + 0x70)
    assert symbol is not None
    assert symbol.name == b"main.main"


@pytest.mark.parametrize(("at", "value"), [(0, 0x7F), (4, 1), (6, 3), (7, 4), (8, 0), (15, 0xFF)])
def test_what_is_no_such_table_is_not_taken_for_one(at: int, value: int) -> None:
    data = bytearray(table(0xFFFFFFF1))
    data[at] = value
    assert not opened(bytes(data)).good


def test_the_header_is_found_without_sections() -> None:
    data = bytes(0x1238) + table(0xFFFFFFF1)

    def read(address: int, size: int) -> bytes | None:
        return data[address - TABLE : address - TABLE + size].ljust(size, b"\0")

    assert list(headers(PagedRead(read, 4096), TABLE, len(data), "little", 8)) == [TABLE + 0x1238]

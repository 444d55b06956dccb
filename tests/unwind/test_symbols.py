"""Names of functions: libc's against readelf's, and hand-made tables.

Tests unwind/names.py.
"""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.unwind.processes import Process, compile_c, need
from tests.unwind.test_cfi import libc
from vmcore2core.unwind.image import Image
from vmcore2core.unwind.reading import PagedRead
from vmcore2core.unwind.symbols import SymbolTable, count_by_gnu_hash, count_by_hash, read_table

SYM = np.dtype(
    [
        ("st_name", "<u4"),
        ("st_info", "u1"),
        ("st_other", "u1"),
        ("st_shndx", "<u2"),
        ("st_value", "<u8"),
        ("st_size", "<u8"),
    ]
)


def mapped(path: Path, base: int) -> Process:
    """Return a process that has a file's segments mapped, none of them touched."""
    process = Process()
    number = process.files.add(path.read_bytes())
    text = subprocess.run([need("readelf"), "-lW", str(path)], capture_output=True, text=True, check=True).stdout
    loads = re.findall(r"LOAD +0x(\w+) 0x(\w+) 0x\w+ 0x(\w+) 0x(\w+) (.{3}) ", text)
    assert loads
    for offset, vaddr, filesz, _, flags in loads:
        start, file_offset = int(vaddr, 16) & -4096, int(offset, 16) & -4096
        end = (int(vaddr, 16) + int(filesz, 16) + 4095) & -4096
        bits = 4 * ("R" in flags) + 2 * ("W" in flags) + ("E" in flags)
        process.map(base + start, base + end, bits, str(path), number, file_offset)
    return process


def readelf_functions(path: Path, *, dynamic: bool) -> list[tuple[int, int, str]]:
    """Return (address, size, name) of functions that readelf lists."""
    option = ["--dyn-syms"] if dynamic else ["-s"]
    text = subprocess.run(
        [need("readelf"), *option, "-W", str(path)], capture_output=True, text=True, check=True
    ).stdout
    if not dynamic:
        text = text[text.index("Symbol table '.symtab'") :]
    found = re.findall(r"^ *\d+: (\w+) +(\w+) I?FUNC +\w+ +\w+ +\d+ (\S+)", text, re.MULTILINE)
    return [(int(a, 16), int(size, 0), name.split("@")[0]) for a, size, name in found]


def image_of(process: Process, base: int) -> Image:
    code = next(vma for vma in process.vmas if vma.p_flags & 1)
    image = process.space().image(code.start)
    assert image is not None
    assert image.bias == base
    return image


def test_each_function_of_libc_has_a_name_that_readelf_gives_it() -> None:
    base = 0x7F0000000000
    image = image_of(mapped(libc(), base), base)
    functions = readelf_functions(libc(), dynamic=True)
    assert len(functions) > 1000
    names: dict[int, set[str]] = {}
    for address, _, name in functions:
        names.setdefault(address, set()).add(name)
    for address, size, _ in functions:
        for pc in (address, address + max(size - 1, 0)):
            symbol = image.symbol(base + pc)
            assert symbol is not None
            assert symbol.name.decode() in names[symbol.value - base]
            assert address <= symbol.value - base <= pc
    covered = [(address, address + size) for address, size, _ in functions]
    gap = next(end for _, end in covered if not any(start <= end < other for start, other in covered))
    assert image.symbol(base + gap) is None


def test_symtab_of_a_static_program_names_local_and_sizeless_functions(tmp_path: Path) -> None:
    program = compile_c(
        'static __attribute__((noinline)) int inner(int n) { __asm__ volatile(""); return n; }\n'
        '__asm__(".text\\n.type bare,@function\\nbare: nop\\nnop\\nnop\\n.type after,@function\\nafter: ret\\n");\n'
        "int main(int n, char **v) { return inner(n); }",
        tmp_path / "program",
        "-static",
        "-fno-pie",
        "-no-pie",
    )
    image = image_of(mapped(program, 0), 0)
    functions = {name: (address, size) for address, size, name in readelf_functions(program, dynamic=False)}
    assert functions["bare"][1] == 0
    for name in ("inner", "main", "bare", "after", "_start"):
        symbol = image.symbol(functions[name][0])
        assert symbol is not None
        assert symbol.name.decode() == name
    last = image.symbol(functions["after"][0] - 1)
    assert last is not None
    assert last.name == b"bare"


def table(*symbols: tuple[int, int, int, int, int], complete: bool = True, end: int | None = 0x9000) -> SymbolTable:
    """Return a table of (name, info, section, value, size), with names as in ``NAMES``."""
    rows = b"".join(
        struct.pack("<IBBHQQ", name, info, 0, section, value, size) for name, info, section, value, size in symbols
    )
    return SymbolTable(
        np.frombuffer(rows, SYM),
        complete=complete,
        strings=lambda at: NAMES.get(at),
        strtab=0x100,
        strsz=0x100,
        end_of=lambda _address, _section: end,
    )


NAMES = {0x101: b"alpha", 0x102: b"__alpha", 0x103: b"beta", 0x104: b"local"}
FUNC, LOCAL_FUNC, OBJECT, NOTYPE = 0x12, 0x02, 0x11, 0x10


def name_at(found: SymbolTable, address: int) -> bytes | None:
    symbol = found.find(address)
    return symbol.name if symbol is not None else None


def test_a_name_is_given_only_within_a_functions_size() -> None:
    found = table((1, FUNC, 1, 0x1000, 0x10), (3, FUNC, 1, 0x1020, 0x10))
    assert [name_at(found, a) for a in (0xFFF, 0x1000, 0x100F, 0x1010, 0x1020)] == [
        None,
        b"alpha",
        b"alpha",
        None,
        b"beta",
    ]


def test_of_nested_functions_the_inner_one_is_taken() -> None:
    found = table((1, FUNC, 1, 0x1000, 0x100), (3, FUNC, 1, 0x1020, 0x10))
    assert [name_at(found, a) for a in (0x101F, 0x1020, 0x1030)] == [b"alpha", b"beta", b"alpha"]


def test_of_several_names_the_plain_one_is_taken() -> None:
    found = table((4, LOCAL_FUNC, 1, 0x1000, 8), (2, FUNC, 1, 0x1000, 8), (1, FUNC, 1, 0x1000, 8))
    assert name_at(found, 0x1004) == b"alpha"


def test_data_and_undefined_symbols_name_nothing() -> None:
    found = table(
        (1, OBJECT, 1, 0x1000, 8), (3, FUNC, 0, 0x1000, 8), (3, NOTYPE, 1, 0x1000, 8), (3, FUNC, 0xFFF1, 0x1000, 8)
    )
    assert name_at(found, 0x1000) is None


def test_a_function_without_size_ends_at_the_next_symbol_or_its_section() -> None:
    found = table((1, FUNC, 1, 0x1000, 0), (3, NOTYPE, 1, 0x1010, 0), end=0x1008)
    assert [name_at(found, a) for a in (0x1007, 0x1008, 0x1010)] == [b"alpha", None, None]
    assert name_at(table((1, FUNC, 1, 0x1000, 0), (3, NOTYPE, 1, 0x1010, 0)), 0x1010) is None
    assert name_at(table((1, FUNC, 1, 0x1000, 0), end=None), 0x1000) is None


def test_a_function_without_size_has_no_name_where_the_table_is_not_known_in_full() -> None:
    assert name_at(table((1, FUNC, 1, 0x1000, 0), complete=False), 0x1000) is None
    assert name_at(table((1, FUNC, 1, 0x1000, 8), complete=False), 0x1000) == b"alpha"


@pytest.mark.parametrize("name", [0, 0xFF, 0x100, 0xFFFFFFFF])
def test_a_name_outside_the_strings_is_no_name(name: int) -> None:
    assert name_at(table((name, FUNC, 1, 0x1000, 8)), 0x1000) is None


def test_sizes_that_wrap_around_do_not_reach_below() -> None:
    found = table((1, FUNC, 1, 0xFFFFFFFFFFFFFFF0, 0xFFFFFFFFFFFFFFFF))
    assert name_at(found, 0x10) is None
    assert name_at(found, 0xFFFFFFFFFFFFFFFF) == b"alpha"
    assert name_at(found, 1 << 64) is None
    assert name_at(found, -1) is None


def test_entries_on_unknown_pages_are_left_out_and_the_others_keep_their_names() -> None:
    rows = b"".join(struct.pack("<IBBHQQ", 1, FUNC, 0, 1, 0x1000 * i, 0x10) for i in range(1000))
    pages = {i: rows[i * 4096 : (i + 1) * 4096].ljust(4096, b"\0") for i in range(6) if i != 2}

    def fetch(address: int, size: int) -> bytes | None:
        first, last = address // 4096, (address + size - 1) // 4096
        if any(i not in pages for i in range(first, last + 1)):
            return None
        return b"".join(pages[i] for i in range(first, last + 1))[address % 4096 :][:size]

    read = PagedRead(fetch, 4096)
    strings = PagedRead(lambda _at, size: b"\0name".ljust(size, b"\0"), 4096)
    found = read_table(
        read, 0, 1000, SYM, strings=strings, strtab=0, strsz=4096 * 4096, end_of=lambda _address, _section: None
    )
    assert not found.complete
    known = [i for i in range(1000) if found.find(0x1000 * i) is not None]
    lost = sorted(set(range(1000)) - set(known))
    assert lost == [i for i in range(1000) if (i * 24 + 23) // 4096 >= 2 and i * 24 // 4096 <= 2]


def test_both_hash_tables_tell_how_many_symbols_there_are(tmp_path: Path) -> None:
    for style in ("sysv", "gnu"):
        program = compile_c(
            "int f(void) { return 1; }\nint g(void) { return 2; }",
            tmp_path / style,
            "-shared",
            "-fPIC",
            f"-Wl,--hash-style={style}",
        )
        data = program.read_bytes()
        text = subprocess.run([need("readelf"), "-dW", str(program)], capture_output=True, text=True, check=True).stdout
        at = int(re.findall(r"\((?:GNU_)?HASH\) +0x(\w+)", text)[0], 16)
        listed = subprocess.run(
            [need("readelf"), "--dyn-syms", "-W", str(program)], capture_output=True, text=True, check=True
        ).stdout
        count = int(re.findall(r"contains (\d+) entries", listed)[0])
        read = PagedRead(lambda a, n, data=data: data[a : a + n] if a + n <= len(data) + 4096 else None, 4096)  # type: ignore[misc]
        found = count_by_hash(read, at, "little") if style == "sysv" else count_by_gnu_hash(read, at, "little", 8)
        assert found == count


def test_a_hash_table_that_is_cut_off_or_endless_tells_nothing() -> None:
    gnu = struct.pack("<4I", 1, 1, 1, 0) + bytes(8) + struct.pack("<I", 1)  # its chain has no end, and is not there
    read = PagedRead(lambda at, size: gnu[at : at + size].ljust(size, b"\0") if at < 4096 else None, 4096)
    assert count_by_gnu_hash(read, 0, "little", 8) is None
    huge = struct.pack("<4I", 0xFFFFFFFF, 1, 0xFFFFFFFF, 0)
    assert count_by_gnu_hash(PagedRead(lambda _at, size: huge.ljust(size, b"\0"), 4096), 0, "little", 8) is None
    assert count_by_hash(PagedRead(lambda _at, _size: None, 4096), 0, "little") is None

"""ELF images in memory: finding call frame information with a search table, without one, and where bytes lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unwind.processes import compile_c
from tests.unwind.test_cfi import libc
from tests.unwind.test_symbols import image_of, mapped, readelf_functions
from vmcore2core.elf.headers import parse_headers
from vmcore2core.errors import CorruptStructure

BASE = 0x7F1234000000


def test_the_search_table_finds_the_function_that_a_scan_finds() -> None:
    image = image_of(mapped(libc(), BASE), BASE)
    index = image._index  # the scan, which the table makes unnecessary
    assert index is not None
    starts, addresses = index.starts, index.addresses
    assert index.problem is None
    assert len(starts) > 1000
    for start, address in list(zip(starts, addresses, strict=True))[::7]:
        scanned = image.eh_frame.fde(address)
        assert scanned is not None
        if scanned.end - scanned.start > 1:
            assert image.fde(start) == scanned
            assert image.fde(scanned.end - 1) == scanned
    assert image.fde(BASE) is None
    assert image.fde(starts[0] - 1) is None


def test_a_static_program_without_a_search_table_is_scanned(tmp_path: Path) -> None:
    program = compile_c("int main(void) { return 0; }", tmp_path / "program", "-static", "-no-pie")
    process = mapped(program, 0)
    image = image_of(process, 0)
    functions = {name: address for address, _, name in readelf_functions(program, dynamic=False)}
    fde = image.fde(functions["main"] + 2)
    assert fde is not None
    assert fde.start == functions["main"]
    assert image._index is not None
    assert len(image._index.starts) > 500


def test_functions_before_a_part_of_eh_frame_that_is_not_known_are_found(tmp_path: Path) -> None:
    program = compile_c("int main(void) { return 0; }", tmp_path / "program", "-static", "-no-pie")
    process = mapped(program, 0)
    whole = image_of(process, 0)._index
    assert whole is not None
    gone = sorted(whole.addresses)[len(whole.addresses) // 2] // 4096
    process.files.gone = {(0, gone - process.vmas[0].start // 4096)}
    image = image_of(process, 0)
    index = image._index
    assert index is not None
    assert image.cfi_problem == index.problem
    assert index.problem is not None
    assert "bytes are not known" in index.problem
    before = {at: start for at, start in zip(whole.addresses, whole.starts, strict=True) if at // 4096 < gone}
    assert dict(zip(index.addresses, index.starts, strict=True)).items() >= dict(sorted(before.items())[:-1]).items()
    assert max(index.addresses) // 4096 <= gone


def test_without_the_files_section_headers_a_static_program_has_no_cfi_and_no_names(tmp_path: Path) -> None:
    program = compile_c("int main(void) { return 0; }", tmp_path / "program", "-static", "-no-pie")
    process = mapped(program, 0)
    last = len(process.files.data[0]) // 4096
    process.files.gone = {(0, last), (0, last - 1)}
    image = image_of(process, 0)
    main = next(address for address, _, name in readelf_functions(program, dynamic=False) if name == "main")
    assert image.fde(main) is None
    assert image.cfi_problem is not None
    assert ".eh_frame" in image.cfi_problem
    assert image.symbol(main) is None


def test_a_file_whose_first_page_is_not_known_is_no_image() -> None:
    process = mapped(libc(), BASE)
    process.files.gone = {(0, 0)}
    code = next(vma for vma in process.vmas if vma.p_flags & 1)
    assert process.space().image(code.start) is None


def test_a_part_of_eh_frame_that_is_not_known_costs_only_its_functions() -> None:
    process = mapped(libc(), BASE)
    whole = image_of(process, BASE)
    assert whole._index is not None
    starts, addresses = whole._index.starts, whole._index.addresses
    middle = len(starts) // 2
    address = sorted(addresses)[middle]
    process.files.gone = {(0, (address - BASE) // 4096)}
    image = image_of(process, BASE)
    lost = dict(zip(addresses, starts, strict=True))[address]
    assert image.fde(lost) is None
    kept = starts[10]
    assert image.fde(kept) == whole.fde(kept)


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0), (4, 1), (5, 2), (54, 0), (54, 32), (56, 0), (57, 0xFF)], ids=lambda v: str(v)
)
def test_headers_that_cannot_be_are_refused(at: int, value: int) -> None:
    data = bytearray(libc().read_bytes()[: 1 << 16])
    assert parse_headers(lambda o, n: bytes(data[o : o + n]), 64, "little") is not None
    data[at] = value
    if at >= 54:
        with pytest.raises(CorruptStructure, match="program headers"):
            parse_headers(lambda o, n: bytes(data[o : o + n]), 64, "little")
    else:
        assert parse_headers(lambda o, n: bytes(data[o : o + n]), 64, "little") is None


def test_an_image_of_another_class_is_not_taken() -> None:
    data = libc().read_bytes()[: 1 << 16]
    assert parse_headers(lambda o, n: data[o : o + n], 32, "little") is None
    assert parse_headers(lambda o, n: data[o : o + n], 64, "big") is None

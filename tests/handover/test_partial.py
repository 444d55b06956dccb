"""Files that lack pages: their known part becomes an ELF file with symbols and call frame information for debuggers.

Tests handover/debug_frame.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.debuggers import environment, gdb_command
from tests.e2e.guests import FIXTURES, unpacked_sysroot
from vmcore2core.elf.headers import Read
from vmcore2core.handover.partial import Known, rebuilt

PAGE = 4096
STATIC = FIXTURES / "sysroot/bin/lab-static"


@pytest.fixture(scope="module")
def libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_sysroot(tmp_path_factory.mktemp("sysroot")) / "lib/libc.so.6"


def lacking(content: bytes, missing: set[int]) -> Read:
    """Return a reader of a file that lacks pages."""

    def read(offset: int, size: int) -> bytes | None:
        pages = range(offset // PAGE, -(-(offset + size) // PAGE))
        return None if missing & set(pages) or offset + size > len(content) else content[offset : offset + size]

    return read


def whole(missing: set[int]) -> Known:
    """Return whether ranges of such a file are known."""
    return lambda offset, size: not missing & set(range(offset // PAGE, -(-(offset + size) // PAGE)))


def made(source: Path, target: Path, missing: set[int], elf_class: int = 64) -> Path:
    """Write what is known of a file as the product does."""
    content = source.read_bytes()
    found = rebuilt(lacking(content, missing), whole(missing), len(content), elf_class, "little", PAGE)
    assert found is not None
    known = bytearray(content)
    for page in missing:
        known[page * PAGE : (page + 1) * PAGE] = bytes(len(known[page * PAGE : (page + 1) * PAGE]))
    known[: len(found.header)] = found.header
    target.write_bytes(bytes(known).ljust(found.tail_at, b"\0") + found.tail)
    return target


def readelf(*words: str | Path) -> str:
    return subprocess.run(["eu-readelf", *words], capture_output=True, text=True, check=True).stdout


def sections(path: Path) -> dict[str, tuple[str, int, int]]:
    """Return (type, offset, size) of each section by its name; the first of a name."""
    found: dict[str, tuple[str, int, int]] = {}
    for line in readelf("-S", path).splitlines():
        words = line.partition("]")[2].split()
        if line.startswith("[") and len(words) > 5 and words[0].startswith("."):
            found.setdefault(words[0], (words[1], int(words[3], 16), int(words[4], 16)))
    return found


def fdes(path: Path, section: str) -> set[str]:
    """Return the ranges that call frame information describes, as readelf shows it."""
    part = dump_frames("-wfN", path).partition(f"Contents of the {section} section:")[2].partition("Contents of the")[0]
    return {line.split("pc=")[1] for line in part.splitlines() if " FDE " in line}


def call_frames(path: Path) -> dict[str, list[list[str]]]:
    """Return the rows of each FDE by its range, as readelf shows them."""
    shown = dump_frames("-wFN", path)
    blocks = (block.split("pc=")[1].split("\n\n")[0].splitlines() for block in shown.split(" FDE ")[1:])
    return {first: [row.split() for row in rows if len(row.split(" ")[0]) == 16] for first, *rows in blocks}


def dump_frames(option: str, path: Path) -> str:
    # It ends with 1 where it warns that .eh_frame has no bytes.
    return subprocess.run(["readelf", option, path], capture_output=True, text=True, check=False).stdout


def symbols(path: Path) -> set[tuple[str, ...]]:
    """Return (value, size, type, name without version) of symbols that are defined."""
    rows = [line.split() for line in readelf("-s", path).splitlines()]
    undefined = ("UNDEF", "ABS", "COMMON")
    return {(r[1], r[2], r[3], r[7].partition("@")[0]) for r in rows if len(r) > 7 and r[6] not in undefined}


def pages_of(path: Path, section: str) -> range:
    _, offset, size = sections(path)[section]
    return range(offset // PAGE, -(-(offset + size) // PAGE))


def test_a_section_of_which_a_byte_is_not_known_has_none(libc: Path, tmp_path: Path) -> None:
    rodata = pages_of(libc, ".rodata")
    target = made(libc, tmp_path / "libc", {rodata[5], rodata[6]})
    ours, whole = sections(target), sections(libc)
    assert ours[".rodata"] == ("NOBITS", *whole[".rodata"][1:])
    assert all(ours[name] == where for name, where in whole.items() if name != ".rodata")
    assert symbols(target) == symbols(libc)
    assert fdes(target, ".eh_frame") == fdes(libc, ".eh_frame")


@pytest.mark.parametrize("own_sections", [True, False])
def test_known_call_frames_around_a_hole_are_as_they_were(libc: Path, tmp_path: Path, *, own_sections: bool) -> None:
    eh_frame = pages_of(libc, ".eh_frame")
    last = libc.stat().st_size // PAGE
    missing = {eh_frame[10], eh_frame[11]} | (set() if own_sections else {last - 1, last})
    target = made(libc, tmp_path / "libc", missing)
    whole, ours = fdes(libc, ".eh_frame"), fdes(target, ".debug_frame")
    assert fdes(target, ".eh_frame") == ours  # for lldb
    assert ours < whole
    assert len(ours) > 0.9 * len(whole)
    rows, expected = call_frames(target), call_frames(libc)
    assert all(rows[pc] == expected[pc] for pc in ours)


def test_symbols_are_found_without_section_headers(libc: Path, tmp_path: Path) -> None:
    last = libc.stat().st_size // PAGE
    target = made(libc, tmp_path / "libc", {last, last - 1})
    assert "GNU_BUILD_ID" in readelf("-n", target)
    names = {(r[0], r[3]) for r in symbols(target)}
    functions = {(r[0], r[3]) for r in symbols(libc) if r[2] in ("FUNC", "GNU_IFUNC", "LOOS+0")}
    assert functions <= names
    assert sections(target)[".load.text"][0] == "PROGBITS"
    # gdb would lay a separate debug file's .text over one that begins elsewhere, and name the wrong functions.
    assert not {".text", ".data", ".init", ".plt"} & set(sections(target))


def test_symbols_whose_names_are_not_known_are_left_out(libc: Path, tmp_path: Path) -> None:
    dynstr = pages_of(libc, ".dynstr")
    target = made(libc, tmp_path / "libc", {dynstr[3]})
    assert sections(target)[".dynstr"][0] == "NOBITS"
    ours, whole = symbols(target), {(r[0], r[1], r[2], r[3]) for r in symbols(libc)}
    assert ours <= whole
    assert len(ours) > len(whole) // 2


@pytest.mark.parametrize("torn", [".symtab", ".strtab"])
def test_of_a_symbol_table_that_is_torn_the_known_symbols_stay(tmp_path: Path, torn: str) -> None:
    pages = pages_of(STATIC, torn)
    target = made(STATIC, tmp_path / "static", {pages[len(pages) // 2]})
    ours, whole = symbols(target), symbols(STATIC)
    assert ours < whole
    assert len(ours) > 0.8 * len(whole)
    # binutils' reader refuses a table whose local symbols are not the first.
    shown = subprocess.run(["nm", target], capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert " t " in shown.stdout
    assert " T " in shown.stdout


def test_gdb_takes_names_and_frames_and_reads_nothing_that_is_not_known(libc: Path, tmp_path: Path) -> None:
    rodata, eh_frame = pages_of(libc, ".rodata"), pages_of(libc, ".eh_frame")
    last = libc.stat().st_size // PAGE
    target = made(libc, tmp_path / "libc", {rodata[5], eh_frame[10], last - 1, last})
    commands = [
        f"x/2xb {rodata[5] * PAGE:#x}",
        f"x/2xb {eh_frame[10] * PAGE:#x}",
        "info address pause",
        "info scope pause",
    ]
    command = [*gdb_command(), *(word for one in commands for word in ("-ex", one)), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    shown = result.stdout + result.stderr
    assert "internal-error" not in shown
    for page in (rodata[5], eh_frame[10]):
        assert f"Cannot access memory at address {page * PAGE:#x}" in shown
    assert 'Symbol "pause" is at 0x' in shown


def test_sections_are_not_read_to_see_whether_they_are_known(libc: Path) -> None:
    content, sizes = libc.read_bytes(), list[int]()
    missing = {pages_of(libc, ".rodata")[5]}
    read = lacking(content, missing)

    def counted(offset: int, size: int) -> bytes | None:
        sizes.append(size)
        return read(offset, size)

    assert rebuilt(counted, whole(missing), len(content), 64, "little", PAGE) is not None
    assert 0 < sum(sizes) < 8 * PAGE < len(content)


def test_what_has_no_headers_is_left_as_it_is(libc: Path) -> None:
    content = libc.read_bytes()
    assert rebuilt(lacking(content, {0}), whole({0}), len(content), 64, "little", PAGE) is None
    assert rebuilt(lacking(b"#!/bin/sh\n", set()), whole(set()), 10, 64, "little", PAGE) is None
    assert rebuilt(lacking(content, {3}), whole({3}), len(content), 32, "little", PAGE) is None


@pytest.mark.parametrize("seed", range(40))
def test_a_hostile_file_ends_in_an_error_of_ours_or_in_a_file(seed: int) -> None:
    import random

    noise = random.Random(seed)
    content = bytearray(STATIC.read_bytes()[: 64 * PAGE])
    for _ in range(40):
        at = noise.choice((noise.randrange(0x400), noise.randrange(len(content))))
        content[at] = noise.randrange(256)
    missing = {noise.randrange(1, 64) for _ in range(6)}
    rebuilt(lacking(bytes(content), missing), whole(missing), len(content), 64, "little", PAGE)

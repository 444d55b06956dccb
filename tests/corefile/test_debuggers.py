"""gdb and lldb on a core: they confirm what vmcore2core/corefile/plan.py promises."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.corefile.snapshots import (
    GREGS_32,
    PAGE,
    R,
    X,
    absent,
    elf_notes,
    snapshot,
    snapshot_32,
    thread,
    vma,
    write,
)
from tests.e2e.debuggers import gdb, lldb, need
from vmcore2core.process.model import PsInfo

BASE = 0x7F00_0000_0000
CANNOT_LLDB = "memory read failed|error:|could not read"


def unreadable(text: str, address: int) -> bool:
    """Tell whether gdb shows no memory there; gdb 18 says so of a mapped file's page in another way."""
    return bool(re.search(rf"Cannot access memory at address {address:#x}|^{address:#x}:\s+<unavailable>", text, re.M))


def words(text: str, address: int) -> list[str]:
    """Return what ``x/gx`` or ``memory read`` shows at one address."""
    return re.findall(rf"^{address:#x}[^:]*:\s*(\S.*)$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of some pages, for debuggers that want one, and as a mapped file."""
    folder = tmp_path_factory.mktemp("program")
    source, target = folder / "p.c", folder / "p"
    source.write_text(
        "const char text[3 * 4096] __attribute__((aligned(4096))) = {[0 ... 12287] = 'T'};\n"
        "int main(void) { return text[1]; }\n"
    )
    command = [need("cc"), "-no-pie", "-o", str(target), str(source)]
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)
    return target


def rodata(program: Path) -> tuple[int, int]:
    """Return address and file offset of the program's array of letters."""
    with program.open("rb") as f:
        elf = ELFFile(f)
        symtab = elf.get_section_by_name(".symtab")
        assert isinstance(symtab, SymbolTableSection)
        symbol = (symtab.get_symbol_by_name("text") or [])[0]
        address = symbol["st_value"]
        (segment,) = (
            s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD" and 0 <= address - s["p_vaddr"] < s["p_filesz"]
        )
        return address, address - segment["p_vaddr"] + segment["p_offset"]


def test_present_and_never_touched_pages_read_alike_in_gdb_and_lldb(tmp_path: Path, program: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(vma(BASE, BASE + 4 * PAGE)), core, {BASE + PAGE: b"\x11\x22\x33\x44\x55\x66\x77\x88"})
    shown = gdb(core, f"x/gx {BASE}", f"x/gx {BASE + PAGE}", f"x/gx {BASE + 4 * PAGE - 8}")
    assert words(shown, BASE) == ["0x0000000000000000"]
    assert words(shown, BASE + PAGE) == ["0x8877665544332211"]
    assert words(shown, BASE + 4 * PAGE - 8) == ["0x0000000000000000"]
    read = [f"memory read -f x -s 8 -c 1 {at:#x}" for at in (BASE, BASE + PAGE, BASE + 4 * PAGE - 8)]
    shown = lldb(core, *read, program=program)
    assert words(shown, BASE) == ["0x0000000000000000"]
    assert words(shown, BASE + PAGE) == ["0x8877665544332211"]
    assert words(shown, BASE + 4 * PAGE - 8) == ["0x0000000000000000"]


def test_absent_anonymous_pages_cannot_be_read_and_those_around_can(tmp_path: Path, program: Path) -> None:
    core = tmp_path / "core"
    run = absent(BASE + PAGE, BASE + 3 * PAGE)
    pages = {BASE: b"\x01" * 8, BASE + 3 * PAGE: b"\x03" * 8}
    write(snapshot(vma(BASE, BASE + 4 * PAGE, absent=(run,))), core, pages)
    at = [BASE, BASE + PAGE, BASE + 3 * PAGE - 8, BASE + 3 * PAGE]
    outputs = [gdb(core, f"x/gx {a}") for a in at]
    assert words(outputs[0], BASE) == ["0x0101010101010101"]
    assert words(outputs[3], at[3]) == ["0x0303030303030303"]
    for address, output in ((at[1], outputs[1]), (at[2], outputs[2])):
        assert unreadable(output, address)
        assert "0x0000000000000000" not in output
    shown = [lldb(core, f"memory read -f x -s 8 -c 1 {a:#x}", program=program) for a in at]
    assert words(shown[0], BASE) == ["0x0101010101010101"]
    assert words(shown[3], at[3]) == ["0x0303030303030303"]
    for address, output in ((at[1], shown[1]), (at[2], shown[2])):
        assert re.search(CANNOT_LLDB, output)
        assert words(output, address) == []


def test_a_read_across_the_border_of_an_absent_run_stops_there_in_gdb(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(
        snapshot(vma(BASE, BASE + 2 * PAGE, absent=(absent(BASE + PAGE, BASE + 2 * PAGE),))),
        core,
        {BASE: b"\x07" * PAGE},
    )
    shown = gdb(core, f"x/2gx {BASE + PAGE - 8}")
    assert unreadable(shown, BASE + PAGE)


def file_core(core: Path, path: bytes, address: int, offset: int, machine: Any = snapshot) -> None:
    """Write a core whose file mapping has a present, an absent and another present page."""
    mapping = vma(
        address,
        address + 3 * PAGE,
        R,
        path=path,
        pgoff=offset // PAGE,
        absent=(absent(address + PAGE, address + 2 * PAGE),),
    )
    write(machine(mapping), core, {address: b"first in the core", address + 2 * PAGE: b"third in the core"})


def test_gdb_takes_absent_pages_of_a_file_from_that_file(tmp_path: Path, program: Path) -> None:
    core = tmp_path / "core"
    address, offset = rodata(program)
    file_core(core, str(program).encode(), address, offset)
    shown = gdb(core, *(f"x/s {address + i * PAGE:#x}" for i in (0, 2)), f"x/gx {address + PAGE}", sysroot=Path("/"))
    assert '"first in the core"' in shown
    assert '"third in the core"' in shown
    assert re.search(rf"{address + PAGE:#x}.*0x5454545454545454", shown)


def test_gdb_and_lldb_make_nothing_up_for_absent_pages_of_a_file_that_is_not_there(
    tmp_path: Path, program: Path
) -> None:
    core = tmp_path / "core"
    file_core(core, b"/nowhere/libgone.so", BASE, 0)
    shown = gdb(core, f"x/s {BASE}", f"x/s {BASE + 2 * PAGE}")
    assert '"first in the core"' in shown
    assert '"third in the core"' in shown
    shown = gdb(core, f"x/gx {BASE + PAGE}")
    assert unreadable(shown, BASE + PAGE)
    shown = lldb(core, f"memory read -f x -s 8 -c 1 {BASE + PAGE:#x}", program=program)
    assert words(shown, BASE + PAGE) == []
    assert re.search(CANNOT_LLDB, shown)


def test_gdb_makes_nothing_up_for_a_file_mapping_without_any_page(tmp_path: Path) -> None:
    core = tmp_path / "core"
    run = absent(BASE, BASE + 2 * PAGE)
    write(snapshot(vma(BASE, BASE + 2 * PAGE, R, path=b"/nowhere/libgone.so", pgoff=0, absent=(run,))), core)
    assert unreadable(gdb(core, f"x/gx {BASE}"), BASE)


def test_gdb_makes_nothing_up_for_a_file_mapping_whose_offset_is_not_known(tmp_path: Path) -> None:
    """Such a mapping is not in NT_FILE, so that gdb has no file to look into, nor to miss."""
    core = tmp_path / "core"
    run = absent(BASE + PAGE, BASE + 2 * PAGE)
    write(snapshot(vma(BASE, BASE + 2 * PAGE, R, path=b"/nowhere/libgone.so", pgoff=None, absent=(run,))), core)
    assert unreadable(gdb(core, f"x/gx {BASE + PAGE}"), BASE + PAGE)


def test_gdb_makes_nothing_up_for_a_deleted_file(tmp_path: Path) -> None:
    core = tmp_path / "core"
    file_core(core, b"/tmp/libgone.so (deleted)", BASE, 0)
    assert unreadable(gdb(core, f"x/gx {BASE + PAGE}"), BASE + PAGE)


def test_memory_that_is_not_dumped_has_the_form_of_the_kernels_cores(tmp_path: Path, program: Path) -> None:
    """A device's memory, or what the process excluded with MADV_DONTDUMP: a PT_LOAD without contents."""
    core = tmp_path / "core"
    write(snapshot(vma(BASE, BASE + 2 * PAGE, dumped=False), vma(BASE + 2 * PAGE, BASE + 3 * PAGE)), core)
    shown = lldb(core, f"memory read -f x -s 8 -c 1 {BASE:#x}", program=program)
    assert words(shown, BASE) == []
    assert re.search(CANNOT_LLDB, shown)
    with core.open("rb") as f:
        first, second = (s for s in ELFFile(f).iter_segments() if s["p_type"] == "PT_LOAD")
        assert (first["p_memsz"], first["p_filesz"]) == (2 * PAGE, 0)
        assert (second["p_memsz"], second["p_filesz"]) == (PAGE, PAGE)


def test_registers_and_threads_are_those_of_the_notes(tmp_path: Path, program: Path) -> None:
    core = tmp_path / "core"
    threads = tuple(thread(1000 + i) for i in range(3))
    write(snapshot(vma(BASE, BASE + PAGE), threads=threads), core)
    shown = gdb(core, "info threads", "p/x $r15", "p/x $orig_rax", "p/x $gs_base", "p/x $rdi")
    assert re.findall(r"LWP (\d+)", shown.partition("Frame")[2]) == ["1000", "1001", "1002"]
    names = [int.from_bytes(name, "little") for name in (b"     r15", b"orig_rax", b" gs_base", b"     rdi")]
    assert re.findall(r"\$\d+ = (0x\w+)", shown) == [f"{value:#x}" for value in names]
    shown = lldb(core, "thread list", "register read r15 rdi gs_base", program=program)
    assert [int(tid, 0) for tid in re.findall(r"tid = (\w+)", shown)] == [1000, 1001, 1002]
    assert f"r15 = {names[0]:#018x}" in shown
    assert f"rdi = {names[3]:#018x}" in shown


def test_registers_of_an_i386_process(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(
        snapshot_32(vma(0x1000_0000, 0x1000_1000), threads=(thread(1000, gregs=GREGS_32),)),
        core,
        {0x1000_0000: b"abcd"},
    )
    shown = gdb(core, "info threads", "p/x $edi", "p/x $eip", "p/x $esp", "p/x $orig_eax", f"x/wx {0x1000_0000:#x}")
    names = [int.from_bytes(name, "little") for name in (b" edi", b" eip", b" esp", b"oeax")]
    assert re.findall(r"\$\d+ = (0x\w+)", shown) == [f"{value:#x}" for value in names]
    assert re.search(r"0x10000000:\s+0x64636261", shown)


def test_our_own_note_is_never_a_thread(tmp_path: Path) -> None:
    """BFD looks at type and size of a note under any name: one of type 1 and elf_prstatus's 336 bytes is a thread."""
    core = tmp_path / "core"
    info = PsInfo(100, b"victim", b"victim", 1, "S", False, 0, 0, 1000, 1000, 1, 100, 100)
    times = {"pr_utime": 0, "pr_stime": 0, "pr_cutime": 0, "pr_cstime": 0}
    process = snapshot(vma(0x10_0000, 0x10_1000), psinfo=info, threads=(thread(**times),))
    write(process, core, origin={"kernel": ""})
    missing = 336 - len(elf_notes(core)[-1][2])
    assert missing >= 0
    write(process, core, origin={"kernel": "x" * missing}, force=True)
    assert len(elf_notes(core)[-1][2]) == 336
    json.loads(elf_notes(core)[-1][2])
    shown = gdb(core, "info threads")
    assert re.findall(r"^\[New LWP (\d+)\b", shown, re.MULTILINE) == ["100"]


def test_lldb_and_gdb_read_behind_a_split(tmp_path: Path, program: Path) -> None:
    """lldb takes the first PT_LOAD that has the address: pieces must not overlap."""
    core = tmp_path / "core"
    runs = tuple(absent(BASE + i * PAGE, BASE + (i + 1) * PAGE) for i in range(1, 9, 2))
    pages = {BASE + i * PAGE: bytes([i]) * 8 for i in range(0, 9, 2)}
    for path in (None, b"/nowhere/libgone.so"):
        write(snapshot(vma(BASE, BASE + 9 * PAGE, R | X, path=path, pgoff=0, absent=runs)), core, pages, force=True)
        wanted = {at: f"0x{data[0]:02x}" + f"{data[0]:02x}" * 7 for at, data in pages.items()}
        shown = gdb(core, *(f"x/gx {at}" for at in pages))
        assert {at: words(shown, at) for at in pages} == {at: [text] for at, text in wanted.items()}
        shown = lldb(core, *(f"memory read -f x -s 8 -c 1 {at:#x}" for at in pages), program=program)
        assert {at: words(shown, at) for at in pages} == {at: [text] for at, text in wanted.items()}

"""Separate files of debug information: symbols, call frame information, source lines.

Tests elf/headers.py, unwind/elf_file.py, unwind/image_files.py, unwind/lines.py, unwind/originals.py,
unwind/debug_frame.py.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from tests.unwind.processes import Recording, Stop, compile_c, need, record
from vmcore2core.elf.headers import parse_headers
from vmcore2core.process.binaries import Binaries
from vmcore2core.process.sysroot import Sysroot
from vmcore2core.unwind.elf_file import ElfFile
from vmcore2core.unwind.frames import Backtrace, Found
from vmcore2core.unwind.lines import LineTables
from vmcore2core.unwind.originals import Files
from vmcore2core.unwind.process import UserSpace
from vmcore2core.unwind.reading import PagedRead
from vmcore2core.unwind.symbols import Origin, Symbol

SOURCE = r"""
__attribute__((noinline)) void stop_here(void) { __asm__ volatile("" ::: "memory"); }
static inline __attribute__((always_inline)) int inner(int n) { stop_here(); return n + 1; }
static inline __attribute__((always_inline)) int outer(int n) {
  return inner(n) + 2; }
__attribute__((noinline)) static int level_b(int n) {
  volatile char room[200]; room[0] = n;
  return outer(n) + room[0]; }
__attribute__((noinline)) static int level_a(int n) { return level_b(n) + 1; }
int main(int argc, char **argv) { return level_a(argc) + argc; }
"""


def run(*command: str | Path) -> str:
    return subprocess.run([need(str(command[0])), *command[1:]], capture_output=True, text=True, check=True).stdout


def stopped(program: Path, stripped: Path | None = None) -> tuple[Recording, Stop]:
    """Return a program that was stopped; its memory is that of ``stripped``."""
    recording = record(program)
    if stripped is not None:
        recording.maps = [line.replace(str(program), str(stripped)) for line in recording.maps]
    return recording, recording.stops[0][0]


def symbols(recording: Recording, stop: Stop, files: Files | None) -> tuple[Backtrace, list[Symbol | None], UserSpace]:
    unwinder = recording.process(stop).unwinder(files)
    space = cast("UserSpace", unwinder.space)
    found = unwinder.backtrace(stop.registers)
    images = [(space.image(frame.lookup_pc), frame.lookup_pc) for frame in found.frames]
    return found, [image.symbol(pc) if image is not None else None for image, pc in images], space


def named(found: list[Symbol | None]) -> list[str]:
    return [symbol.name.decode() for symbol in found if symbol is not None]


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def test_debug_frame_unwinds_what_has_no_eh_frame(tmp_path: Path, compression: str) -> None:
    options = ["-g", "-fomit-frame-pointer", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]
    program = compile_c(SOURCE, tmp_path / "program", *options)
    assert ".debug_frame" in run("readelf", "-SW", program)
    run("objcopy", f"--compress-debug-sections={compression}", program)
    recording, stop = stopped(program)
    found, names, _ = symbols(recording, stop, None)
    assert [frame.pc for frame in found.frames] == list(dict.fromkeys(stop.pcs))
    assert found.complete, found.end
    assert named(names)[:4] == ["stop_here", "level_b", "level_a", "main"]
    assert {(frame.found, frame.cfi_origin) for frame in found.frames[1:]} == {(Found.CFI, Origin.MEMORY)}


@pytest.mark.parametrize("by", ["build ID", "link", "mini"])
def test_static_functions_are_named_by_separate_symbols(tmp_path: Path, by: str) -> None:
    program = compile_c(SOURCE, tmp_path / "program", "-g", "-Wl,--build-id=sha1")
    stripped, debug = tmp_path / "stripped", tmp_path / "stripped.debug"
    run("objcopy", "--only-keep-debug", program, debug)
    run("objcopy", "--strip-all", program, stripped)
    trees: tuple[Path, ...] = ()
    if by == "build ID":
        digits = re.findall(r"Build ID: (\w+)", run("readelf", "-n", program))[0]
        target = tmp_path / "debug/.build-id" / digits[:2] / f"{digits[2:]}.debug"
        target.parent.mkdir(parents=True)
        shutil.copy(debug, target)
        trees = (tmp_path / "debug",)
    elif by == "link":
        run("objcopy", f"--add-gnu-debuglink={debug}", stripped)
        target = tmp_path / "debug" / str(tmp_path).lstrip("/") / debug.name
        target.parent.mkdir(parents=True)
        shutil.copy(debug, target)
        trees = (tmp_path / "debug",)
    else:
        packed = tmp_path / "mini.xz"
        run("objcopy", "--strip-debug", debug)
        packed.write_bytes(lzma.compress(debug.read_bytes()))
        run("objcopy", f"--add-section=.gnu_debugdata={packed}", stripped)
    recording, stop = stopped(program, stripped)
    _, without, _ = symbols(recording, stop, None)
    found, names, _ = symbols(recording, stop, Files(Binaries(debug_trees=trees)))
    ours = ["stop_here", "level_b", "level_a", "main"]
    if by != "mini":
        assert set(ours).isdisjoint(named(without))
    assert named(names)[:4] == ours
    assert {symbol.source for symbol in names[:4] if symbol is not None} == {Origin.DEBUG}
    assert [frame.pc for frame in found.frames] == list(dict.fromkeys(stop.pcs))


def in_sysroot(program: Path, folder: Path) -> Files:
    copy = folder / str(program).lstrip("/")
    copy.parent.mkdir(parents=True)
    shutil.copy(program, copy)
    return Files(Binaries(sysroots=(Sysroot(folder),)))


def test_source_lines_and_inlined_functions_are_those_of_addr2line(tmp_path: Path) -> None:
    pytest.importorskip("symbolic")
    program = compile_c(SOURCE, tmp_path / "program", "-g")
    recording, stop = stopped(program)
    found, names, space = symbols(recording, stop, in_sysroot(program, tmp_path / "sysroot"))
    assert named(names)[:4] == ["stop_here", "level_b", "level_a", "main"]
    functions = []
    for frame in found.frames[:4]:
        image = space.image(frame.lookup_pc)
        assert image is not None
        asked = f"{frame.lookup_pc - image.bias:#x}"
        shown = run("addr2line", "-i", "-f", "-e", program, asked).splitlines()
        places = zip(shown[::2], shown[1::2], strict=True)
        wanted = [(name, int(re.split(r"[: ]", place.rpartition("/")[2])[1])) for name, place in places]
        lines = image.lines(frame.lookup_pc)
        assert [(line.function.decode(), line.line) for line in lines] == wanted
        assert all(line.file.endswith("program.c") for line in lines)
        functions.append([line.function for line in lines])
    assert functions[1] == [b"inner", b"outer", b"level_b"]


def test_without_symbolic_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "symbolic.debuginfo", None)
    program = compile_c(SOURCE, tmp_path / "program", "-g")
    recording, stop = stopped(program)
    files = in_sysroot(program, tmp_path / "sysroot")
    found, _, space = symbols(recording, stop, files)
    image = space.image(stop.pcs[0])
    assert image is not None
    assert files.notices == []
    assert image.lines(found.frames[0].lookup_pc) == ()
    (notice,) = files.notices
    assert "pip install symbolic" in notice


def test_a_file_whose_debug_information_is_broken_has_no_lines(tmp_path: Path) -> None:
    pytest.importorskip("symbolic")
    path = tmp_path / "broken"
    for data in (b"", b"no ELF file", b"\x7fELF" + bytes(60)):
        path.write_bytes(data)
        tables = LineTables()
        assert tables.of_file(path) is None
        assert tables.problem is None
    assert LineTables().of_file(tmp_path / "gone") is None


def test_sections_that_do_not_decompress_are_not_known(tmp_path: Path) -> None:
    options = ["-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-gz=zlib"]
    program = compile_c(SOURCE, tmp_path / "program", *options)
    run("objcopy", "--compress-debug-sections=zlib", program)
    data = program.read_bytes()

    def content(data: bytes) -> bytes | None:
        read = PagedRead(lambda at, size: data[at : at + size].ljust(size, b"\0") if at < len(data) else None, 4096)
        headers = parse_headers(read, 64, "little")
        assert headers is not None
        file = ElfFile(read, headers, 64, "little")
        section = file.section(b".debug_info")
        assert section is not None
        places.append(section.sh_offset)
        return file.content(section)

    places: list[int] = []
    whole = content(data)
    assert whole is not None
    at = places[0]
    broken = (
        data[:at] + b"\x7f" + data[at + 1 :],  # an algorithm that is not known
        data[: at + 8] + (len(whole) + 1).to_bytes(8, "little") + data[at + 16 :],  # more bytes than there are
        data[: at + 8] + (1 << 40).to_bytes(8, "little") + data[at + 16 :],  # more than is taken
        data[: at + 24] + bytes(8) + data[at + 32 :],
        data[:at] + b"\x02" + data[at + 1 :],  # it is not zstd
    )
    for one in broken:
        assert content(one) is None

"""Program headers: which memory a core has, and where."""

from __future__ import annotations

import re
import struct
import subprocess
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.corefile.snapshots import (
    PAGE,
    R,
    W,
    X,
    absent,
    elf_notes,
    loads,
    many,
    segments,
    snapshot,
    snapshot_32,
    vma,
    write,
)
from tests.corefile.test_notes import eu_readelf
from tests.needs import memory_folder, need
from vmcore2core.addresses import UserAddr
from vmcore2core.errors import OutputError
from vmcore2core.process.model import AbsentReason, TagRun

TIB = 1 << 40


@pytest.mark.parametrize(
    ("p_flags", "letters"), [(R, "R"), (R | W, "RW"), (R | X, "R E"), (R | W | X, "RWE"), (0, ""), (W, "W"), (X, "E")]
)
def test_each_mapping_is_a_segment_with_its_flags(p_flags: int, letters: str, tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(vma(0x7F00_0000_0000, 0x7F00_0000_3000, p_flags)), core)
    assert loads(core) == [(0x7F00_0000_0000, 0x3000, 0x3000, p_flags)]
    (line,) = re.findall(r"^  LOAD +\S+ +\S+ +\S+ +\S+ +\S+ (.*)0x1000$", eu_readelf(core, "-l"), re.MULTILINE)
    assert line.split() == letters.split()


def test_the_header_says_what_the_file_is(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(vma(0x1000, 0x2000)), core)
    assert struct.unpack("<16sHHIQQQIHHHHHH", core.read_bytes()[:64]) == (
        b"\x7fELF\2\1\1" + bytes(9), 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )  # fmt: skip
    write(snapshot_32(vma(0x1000, 0x2000)), core, force=True)
    assert struct.unpack("<16sHHIIIIIHHHHHH", core.read_bytes()[:52]) == (
        b"\x7fELF\1\1\1" + bytes(9), 4, 3, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0
    )  # fmt: skip


def test_eu_readelf_agrees_about_class_and_machine(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot_32(vma(0x1000, 0x2000), vma(0x8000_0000, 0xC000_0000)), core)
    text = eu_readelf(core, "-h", "-l")
    assert re.search(r"Class: +ELF32", text)
    assert re.search(r"Machine: +Intel 80386", text)
    assert re.search(r"Type: +CORE", text)
    assert "0x80000000 0x00000000 0x40000000 0x40000000" in text


def test_contents_begin_on_pages_and_do_not_overlap(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(*many(0x10_0000, 40), vma(0x7F00_0000_0000, 0x7F00_0010_0000)), core)
    table = segments(core)
    assert all(offset % PAGE == 0 and vaddr % PAGE == 0 for vaddr, _, _, _, offset in table)
    assert table[0][4] >= 64 + 56 * 42 + sum(12 + len(name) + 1 + len(desc) for name, _, desc in elf_notes(core))
    for before, after in pairwise(table):
        assert before[4] + before[2] <= after[4]
    assert core.stat().st_size == table[-1][4] + table[-1][2]


def test_a_mapping_without_absent_pages_is_one_segment_with_contents(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(vma(0x1_0000, 0x9_0000), vma(0x9_0000, 0xA_0000, R, path=b"/x", pgoff=0)), core)
    assert loads(core) == [(0x1_0000, 0x8_0000, 0x8_0000, R | W), (0x9_0000, 0x1_0000, 0x1_0000, R)]


def test_a_mapping_that_is_not_dumped_has_no_contents(tmp_path: Path) -> None:
    core = tmp_path / "core"
    pages = {0x1_0000: b"never"}
    write(snapshot(vma(0x1_0000, 0x9_0000, dumped=False)), core, pages)
    assert loads(core) == [(0x1_0000, 0x8_0000, 0, R | W)]
    assert b"never" not in core.read_bytes()


def test_absent_anonymous_pages_are_in_no_segment(tmp_path: Path) -> None:
    core = tmp_path / "core"
    runs = (absent(0x1_0000, 0x1_2000), absent(0x1_4000, 0x1_5000), absent(0x1_8000, 0x1_9000))
    write(snapshot(vma(0x1_0000, 0x1_9000, absent=runs)), core)
    assert loads(core) == [(0x1_2000, 0x2000, 0x2000, R | W), (0x1_5000, 0x3000, 0x3000, R | W)]


def test_absent_anonymous_pages_in_the_middle_split_the_mapping(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(vma(0x1_0000, 0x1_5000, absent=(absent(0x1_2000, 0x1_3000),))), core)
    assert loads(core) == [(0x1_0000, 0x2000, 0x2000, R | W), (0x1_3000, 0x2000, 0x2000, R | W)]


def test_a_wholly_absent_anonymous_mapping_has_no_segment(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot(vma(0x1_0000, 0x1_5000, absent=(absent(0x1_0000, 0x1_5000),)), vma(0x2_0000, 0x2_1000)), core)
    assert loads(core) == [(0x2_0000, 0x1000, 0x1000, R | W)]


def test_absent_pages_of_a_file_are_in_no_segment_either(tmp_path: Path) -> None:
    core = tmp_path / "core"
    runs = (absent(0x1_0000, 0x1_1000), absent(0x1_3000, 0x1_4000), absent(0x1_6000, 0x1_8000))
    write(snapshot(vma(0x1_0000, 0x1_8000, R | X, path=b"/x", pgoff=0, absent=runs)), core)
    assert loads(core) == [(0x1_1000, 0x2000, 0x2000, R | X), (0x1_4000, 0x2000, 0x2000, R | X)]


def test_pages_behind_a_files_end_are_within_the_last_segment_without_contents(tmp_path: Path) -> None:
    core, beyond = tmp_path / "core", AbsentReason.BEYOND_FILE
    runs = (absent(0x1_0000, 0x1_1000), absent(0x1_3000, 0x1_8000, beyond))
    none = vma(0x2_0000, 0x2_2000, R, path=b"/x", pgoff=9, absent=(absent(0x2_0000, 0x2_2000, beyond),))
    inside = (absent(0x3_1000, 0x3_2000, beyond), absent(0x3_3000, 0x3_4000))
    write(
        snapshot(
            vma(0x1_0000, 0x1_8000, R, path=b"/x", pgoff=0, absent=runs), none, vma(0x3_0000, 0x3_4000, absent=inside)
        ),
        core,
    )
    assert [load[:3] for load in loads(core)] == [
        (0x1_1000, 0x7000, 0x2000),
        (0x2_0000, 0x2000, 0),
        (0x3_0000, 0x1000, 0x1000),
        (0x3_2000, 0x1000, 0x1000),
    ]


def test_adjacent_absent_runs_of_unlike_reasons_leave_no_empty_segment(tmp_path: Path) -> None:
    core = tmp_path / "core"
    runs = (absent(0x1_1000, 0x1_2000), absent(0x1_2000, 0x1_3000))
    write(snapshot(vma(0x1_0000, 0x1_4000, absent=runs)), core)
    assert loads(core) == [(0x1_0000, 0x1000, 0x1000, R | W), (0x1_3000, 0x1000, 0x1000, R | W)]


def test_pages_beyond_the_stated_ones_are_never_asked_for(tmp_path: Path) -> None:
    core = tmp_path / "core"
    pages = {at: b"p%x" % at for at in range(0x1_0000, 0x1_5000, PAGE)}
    report = write(snapshot(vma(0x1_0000, 0x1_5000, absent=(absent(0x1_2000, 0x1_3000),))), core, pages)
    assert report.present_pages == 4
    assert b"p12000" not in core.read_bytes()
    assert b"p13000" in core.read_bytes()


@pytest.mark.parametrize("count", [65_533, 65_534, 65_535, 65_540])
def test_more_segments_than_e_phnum_can_say(count: int, tmp_path: Path) -> None:
    """fill_extnum_info(): with the note, count + 1 headers; from 0xffff on the number is in section 0's sh_info."""
    core = tmp_path / "core"
    write(snapshot(*many(0x10_0000, count)), core, {0x10_0000 + 8192 * (count - 1): b"the last"}, verify=False)
    assert len(loads(core)) == count
    with core.open("rb") as f:
        head = f.read(64)
    e_shoff, e_phnum, e_shnum = *struct.unpack_from("<Q", head, 40), *struct.unpack_from("<H2xH", head, 56)
    if count + 1 < 0xFFFF:
        assert (e_shoff, e_phnum, e_shnum) == (0, count + 1, 0)
    else:
        assert (e_phnum, e_shnum) == (0xFFFF, 1)
        assert e_shoff % 8 == 0
        with core.open("rb") as f:
            f.seek(e_shoff)
            # struct elf64_shdr: sh_size is the number of sections, sh_info that of program headers.
            assert struct.unpack("<IIQQQQIIQQ", f.read(64)) == (0, 0, 0, 0, 0, 1, 0, count + 1, 0, 0)
    text = eu_readelf(core, "-h", "-l")
    assert len(re.findall(r"^  LOAD ", text, re.MULTILINE)) == count
    number = re.search(r"Number of program headers entries: +(\d+)(?: \((\d+) in \[0\]\.sh_info\))?", text)
    assert number is not None
    assert int(number[2] or number[1]) == count + 1
    with core.open("rb") as f:
        f.seek(segments(core)[-1][4])
        assert f.read(8) == b"the last"


def test_pn_xnum_in_a_32_bit_core(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot_32(*many(0x10_0000, 65_536)), core, verify=False)
    assert len(loads(core)) == 65_536
    assert len(re.findall(r"^  LOAD ", eu_readelf(core, "-l"), re.MULTILINE)) == 65_536


@pytest.mark.parametrize("count", [9_000, 9_999, 10_001, 65_540])
def test_a_core_of_many_segments_passes_its_own_verification(count: int, tmp_path: Path) -> None:
    """vm.max_map_count lets a process have 65,530 mappings and, raised, many more."""
    write(snapshot(*many(0x10_0000, count)), tmp_path / "core")
    assert len(loads(tmp_path / "core")) == count


@pytest.mark.parametrize("size", [1 << 32, 15 * TIB, 16 * TIB])
def test_a_huge_mapping_takes_no_room(size: int, tmp_path: Path) -> None:
    # ext4's files end a page below 16 TiB; those of tmpfs do not.
    folder = memory_folder() if size == 16 * TIB else tmp_path
    if folder is None:
        pytest.skip("no file system for files of 16 TiB")
    start = 0x1000_0000_0000
    last = start + size - PAGE
    with TemporaryDirectory(dir=folder) as name:
        core = Path(name) / "core"
        report = write(snapshot(vma(start, start + size)), core, {start: b"first", last: b"last"})
        stat = core.stat()
        assert stat.st_size == report.file_size > size
        assert stat.st_blocks * 512 < 64 << 10
        assert (report.present_pages, report.zero_pages, report.segments) == (2, 0, 1)
        with core.open("rb") as f:
            f.seek(report.file_size - PAGE)
            assert f.read(4) == b"last"
        assert loads(core) == [(start, size, size, R | W)]
        assert f"{size:#08x} {size:#08x}" in re.sub(r"0x0*", "0x", eu_readelf(core, "-l"))


def test_a_file_beyond_what_the_file_system_takes_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="core"):
        write(snapshot(vma(0x1000, 1 << 56)), tmp_path / "core")
    assert not list(tmp_path.iterdir())


def test_zero_pages_of_the_dump_take_no_room_either(tmp_path: Path) -> None:
    core = tmp_path / "core"
    pages = {0x10_0000 + i * PAGE: b"x" if i == 500 else b"" for i in range(1000)}
    report = write(snapshot(vma(0x10_0000, 0x10_0000 + 1000 * PAGE)), core, pages)
    assert (report.present_pages, report.zero_pages) == (1000, 999)
    assert core.stat().st_blocks * 512 <= 32 << 10


def test_a_32_bit_core_may_reach_4_gib(tmp_path: Path) -> None:
    """IA32_PAGE_OFFSET is 0xffffe000: all that an i386 process can map."""
    core = tmp_path / "core"
    write(snapshot_32(vma(0x1_0000, 0x8000_0000), vma(0x8000_0000, 0xFFFF_E000)), core, {0xFFFF_D000: b"last"})
    assert core.stat().st_size > 0xFFFE_0000
    assert "0x80000000 0x00000000 0x7fffe000 0x7fffe000" in eu_readelf(core, "-l")


@pytest.mark.parametrize(
    "regions",
    [
        # Headers and contents of so many small mappings end beyond what Elf32_Off can say.
        pytest.param([(0x0, 0xFFE0_0000), *((0xFFE0_0000 + i * PAGE,) * 2 for i in range(510))], id="p_offset"),
        pytest.param([(0x1000, 0x2000), (0x1_0000_0000, 0x1_0000_1000)], id="p_vaddr"),
        pytest.param([(0x1000, 0x1_0000_2000)], id="p_filesz"),
    ],
)
@pytest.mark.parametrize("path", [None, b"/x"], ids=["anonymous", "file"])
def test_what_elf32_cannot_say_is_an_error_of_ours(
    regions: list[tuple[int, int]], path: bytes | None, tmp_path: Path
) -> None:
    """A 64-bit process may well be in 32-bit code (wine), and a dump may say anything."""
    core = tmp_path / "core"
    regions = [(start, end if end > start else start + PAGE) for start, end in regions]
    with pytest.raises(OutputError, match=r"expected at most 0x(ffffffff|100000000)$"):
        write(snapshot_32(*(vma(*region, path=path, pgoff=0) for region in regions)), core)
    assert not list(tmp_path.iterdir())


def test_segment_sizes_of_a_32_bit_core_reach_up_to_3_gib(tmp_path: Path) -> None:
    core = tmp_path / "core"
    write(snapshot_32(vma(0x1000, 0xC000_0000)), core, {0xBFFF_F000: b"last"})
    assert loads(core) == [(0x1000, 0xBFFF_F000, 0xBFFF_F000, R | W)]
    assert "0x00001000 0x00000000 0xbffff000 0xbffff000" in eu_readelf(core, "-l")
    assert core.stat().st_blocks * 512 < 64 << 10


def test_memory_tags_are_behind_the_pages(tmp_path: Path) -> None:
    """As arch/arm64/kernel/elfcore.c has them: PT_LOPROC + 2, no flags, no alignment."""
    start = 0x7F00_0000_0000
    runs = tuple(
        TagRun(
            UserAddr(start + PAGE * first),
            UserAddr(start + PAGE * last),
            bytes([first + 1]) * 128 * (last - first),
            0x7000_0002,
        )
        for first, last in ((0, 2), (3, 4))
    )
    core = tmp_path / "core"
    report = write(snapshot(vma(start, start + 4 * PAGE), tags=runs), core, {start + 3 * PAGE: b"last"})
    data = core.read_bytes()
    (phoff,), (phnum,) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<H", data, 56)
    headers = [struct.unpack_from("<IIQQQQQQ", data, phoff + 56 * i) for i in range(phnum)]
    assert [header[0] for header in headers] == [4, 1, 0x7000_0002, 0x7000_0002]
    end = headers[1][2] + 4 * PAGE
    assert headers[2] == (0x7000_0002, 0, end, start, 0, 256, 2 * PAGE, 0)
    assert headers[3] == (0x7000_0002, 0, end + 256, start + 3 * PAGE, 0, 128, PAGE, 0)
    assert data[end:] == b"\x01" * 256 + b"\x04" * 128
    assert report.file_size == len(data)
    assert data[end - PAGE : end - PAGE + 4] == b"last"
    shown = subprocess.run([need("eu-readelf"), "-l", core], capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"^  LOAD ", shown, re.MULTILINE)) == 1

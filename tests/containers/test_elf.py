"""ELF dumps: program headers, notes, and memory where they say.

Tests containers/segmented.py, containers/segments.py.
"""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note, page
from tests.containers.contract import check_contract, read
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import PageState
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.elf import ElfContainer
from vmcore2core.errors import DumpError, FormatError, UnknownFormat, UsageError

MISSING, PRESENT, EXCLUDED, TRUNCATED = PageState.MISSING, PageState.PRESENT, PageState.EXCLUDED, PageState.TRUNCATED

VMCOREINFO = note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n")
Order = Literal["little", "big"]


def dump(tmp_path: Path, raw: bytes) -> ElfContainer:
    path = tmp_path / "vmcore"
    path.write_bytes(raw)
    container = open_container([path])
    assert isinstance(container, ElfContainer)
    return container


def pages(*pfns: int) -> bytes:
    return b"".join(page(pfn) for pfn in pfns)


@pytest.mark.parametrize(
    ("bits", "order", "xnum", "sections_first", "pad"),
    [
        (bits, order, xnum, first, pad)
        for bits, order, (xnum, first), pad in itertools.product(
            (64, 32), ("little", "big"), ((False, False), (False, True), (True, True)), (0, 3)
        )
    ],
)
def test_every_class_byte_order_and_header_layout_reads(
    tmp_path: Path, bits: int, order: Order, xnum: bool, sections_first: bool, pad: int
) -> None:
    raw = build_elf_vmcore(
        [Load(0x3000, pages(3, 4)), Load(0x10000, pages(16))],
        note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n", order),
        bits=bits,
        order=order,
        e_machine=22,
        xnum=xnum,
        sections_first=sections_first,
        e_ehsize=8,
        pad=pad,
    )
    container = dump(tmp_path, raw)
    with container:
        assert (container.elf_class, container.byte_order, container.e_machine) == (bits, order, 22)
        assert container.vmcoreinfo == b"OSRELEASE=6.1.0\n"
        assert container.memory_ranges() == (AddressRange(0x3000, 0x5000), AddressRange(0x10000, 0x11000))
        assert container.warnings == []
        check_contract(container, {pfn: page(pfn) for pfn in (3, 4, 16)})


def test_notes_come_in_file_order_with_odd_sizes(tmp_path: Path) -> None:
    notes = note(b"CORE", 1, b"x" * 336) + bytes(8) + note(b"LINUX", 0x202, b"odd") + VMCOREINFO + bytes(20)
    with dump(tmp_path, build_elf_vmcore([Load(0, pages(0))], notes)) as container:
        assert [(n.name, n.n_type, n.desc) for n in container.notes] == [
            ("CORE", 1, b"x" * 336),
            ("LINUX", 0x202, b"odd"),
            ("VMCOREINFO", 0, b"OSRELEASE=6.1.0\n"),
        ]
        assert container.warnings == []


def test_what_makedumpfile_erased_is_a_warning(tmp_path: Path) -> None:
    notes = VMCOREINFO + note(b"ERASEINFO", 0, b"erase jiffies size 8\n")
    with dump(tmp_path, build_elf_vmcore([Load(0x1000, pages(1))], notes)) as container:
        (warning,) = container.warnings
    assert warning.endswith("X's (0x58) or as NULL pointers where it was: jiffies size 8")


def test_note_that_is_larger_than_its_segment_is_a_warning(tmp_path: Path) -> None:
    broken = struct.pack("<III", 5, 0x7FFFFFFF, 1) + b"CORE\0\0\0\0"
    with dump(tmp_path, build_elf_vmcore([Load(0, pages(0))], VMCOREINFO + broken)) as container:
        assert [n.name for n in container.notes] == ["VMCOREINFO"]
        assert "n_descsz 0x7fffffff" in container.warnings[0]


def test_machine_none_is_not_known(tmp_path: Path) -> None:
    with dump(tmp_path, build_elf_vmcore([Load(0, pages(0))], e_machine=0)) as container:
        assert container.e_machine is None
        assert container.vmcoreinfo is None


def test_memory_beyond_p_filesz_is_excluded(tmp_path: Path) -> None:
    raw = build_elf_vmcore([Load(0x1000, pages(1, 2), memsz=0x5000), Load(0x8000, b"", memsz=0x1000, offset=0)])
    with dump(tmp_path, raw) as container:
        states, _ = read(container, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
        assert states == [MISSING, PRESENT, PRESENT, EXCLUDED, EXCLUDED, EXCLUDED, MISSING, MISSING, EXCLUDED, MISSING]
        assert container.memory_ranges() == (AddressRange(0x1000, 0x6000), AddressRange(0x8000, 0x9000))


def test_page_that_p_filesz_cuts_is_excluded(tmp_path: Path) -> None:
    with dump(tmp_path, build_elf_vmcore([Load(0x1000, pages(1, 2)[:0x1800], memsz=0x3000)])) as container:
        assert read(container, 1, 2, 3)[0] == [PRESENT, EXCLUDED, EXCLUDED]


def test_partly_covered_page_is_missing(tmp_path: Path) -> None:
    with dump(tmp_path, build_elf_vmcore([Load(0x1100, pages(1, 2, 3)[0x100:0x2C00])])) as container:
        states, rows = read(container, 1, 2, 3)
        assert states == [MISSING, PRESENT, MISSING]
        assert rows[1] == page(2)


def test_page_across_two_segments_that_continue_each_other_is_present(tmp_path: Path) -> None:
    data = pages(1, 2, 3)
    with dump(tmp_path, build_elf_vmcore([Load(0x1000, data[:0x1800]), Load(0x2800, data[0x1800:])])) as container:
        check_contract(container, {pfn: page(pfn) for pfn in (1, 2, 3)})
        assert container.memory_ranges() == (AddressRange(0x1000, 0x4000),)


def test_page_across_two_segments_apart_in_the_file_is_not_put_together(tmp_path: Path) -> None:
    data = pages(1, 2, 3)
    raw = build_elf_vmcore([Load(0x2800, data[0x1800:]), Load(0x1000, data[:0x1800])])
    with dump(tmp_path, raw) as container:
        assert read(container, 1, 2, 3)[0] == [PRESENT, EXCLUDED, PRESENT]


def test_of_overlapping_segments_the_first_has_the_page(tmp_path: Path) -> None:
    """/proc/vmcore has the kernel's text twice; here the copies differ so that one can tell."""
    raw = build_elf_vmcore(
        [
            Load(0x4000, pages(0x104, 0x105), vaddr=0xFFFFFFFF81000000),
            Load(0x2000, pages(2, 3, 4, 5, 6, 7), vaddr=0xFFFF888000002000),
            Load(0x7000, pages(0x107, 0x108)),
            Load(0x5800, pages(0x205, 0x206)),
        ]
    )
    container = dump(tmp_path, raw)
    with container:
        _, rows = read(container, 2, 3, 4, 5, 6, 7, 8)
        assert rows == [page(n) for n in (2, 3, 0x104, 0x105, 6, 7, 0x108)]
        assert container.memory_ranges() == (AddressRange(0x2000, 0x9000),)
        assert container.segments["p_vaddr"].tolist()[:2] == [0xFFFFFFFF81000000, 0xFFFF888000002000]


def test_qemus_dump_with_paging(tmp_path: Path) -> None:
    """dump-guest-memory -p: a PT_LOAD for each virtual mapping, many of the same pages, from one copy in the file."""
    memory = Load(0, pages(*range(32)), vaddr=0xFF25_C400_8000_0000)
    first = len(build_elf_vmcore([memory] * 40, VMCOREINFO, xnum=True, sections_first=True)) - 40 * 32 * 4096
    mapped = random.Random(2).choices(range(32), k=39)
    loads = [
        Load(4096 * pfn, vaddr=0xFE00_7F48_0000_0000 + 4096 * i, filesz=4096, memsz=4096, offset=first + 4096 * pfn)
        for i, pfn in enumerate(mapped)
    ]
    with dump(
        tmp_path, build_elf_vmcore([*loads[:20], memory, *loads[20:]], VMCOREINFO, xnum=True, sections_first=True)
    ) as container:
        assert (container.warnings, container.memory_ranges()) == ([], (AddressRange(0, 32 * 4096),))
        check_contract(container, {pfn: page(pfn) for pfn in range(32)})


def test_present_page_counts_over_an_excluded_one(tmp_path: Path) -> None:
    raw = build_elf_vmcore([Load(0x1000, pages(1), memsz=0x3000), Load(0x2000, pages(2))])
    with dump(tmp_path, raw) as container:
        assert read(container, 1, 2, 3)[0] == [PRESENT, PRESENT, EXCLUDED]


def test_segment_without_physical_address_is_left_out(tmp_path: Path) -> None:
    for bits, none in ((64, (1 << 64) - 1), (32, (1 << 32) - 1)):
        with dump(tmp_path, build_elf_vmcore([Load(none, pages(9)), Load(0x1000, pages(1))], bits=bits)) as container:
            assert container.memory_ranges() == (AddressRange(0x1000, 0x2000),)


def test_truncated_file_says_how_much_is_missing(tmp_path: Path) -> None:
    raw = build_elf_vmcore([Load(0x1000, pages(1, 2, 3)), Load(0x8000, pages(8, 9))], VMCOREINFO)
    with dump(tmp_path, raw[: -3 * 4096 + 1]) as container:
        assert read(container, 1, 2, 3, 8, 9)[0] == [PRESENT, PRESENT, TRUNCATED, TRUNCATED, TRUNCATED]
        assert "3 of the 5 pages" in container.warnings[0]
        assert f"{len(raw) - 3 * 4096 + 1:#x}" in container.warnings[0]


def test_exactly_complete_file_is_not_truncated(tmp_path: Path) -> None:
    with dump(tmp_path, build_elf_vmcore([Load(0x1000, pages(1))])) as container:
        assert container.warnings == []
        assert read(container, 1)[0] == [PRESENT]


def test_70000_segments_open_and_read_quickly(tmp_path: Path) -> None:
    count = 70000
    data = page(0) + page(1)
    loads = [Load(i * 0x2000, b"", filesz=0x1000, memsz=0x1000, offset=0) for i in range(count)]
    raw = bytearray(build_elf_vmcore(loads, xnum=True))
    first = len(raw)
    raw += data
    # p_offset is at 8 in a 56-byte program header; these begin after the ELF header and one section header.
    for i in range(count):
        struct.pack_into("<Q", raw, 128 + 56 * i + 8, first + i % 2 * 4096)
    with dump(tmp_path, bytes(raw)) as container:
        assert len(container.memory_ranges()) == count
        pfns = np.random.default_rng(7).integers(0, 2 * count, 5000).astype(np.uint64)
        out = np.zeros((5000, 4096), np.uint8)
        states = container.read_pages(pfns, out)
        assert ((states == PRESENT) == (pfns % 2 == 0)).all()
        for pfn, row in zip(pfns[:200].tolist(), out[:200], strict=True):
            assert row.tobytes() == (bytes(4096) if pfn % 2 else page(pfn // 2 % 2))


def test_gather_of_single_pages_and_of_runs_agree(tmp_path: Path) -> None:
    nr = 600
    raw = build_elf_vmcore([Load(0, pages(*range(nr)))], pad=7)
    with dump(tmp_path, raw) as container:
        rng = random.Random(3)
        runs = list(range(nr))
        singles = rng.sample(range(nr), nr)
        mixed = [pfn for start in range(0, nr, 5) for pfn in (start, start + 1, rng.randrange(nr))]
        for wanted in (runs, singles, mixed, runs[::-1]):
            assert read(container, *wanted)[1] == [page(pfn) for pfn in wanted]


def ehdr_patch(offset: int, fmt: str, value: int) -> bytes:
    raw = bytearray(build_elf_vmcore([Load(0x1000, pages(1)), Load(0x4000, pages(4))], VMCOREINFO))
    struct.pack_into(fmt, raw, offset, value)
    return bytes(raw)


# Program header 1, after the note's: 64 + 56.
@pytest.mark.parametrize(
    ("offset", "fmt", "value", "message"),
    [
        (54, "<H", 32, "e_phentsize 32 at file offset 0x36, expected 56"),
        (56, "<H", 0, "number of program headers 0 at file offset 0x38"),
        (56, "<H", 0xFFFF, "number of program headers 0 at file offset 0x2c"),
        (32, "<Q", 1 << 62, "the program header table is cut off"),
        (56, "<H", 0xFFFE, "the program header table is cut off"),
        (120 + 24, "<Q", (1 << 64) - 0x800, "a memory range that does not wrap around"),
        (120 + 8, "<Q", (1 << 64) - 0x800, "a file range that does not wrap around"),
        (120 + 40, "<Q", 0x800, "p_filesz 0x1000 and p_memsz 0x800"),
    ],
)
def test_impossible_field_is_named(tmp_path: Path, offset: int, fmt: str, value: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        dump(tmp_path, ehdr_patch(offset, fmt, value))


def test_phnum_in_section_header_is_bounded(tmp_path: Path) -> None:
    raw = bytearray(build_elf_vmcore([Load(0x1000, pages(1))], xnum=True))
    struct.pack_into("<I", raw, 64 + 44, 0xFFFFFFFF)
    with pytest.raises(FormatError, match="number of program headers 4294967295 at file offset 0x6c"):
        dump(tmp_path, bytes(raw))


def test_section_header_with_phnum_beyond_the_file_is_named(tmp_path: Path) -> None:
    raw = bytearray(build_elf_vmcore([Load(0x1000, pages(1))], xnum=True))
    struct.pack_into("<Q", raw, 40, 1 << 40)
    with pytest.raises(FormatError, match="section header 0"):
        dump(tmp_path, bytes(raw))


def test_dump_without_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no PT_LOAD"):
        dump(tmp_path, build_elf_vmcore([], VMCOREINFO))


def test_virtual_addresses_only_are_refused(tmp_path: Path) -> None:
    loads = [Load(0, pages(1), vaddr=0xFFFF888000000000), Load(0, pages(2), vaddr=0xFFFFFFFF81000000)]
    with pytest.raises(FormatError, match="p_paddr 0 in every PT_LOAD"):
        dump(tmp_path, build_elf_vmcore(loads, VMCOREINFO))


@pytest.mark.parametrize("n_type", [3, 6, 0x46494C45])
def test_core_of_a_process_is_named(tmp_path: Path, n_type: int) -> None:
    notes = note(b"CORE", 1, bytes(336)) + note(b"CORE", n_type, bytes(136))
    raw = build_elf_vmcore([Load(0, pages(1), vaddr=0x400000), Load(0, pages(2), vaddr=0x600000)], notes)
    with pytest.raises(UnknownFormat, match="is an application core"):
        dump(tmp_path, raw)


def test_kcore_with_psinfo_is_not_taken_for_a_process(tmp_path: Path) -> None:
    notes = note(b"CORE", 3, bytes(136)) + VMCOREINFO
    with dump(tmp_path, build_elf_vmcore([Load(0x1000, pages(1))], notes)) as container:
        assert read(container, 1)[0] == [PRESENT]


def test_two_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(build_elf_vmcore([Load(0x1000, pages(1))]))
    with pytest.raises(UsageError, match="2 were given"):
        open_container([path, path])


def test_every_truncation_of_the_headers_is_an_error_or_a_warning(tmp_path: Path) -> None:
    raw = build_elf_vmcore([Load(0x1000, pages(1)), Load(0x4000, pages(4))], VMCOREINFO, sections_first=True)
    for size in range(64 + 64 + 3 * 56 + len(VMCOREINFO) + 8):
        path = tmp_path / "vmcore"
        path.write_bytes(raw[:size])
        try:
            container = open_container([path])
        except DumpError:
            continue
        assert container.warnings, size
        assert read(container, 1, 4)[0] == [TRUNCATED, TRUNCATED]


def test_flipped_bits_give_errors_of_ours_or_states(tmp_path: Path) -> None:
    notes = note(b"CORE", 1, bytes(336)) + VMCOREINFO
    good = build_elf_vmcore([Load(0x1000, pages(1), memsz=0x3000), Load(0x8000, pages(8))], notes, xnum=True)
    rng = random.Random(1)
    headers = 64 + 64 + 3 * 56 + len(notes)
    path = tmp_path / "vmcore"
    sentences = []
    for _ in range(2000):
        raw = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            raw[rng.randrange(headers)] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        try:
            with open_container([path]) as container:
                read(container, *range(12), 1 << 40, (1 << 64) - 1)
                container.memory_ranges()
        except DumpError as error:
            sentences.append(str(error))
    assert len(sentences) > 100
    assert not any("\n" in sentence for sentence in sentences)


def test_a_file_that_is_cut_off_meanwhile_is_an_error_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(16)) * 512)
    file = DumpFile(path)
    path.write_bytes(b"")
    with pytest.raises(DumpError, match="has changed while it was read: it has 0x0 bytes, and had 0x2000"):
        file.gather(np.array([0], np.uint64), np.array([0], np.uint64), np.zeros((1, 4096), np.uint8))


def test_xens_sections_are_named(tmp_path: Path) -> None:
    """xl dump-core's file has no program headers, but sections."""
    path = tmp_path / "core"
    path.write_bytes(build_elf_vmcore([], sections_first=True))
    with pytest.raises(
        FormatError, match=r"number of program headers 0 .*: sections alone are not read, as .* xl dump"
    ):
        open_container([path])

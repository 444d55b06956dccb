"""Saved virtual machines: QEMU's stream, alone and behind libvirt's header.

Tests containers/migration_stream.py, containers/ram_blocks.py, containers/saved_machine.py.
"""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import pytest

from tests.builders.elfdump import page
from tests.builders.migration import (
    PAGE_BITS,
    POSTCOPY,
    SWITCHOVER_START,
    UUID,
    build_mapped,
    build_stream,
    capabilities,
    command,
    libvirt_header,
    other_section,
    ram_page,
    section,
    subsection,
)
from tests.containers.contract import check_contract, read
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.containers.ram_blocks import RamBlock
from vmcore2core.containers.saved_machine import main_memory, mapped_memory
from vmcore2core.errors import FormatError, UsageError, Vmcore2coreError

PRESENT, ZERO, MISSING, TRUNCATED = PageState.PRESENT, PageState.ZERO, PageState.MISSING, PageState.TRUNCATED
EXCLUDED = PageState.EXCLUDED
RAM, BIOS = b"pc.ram", b"pc.bios"
NR = 64
CONTENT = {n: bytes(4096) if n % 5 == 0 else page(n) for n in range(NR)}
SIZE = b"pc.ram" + struct.pack(">Q", NR * 4096)
FIRST = [(RAM, n * 4096, CONTENT[n]) for n in range(NR)]
"""The first round: every page."""


def stream(*rounds: list[tuple[bytes, int, bytes]], size: int = NR * 4096, **more: bytes) -> bytes:
    return build_stream({RAM: size, BIOS: 8192}, rounds or (FIRST,), **more)


def dump(tmp_path: Path, raw: bytes) -> DumpContainer:
    path = tmp_path / "saved"
    path.write_bytes(raw)
    return open_container([path])


def test_pages_and_zero_pages_are_read(tmp_path: Path) -> None:
    with dump(tmp_path, stream()) as container:
        assert (container.DOC.name, container.warnings, container.notes) == ("QEMU migration", [], ())
        assert container.memory_ranges() == (AddressRange(0, NR * 4096),)
        check_contract(container, {n: content for n, content in CONTENT.items() if content.strip(b"\0")})
        assert read(container, 5, 10) == ([ZERO, ZERO], [bytes(4096)] * 2)


def test_the_last_copy_of_a_page_counts(tmp_path: Path) -> None:
    again = [(BIOS, 0, page(200)), (RAM, 3 * 4096, page(99)), (RAM, 4 * 4096, bytes(4096)), (RAM, 5 * 4096, page(98))]
    with dump(tmp_path, stream(FIRST, again, [(RAM, 3 * 4096, page(97))])) as container:
        assert read(container, 2, 3, 4, 5) == (
            [PRESENT, PRESENT, ZERO, PRESENT],
            [page(2), page(97), bytes(4096), page(98)],
        )


@pytest.mark.parametrize("char", "<>")
@pytest.mark.parametrize("magic", [b"LibvirtQemudSave", b"LibvirtQemudPart"])
def test_libvirts_header_is_skipped(tmp_path: Path, magic: bytes, char: str) -> None:
    """It is in the byte order of the host, which is big-endian on s390x."""
    with dump(tmp_path, libvirt_header(magic=magic, char=char) + stream()) as container:
        assert container.warnings == []
        assert read(container, 1, 63)[1] == [page(1), page(63)]


@pytest.mark.parametrize(("compressed", "codec"), [(1, "gzip"), (3, "xz"), (9, "codec 9")])
def test_libvirts_compression_is_named(tmp_path: Path, compressed: int, codec: str) -> None:
    with pytest.raises(FormatError, match=f"compressed the machine's memory with {codec}"):
        dump(tmp_path, libvirt_header(compressed) + stream())


@pytest.mark.parametrize(
    ("block", "machine", "size", "ranges"),
    [
        (RAM, b"pc-i440fx-7.2", 0xC000_0000, [(0, 0xC000_0000)]),
        (RAM, b"pc-i440fx-7.2", 0x1_0000_0000, [(0, 0xC000_0000), (1 << 32, 0x1_4000_0000)]),
        (RAM, b"pc-q35-7.2", 0xAFFF_F000, [(0, 0xAFFF_F000)]),
        (RAM, b"pc-q35-7.2", 0xC000_0000, [(0, 0x8000_0000), (1 << 32, 0x1_4000_0000)]),
        (RAM, b"microvm", 0x8000_0000, [(0, 0x8000_0000)]),
        (b"mach-virt.ram", b"virt-7.2", 0x1000_0000, [(0x4000_0000, 0x5000_0000)]),
        (b"riscv_virt_board.ram", b"virt", 0x1000_0000, [(0x8000_0000, 0x9000_0000)]),
        (b"s390.ram", b"s390-ccw-virtio-7.2", 0x1000_0000, [(0, 0x1000_0000)]),
        (b"ppc_spapr.ram", b"pseries-7.2", 0x1000_0000, [(0, 0x1000_0000)]),
        (b"mips_malta.ram", b"malta", 0x1000_0000, [(0, 0x1000_0000)]),
        (b"mips_malta.ram", b"malta", 0x2000_0000, [(0, 0x1000_0000), (0x9000_0000, 0xA000_0000)]),
        (b"loongson3.highram", b"loongson3-virt", 0x2000_0000, [(0, 0x1000_0000), (0x9000_0000, 0xA000_0000)]),
        (b"mine", b"malta", 0x2000_0000, [(0, 0x1000_0000), (0x9000_0000, 0xA000_0000)]),
        (b"microvm.ram", b"microvm", 0xC000_0000, [(0, 0xC000_0000)]),
        (b"microvm.ram", b"microvm", 0xDAC0_0000, [(0, 0xC000_0000), (1 << 32, 0x1_1AC0_0000)]),
        (b"mine", b"pc-q35-rhel9.4.0", 0xC000_0000, [(0, 0x8000_0000), (1 << 32, 0x1_4000_0000)]),
        (b"mine", b"virt-10.0", 0x1000_0000, [(0x4000_0000, 0x5000_0000)]),
        (b"mine", b"virt", 0x1000_0000, [(0x8000_0000, 0x9000_0000)]),
    ],
)
def test_memory_is_where_the_machine_has_it(
    block: bytes, machine: bytes, size: int, ranges: list[tuple[int, int]]
) -> None:
    pieces = main_memory([RamBlock(block, size)], machine)
    assert [(start, start + length) for start, _, length in pieces] == ranges
    assert [offset for _, offset, _ in pieces] == [0, ranges[0][1]][: len(ranges)]


@pytest.mark.parametrize(
    ("low", "high", "ranges"),
    [
        (0x3F00, 0x10000, [(0, 0x4000_0000), (1 << 32, 0x2_0000_0000)]),
        (0x3F00, 0x10001, [(0, 0xC000_0000), (1 << 32, 0x1_8000_0000)]),
        (0, 0, [(0, 0xC000_0000), (1 << 32, 0x1_8000_0000)]),
    ],
)
def test_the_clocks_memory_is_believed_where_it_has_all(low: int, high: int, ranges: list[tuple[int, int]]) -> None:
    """In 64 KiB: from 16 MiB on at 0x34, from 4 GiB on at 0x5b; the guest may have written something else there."""
    cmos = bytes(0x34) + struct.pack("<H", low) + bytes(0x25) + high.to_bytes(3, "little") + bytes(0x22)
    pieces = main_memory([RamBlock(RAM, 0x1_4000_0000)], b"pc-i440fx-11.1", cmos)
    assert [(start, start + length) for start, _, length in pieces] == ranges
    assert main_memory([RamBlock(RAM, 1 << 20)], b"pc-i440fx-11.1", cmos[:-1]) == ((0, 0, 1 << 20),)


def test_memory_may_begin_elsewhere(tmp_path: Path) -> None:
    pages = [(b"mach-virt.ram", n * 4096, content) for n, content in CONTENT.items()]
    with dump(tmp_path, build_stream({b"mach-virt.ram": NR * 4096}, [pages], b"virt-7.2")) as container:
        check_contract(container, {0x40000 + n: content for n, content in CONTENT.items() if content.strip(b"\0")})


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_stream_that_is_cut_off_gives_what_it_has(tmp_path: Path, share: float) -> None:
    raw = stream()
    with dump(tmp_path, raw[: int(len(raw) * share)]) as container:
        (warning,) = container.warnings
        assert "the file is cut off" in warning
        states, rows = read(container, *range(NR))
        there = states.index(TRUNCATED)
        assert 0 < there < NR
        assert rows[:there] == [CONTENT[n] for n in range(there)]
        assert set(states[there:]) == {TRUNCATED}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"QEVM\0\0\0\2" + bytes(20), "QEVM version 3"),
        (b"QEVM\0\0\0\3", "ends before memory"),
        (b"QEVM\0\0", "is cut off"),
        (b"LibvirtQemudSave\2", "libvirt's header is cut off"),
        (stream()[:8] + section(2, b""), "section 2 of a migration stream"),
        (stream(configuration=subsection(b"configuration/other", b"")), "subsection 'configuration/other'"),
        (stream(configuration=PAGE_BITS[:-1] + b"\x10"), "configuration/target-page-bits 16"),
        (stream(configuration=capabilities(*[b"x"] * 300)), "300 capabilities"),
        (stream(before=other_section(4, 1, b"virtio-mem-early", bytes(8))), "'virtio-mem-early' before memory's"),
        (stream(before=other_section(1, 1, b"s390-storage_attributes", struct.pack(">Q", 4))), "with flags 0x4"),
        (stream([]) + b"more", "no page of RAM block 'pc.ram'"),
        (stream()[:8] + b"\x01\0\0\0\1\x05block" + bytes(8), "'block' before memory's"),
        (stream()[:8] + b"\x09", "section type 0x9"),
        (stream([(b"other", 0, page(1))]), "a page of RAM block 'other'"),
        (stream([(RAM, NR * 4096, page(1))]), "a page at 0x40000 of a RAM block"),
        (stream().replace(SIZE, SIZE[:-1] + b"\1", 1), "a RAM block of 0x40001 bytes"),
        (build_stream({RAM: 1 << 40}, [[(RAM, 0, page(1))]]), "0x10000000000 bytes of memory in"),
        (
            build_stream({b"other.ram": 4096}, [[(b"other.ram", 0, page(1))]], b"raspi3b"),
            "the largest RAM block is 'other.ram' of a machine of type 'raspi3b'",
        ),
        (
            stream([]).replace(b"\x03\0\0\0\x02\0", b"\x03\0\0\0\x02" + ram_page(None, 0, page(1)) + b"\0", 1),
            "name first",
        ),
        (stream(FIRST).replace(ram_page(None, 4096, page(1)), b"\0\0\0\0\0\0\x10\x48" + page(1)), "flags 0x48"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(FormatError) as refused:
        dump(tmp_path, raw)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_machine_whose_hole_is_not_known_is_named() -> None:
    with pytest.raises(FormatError, match="a machine of type 'isapc' with 0x100000000 bytes"):
        main_memory([RamBlock(RAM, 1 << 32)], b"isapc")


@pytest.mark.parametrize(
    "more",
    [
        {"configuration": PAGE_BITS},
        {"configuration": UUID + capabilities(b"x-ignore-shared"), "of_block": bytes(8)},
        {"before": POSTCOPY},
        {"between": SWITCHOVER_START},
        {"before": command(3, struct.pack(">QQ", 0x201000, 0x1000)), "of_block": struct.pack(">Q", 0x200000)},
        {"before": other_section(1, 7, b"spapr/htab", b"\xff" * 4), "between": other_section(2, 7, b"", b"\xff" * 4)},
        {
            "before": other_section(1, 7, b"spapr/htab", struct.pack(">I", 24)),
            "between": other_section(2, 7, b"", struct.pack(">IIHH32xIHHIHH", 0, 5, 2, 1, 9, 0, 3, 0, 0, 0)),
        },
        {
            "before": other_section(1, 8, b"s390-storage_attributes", struct.pack(">Q", 1)),
            "between": other_section(2, 8, b"", struct.pack(">QQ5xQ", 0x4002, 5, 1)),
        },
    ],
)
def test_what_real_streams_have_besides_memory_is_passed_over(tmp_path: Path, more: dict[str, bytes]) -> None:
    with dump(tmp_path, build_stream({RAM: NR * 4096, BIOS: 8192}, [FIRST], **more)) as container:
        assert container.warnings == []
        assert read(container, 1, 63)[1] == [page(1), page(63)]


def mapped(size: int = NR * 4096, **more: object) -> bytes:
    pages = {n: content for n, content in CONTENT.items() if content.strip(b"\0")}
    return build_mapped({RAM: pages, BIOS: {1: page(200)}}, {RAM: size, BIOS: 8192}, **more)  # type: ignore[arg-type]


def test_mapped_ram_is_read_in_place(tmp_path: Path) -> None:
    with dump(tmp_path, mapped()) as container:
        assert container.warnings == []
        check_contract(container, {n: content for n, content in CONTENT.items() if content.strip(b"\0")})
        assert read(container, 5, NR)[0] == [ZERO, MISSING]


@pytest.mark.parametrize("order", "<>")
def test_libvirts_sparse_format_is_mapped_ram(tmp_path: Path, order: str) -> None:
    """Offsets are the file's; the bitmap is of the host's longs."""
    with dump(tmp_path, mapped(head=libvirt_header(6, char=order), order=order)) as container:
        assert container.warnings == []
        assert read(container, 1, 5, 63) == ([PRESENT, ZERO, PRESENT], [page(1), bytes(4096), page(63)])


def test_mapped_ram_that_is_cut_off_gives_what_it_has(tmp_path: Path) -> None:
    raw = mapped()
    with dump(tmp_path, raw[: 0x100000 + 10 * 4096 + 5]) as container:
        (warning,) = container.warnings
        assert warning.endswith(f"before {sum(n % 5 != 0 for n in range(10, NR))} of {NR} pages")
        assert read(container, 9, 10, 11)[0] == [PRESENT, ZERO, TRUNCATED]


def test_mapped_ram_of_a_machine_that_died_while_it_was_saved_has_no_page(tmp_path: Path) -> None:
    """QEMU writes the bitmap last: pages are not zero because it is."""
    raw = build_mapped({RAM: {}}, {RAM: NR * 4096})
    with dump(tmp_path, raw[:-30]) as container:
        assert read(container, 0, 5)[0] == [TRUNCATED] * 2
    with pytest.raises(FormatError, match=r"no page of RAM block 'pc\.ram'.*x-ignore-shared"):
        dump(tmp_path, build_mapped({RAM: {}}, {RAM: NR * 4096}, names=(b"x-ignore-shared", b"mapped-ram")))


def test_mapped_ram_whose_bitmap_cannot_be_there_is_refused(tmp_path: Path) -> None:
    raw = mapped()
    at = raw.index(struct.pack(">IQ", 1, 4096)) + 12
    for place in (0, len(raw), 1 << 63):
        with pytest.raises(FormatError, match="mapped-ram's bitmap at"):
            dump(tmp_path, raw[:at] + struct.pack(">Q", place) + raw[at + 8 :])
    with pytest.raises(FormatError, match="mapped-ram version 2 with pages"):
        dump(tmp_path, raw[: at - 9] + b"\2" + raw[at - 8 :])


def test_the_blocks_of_numa_nodes_lie_one_behind_the_other(tmp_path: Path) -> None:
    blocks = {b"pc.bios": 1 << 20, b"ram-node10": 4096, b"ram-node1": 12288, b"/objects/ram-node0": 8192}
    pages = [(name, n * 4096, page(len(name) + n)) for name, size in blocks.items() for n in range(size // 4096)]
    with dump(tmp_path, build_stream(blocks, [pages[-6:]], b"pc-q35-9.2")) as container:
        assert container.memory_ranges() == (AddressRange(0, 6 * 4096),)
        assert read(container, *range(6))[1] == [page(n) for n in (18, 19, 9, 10, 11, 10)]


def test_a_page_that_a_whole_stream_leaves_out_is_not_zero(tmp_path: Path) -> None:
    """Free pages are left out with the balloon's hints."""
    with dump(tmp_path, stream(FIRST[:9])) as container:
        assert container.warnings == []
        assert read(container, 8, 9) == ([PRESENT, EXCLUDED], [page(8), b""])


@pytest.mark.parametrize("memory_map", ["0:129M", "0:64M,64M:4097@0", "0:4095", "0:64M,4G:64M@65M"])
def test_a_map_of_what_is_not_there_is_refused(memory_map: str) -> None:
    with pytest.raises(UsageError, match=r"expected pages of 4096 bytes of the machine's 0x8000000 bytes"):
        mapped_memory([RamBlock(RAM, 128 << 20)], memory_map)


def test_two_files_are_too_many(tmp_path: Path) -> None:
    (tmp_path / "saved").write_bytes(stream())
    with pytest.raises(UsageError, match="is one file, and 2 were given"):
        open_container([tmp_path / "saved"] * 2)


def test_random_damage_raises_nothing_else(tmp_path: Path) -> None:
    rng, whole = random.Random(7), stream(FIRST, [(BIOS, 0, page(200)), (RAM, 4096, page(99))])
    headers = [*range(150), *range(len(whole) - 6000, len(whole))]
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.choice(headers)] = rng.randrange(256)
        with contextlib.suppress(Vmcore2coreError), dump(tmp_path, bytes(raw)) as container:
            assert len(read(container, *range(NR + 3))[0]) == NR + 3

"""makedumpfile's compressed dumps: what the header says, and what pages hold.

Tests containers/bitmap.py, containers/compression.py, containers/diskdump_header.py, containers/diskdump_part.py,
containers/page_descs.py, containers/eraseinfo.py.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.builders.elfdump import note, page
from tests.builders.kdump import Abi, build_kdump
from tests.containers.contract import check_contract, read
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import PageState
from vmcore2core.containers.compression import PageDecoder, page_decoder
from vmcore2core.containers.diskdump import DiskDumpContainer
from vmcore2core.errors import CodecError, DumpError, FormatError, UsageError

MISSING, PRESENT, EXCLUDED = PageState.MISSING, PageState.PRESENT, PageState.EXCLUDED
TRUNCATED, DAMAGED = PageState.TRUNCATED, PageState.DAMAGED

Order = Literal["little", "big"]
TEXT = b"OSRELEASE=6.1.0\n"
ABIS: tuple[Abi, ...] = ("64", "32-packed", "32-padded")
CODECS = ("raw", "zlib", "lzo", "snappy", "zstd")

# Small enough to be looked through by hand: 40000 bits need two bitmap blocks of 4096 bytes.
NOISE = random.Random(5).randbytes(4096)
PAGES = {1: page(1), 2: bytes(4096), 7: page(7), 8: NOISE, 9: bytes(4096), 600: page(600), 39999: page(39999)}
RAM_ONLY = (3, 4, 601)

BOMB = bytes(64 << 20)

# Where things are in a file of build_kdump(PAGES): one block each for header and sub-header, four for the bitmaps.
SUB_HEADER = 4096
BITMAP1 = 2 * 4096
BITMAP2 = BITMAP1 + 2 * 4096
PAGE_DESC = BITMAP2 + 2 * 4096


def dump(tmp_path: Path, raw: bytes) -> DiskDumpContainer:
    path = tmp_path / "vmcore"
    path.write_bytes(raw)
    container = open_container([path])
    assert isinstance(container, DiskDumpContainer)
    return container


@pytest.mark.parametrize(("abi", "order", "version"), list(itertools.product(ABIS, ("little", "big"), range(7))))
def test_every_header_version_word_size_and_byte_order_reads(
    tmp_path: Path, abi: Abi, order: Order, version: int
) -> None:
    notes = note(b"CORE", 1, b"r" * 336, order) if version >= 4 else b""
    raw = build_kdump(
        PAGES,
        excluded=RAM_ONLY,
        abi=abi,
        order=order,
        version=version,
        dump_level=17,
        phys_base=-0x1000,
        notes=notes,
        vmcoreinfo=TEXT if version >= 3 else b"",
        eraseinfo=b"erase x\n" if version >= 5 else b"",
    )
    container = dump(tmp_path, raw)
    with container:
        assert container.header.header_version == version
        assert container.header.word_size == (64 if abi == "64" else 32)
        assert container.byte_order == order
        assert container.page_size == 4096
        assert container.dump_level == (17 if version >= 1 else None)
        assert container.phys_base == -0x1000
        assert container.vmcoreinfo == (TEXT if version >= 3 else None)
        assert [n.name for n in container.notes] == ["CORE"] * (version >= 4) + ["VMCOREINFO"] * (version >= 3)
        assert container.compressed == "zlib"
        assert [w.endswith("where it was: x") for w in container.warnings] == [True] * (version >= 5)
        check_contract(container, PAGES)
        assert read(container, *RAM_ONLY, 0, 5, 40000)[0] == [EXCLUDED] * 3 + [MISSING] * 3


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("block_size", [4096, 16384, 65536])
def test_every_codec_and_page_size_reads(tmp_path: Path, codec: str, block_size: int) -> None:
    pages = {1: page(1, block_size), 5: bytes(block_size), 9: NOISE * (block_size // 4096), 77: page(77, block_size)}
    with dump(tmp_path, build_kdump(pages, codec=codec, block_size=block_size)) as container:
        assert container.page_size == block_size
        assert container.compressed == (None if codec == "raw" else codec)
        check_contract(container, pages)


def test_codec_is_each_pages_own(tmp_path: Path) -> None:
    packed = zlib.compress(page(2))
    raw = bytearray(build_kdump({1: page(1), 2: bytes(4096), 3: page(3)}, codec="zstd", status=0x21))
    raw += packed
    struct.pack_into("<QII", raw, 4 * 4096 + 24, len(raw) - len(packed), len(packed), 1)
    with dump(tmp_path, bytes(raw)) as container:
        assert container.compressed is None
        assert read(container, 1, 2, 3)[1] == [page(1), page(2), page(3)]


def test_ranges_are_runs_of_the_first_bitmap(tmp_path: Path) -> None:
    with dump(tmp_path, build_kdump(PAGES, excluded=RAM_ONLY)) as container:
        expected = [(1, 5), (7, 10), (600, 602), (39999, 40000)]
        assert container.memory_ranges() == tuple(AddressRange(a * 4096, b * 4096) for a, b in expected)


def test_ranges_go_on_across_chunks_of_the_bitmap(tmp_path: Path) -> None:
    edge = (1 << 20) * 8
    ram = [*range(edge - 3, edge + 2), 2 * edge - 1]
    with dump(tmp_path, build_kdump({edge: page(1)}, excluded=ram, max_mapnr=2 * edge)) as container:
        expected = [(edge - 3, edge + 2), (2 * edge - 1, 2 * edge)]
        assert container.memory_ranges() == tuple(AddressRange(a * 4096, b * 4096) for a, b in expected)
        check_contract(container, {edge: page(1)})


def test_too_many_ranges_are_refused(tmp_path: Path) -> None:
    every_second = range(0, 1 << 20, 2)
    with (
        dump(tmp_path, build_kdump({1: page(1)}, excluded=every_second)) as container,
        pytest.raises(FormatError, match="more than 262144 runs"),
    ):
        container.memory_ranges()


def test_page_desc_is_found_by_rank_in_the_second_bitmap(tmp_path: Path) -> None:
    """Pages around each border of the table of ranks (64 bytes of bitmap) and of its 64-bit words."""
    rng = random.Random(11)
    pfns = {b + d for b in range(0, 4096, 64) for d in (-1, 0, 1)} | set(rng.sample(range(20000), 700))
    pages = {pfn: page(pfn) for pfn in pfns if pfn >= 0}
    with dump(tmp_path, build_kdump(pages, excluded=range(0, 20000, 3))) as container:
        check_contract(container, pages)


def test_old_diskdump_with_one_bitmap_reads(tmp_path: Path) -> None:
    raw = build_kdump(PAGES, signature=b"DISKDUMP", version=1, status=8, bitmaps=1, machine="i686", abi="32-packed")
    container = dump(tmp_path, raw)
    with container:
        assert (container.compressed, container.dump_level, container.e_machine) == ("zlib", None, 3)
        assert container.phys_base is None
        check_contract(container, PAGES)
        assert read(container, 3)[0] == [MISSING]


def test_32_bit_writer_with_64_bit_time_reads(tmp_path: Path) -> None:
    raw = build_kdump(PAGES, abi="32-padded", main_bits=64, vmcoreinfo=TEXT, machine="armv7l")
    with dump(tmp_path, raw) as container:
        assert (container.e_machine, container.vmcoreinfo) == (40, TEXT)
        check_contract(container, PAGES)


@pytest.mark.parametrize(
    ("machine", "e_machine"),
    [
        ("x86_64", 62),
        ("aarch64", 183),
        ("i686", 3),
        ("s390x", 22),
        ("ppc64", 21),
        ("ppc64le", 21),
        ("riscv64", 243),
        ("armv7l", 40),
        ("", None),
        ("vax", None),
    ],
)
def test_machine_is_utsnames(tmp_path: Path, machine: str, e_machine: int | None) -> None:
    with dump(tmp_path, build_kdump(PAGES, machine=machine)) as container:
        assert container.e_machine == e_machine


def test_max_mapnr_above_32_bits_is_the_64_bit_one(tmp_path: Path) -> None:
    raw = bytearray(build_kdump({1: page(1)}, max_mapnr=9))
    far = (1 << 32) + 77
    bitmap = -(-far // 32768) * 4096
    struct.pack_into("<II", raw, 436, 2 * bitmap // 4096, 0xFFFFFFFF)
    struct.pack_into("<Q", raw, SUB_HEADER + 96, far)
    path = tmp_path / "vmcore"
    with path.open("wb") as f:
        f.write(raw[: 2 * 4096])
        for start in (BITMAP1, BITMAP1 + bitmap):
            f.seek(start + far // 8)
            f.write(bytes([1 << far % 8 - 1]))
        f.seek(BITMAP1 + 2 * bitmap)
        f.write(struct.pack("<QIIQ", BITMAP1 + 2 * bitmap + 24, 4096, 0, 0) + page(5))
    with open_container([path]) as container:
        assert read(container, far - 1, far, 77) == ([PRESENT, MISSING, MISSING], [page(5), b"", b""])


def test_notes_hold_vmcoreinfo_once(tmp_path: Path) -> None:
    with dump(tmp_path, build_kdump(PAGES, notes=note(b"VMCOREINFO", 0, TEXT), vmcoreinfo=TEXT)) as container:
        assert [n.name for n in container.notes] == ["VMCOREINFO"]


def test_notes_out_of_the_file_are_a_warning(tmp_path: Path) -> None:
    raw = bytearray(build_kdump(PAGES, notes=note(b"CORE", 1, b"x" * 8)))
    struct.pack_into("<QQ", raw, SUB_HEADER + 48, 1 << 40, 1 << 60)
    with dump(tmp_path, bytes(raw)) as container:
        assert container.notes == ()
        assert "0x10000000000" in container.warnings[0]


def test_incomplete_dump_is_a_warning(tmp_path: Path) -> None:
    with dump(tmp_path, build_kdump(PAGES, status=0x9)) as container:
        assert "incomplete" in container.warnings[0]
        assert container.compressed == "zlib"


def test_excluded_vmemmap_is_a_warning(tmp_path: Path) -> None:
    with dump(tmp_path, build_kdump(PAGES, status=0x11)) as container:
        assert "page structures" in container.warnings[0]


def test_zero_pages_share_one_descriptor_target_and_are_present(tmp_path: Path) -> None:
    with dump(tmp_path, build_kdump(PAGES)) as container:
        assert read(container, 2, 9) == ([PRESENT, PRESENT], [bytes(4096)] * 2)


def test_damaged_page_leaves_the_others_alone(tmp_path: Path) -> None:
    for codec in ("zlib", "lzo", "snappy", "zstd"):
        raw = bytearray(build_kdump(PAGES, codec=codec))
        offset, size = struct.unpack_from("<QI", raw, PAGE_DESC + 2 * 24)
        raw[offset : offset + size] = b"\xff" * size
        with dump(tmp_path, bytes(raw)) as container:
            states, rows = read(container, 7, 1, 7, 600)
            assert states == [DAMAGED, PRESENT, DAMAGED, PRESENT], codec
            assert rows[1::2] == [page(1), page(600)]


@pytest.mark.parametrize(
    ("desc", "state"),
    [
        ((0, 0, 0), TRUNCATED),  # never written
        ((1 << 60, 100, 1), TRUNCATED),
        (((1 << 64) - 1, 100, 1), TRUNCATED),
        ((4096, 0xFFFFFFFF, 1), TRUNCATED),
        ((4096, 4097, 1), DAMAGED),
        ((4096, 0, 0), DAMAGED),
        ((4096, 100, 0), DAMAGED),  # stored pages are whole
        ((4096, 100, 3), DAMAGED),  # two codecs at once
        ((4096, 100, 0x40), DAMAGED),  # a codec that does not exist
        ((4096, 100, 0x80000001), DAMAGED),
    ],
)
def test_impossible_descriptor_is_a_state(tmp_path: Path, desc: tuple[int, int, int], state: PageState) -> None:
    with dump(tmp_path, build_kdump(PAGES, desc_override={7: desc})) as container:
        assert read(container, 1, 7, 8)[0] == [PRESENT, state, PRESENT]


def test_same_offset_with_another_size_is_another_page(tmp_path: Path) -> None:
    good = build_kdump(PAGES)
    offset, size, flags = struct.unpack_from("<QII", good, PAGE_DESC)
    raw = build_kdump(PAGES, desc_override={7: (offset, size - 1, flags), 600: (offset, size, flags)})
    with dump(tmp_path, raw) as container:
        states, rows = read(container, 7, 600, 1)
        assert states == [DAMAGED, PRESENT, PRESENT]
        assert rows[1:] == [page(1), page(1)]


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_page_that_decodes_to_more_than_a_page_is_damaged(tmp_path: Path, codec: str) -> None:
    from tests.builders.kdump import COMPRESSORS, FLAGS

    big = COMPRESSORS[codec](bytes(65536))[:4096]
    short = COMPRESSORS[codec](page(1)[:4000])
    raw = bytearray(build_kdump(PAGES, codec=codec))
    for index, packed in ((0, big), (2, short)):
        struct.pack_into("<QII", raw, PAGE_DESC + index * 24, len(raw), len(packed), FLAGS[codec])
        raw += packed
    with dump(tmp_path, bytes(raw)) as container:
        assert read(container, 1, 7, 600)[0] == [DAMAGED, DAMAGED, PRESENT]


def test_compressed_page_larger_than_a_page_is_not_even_tried(tmp_path: Path) -> None:
    """A good stream with something after it, which zlib would not mind."""
    packed = zlib.compress(page(7), 1).ljust(4097, b"x")
    raw = bytearray(build_kdump(PAGES))
    struct.pack_into("<QII", raw, PAGE_DESC + 2 * 24, len(raw), len(packed), 1)
    with dump(tmp_path, bytes(raw + packed)) as container:
        assert read(container, 7)[0] == [DAMAGED]
        assert container.page_states(np.array([7], np.uint64)).tolist() == [DAMAGED]


def test_zstd_frame_that_states_another_size_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import zstandard

    frame = zstandard.ZstdCompressor().compress(BOMB)

    class Refuse:
        def decompress(self, *_: object, **__: object) -> bytes:
            raise AssertionError("64 MiB would have been allocated")

    monkeypatch.setattr(zstandard, "ZstdDecompressor", Refuse)
    decode = page_decoder(0x20)
    assert decode is not None
    with pytest.raises(CodecError, match="decodes to 0x4000000 bytes, expected 0x1000"):
        decode(memoryview(frame), memoryview(bytearray(4096)))


def test_shared_page_is_decoded_once_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nr_calls = 0

    def counting(flags: int) -> PageDecoder:
        decode = page_decoder(flags)
        assert decode is not None

        def count(data: memoryview, page: memoryview) -> None:
            nonlocal nr_calls
            nr_calls += 1
            decode(data, page)

        return count

    monkeypatch.setattr("vmcore2core.containers.diskdump_part.page_decoder", counting)
    shared = struct.unpack_from("<QII", build_kdump(PAGES), PAGE_DESC)
    other = build_kdump(PAGES, desc_override={7: shared, 600: shared})
    with dump(tmp_path, other) as container:
        assert read(container, 7, 39999, 1, 600, 1, 39999)[1] == [page(n) for n in (1, 39999, 1, 1, 1, 39999)]
    assert nr_calls == 2


def test_zlib_page_without_its_checksum_is_damaged(tmp_path: Path) -> None:
    packed = zlib.compress(page(7), 1)[:-4]
    raw = bytearray(build_kdump(PAGES))
    struct.pack_into("<QII", raw, PAGE_DESC + 2 * 24, len(raw), len(packed), 1)
    with dump(tmp_path, bytes(raw + packed)) as container:
        assert read(container, 7)[0] == [DAMAGED]


def test_zstd_frame_without_a_size_decodes(tmp_path: Path) -> None:
    import zstandard

    stream = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(page(7))
    huge = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(BOMB)
    assert len(huge) < 4096 * 4
    raw = bytearray(build_kdump(PAGES, codec="zstd"))
    for index, packed in ((0, huge[:4096]), (2, stream)):
        struct.pack_into("<QII", raw, PAGE_DESC + index * 24, len(raw), len(packed), 0x20)
        raw += packed
    with dump(tmp_path, bytes(raw)) as container:
        states, rows = read(container, 1, 7)
        assert states == [DAMAGED, PRESENT]
        assert rows[1] == page(7)


def test_zlib_of_the_standard_library_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    raw = bytearray(build_kdump(PAGES))
    offset, size = struct.unpack_from("<QI", raw, PAGE_DESC + 5 * 24)
    raw[offset : offset + size] = b"\xff" * size
    with dump(tmp_path, bytes(raw)) as container:
        states, rows = read(container, 1, 600)
        assert states == [PRESENT, DAMAGED]
        assert rows[0] == page(1)


@pytest.mark.parametrize(("codec", "package"), [("lzo", "lzallright"), ("snappy", "cramjam"), ("zstd", "zstandard")])
def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, package: str) -> None:
    with dump(tmp_path, build_kdump(PAGES, codec=codec)) as container:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(CodecError, match=f"compressed with {codec}.*pip install {package}"):
            read(container, 1)


def test_truncated_data_says_how_much_is_missing(tmp_path: Path) -> None:
    raw = build_kdump(PAGES)
    last = struct.unpack_from("<QI", raw, PAGE_DESC + 6 * 24)
    with dump(tmp_path, raw[: sum(last) - 1]) as container:
        assert read(container, 1, 600, 39999)[0] == [PRESENT, PRESENT, TRUNCATED]
        assert "1 of its 7 pages" in container.warnings[0]


def test_truncated_table_says_how_much_is_missing(tmp_path: Path) -> None:
    with dump(tmp_path, build_kdump(PAGES)[: PAGE_DESC + 2 * 24 + 23]) as container:
        assert read(container, 1, 2, 7, 39999)[0] == [TRUNCATED] * 4
        assert "7 of its 7 pages" in container.warnings[0]


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "message"),
    [
        (8, "<i", 7, "header_version 7 at file offset 0x8, expected 0 to 6"),
        (8, "<i", -1, "header_version 4294967295 at file offset 0x8"),
        (428, "<i", 0, "block_size 0 at file offset 0x1ac"),
        (428, "<i", 4097, "block_size 4097"),
        (428, "<i", -4096, "block_size -4096"),
        (428, "<i", 1 << 30, "block_size 1073741824"),
        (432, "<i", 0, "sub_hdr_size 0 at file offset 0x1b0"),
        (432, "<i", -1, "sub_hdr_size -1"),
        (432, "<i", 1 << 30, "sub_hdr_size 1073741824"),
        (436, "<I", 0, "bitmap_blocks 0 at file offset 0x1b4"),
        (436, "<I", 1, "bitmap_blocks 1"),
        (436, "<I", 0xFFFFFFFE, "bitmaps of 0xfffffffe000 bytes at 0x2000 are cut off by the end of the file"),
        (440, "<I", 0xFFFFFFFF, "bitmap_blocks 4 at"),
        (SUB_HEADER + 96, "<Q", 1 << 60, r"max_mapnr 1152921504606846976 at file offset 0x1060, expected 1 to 65536"),
    ],
)
def test_impossible_field_is_named(tmp_path: Path, offset: int, fmt: str, value: int, message: str) -> None:
    raw = bytearray(build_kdump(PAGES))
    struct.pack_into(fmt, raw, offset, value)
    with pytest.raises(FormatError, match=message):
        dump(tmp_path, bytes(raw))


def test_no_page_frames_are_refused(tmp_path: Path) -> None:
    raw = bytearray(build_kdump(PAGES, max_mapnr_64=0))
    struct.pack_into("<I", raw, 440, 0)
    with pytest.raises(FormatError, match="max_mapnr 0 at file offset 0x1b8"):
        dump(tmp_path, bytes(raw))


def test_claims_of_2_to_the_60_pages_take_no_memory(tmp_path: Path) -> None:
    """Even with a sparse file that is large enough for such bitmaps to lie in it."""
    raw = bytearray(build_kdump(PAGES))
    struct.pack_into("<II", raw, 436, 1 << 30, 0xFFFFFFFF)
    struct.pack_into("<Q", raw, SUB_HEADER + 96, 1 << 44)
    path = tmp_path / "vmcore"
    path.write_bytes(raw)
    os.truncate(path, 1 << 43)
    tracemalloc.start()
    try:
        with pytest.raises(
            FormatError, match="max_mapnr 17592186044416 at file offset 0x1060, expected 1 to 68719476736"
        ):
            open_container([path])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_blocks_of_bitmap_beyond_max_mapnr_take_no_memory(tmp_path: Path) -> None:
    """The second bitmap is 1 TiB behind the first one; both describe 40000 page frames."""
    whole, nr_blocks = build_kdump(PAGES), 1 << 28
    size, path = nr_blocks << 12, tmp_path / "vmcore"
    with path.open("wb") as file:
        file.write(whole[:BITMAP2])
        file.seek(436)
        file.write(struct.pack("<I", 2 * nr_blocks))
        file.seek(BITMAP1 + size)
        file.write(whole[BITMAP2:PAGE_DESC])
        file.truncate(BITMAP1 + 2 * size)
        descs = np.frombuffer(whole[PAGE_DESC : PAGE_DESC + 7 * 24], "<u8").reshape(7, 3).copy()
        descs[:, 0] += np.uint64(BITMAP1 + 2 * size - PAGE_DESC)
        file.seek(BITMAP1 + 2 * size)
        file.write(descs.tobytes() + whole[PAGE_DESC + 7 * 24 :])
    tracemalloc.start()
    try:
        with open_container([path]) as container:
            states, pages = read(container, 1, 3, 7, 600, 39999)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert states == [PRESENT, MISSING, PRESENT, PRESENT, PRESENT]
    assert [bytes(one) for one in pages] == [PAGES.get(pfn, b"") for pfn in (1, 3, 7, 600, 39999)]


def test_a_file_that_ends_in_the_headers_is_cut_off(tmp_path: Path) -> None:
    words = r"headers of 0x2000 bytes \(sub_hdr_size 1\) are cut off by the end of the file at file offset 0x1d0"
    with pytest.raises(FormatError, match=f"{words}, expected at least 0x2000 bytes"):
        dump(tmp_path, build_kdump(PAGES)[:464])


def test_two_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(build_kdump(PAGES))
    with pytest.raises(UsageError, match="2 were given"):
        open_container([path, path])


def test_every_truncation_of_headers_and_bitmaps_is_an_error(tmp_path: Path) -> None:
    raw = build_kdump(PAGES, vmcoreinfo=TEXT)
    path = tmp_path / "vmcore"
    sizes = [*range(470), *range(4090, 4096 + 130), *range(8180, 8200), *range(PAGE_DESC - 8, PAGE_DESC)]
    for size in sizes:
        path.write_bytes(raw[:size])
        with pytest.raises(DumpError):
            open_container([path])
    for size in range(PAGE_DESC, PAGE_DESC + 7 * 24 + 30):
        path.write_bytes(raw[:size])
        with open_container([path]) as container:
            assert container.warnings
            assert PRESENT not in read(container, 7, 600, 39999)[0]


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits_give_errors_of_ours_or_states(tmp_path: Path, codec: str) -> None:
    good = build_kdump(PAGES, excluded=RAM_ONLY, codec=codec, notes=note(b"VMCOREINFO", 0, TEXT))
    headers = [*range(8, 12), *range(340, 464), *range(4096, 4096 + 150)]
    regions = (headers, range(BITMAP2, BITMAP2 + 80), range(PAGE_DESC, PAGE_DESC + 7 * 24), range(PAGE_DESC, len(good)))
    rng = random.Random(codec)
    path = tmp_path / "vmcore"
    sentences = []
    states: set[PageState] = set()
    for _ in range(2000 // len(CODECS)):
        raw = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            raw[rng.choice(rng.choice(regions))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        try:
            with open_container([path]) as container:
                size = container.page_size
                states.update(read(container, *PAGES, *RAM_ONLY, 0, 1 << 40, (1 << 64) - 1)[0])
                assert size >= 4096
                container.memory_ranges()
        except DumpError as error:
            sentences.append(str(error))
    assert len(sentences) >= 15
    assert not any("\n" in sentence for sentence in sentences)
    assert {PRESENT, TRUNCATED, DAMAGED} <= states


def test_big_batch_equals_single_pages(tmp_path: Path) -> None:
    rng = random.Random(2)
    pages = {pfn: rng.choice((page(pfn), bytes(4096), NOISE)) for pfn in rng.sample(range(3000), 900)}
    with dump(tmp_path, build_kdump(pages, codec="lzo")) as container:
        wanted = np.array([rng.randrange(3100) for _ in range(5000)], np.uint64)
        out = np.full((5000, 4096), 0xEE, np.uint8)
        states = container.read_pages(wanted, out)
        for pfn, state, row in zip(wanted.tolist(), states.tolist(), out, strict=True):
            assert state == (PRESENT if pfn in pages else MISSING)
            assert row.tobytes() == pages.get(pfn, bytes(4096))


def test_what_was_erased_is_named(tmp_path: Path) -> None:
    """The text is makedumpfile's own: a line for each command of makedumpfile.conf(5)."""
    text = b"erase jiffies size 8\nerase mystruct1.addr nullify\nerase \x1b[2Jx\n" + b"erase y size 1\n" * 9
    with dump(tmp_path, build_kdump(PAGES, eraseinfo=text)) as container:
        (warning,) = container.warnings
    assert "erased kernel memory, which reads as X's (0x58) or as NULL pointers" in warning
    assert "where it was: jiffies size 8, mystruct1.addr nullify, ?[2Jx, y size 1, " in warning
    assert warning.endswith(" and 4 more")


def test_erased_text_that_cannot_be_read_is_still_said(tmp_path: Path) -> None:
    raw = bytearray(build_kdump(PAGES))
    struct.pack_into("<QQ", raw, SUB_HEADER + 64, 1 << 40, 1 << 60)
    with dump(tmp_path, bytes(raw)) as container:
        assert "where it was: the dump does not tell what" in container.warnings[0]

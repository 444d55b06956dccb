"""LiME's and AVML's images."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.elfdump import page
from tests.builders.lime import build_avml, build_lime, lime_header, snappy_frames
from tests.containers.contract import check_contract, read
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.errors import DumpError, FormatError, UsageError

PRESENT, MISSING, TRUNCATED, DAMAGED = (
    PageState.PRESENT,
    PageState.MISSING,
    PageState.TRUNCATED,
    PageState.DAMAGED,
)

NOISE = random.Random(3).randbytes(4096)
LOW = {n: page(n) for n in range(1, 41)} | {3: bytes(4096), 4: NOISE}
HIGH = {(1 << 20) + n: page(n + 99) for n in range(40)}
PAGES = LOW | HIGH
RANGES = [(0x1000, b"".join(LOW.values())), (1 << 32, b"".join(HIGH.values()))]

Builder = Callable[[list[tuple[int, bytes]]], bytes]
BUILDERS: list[Builder] = [build_lime, build_avml]
IMAGES = {builder.__name__: builder(RANGES) for builder in BUILDERS}

# AVML's chunks are 64 KiB of memory: pages 1 to 16 are in the first one of LOW.
FIRST_CHUNK = range(1, 17)


def dump(tmp_path: Path, raw: bytes) -> DumpContainer:
    path = tmp_path / "image"
    path.write_bytes(raw)
    return open_container([path])


@pytest.mark.parametrize("builder", BUILDERS)
def test_ranges_read(tmp_path: Path, builder: Builder) -> None:
    with dump(tmp_path, builder(RANGES)) as container:
        is_avml = builder is build_avml
        assert container.DOC.name == ("AVML" if is_avml else "LiME")
        assert container.compressed == ("snappy" if is_avml else None)
        assert (container.warnings, container.notes, container.e_machine) == ([], (), None)
        assert container.memory_ranges() == (
            AddressRange(0x1000, 41 * 4096),
            AddressRange(1 << 32, (1 << 32) + 40 * 4096),
        )
        check_contract(container, PAGES)


@pytest.mark.parametrize("builder", BUILDERS)
def test_ranges_in_any_order_and_of_odd_sizes_read(tmp_path: Path, builder: Builder) -> None:
    """x86's first range of System RAM most often ends inside a page."""
    odd = [RANGES[1], (0x1000, RANGES[0][1] + b"x" * 0xC00)]
    with dump(tmp_path, builder(odd)) as container:
        check_contract(container, PAGES)
        assert read(container, 41)[0] == [MISSING]


def test_headers_are_lime_hs() -> None:
    """The bytes that AVML's own test has."""
    assert lime_header(0x1000, 0x1F001).hex(" ", 8) == (
        "454d694c01000000 0010000000000000 0000020000000000 0000000000000000"
    )
    assert lime_header(0x1000, 0x1F001, 0x4C4D5641, 2)[:8] == b"AVML\2\0\0\0"


def test_avml_blocks_of_zeros_are_missing(tmp_path: Path) -> None:
    """AVML leaves them out, and does not tell them from addresses without RAM."""
    data = page(1) + bytes(4096) + page(3)
    with dump(tmp_path, build_avml([(0x1000, data)], block=4096, skip_zeros=True)) as container:
        check_contract(container, {1: page(1), 3: page(3)})
        assert read(container, 2)[0] == [MISSING]


def test_avml_blocks_of_a_range_are_one_range(tmp_path: Path) -> None:
    with dump(tmp_path, build_avml(RANGES, block=0x3000)) as container:
        assert len(container.memory_ranges()) == 2
        check_contract(container, PAGES)


def chunk(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(3, "little") + payload


def avml(frames: bytes, pages: int, size: int | None = None) -> bytes:
    header = lime_header(0x1000, pages * 4096, 0x4C4D5641, 2)
    return header + frames + struct.pack("<Q", len(frames) if size is None else size)


def test_padding_unknown_skippable_chunks_and_a_second_identifier_are_skipped(tmp_path: Path) -> None:
    one, two = snappy_frames(page(1)), snappy_frames(page(2))
    frames = one + chunk(0xFE, bytes(77)) + chunk(0x80, b"x") + chunk(0xFE, b"") + two
    with dump(tmp_path, avml(frames, 2)) as container:
        check_contract(container, {1: page(1), 2: page(2)})


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (snappy_frames(page(1))[:10] + chunk(0x02, b"x" * 40), "a snappy chunk of type 0x2 at file offset 0x2a"),
        (chunk(0xFF, b"sNaPpX") + snappy_frames(page(1)), "a snappy chunk of type 0xff at file offset 0x20"),
        (chunk(0, b"abcd"), r"a snappy chunk of 0x4 bytes at file offset 0x20, expected 5 to 0x12ace"),
        (chunk(0, bytes(100_000)), "a snappy chunk of 0x186a0 bytes"),
        (chunk(1, bytes(65541)), "a snappy chunk that decodes to 0x10001 bytes"),
        (chunk(0, b"crc." + b"\x80\x80\x80\x80\x10" + b"x"), "decodes to 0x100000000 bytes"),
        (chunk(0, b"crc." + b"\xff" * 9), "decodes to 0x0 bytes"),
        (snappy_frames(page(1) * 2), "a snappy chunk of 0x2000 bytes at file offset 0x2a, expected 0x1000 at most"),
    ],
)
def test_impossible_chunk_is_named(tmp_path: Path, frames: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        dump(tmp_path, avml(frames, 1))


def test_avml_size_behind_the_frames_is_checked(tmp_path: Path) -> None:
    frames = snappy_frames(page(1))
    with pytest.raises(FormatError, match=f"size 0x5 of a range's snappy frames .* expected {len(frames):#x}"):
        dump(tmp_path, avml(frames, 1, size=5))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (lime_header(0, 4096, version=2), "magic 454d694c and version 2 at file offset 0x0, expected 454d694c and 1"),
        (lime_header(0, 4096, 0x4C4D5641, 1), "magic 41564d4c and version 1"),
        (struct.pack("<IIQQQ", 0x4C694D45, 1, 0x2000, 0x1FFF, 0), "s_addr 0x2000 and e_addr 0x1fff"),
        (struct.pack("<IIQQQ", 0x4C694D45, 1, 0, 1 << 56, 0), "e_addr 0x100000000000000 at file offset 0x0"),
        (struct.pack("<IIQQQ", 0x4C694D45, 1, 0, (1 << 64) - 1, 0), "e_addr 0xffffffffffffffff"),
    ],
)
def test_impossible_header_is_named(tmp_path: Path, header: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        dump(tmp_path, header + page(1))


@pytest.mark.parametrize("builder", BUILDERS)
def test_what_follows_a_range_must_be_a_header(tmp_path: Path, builder: Builder) -> None:
    image = builder(RANGES)
    with pytest.raises(FormatError, match=f"magic 67617262 and version .* at file offset {len(image):#x}"):
        dump(tmp_path, image + b"garbage behind it, of more than a header's length")


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="range 1 of the image, of version 2"):
        dump(tmp_path, build_lime(RANGES[:1]) + build_avml(RANGES[1:]))
    with pytest.raises(FormatError, match="range 1 of the image, of version 1"):
        dump(tmp_path, build_avml(RANGES[:1]) + build_lime(RANGES[1:]))


def test_two_files_are_refused(tmp_path: Path) -> None:
    for raw in IMAGES.values():
        dump(tmp_path, raw).close()
        with pytest.raises(UsageError, match="image is one file, and 2 were given"):
            open_container([tmp_path / "image"] * 2)


def test_avml_chunk_with_a_wrong_checksum_is_damaged_and_others_are_not(tmp_path: Path) -> None:
    raw = bytearray(IMAGES["build_avml"])
    raw[32 + 10 + 4] ^= 1  # the first chunk's CRC
    with dump(tmp_path, bytes(raw)) as container:
        states, rows = read(container, *PAGES)
        for pfn, state, row in zip(PAGES, states, rows, strict=True):
            assert (state, row) == ((DAMAGED, b"") if pfn in FIRST_CHUNK else (PRESENT, PAGES[pfn]))


def test_avml_pages_are_decoded_once_for_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcore2core.containers.blockfile.CACHE_BYTES", 1)
    with dump(tmp_path, IMAGES["build_avml"]) as container:
        decoded = []
        file = container._file  # type: ignore[attr-defined]
        decode = file._decode

        def count(index: int, size: int) -> bytes:
            decoded.append(index)
            return bytes(decode(index, size))

        monkeypatch.setattr(file, "_decode", count)
        pfns = sorted(LOW) * 2
        random.Random(1).shuffle(pfns)
        assert read(container, *pfns)[1] == [LOW[pfn] for pfn in pfns]
        assert decoded == [0, 1, 2]


@pytest.mark.parametrize("builder", BUILDERS)
def test_truncation_is_an_error_or_a_warning_wherever_it_is(tmp_path: Path, builder: Builder) -> None:
    image = builder(RANGES)
    second = len(builder(RANGES[:1]))
    sizes = {*range(100), *range(second - 12, second + 100), *range(len(image) - 60, len(image))}
    sizes |= set(random.Random(4).sample(range(len(image)), 200))
    for size in sorted(sizes - {0, second}):
        if size < 32:
            with pytest.raises(DumpError):
                dump(tmp_path, image[:size]).close()
            continue
        with dump(tmp_path, image[:size]) as container:
            assert len(container.warnings) == 1, size
            assert "cut off" in container.warnings[0]
            states, rows = read(container, *PAGES)
            for pfn, state, row in zip(PAGES, states, rows, strict=True):
                assert state in (PRESENT, TRUNCATED, MISSING)
                assert row == (PAGES[pfn] if state == PRESENT else b"")
            assert (np.diff([s == PRESENT for s in states]).sum()) <= 1


@pytest.mark.parametrize("name", list(IMAGES))
@settings(max_examples=400, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.one_of(st.integers(0, 60), st.integers(0, 1 << 20)), st.integers(0, 7)), max_size=4))
def test_flipped_bits_give_errors_of_ours_or_states(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[int, int]]
) -> None:
    raw = bytearray(IMAGES[name])
    for at, bit in flips:
        raw[at % len(raw)] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / f"flipped-{name}"
    path.write_bytes(raw)
    try:
        with open_container([path]) as container:
            rows = read(container, *PAGES, 0, 1 << 40)[1]
            container.memory_ranges()
            if name == "build_avml":  # each chunk has a checksum; headers have none, so a page may be elsewhere
                known = set(PAGES.values()) | {b""}
                assert not [row for row in rows if row not in known and len(flips) == 1]
    except DumpError as error:
        assert "\n" not in str(error)  # noqa: PT017 - some flips are errors


def test_claims_of_2_to_the_55_bytes_take_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    for magic, version, body in ((0x4C694D45, 1, page(1)), (0x4C4D5641, 2, snappy_frames(page(1)))):
        tracemalloc.start()
        try:
            raw = struct.pack("<IIQQQ", magic, version, 0x1000, (1 << 55) - 1, 0) + body
            with dump(tmp_path, raw) as container:
                assert read(container, 1, 2, 1 << 42) == ([PRESENT, TRUNCATED, TRUNCATED], [page(1), b"", b""])
                assert "8796093022206 of the 8796093022207 pages" in container.warnings[0]
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

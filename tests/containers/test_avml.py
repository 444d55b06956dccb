"""AVML's frames put together by hand, with a CRC-32C of the tests' own; what it shares with LiME is in test_lime."""

from __future__ import annotations

import gzip
import itertools
import random
import struct
from pathlib import Path

import pytest
import zstandard

from tests.builders.elfdump import page
from tests.builders.lime import build_avml, crc32c, lime_header, masked_crc, snappy_chunk
from tests.containers.contract import check_contract, read
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.errors import DumpError, FormatError, UsageError

IDENTIFIER = b"\xff\x06\0\0sNaPpY"
PRESENT, DAMAGED = PageState.PRESENT, PageState.DAMAGED
NOISE = random.Random(9).randbytes(4096)


def dump(tmp_path: Path, raw: bytes) -> DumpContainer:
    path = tmp_path / "image"
    path.write_bytes(raw)
    return open_container([path])


def image(frames: bytes, pages: int) -> bytes:
    """One range from page 1 on."""
    return lime_header(0x1000, pages * 4096, 0x4C4D5641, 2) + frames + struct.pack("<Q", len(frames))


def as_is(data: bytes) -> bytes:
    return snappy_chunk(1, data, masked_crc(data))


def by_copies(pattern: bytes, times: int) -> bytes:
    """A compressed chunk: a literal of 8 bytes, copies of those with offsets of two bytes, 64 bytes at most."""
    assert len(pattern) == 8
    data = pattern * times
    size = len(data)
    preamble = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    inside = preamble + bytes([7 << 2]) + pattern
    for at in range(8, size, 64):
        inside += struct.pack("<BH", min(64, size - at) - 1 << 2 | 2, 8)
    return snappy_chunk(0, inside, masked_crc(data))


def test_checksum_is_crc_32c() -> None:
    """RFC 3720, B.4, and the usual check value."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_chunks_by_hand_read(tmp_path: Path) -> None:
    frames = IDENTIFIER + as_is(NOISE) + by_copies(b"COPY ME!", 1024) + as_is(page(4))
    with dump(tmp_path, image(frames, 4)) as container:
        assert (container.DOC.name, container.compressed, container.warnings) == ("AVML", "snappy", [])
        assert container.memory_ranges() == (AddressRange(0x1000, 0x5000),)
        check_contract(container, {1: NOISE, 2: b"COPY ME!" * 512, 3: b"COPY ME!" * 512, 4: page(4)})


def test_a_page_of_several_chunks_needs_them_all(tmp_path: Path) -> None:
    memory = NOISE + page(2) + page(3)
    cuts = [0, 1, 4000, 5000, 8192, 12288]
    chunks = [as_is(memory[a:b]) for a, b in itertools.pairwise(cuts)]
    with dump(tmp_path, image(IDENTIFIER + b"".join(chunks), 3)) as container:
        check_contract(container, {1: NOISE, 2: page(2), 3: page(3)})
    chunks[3] = chunks[3][:-1] + b"!"
    with dump(tmp_path, image(IDENTIFIER + b"".join(chunks), 3)) as container:
        assert read(container, 1, 2, 3) == ([PRESENT, DAMAGED, PRESENT], [NOISE, b"", page(3)])


@pytest.mark.parametrize(
    "bad",
    [
        as_is(NOISE)[:-1] + b"!",
        snappy_chunk(1, NOISE, struct.pack("<I", crc32c(NOISE))),
        by_copies(b"COPY ME!", 512)[:-2] + b"\7\0",
        by_copies(b"COPY ME!", 512).replace(b"COPY", b"KOPY"),
        snappy_chunk(0, b"\x80\x20" + bytes([7 << 2]) + b"COPY ME!", masked_crc(b"COPY ME!" * 512)),
        snappy_chunk(0, b"\x80\x20" + struct.pack("<BH", 0xFE, 8) * 64, masked_crc(bytes(4096))),
        snappy_chunk(0, b"\x80\x20" + bytes([61 << 2, 0xFF, 0x1F]) + NOISE * 2, masked_crc(NOISE)),
    ],
    ids=["data", "not masked", "offset", "literal", "too short", "copies of nothing", "too long"],
)
def test_a_broken_chunk_costs_its_own_pages_alone(tmp_path: Path, bad: bytes) -> None:
    frames = IDENTIFIER + as_is(page(1)) + bad + as_is(page(3))
    with dump(tmp_path, image(frames, 3)) as container:
        assert read(container, 1, 2, 3) == ([PRESENT, DAMAGED, PRESENT], [page(1), b"", page(3)])


@pytest.mark.parametrize("pages", [2, 3, 40])
def test_frames_of_fewer_bytes_than_their_range_are_refused(tmp_path: Path, pages: int) -> None:
    with pytest.raises(FormatError, match=r"a snappy chunk .* file offset 0x"):
        dump(tmp_path, image(IDENTIFIER + as_is(page(1)), pages) + image(IDENTIFIER + as_is(page(2)), 1))


def test_every_truncation_of_chunks_by_hand_is_an_error_or_a_warning(tmp_path: Path) -> None:
    frames = IDENTIFIER + by_copies(b"COPY ME!", 512) + snappy_chunk(0xFE, b"pad") + by_copies(b"AND THEN", 512)
    raw = image(frames, 2)
    for size in range(1, len(raw)):
        if size < 32:
            with pytest.raises(DumpError):
                dump(tmp_path, raw[:size])
            continue
        with dump(tmp_path, raw[:size]) as container:
            (warning,) = container.warnings
            assert "cut off" in warning
            for row, whole in zip(read(container, 1, 2)[1], (b"COPY ME!", b"AND THEN"), strict=True):
                assert row in (b"", whole * 512)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_compressed_image_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: object) -> None:
    assert callable(pack)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with dump(tmp_path, pack(build_avml([(0x1000, NOISE + page(2))]))) as container:
        assert container.DOC.name == "AVML"
        check_contract(container, {1: NOISE, 2: page(2)})


def test_a_map_is_refused(tmp_path: Path) -> None:
    dump(tmp_path, build_avml([(0x1000, NOISE)])).close()
    with pytest.raises(UsageError, match="format AVML, which tells itself where memory lies"):
        open_container([tmp_path / "image"], "raw")

"""Compressed files around a dump: read in place, or unpacked to the cache; broken ones, and their intact parts.

Streams come from the encoders of Python's library and of zstandard; lz4's frames are put together by hand
(``tests.builders.lz4``).

Tests containers/files.py, containers/lz4_stream.py, containers/streams.py, containers/unpacked.py,
containers/xz_blocks.py, containers/zstd_frames.py.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import hashlib
import lzma
import random
import re
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from tests.builders.elfdump import Load, build_elf_vmcore
from tests.builders.lz4 import (
    frame_header,
    linked_frame,
    lz4_frame,
    lz4_legacy,
    lz4_linked,
    packed,
    sequence,
    stored,
    xxh32,
)
from tests.containers.contract import read
from vmcore2core.containers import cache as module
from vmcore2core.containers import open_container
from vmcore2core.containers.base import PageState
from vmcore2core.containers.cache import Keeping
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.packed import unwrapped
from vmcore2core.errors import CodecError, DumpError, FormatError, Vmcore2coreError

RNG = random.Random(5)
NOISE = RNG.randbytes(300_000)
CONTENT = NOISE[:100_000] + bytes(1 << 20) + b"text, and text again; " * 20_000 + NOISE
"""1.9 MB: noise, zeros, text, noise."""

Packer = Callable[[bytes], bytes]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def zstd(data: bytes) -> bytes:
    """One frame that says its size."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def zstd_piped(data: bytes) -> bytes:
    """One frame that does not say its size, as ``zstd <pipe`` writes it."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


def zstd_frames(data: bytes) -> bytes:
    """Frames of 128 KiB with skippable ones before and between, as pzstd writes them."""
    skippable = struct.pack("<III", 0x184D2A50, 4, 0x1234)
    return b"".join(skippable + zstd(piece) for piece in pieces(data, 1 << 17))


def xz_streams(data: bytes) -> bytes:
    """Streams of 128 KiB with padding between."""
    return b"".join(lzma.compress(piece, check=lzma.CHECK_CRC64) + bytes(8) for piece in pieces(data, 1 << 17))


def xz_blocks(data: bytes) -> bytes:
    """One stream of blocks of 128 KiB, as ``xz --block-size`` writes it; the index as the format has it."""
    parts = [lzma.compress(piece, check=lzma.CHECK_CRC32) for piece in pieces(data, 1 << 17)]
    blocks, records = b"", b""
    for part, piece in zip(parts, pieces(data, 1 << 17), strict=True):
        backward = (struct.unpack_from("<I", part, len(part) - 8)[0] + 1) * 4
        block = part[12 : len(part) - 12 - backward]
        blocks += block
        # The unpadded size is in the index of the part: its first record's first number.
        index = part[len(part) - 12 - backward :]
        records += varint(read_varint(index, 2)) + varint(len(piece))
    index = b"\0" + varint(len(parts)) + records
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    tail = struct.pack("<I", len(index) // 4 - 1) + parts[0][6:8]
    return parts[0][:12] + blocks + index + struct.pack("<I", zlib.crc32(tail)) + tail + b"YZ"


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def read_varint(raw: bytes, at: int) -> int:
    value = shift = 0
    while raw[at] & 0x80:
        value |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | raw[at] << shift


def lz4_checked(data: bytes) -> bytes:
    """A frame with a checksum of the content, as ``lz4`` writes it."""
    return lz4_frame(data, more=4)


def lz4_full(data: bytes) -> bytes:
    """Two frames with all that a frame may have, and a skippable one between them."""
    half = len(data) // 2
    skippable = struct.pack("<II", 0x184D2A5F, 3) + b"abc"
    return lz4_frame(data[:half], more=0x1C) + skippable + lz4_frame(data[half:], block=7, more=0x0C)


def lz4_legacies(data: bytes) -> bytes:
    """Legacy frames, with a skippable one between them, and a frame of the newer format behind."""
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"abcde"
    return lz4_legacy(data[:1000]) + skippable + lz4_legacy(data[1000:5000]) + lz4_checked(data[5000:])


def gzip_members(data: bytes) -> bytes:
    return b"".join(gzip.compress(piece, 1) for piece in pieces(data, 600_000)) + bytes(512)


def bzip2_members(data: bytes) -> bytes:
    return b"".join(bz2.compress(piece) for piece in pieces(data, 600_000))


@functools.cache
def of_content(pack: Packer) -> bytes:
    return pack(CONTENT)


IN_PLACE: list[Packer] = [zstd, zstd_frames, xz_streams, xz_blocks, lzma.compress]
UNPACKED: list[Packer] = [
    gzip.compress,
    gzip_members,
    bz2.compress,
    bzip2_members,
    zstd_piped,
    lz4_checked,
    lz4_full,
    lz4_linked,
    lz4_legacy,
    lz4_legacies,
]
CHECKED = [pack for pack in IN_PLACE + UNPACKED if pack not in (zstd_piped, lz4_legacy, lz4_legacies)]
"""Those whose bytes all have a checksum."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmcore2core" / "unpacked"


@contextlib.contextmanager
def opened(path: Path, raw: bytes) -> Iterator[DumpFile]:
    path.write_bytes(raw)
    file = open_dump_file(path)
    try:
        yield file
    finally:
        file.close()


def check(file: DumpFile, content: bytes) -> None:
    assert file.size == len(content)
    for offset, size in ((0, 100), (131_000, 200), (len(content) - 10, 100), (len(content), 5), (0, len(content))):
        assert file.read(offset, size) == content[offset : offset + size]


@pytest.mark.parametrize("pack", IN_PLACE)
def test_read_in_place(tmp_path: Path, cache: Path, pack: Packer) -> None:
    with opened(tmp_path / "dump", of_content(pack)) as file:
        check(file, CONTENT)
        assert file.cut_off is None
    assert not cache.exists()


@pytest.mark.parametrize("pack", UNPACKED)
def test_unpacked_to_the_cache_once(
    tmp_path: Path, cache: Path, pack: Packer, caplog: pytest.LogCaptureFixture
) -> None:
    raw = of_content(pack)
    with opened(tmp_path / "dump", raw) as file:
        check(file, CONTENT)
        assert (file.path, file.cut_off) == (tmp_path / "dump", None)
    (kept,) = cache.iterdir()
    assert kept.name == hashlib.sha256(raw).hexdigest()
    assert (kept.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "cannot be read in place: unpacking it to" in caplog.text
    kept.write_bytes(CONTENT[:-1] + b"!")
    with opened(tmp_path / "copy", raw) as file:
        assert file.read(len(CONTENT) - 1, 1) == b"!"


@pytest.mark.parametrize("pack", [gzip.compress, gzip_members])
def test_gzip_without_isal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Packer) -> None:
    """Which is there for two architectures only."""
    for name in ("isal", "isal.igzip_lib", "isal.isal_zlib"):
        monkeypatch.setitem(sys.modules, name, None)
    raw = of_content(pack)
    with opened(tmp_path / "dump", raw) as file:
        check(file, CONTENT)
        assert file.cut_off is None
    with opened(tmp_path / "cut", raw[: len(raw) // 2]) as file:
        assert CONTENT.startswith(file.read(0, file.size))
        assert "cut off" in str(file.cut_off)
    with pytest.raises(CodecError, match="gzip data does not decode"):
        opened(tmp_path / "broken", raw[: len(raw) // 2] + b"!" * 50 + raw[len(raw) // 2 + 50 :]).__enter__()


def test_a_large_frame_is_unpacked_and_zeros_become_holes(tmp_path: Path, cache: Path) -> None:
    content = NOISE + bytes(40 << 20) + NOISE
    with opened(tmp_path / "dump", zstd(content)) as file:
        check(file, content)
    (kept,) = cache.iterdir()
    assert kept.stat().st_blocks * 512 < 2 << 20


@pytest.mark.parametrize("pack", [*IN_PLACE, *UNPACKED])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_file_that_is_cut_off_gives_what_it_has(tmp_path: Path, pack: Packer, share: float) -> None:
    raw = of_content(pack)
    raw = raw[: int(len(raw) * share)].rstrip(b"\0")[:-1]
    with opened(tmp_path / "dump", raw) as file:
        assert file.cut_off is not None
        assert "cut off" in file.cut_off
        assert CONTENT.startswith(file.read(0, file.size))


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, zstd, zstd_piped, zstd_frames, lz4_checked, lz4_legacy]
)
def test_what_follows_is_left_out_and_said(tmp_path: Path, pack: Packer) -> None:
    with opened(tmp_path / "dump", of_content(pack) + b"something else") as file:
        check(file, CONTENT)
        assert file.cut_off is not None
        assert "left out" in file.cut_off


@pytest.mark.parametrize("pack", CHECKED)
def test_broken_data_is_one_sentence_and_nothing_is_kept(tmp_path: Path, cache: Path, pack: Packer) -> None:
    """One wrong byte is enough, as all of them have a checksum."""
    raw = bytearray(of_content(pack))
    raw[-len(raw) // 3] ^= 0x55
    with pytest.raises(DumpError) as broken, opened(tmp_path / "dump", bytes(raw)) as file:
        file.read(0, file.size)
    assert "\n" not in str(broken.value)
    assert re.search(r"file offset 0x[0-9a-f]+", str(broken.value))
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("pack", [zstd_frames, xz_blocks])
def test_a_broken_block_costs_its_own_pages_alone(tmp_path: Path, pack: Packer) -> None:
    elf = build_elf_vmcore([Load(0, NOISE[: 64 * 4096])])
    start = elf.index(NOISE[:4096])
    raw = bytearray(pack(elf))
    raw[-len(raw) // 3] ^= 0x55  # in the second of three blocks of 128 KiB
    (tmp_path / "dump").write_bytes(raw)
    with open_container([tmp_path / "dump"]) as container:
        pfns = [1000, *reversed(range(64))]
        states, rows = read(container, *pfns)
    assert states[0] == PageState.MISSING
    for pfn, state, row in zip(pfns[1:], states[1:], rows[1:], strict=True):
        first, last = (start + pfn * 4096) >> 17, (start + pfn * 4096 + 4095) >> 17
        assert state == (PageState.DAMAGED if first <= 1 <= last else PageState.PRESENT)
        assert row == (b"" if first <= 1 <= last else NOISE[pfn * 4096 :][:4096])


def test_a_file_of_the_cache_has_its_name_when_it_is_whole(tmp_path: Path, cache: Path) -> None:
    raw = gzip.compress(CONTENT, 1)
    seen = []

    @contextlib.contextmanager
    def bar(_label: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: seen.append((done, total, [path.name for path in cache.iterdir()]))
        seen.append((0, 0, [path.name for path in cache.iterdir()]))

    (tmp_path / "dump").write_bytes(raw)
    open_dump_file(tmp_path / "dump", Keeping(bar)).close()
    assert len(seen) > 2
    assert seen[-2][:2] == (len(CONTENT), len(CONTENT))
    for _, _, (name,) in seen:
        assert name.startswith(f".{hashlib.sha256(raw).hexdigest()}.")
    assert [path.name for path in cache.iterdir()] == [hashlib.sha256(raw).hexdigest()]


@pytest.mark.parametrize("cut", [0, 7])
def test_the_cache_tells_how_the_file_ended(tmp_path: Path, cache: Path, cut: int) -> None:
    """The second time, nothing is decoded that would notice."""
    raw = gzip.compress(CONTENT)[:-cut] if cut else gzip.compress(CONTENT) + b"more"
    said = []
    for _ in range(2):
        with opened(tmp_path / "dump", raw) as file:
            said.append((file.cut_off, file.size))
    assert len(list(cache.iterdir())) == 1
    assert said[0] == said[1]
    assert ("is cut off" if cut else "left out") in str(said[0][0])


def test_no_room_is_told_before_anything_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _folder: module.RESERVE + 1000)
    with pytest.raises(DumpError, match=r"unpacks to at least .* bytes free: unpack it yourself where there is room"):
        opened(tmp_path / "dump", gzip.compress(CONTENT)).__enter__()
    assert list(cache.iterdir()) == []


def test_room_that_runs_out_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 40, 0])
    monkeypatch.setattr(module, "free_bytes", lambda _folder: next(free))
    monkeypatch.setattr(module, "RESERVE", 1 << 20)
    with pytest.raises(DumpError, match="bytes free"):
        opened(tmp_path / "dump", gzip.compress(CONTENT)).__enter__()
    assert list(cache.iterdir()) == []


def test_no_cache_directory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: Path("nowhere"))
    with pytest.raises(DumpError, match="there is no cache directory to do so: set XDG_CACHE_HOME"):
        opened(tmp_path / "dump", gzip.compress(CONTENT)).__enter__()


def test_an_interrupt_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    @contextlib.contextmanager
    def bar(label: str) -> Iterator[Callable[[int, int], None]]:
        assert label == "unpacking dump"

        def update(done: int, total: int) -> None:
            assert 0 < done <= total
            raise KeyboardInterrupt

        yield update

    (tmp_path / "dump").write_bytes(gzip.compress(CONTENT))
    with pytest.raises(KeyboardInterrupt):
        open_dump_file(tmp_path / "dump", Keeping(bar))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (frame_header(0x41) + bytes(20), "FLG 0x41"),
        (frame_header(0x62) + bytes(20), "reservedFlag"),
        (frame_header(0xA0) + bytes(20), "headerVersion"),
        (frame_header(0x60, 3 << 4) + bytes(20), "maxBlockSize"),
        (frame_header(0x60, 0xC0) + bytes(20), "reservedFlag"),
        (frame_header(0x60)[:-1] + bytes(20), "headerChecksum"),
        (frame_header(0x60) + struct.pack("<I", 0x10001) + bytes(20), "maxBlockSize"),
        (frame_header(0x60) + stored(bytes(65537)), "maxBlockSize"),
        (b"\x28\xb5\x2f\xfd\x00\xff" + b"\x07\0\0" * 9, "a zstd"),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises((FormatError, CodecError)) as refused:
        opened(tmp_path / "dump", raw).__enter__()
    assert words in str(refused.value)


def test_lz4s_own_bytes() -> None:
    """What ``echo -n hello | lz4 -c`` gives; the specification's value for no bytes."""
    assert lz4_checked(b"hello").hex() == "04224d186440a70500008068656c6c6f00000000f97700fb"
    assert xxh32(b"") == 0x02CC5D05


def test_lz4_blocks_may_refer_to_a_first_block_of_two_bytes(tmp_path: Path) -> None:
    """As a writer makes them that flushes often."""
    second = sequence(b"", 2, 7) + sequence(b"xyzzy")
    with opened(tmp_path / "dump", linked_frame([stored(b"ab"), packed(second), stored(b"!")])) as file:
        assert file.read(0, 99) == b"ab" + b"abababa" + b"xyzzy" + b"!"


def test_lz4_blocks_refer_65535_bytes_back_and_not_further(tmp_path: Path) -> None:
    first, far = NOISE[:65536], sequence(b"", 65535, 40)
    last = sequence(b"12345")
    with opened(tmp_path / "dump", linked_frame([stored(first), packed(far + last), packed(far + last)])) as file:
        assert file.read(65536, 99) == first[1:41] + b"12345" + first[46:86] + b"12345"


@pytest.mark.parametrize("blocks", [[b"ab"], [NOISE[:100]], [NOISE[:65000], NOISE[:534]]])
def test_an_lz4_block_may_not_refer_to_bytes_before_the_frame(tmp_path: Path, cache: Path, blocks: list[bytes]) -> None:
    before = [stored(block) for block in blocks]
    size = sum(map(len, blocks))
    for offset in (size, size + 1):
        raw = linked_frame([*before, packed(sequence(b"", offset, 4) + sequence(b"12345"))])
        if offset == size:
            with opened(tmp_path / "dump", raw) as file:
                assert file.read(size, 9) == (b"".join(blocks) * 2)[:4] + b"12345"
            continue
        with pytest.raises(CodecError, match="is broken: its lz4 data does not decode"):
            opened(tmp_path / "dump", raw).__enter__()
    assert len(list(cache.iterdir())) == 1


def test_lz4_content_size_is_checked(tmp_path: Path) -> None:
    raw = frame_header(0x68, size=6) + stored(b"hello") + bytes(4)
    with pytest.raises(CodecError, match="frameSize"):
        opened(tmp_path / "dump", raw).__enter__()


def test_lz4_legacy_blocks_are_of_8_mib_and_have_no_stored_ones(tmp_path: Path) -> None:
    content = NOISE + bytes(20 << 20) + NOISE
    with opened(tmp_path / "dump", lz4_legacy(content)) as file:
        check(file, content)
        assert file.cut_off is None
    with opened(tmp_path / "dump", lz4_legacy(NOISE) + stored(b"not a block")) as file:
        check(file, NOISE)
        assert "left out" in str(file.cut_off)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd, zstd_piped, lz4_frame, lz4_legacy])
def test_what_decodes_to_very_much_takes_little_memory(tmp_path: Path, pack: Packer) -> None:
    raw = pack(bytes(48 << 20))
    (tmp_path / "dump").write_bytes(raw)
    tracemalloc.start()
    try:
        file = open_dump_file(tmp_path / "dump")
        assert file.size == 48 << 20
        assert file.read(47 << 20, 100) == bytes(100)
        file.close()
        assert tracemalloc.get_traced_memory()[1] < 28 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_many_small_members_take_no_time(tmp_path: Path, pack: Packer) -> None:
    """bgzip's members are small; in a file made to waste time they are empty."""
    raw = pack(b"") * 20_000
    with opened(tmp_path / "dump", raw + pack(b"the end")) as file:
        assert (file.read(0, 10), file.cut_off) == (b"the end", None)


def test_mebibytes_of_padding_behind_xz_are_passed(tmp_path: Path, cache: Path) -> None:
    with opened(tmp_path / "dump", xz_blocks(CONTENT) + bytes(16 << 20)) as file:
        check(file, CONTENT)
    assert not cache.exists()


@pytest.mark.parametrize("pack", [*IN_PLACE, *UNPACKED])
def test_random_damage_raises_nothing_else(tmp_path: Path, pack: Packer) -> None:
    rng = random.Random(11)
    content = CONTENT[90_000:160_000]
    whole = pack(content)
    for _ in range(40):
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(min(len(raw), 200 if rng.random() < 0.5 else len(raw)))] = rng.randrange(256)
        if rng.random() < 0.2:
            del raw[rng.randrange(len(raw)) :]
        with contextlib.suppress(Vmcore2coreError), opened(tmp_path / "dump", bytes(raw)) as file:
            out = file.read(0, 1 << 26)
            assert len(out) == file.size <= 1 << 26
            if pack in CHECKED and file.cut_off is None and unwrapped_at_all(file):
                assert out == content


def unwrapped_at_all(file: DumpFile) -> bool:
    """A wrong magic number makes the file one that is not compressed."""
    return type(file) is not DumpFile


def test_a_dump_in_a_compressed_file_opens_as_what_it_is(tmp_path: Path) -> None:
    elf = build_elf_vmcore([Load(0x1000, NOISE[:8192])])
    for pack in (zstd_frames, gzip.compress):
        (tmp_path / "dump").write_bytes(pack(elf))
        with open_container([tmp_path / "dump"]) as container:
            assert (container.DOC.name, container.paths, container.warnings) == ("ELF", (tmp_path / "dump",), [])
            assert container.memory_ranges()[0].size == 8192


def test_a_file_that_is_not_compressed_stays(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"BZhello" + NOISE)
    file = DumpFile(tmp_path / "dump")
    assert unwrapped(file) is file
    file.close()

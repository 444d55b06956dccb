"""Compressed files around a dump: read in place, or unpacked to the cache; broken ones, and what is left of them.

Streams come from the encoders of Python's library and of zstandard; lz4's frames are put together by hand.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import cramjam
import pytest
import zstandard

from tests.builders.elfdump import Load, build_elf_vmcore
from vmcore2core.containers import open_container, unpacked
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.packed import unwrapped
from vmcore2core.errors import CodecError, DumpError, FormatError, Vmcore2coreError

RNG = random.Random(5)
NOISE = RNG.randbytes(300_000)
CONTENT = NOISE[:100_000] + bytes(1 << 20) + b"text, and text again; " * 30_000 + NOISE
"""2.1 MB: noise, zeros, text, noise."""

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
    index += struct.pack("<I", crc32(index))
    tail = struct.pack("<I", len(index) // 4 - 1) + parts[0][6:8]
    return parts[0][:12] + blocks + index + struct.pack("<I", crc32(tail)) + tail + b"YZ"


def crc32(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


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


def lz4_frame(data: bytes, *, block: int = 4, more: int = 0) -> bytes:
    """A frame of independent blocks; ``more``: bits of FLG (block checksums, content size, content checksum)."""
    size = 1 << 8 + 2 * block
    out = struct.pack("<IBB", 0x184D2204, 0x60 | more, block << 4)
    out += struct.pack("<Q", len(data)) if more & 8 else b""
    out += b"\0"  # a checksum of the header, which is not looked at
    for piece in pieces(data, size):
        packed = bytes(cramjam.lz4.compress_block(piece, store_size=False))
        stored = len(packed) >= len(piece)
        out += struct.pack("<I", len(piece) | 1 << 31) + piece if stored else struct.pack("<I", len(packed)) + packed
        out += b"sum." if more & 0x10 else b""
    return out + bytes(4) + (b"sum." if more & 4 else b"")


def lz4_full(data: bytes) -> bytes:
    """Two frames with all that a frame may have, and a skippable one between them."""
    half = len(data) // 2
    skippable = struct.pack("<II", 0x184D2A5F, 3) + b"abc"
    return lz4_frame(data[:half], more=0x1C) + skippable + lz4_frame(data[half:], block=7, more=0x0C)


def lz4_linked(data: bytes) -> bytes:
    """A frame whose blocks refer to the one before: literals, and matches 64 KiB back where the data repeats."""
    out = struct.pack("<IBBB", 0x184D2204, 0x40, 4 << 4, 0)
    for at in range(0, len(data), 1 << 16):
        piece = data[at : at + (1 << 16)]
        before = data[max(0, at - 65535) : at]
        packed = linked_block(before, piece)
        out += struct.pack("<I", len(packed)) + packed
    return out + bytes(4)


def linked_block(before: bytes, piece: bytes) -> bytes:
    """One block: matches into ``before`` where 64 bytes of it come again, else literals."""
    out, at, pending = b"", 0, b""
    window = before + piece
    while at < len(piece):
        found = before.rfind(piece[at : at + 64]) if at + 100 < len(piece) else -1
        if found < 0:
            pending += piece[at : at + 64]
            at += 64
            continue
        out += lz4_sequence(pending, len(before) + at - found, 64)
        assert window[found : found + 64] == piece[at : at + 64]
        pending = b""
        at += 64
    return out + lz4_sequence(pending, 0, 0)


def lz4_sequence(literals: bytes, offset: int, length: int) -> bytes:
    def more(count: int) -> bytes:
        return b"" if count < 15 else b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])

    match = length - 4 if length else 0
    token = bytes([min(len(literals), 15) << 4 | min(match, 15)])
    tail = struct.pack("<H", offset) + more(match) if length else b""
    return token + more(len(literals)) + literals + tail


def lz4_legacy(data: bytes) -> bytes:
    """As ``lz4 -l`` and the kernel's Makefile write it: blocks of 8 MiB, twice."""
    out = b""
    for part in (data[:1000], data[1000:]):
        packed = bytes(cramjam.lz4.compress_block(part, store_size=False))
        out += struct.pack("<II", 0x184C2102, len(packed)) + packed
    return out


def gzip_members(data: bytes) -> bytes:
    return b"".join(gzip.compress(piece, 1) for piece in pieces(data, 700_000)) + bytes(512)


def bzip2_members(data: bytes) -> bytes:
    return b"".join(bz2.compress(piece) for piece in pieces(data, 700_000))


IN_PLACE: list[Packer] = [zstd, zstd_frames, xz_streams, xz_blocks, lzma.compress]
UNPACKED: list[Packer] = [
    gzip.compress,
    gzip_members,
    bz2.compress,
    bzip2_members,
    zstd_piped,
    lz4_frame,
    lz4_full,
    lz4_linked,
    lz4_legacy,
]


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
    with opened(tmp_path / "dump", pack(CONTENT)) as file:
        check(file, CONTENT)
        assert file.cut_off is None
    assert not cache.exists()


@pytest.mark.parametrize("pack", UNPACKED)
def test_unpacked_to_the_cache_once(
    tmp_path: Path, cache: Path, pack: Packer, caplog: pytest.LogCaptureFixture
) -> None:
    raw = pack(CONTENT)
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


def test_a_large_frame_is_unpacked_and_zeros_become_holes(tmp_path: Path, cache: Path) -> None:
    content = NOISE + bytes(40 << 20) + NOISE
    with opened(tmp_path / "dump", zstd(content)) as file:
        check(file, content)
    (kept,) = cache.iterdir()
    assert kept.stat().st_blocks * 512 < 2 << 20


@pytest.mark.parametrize("pack", [*IN_PLACE, *UNPACKED])
@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_a_file_that_is_cut_off_gives_what_it_has(tmp_path: Path, pack: Packer, share: float) -> None:
    raw = pack(CONTENT)
    raw = raw[: int(len(raw) * share)].rstrip(b"\0")[:-1]
    with opened(tmp_path / "dump", raw) as file:
        assert file.cut_off is not None
        assert "cut off" in file.cut_off
        assert CONTENT.startswith(file.read(0, file.size))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstd, zstd_piped, zstd_frames, lz4_frame])
def test_what_follows_is_left_out_and_said(tmp_path: Path, pack: Packer) -> None:
    with opened(tmp_path / "dump", pack(CONTENT) + b"something else") as file:
        check(file, CONTENT)
        assert file.cut_off is not None
        assert "left out" in file.cut_off


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd, lz4_frame])
def test_broken_data_is_one_sentence_and_nothing_is_kept(tmp_path: Path, cache: Path, pack: Packer) -> None:
    raw = bytearray(pack(CONTENT))
    for at in range(len(raw) // 2, len(raw) // 2 + 200):
        raw[at] ^= 0x55
    with contextlib.suppress(CodecError), opened(tmp_path / "dump", bytes(raw)) as file:
        if pack is not lz4_frame:  # lz4 does not always notice
            with pytest.raises(CodecError) as broken:
                file.read(0, file.size)
            assert "\n" not in str(broken.value)
    assert pack is lz4_frame or not cache.exists() or not list(cache.iterdir())


def test_no_room_is_told_before_anything_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "_free", lambda _folder: unpacked.RESERVE + 1000)
    with pytest.raises(DumpError, match=r"unpacks to at least .* bytes free: unpack it yourself where there is room"):
        opened(tmp_path / "dump", gzip.compress(CONTENT)).__enter__()
    assert list(cache.iterdir()) == []


def test_room_that_runs_out_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 40, 0])
    monkeypatch.setattr(unpacked, "_free", lambda _folder: next(free))
    monkeypatch.setattr(unpacked, "RESERVE", 1 << 20)
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
        open_dump_file(tmp_path / "dump", bar)
    assert list(cache.iterdir()) == []


def test_headers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for raw, words in (
        (struct.pack("<IBBB", 0x184D2204, 0x41, 4 << 4, 0) + bytes(20), "FLG 0x41"),
        (struct.pack("<IBBB", 0x184D2204, 0x60, 3 << 4, 0) + bytes(20), "BD 0x30"),
        (struct.pack("<IBBBI", 0x184D2204, 0x60, 4 << 4, 0, 0x7FFFFFFF) + bytes(20), "an lz4 block of 0x7fffffff"),
        (b"\x28\xb5\x2f\xfd\x00\xff" + b"\x07\0\0" * 9, "a zstd"),
    ):
        with pytest.raises(FormatError) as refused:
            opened(tmp_path / "dump", raw).__enter__()
        assert words in str(refused.value)


@pytest.mark.parametrize("pack", [*IN_PLACE, *UNPACKED])
def test_random_damage_raises_nothing_else(tmp_path: Path, pack: Packer) -> None:
    rng = random.Random(11)
    whole = pack(CONTENT[90_000:160_000])
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(min(len(raw), 200 if rng.random() < 0.5 else len(raw)))] = rng.randrange(256)
        with contextlib.suppress(Vmcore2coreError), opened(tmp_path / "dump", bytes(raw)) as file:
            assert len(file.read(0, 1 << 26)) <= file.size <= 1 << 26


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

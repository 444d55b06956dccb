"""Compressed cores: zstd(1) unpacks exactly the bytes that were written, and each frame can be read by itself."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.needs import need
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.zstd_frames import ZstdFrames, index_frames
from vmcore2core.corefile.sink import FRAME_SIZE, sink
from vmcore2core.interfaces import Compression

MIB = 1 << 20
PIECES = [
    (0, b"head"),
    (4096, bytes(range(256)) * 16),
    (MIB - 2048, b"over the border" * 300),
    (5 * MIB + 8, b"behind frames of zeros"),
]


def written(path: Path, size: int, compression: Compression | None) -> bytes:
    with path.open("wb") as file:
        target = sink(file.fileno(), compression, size)
        for offset, data in PIECES:
            target.write(memoryview(data), offset)
        target.finish(size)
    return path.read_bytes()


@pytest.mark.parametrize("size", [5 * MIB + 1024, 6 * MIB, 8 * MIB + 1])
def test_what_zstd_unpacks_is_the_plain_file(tmp_path: Path, size: int) -> None:
    plain = written(tmp_path / "plain", size, None)
    written(tmp_path / "packed", size, "zstd")
    unpacked = subprocess.run([need("zstd"), "-dc", tmp_path / "packed"], capture_output=True, check=True).stdout
    assert unpacked == plain
    assert len(plain) == size


def test_the_seek_table_is_that_of_the_seekable_format(tmp_path: Path) -> None:
    raw = written(tmp_path / "packed", 5 * MIB + 1024, "zstd")
    frames, descriptor, magic = struct.unpack("<IBI", raw[-9:])
    assert (frames, descriptor, magic) == (6, 0, 0x8F92EAB1)
    table = struct.unpack(f"<{2 * frames}I", raw[-9 - 8 * frames : -9])
    skippable, length = struct.unpack("<II", raw[-17 - 8 * frames : -9 - 8 * frames])
    assert (skippable, length) == (0x184D2A5E, 8 * frames + 9)
    assert sum(table[::2]) == len(raw) - 17 - 8 * frames
    assert table[1::2] == (*[FRAME_SIZE] * 5, 1024)


def test_frames_are_read_in_place(tmp_path: Path) -> None:
    written(tmp_path / "packed", 8 * MIB, "zstd")
    file = DumpFile(tmp_path / "packed")
    frames = ZstdFrames(file, index_frames(file))
    assert (frames.size, frames.cut_off) == (8 * MIB, None)
    for offset, data in PIECES:
        assert frames.read(offset, len(data)) == data
    assert frames.read(3 * MIB, 100) == bytes(100)
    frames.close()


def test_what_goes_back_is_a_bug_and_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "packed", os.O_RDWR | os.O_CREAT)
    target = sink(fd, "zstd", MIB)
    target.write(memoryview(b"x" * 10), 100)
    with pytest.raises(ValueError, match="0x64 is before 0x6e"):
        target.write(memoryview(b"y"), 100)
    os.close(fd)


def test_the_disk_is_told_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    begin = os.posix_fadvise

    def watched(fd: int, offset: int, size: int, advice: int) -> None:
        begin(fd, offset, size, advice)
        told.append((offset, size))

    monkeypatch.setattr(os, "posix_fadvise", watched)
    piece = memoryview(bytes(MIB))
    with (tmp_path / "core").open("wb") as file:
        target = sink(file.fileno(), None, 40 * MIB)
        for number in range(40):
            target.write(piece, number * MIB)
        target.finish(40 * MIB)
    assert told == [(0, 16 * MIB), (16 * MIB, 16 * MIB)]

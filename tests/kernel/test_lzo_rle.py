"""LZO-RLE streams put together by hand from Documentation/staging/lzo.rst."""

from __future__ import annotations

import contextlib
import random

import pytest

from vmcore2core.errors import CodecError
from vmcore2core.kernel.lzo_rle import decompress, split_version
from vmcore2core.kernel.zcomp import decompressor

PAGE = 4096
END = bytes([0b0001_0001, 0, 0])


def zeros(count: int, literals: bytes = b"") -> bytes:
    """0 0 0 1 1 X X X, then 1 1 1 1 1 1 S S, 0xff, and the rest of the length: (X + (rest << 3)) + 4 zeros."""
    count -= 4
    return bytes([0b0001_1000 | count & 7, 0b1111_1100 | len(literals), 0xFF, count >> 3]) + literals


def first_literals(data: bytes) -> bytes:
    """The first byte of a stream: 18 and up is a number of literals, plus 17."""
    return bytes([17 + len(data)]) + data


def literals(data: bytes) -> bytes:
    """0 0 0 0 L L L L: 3 + L literals, or 18 and what follows."""
    count = len(data) - 3
    if 0 < count <= 15:
        return bytes([count]) + data
    count -= 15
    return bytes([0]) + bytes((count - 1) // 255) + bytes([(count - 1) % 255 + 1]) + data


def near(length: int, distance: int) -> bytes:
    """L L L D D D S S, then D: length 3 to 8 within 2 KiB."""
    distance -= 1
    return bytes([length - 1 << 5 | (distance & 7) << 2, distance >> 3])


def far(length: int, distance: int) -> bytes:
    """0 0 1 L L L L L, then the distance in 14 bits above 2 bits of literals: within 16 KiB."""
    distance -= 1
    return bytes([0b0010_0000 | length - 2, distance << 2 & 0xFF, distance >> 6])


def test_a_run_of_zeros_between_literals() -> None:
    stream = first_literals(b"abcd") + zeros(100, b"xy") + zeros(4) + near(8, 6) + END
    assert decompress(stream, PAGE) == b"abcd" + bytes(100) + b"xy" + bytes(4) + b"xy" + bytes(4) + b"xy"


@pytest.mark.parametrize("count", [4, 5, 11, 12, 259, 2043, 2051])
def test_runs_of_every_length(count: int) -> None:
    assert decompress(first_literals(b"abcd") + zeros(count) + END, PAGE) == b"abcd" + bytes(count)


def test_matches_overlap_and_reach_far() -> None:
    noise = random.Random(1).randbytes(3000)
    stream = literals(noise) + far(20, 3000) + near(8, 1) + END
    assert decompress(stream, PAGE) == noise + noise[:20] + noise[19:20] * 8


def test_the_version_decides() -> None:
    stream = first_literals(b"abcd") + zeros(2046) + zeros(2046) + END
    assert split_version(b"\x11\x01" + stream) == (1, stream)
    assert split_version(stream) == (0, stream)
    assert decompressor("lzo-rle")(b"\x11\x01" + stream, PAGE) == b"abcd" + bytes(4092)


def test_a_page_without_runs_is_plain_lzo() -> None:
    noise = random.Random(2).randbytes(PAGE - 8)
    stream = literals(noise) + near(8, 8) + END
    for version in (b"\x11\x00", b"\x11\x01", b""):
        assert decompressor("lzo-rle")(version + stream, PAGE) == noise + noise[-8:]


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        first_literals(b"abcd"),  # no end
        first_literals(b"abcd")[:3],
        first_literals(b"abcd") + near(4, 5) + END,  # before the beginning
        first_literals(b"abcd") + zeros(2051) + zeros(2051) + END,  # more than a page
        first_literals(b"abcd") + END + b"more",
        literals(bytes(300))[:2] + b"\0" * 50,
    ],
)
def test_what_is_no_such_stream_is_refused(stream: bytes) -> None:
    with pytest.raises(CodecError):
        decompress(stream, PAGE)


def test_random_streams_raise_nothing_else() -> None:
    rng = random.Random(3)
    whole = first_literals(b"abcd") + zeros(100, b"xy") + literals(bytes(range(60))) + far(20, 80) + near(4, 9) + END
    for _ in range(3000):
        stream = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        with contextlib.suppress(CodecError):
            assert len(decompress(bytes(stream[: rng.randrange(1, len(stream) + 1)]), PAGE)) <= PAGE

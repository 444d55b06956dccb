"""Pages as zram and zswap compress them, made by zlib, libzstd, and by hand from lz4's description."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest
import zstandard

from vmcore2core.errors import CodecError
from vmcore2core.kernel.zcomp import decompressor

PAGE = 4096


def deflate(page: bytes) -> bytes:
    """crypto/deflate.c: raw deflate, no header and no checksum."""
    stream = zlib.compressobj(3, zlib.DEFLATED, -12)
    return stream.compress(page) + stream.flush()


def lz4(page: bytes) -> bytes:
    """One sequence, of literals alone: doc/lz4_Block_format.md."""
    rest = len(page) - 15
    return bytes([0xF0, *[255] * (rest // 255), rest % 255]) + page


MAKERS: dict[str, Callable[[bytes], bytes]] = {
    "deflate": deflate,
    "lz4": lz4,
    "lz4hc": lz4,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_page_comes_back(name: str) -> None:
    page = random.Random(name).randbytes(PAGE // 2) + bytes(PAGE // 2)
    assert decompressor(name)(MAKERS[name](page), PAGE) == page


@pytest.mark.parametrize("size", [0, PAGE - 1, PAGE + 1, 64 * PAGE])
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_no_page_is_refused(name: str, size: int) -> None:
    data = MAKERS[name](bytes(size)) if size else b""
    with pytest.raises(CodecError):
        decompressor(name)(data, PAGE)


@pytest.mark.parametrize("name", MAKERS)
def test_damage_is_refused(name: str) -> None:
    with pytest.raises(CodecError):
        decompressor(name)(b"\xff" * 64, PAGE)


def test_a_compressor_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(CodecError, match=r"compressed with '842', .*lzo-rle.*zstd"):
        decompressor("842")

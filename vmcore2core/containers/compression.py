"""Decoders for single compressed pages; each is imported when the first page needs it.

A page of a dump is hostile input: a decoder must not return more than a page, nor use more memory than a few pages. The
caller refuses compressed pages that are larger than a page, which bounds LZO.

References: makedumpfile's write_kdump_pages_cyclic() (1.7.9): zlib streams, LZO1X blocks without a header, raw snappy
blocks, zstd frames, each holding one page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from vmcore2core.errors import CodecError, package_missing
from vmcore2core.formats.diskdump import (
    DUMP_DH_COMPRESSED_LZO,
    DUMP_DH_COMPRESSED_SNAPPY,
    DUMP_DH_COMPRESSED_ZLIB,
    DUMP_DH_COMPRESSED_ZSTD,
)

PageDecoder = Callable[[memoryview, memoryview], None]
"""``decode(data, page)`` fills ``page`` from ``data``, or raises ``CodecError`` and leaves anything in ``page``."""

CODEC_NAMES: dict[int, str] = {
    DUMP_DH_COMPRESSED_ZLIB: "zlib",
    DUMP_DH_COMPRESSED_LZO: "lzo",
    DUMP_DH_COMPRESSED_SNAPPY: "snappy",
    DUMP_DH_COMPRESSED_ZSTD: "zstd",
}


def page_decoder(flags: int) -> PageDecoder | None:
    """Return the decoder for ``page_desc.flags``, or None if they do not name exactly one known codec.

    Raises:
        CodecError: the Python package for this codec is not installed.
    """
    factory = _FACTORIES.get(flags)
    if factory is None:
        return None
    try:
        return factory()
    except ImportError as error:
        raise CodecError(
            f"the dump's pages are compressed with {CODEC_NAMES[flags]}, and {package_missing(error)}"
        ) from error


def _wrong_size(codec: str, size: int, page: memoryview) -> CodecError:
    return CodecError(f"a {codec} page decodes to {size:#x} bytes, expected {page.nbytes:#x}")


def _zlib_decoder() -> PageDecoder:
    errors: tuple[type[Exception], ...]
    decompressobj: Callable[[], Any]
    try:
        from isal.igzip_lib import IsalError
        from isal.isal_zlib import decompressobj as isal_decompressobj

        decompressobj, errors = isal_decompressobj, (cast("type[Exception]", IsalError), ValueError, MemoryError)
    except ImportError:
        import zlib

        decompressobj, errors = zlib.decompressobj, (zlib.error, ValueError, MemoryError)

    def decode(data: memoryview, page: memoryview) -> None:
        stream = decompressobj()
        try:
            raw = stream.decompress(data, page.nbytes + 1)
        except errors as error:
            raise CodecError(f"a zlib page does not decode: {error}") from error
        # eof: the checksum was there, and it was right.
        if len(raw) != page.nbytes or not stream.eof:
            raise _wrong_size("zlib", len(raw), page)
        page[:] = raw

    return decode


def _lzo_decoder() -> PageDecoder:
    from lzallright import LZOCompressor, LZOError

    decompress = LZOCompressor().decompress

    def decode(data: memoryview, page: memoryview) -> None:
        try:
            # The size is a hint only: the length of the result must be checked.
            raw = decompress(data, page.nbytes)
        except (LZOError, ValueError, MemoryError) as error:
            raise CodecError(f"an LZO page does not decode: {error}") from error
        if len(raw) != page.nbytes:
            raise _wrong_size("LZO", len(raw), page)
        page[:] = raw

    return decode


def _snappy_decoder() -> PageDecoder:
    import cramjam

    decompress_raw_into = cramjam.snappy.decompress_raw_into

    def decode(data: memoryview, page: memoryview) -> None:
        try:
            size = decompress_raw_into(data, page)
        except (cramjam.DecompressionError, ValueError, MemoryError) as error:
            raise CodecError(f"a snappy page does not decode: {error}") from error
        if size != page.nbytes:
            raise _wrong_size("snappy", size, page)

    return decode


def _zstd_decoder() -> PageDecoder:
    import zstandard

    decompress = zstandard.ZstdDecompressor().decompress
    frame_content_size = zstandard.frame_content_size

    def decode(data: memoryview, page: memoryview) -> None:
        try:
            # A size in the frame overrides max_output_size; -1: the frame does not state one.
            size = frame_content_size(data)
            if size not in (page.nbytes, -1):
                raise _wrong_size("zstd", size, page)
            raw = decompress(data, max_output_size=page.nbytes)
        except (zstandard.ZstdError, ValueError, MemoryError) as error:
            raise CodecError(f"a zstd page does not decode: {error}") from error
        if len(raw) != page.nbytes:
            raise _wrong_size("zstd", len(raw), page)
        page[:] = raw

    return decode


_FACTORIES: dict[int, Callable[[], PageDecoder]] = {
    DUMP_DH_COMPRESSED_ZLIB: _zlib_decoder,
    DUMP_DH_COMPRESSED_LZO: _lzo_decoder,
    DUMP_DH_COMPRESSED_SNAPPY: _snappy_decoder,
    DUMP_DH_COMPRESSED_ZSTD: _zstd_decoder,
}

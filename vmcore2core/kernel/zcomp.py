"""The compressors of zram and zswap, by the kernel's names; each is imported when the first page needs it.

References: drivers/block/zram/zcomp.c and backend_*.c; crypto/{lzo,lzo-rle,lz4,lz4hc,zstd,deflate,842}.c (Linux 7.2).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from vmcore2core.containers.compression import page_decoder
from vmcore2core.errors import CodecError, package_missing
from vmcore2core.formats.diskdump import DUMP_DH_COMPRESSED_LZO, DUMP_DH_COMPRESSED_ZSTD
from vmcore2core.kernel import lzo_rle

Decompress = Callable[[bytes, int], bytes]
"""``decompress(data, page_size)`` returns exactly one page, or raises ``CodecError``."""


def decompressor(name: str) -> Decompress:
    """Return the decoder of an algorithm.

    Args:
        name: as the kernel has it ("lzo-rle").

    Raises:
        CodecError: it cannot be decoded here.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        known = ", ".join(_FACTORIES)
        raise CodecError(f"pages are compressed with {name[:64]!r}, which cannot be decoded (those that can: {known})")
    try:
        return factory()
    except ImportError as error:
        raise CodecError(f"pages are compressed with {name}, and {package_missing(error)}") from error


def _container(flags: int) -> Decompress:
    decode = page_decoder(flags)
    if decode is None:
        raise CodecError(f"no codec of number {flags:#x}")

    def decompress(data: bytes, page_size: int) -> bytes:
        page = bytearray(page_size)
        decode(memoryview(data), memoryview(page))
        return bytes(page)

    return decompress


def _lzo() -> Decompress:
    plain = _container(DUMP_DH_COMPRESSED_LZO)

    def decompress(data: bytes, page_size: int) -> bytes:
        version, instructions = lzo_rle.split_version(data)
        if not version:
            return plain(instructions, page_size)
        if page_size < lzo_rle.ZERO_RUN_DISTANCE:
            try:
                return plain(instructions, page_size)  # without runs of zeros; ten times as fast
            except CodecError:
                pass
        page = lzo_rle.decompress(instructions, page_size)
        if len(page) != page_size:
            raise CodecError(f"an LZO-RLE page decodes to {len(page):#x} bytes, expected {page_size:#x}")
        return page

    return decompress


def _lz4() -> Decompress:
    import cramjam

    decompress_block_into = cramjam.lz4.decompress_block_into

    def decompress(data: bytes, page_size: int) -> bytes:
        page = bytearray(page_size)
        try:
            size = decompress_block_into(data, page, output_len=page_size)
        except (cramjam.DecompressionError, ValueError, MemoryError) as error:
            raise CodecError(f"an LZ4 page does not decode: {error}") from error
        if size != page_size:
            raise CodecError(f"an LZ4 page decodes to {size:#x} bytes, expected {page_size:#x}")
        return bytes(page)

    return decompress


def _deflate() -> Decompress:
    def decompress(data: bytes, page_size: int) -> bytes:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            page = stream.decompress(data, page_size + 1)
        except (zlib.error, ValueError, MemoryError) as error:
            raise CodecError(f"a deflate page does not decode: {error}") from error
        if len(page) != page_size:
            raise CodecError(f"a deflate page decodes to {len(page):#x} bytes, expected {page_size:#x}")
        return page

    return decompress


_FACTORIES: dict[str, Callable[[], Decompress]] = {
    "lzo": _lzo,
    "lzo-rle": _lzo,
    "lz4": _lz4,
    "lz4hc": _lz4,
    "zstd": lambda: _container(DUMP_DH_COMPRESSED_ZSTD),
    "deflate": _deflate,
}

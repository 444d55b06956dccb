"""Compressed sections: SHF_COMPRESSED.

References: System V gABI, "Section Compression".
"""

from __future__ import annotations

import zlib

import numpy as np

from vmcore2core.elf.headers import Variant
from vmcore2core.errors import CodecError
from vmcore2core.formats.elf_dynamic import CHDR_DTYPE, ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD

ZSTD_WINDOW_MAX = 1 << 27


def decompressed(raw: bytes, variant: Variant, limit: int) -> bytes:
    """Return the contents of a compressed section.

    Args:
        raw: its bytes in the file: Elf_Chdr, then the compressed ones.
        variant: class and byte order of the file.
        limit: most bytes.

    Raises:
        CodecError: it is broken, or larger than ``limit``; the message continues a sentence that names the section.
    """
    dtype = CHDR_DTYPE[variant]
    if len(raw) < dtype.itemsize:
        raise CodecError("is shorter than its compression header")
    head = np.frombuffer(raw, dtype, 1)[0]
    ch_type, size = int(head["ch_type"]), int(head["ch_size"])
    if size > limit:
        raise CodecError(f"has {size:#x} bytes, expected at most {limit:#x}")
    decompress = {ELFCOMPRESS_ZLIB: _zlib, ELFCOMPRESS_ZSTD: _zstd}.get(ch_type)
    if decompress is None:
        raise CodecError(f"has ch_type {ch_type}, expected 1 (zlib) or 2 (zstd)")
    data = decompress(memoryview(raw)[dtype.itemsize :], size + 1)
    if len(data) != size:
        raise CodecError(f"decompresses to {len(data):#x} bytes, expected {size:#x}")
    return data


def _zlib(data: memoryview, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except (zlib.error, MemoryError) as error:
        raise CodecError(f"does not decompress: {error}") from error


def _zstd(data: memoryview, most: int) -> bytes:
    import zstandard

    # decompress() would trust the size in the frame's header; the reader returns no more than the limit.
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    try:
        with decompressor.stream_reader(data, read_across_frames=True) as reader:
            return reader.read(most)
    except (zstandard.ZstdError, MemoryError) as error:
        raise CodecError(f"does not decompress: {error}") from error

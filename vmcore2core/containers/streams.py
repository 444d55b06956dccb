"""Compressed files, decoded from start to end: gzip, bzip2, xz, zstd; lz4 is in ``lz4_stream``.

Every decoder returns one bounded piece at a time. Broken data raises ``CodecError``; a file that ends too early gives
what it has, and ``problem`` tells.

References: RFC 1952; RFC 8878; the .xz file format.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Protocol, cast

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.xz_blocks import MEMORY_MAX
from vmcore2core.containers.zstd_frames import WINDOW_MAX, ZstdIndex
from vmcore2core.errors import CodecError
from vmcore2core.formats import packed as fmt
from vmcore2core.overrides import override

PIECE = 1 << 20
"""Most bytes of a piece."""

READ = 1 << 16
"""Bytes that are read at once; not more, because the bytes behind a member are copied, and members may be small."""


class Problem(Enum):
    """A defect at the end of a compressed file."""

    CUT_OFF = "is cut off"
    TRAILING = "has something else behind its end, which is left out"


class Stream:
    """A compressed file being decoded.

    Attributes:
        position: bytes of the file that have been taken.
        problem: a defect at the end of the file, or None; known after the last piece.
    """

    def __init__(self, file: DumpFile, name: str) -> None:
        self.file = file
        self.name = name
        self.position = 0
        self.problem: Problem | None = None

    def pieces(self) -> Iterator[bytes]:
        """Yield the decoded bytes.

        Raises:
            CodecError: they do not decode, or do not match their checksum.
        """
        raise NotImplementedError

    def _broken(self, error: object) -> CodecError:
        return CodecError(
            f"{self.file.path} is broken: its {self.name} data does not decode before file offset "
            f"{self.position:#x} ({error})"
        )


class _Decoder(Protocol):
    """The interface of the decoders in bz2 and lzma."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipDecoder:
    """zlib's decoder with the interface of bz2's and lzma's."""

    def __init__(self, decompressobj: Callable[..., Any]) -> None:
        self._stream = decompressobj(wbits=31)
        self._full = False

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def needs_input(self) -> bool:
        return not self.eof and not self._full and not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return bytes(self._stream.unused_data)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = bytes(self._stream.decompress(self._stream.unconsumed_tail + data, max_length))
        self._full = len(piece) == max_length
        return piece


class MemberStream(Stream):
    """gzip, bzip2 or xz: concatenated members, maybe with zeros between or behind them.

    Args:
        file: the compressed file.
        name: of the codec.
        magic: the first bytes of each member.
        decoder: makes a decoder for one member.
        errors: what decoders raise.
    """

    def __init__(
        self,
        file: DumpFile,
        name: str,
        magic: bytes,
        decoder: Callable[[], _Decoder],
        errors: tuple[type[Exception], ...],
    ) -> None:
        super().__init__(file, name)
        self._magic, self._new, self._errors = magic, decoder, errors

    def _more(self) -> bytes:
        data = self.file.read(self.position, READ)
        self.position += len(data)
        return data

    @override
    def pieces(self) -> Iterator[bytes]:
        data = self._more()
        while data:
            decoder = self._new()
            yield from self._member(decoder, data)
            if not decoder.eof:
                self.problem = Problem.CUT_OFF
                return
            data = decoder.unused_data
            while not data.strip(b"\0") and (data := self._more()):
                pass
            data = data.lstrip(b"\0")
            if len(data) < len(self._magic):
                data += self._more()
            if data and not data.startswith(self._magic):
                self.problem = Problem.TRAILING
                return

    def _member(self, decoder: _Decoder, data: bytes) -> Iterator[bytes]:
        try:
            piece = decoder.decompress(data, PIECE)
            while piece or not decoder.eof:
                if piece:
                    yield piece
                if decoder.eof:
                    return
                data = b""
                if decoder.needs_input and not (data := self._more()):
                    return
                piece = decoder.decompress(data, PIECE)
        except self._errors as error:
            raise self._broken(error) from error


def gzip_stream(file: DumpFile) -> Stream:
    """Return the decoder of a gzip file."""
    errors: tuple[type[Exception], ...]
    decompressobj: Callable[..., Any]
    try:
        from isal.igzip_lib import IsalError
        from isal.isal_zlib import decompressobj as isal_decompressobj

        decompressobj, errors = isal_decompressobj, (cast("type[Exception]", IsalError), ValueError, MemoryError)
    except ImportError:
        import zlib

        decompressobj, errors = zlib.decompressobj, (zlib.error, ValueError, MemoryError)
    return MemberStream(file, "gzip", fmt.GZIP_MAGIC, lambda: _GzipDecoder(decompressobj), errors)


def bzip2_stream(file: DumpFile) -> Stream:
    """Return the decoder of a bzip2 file."""
    errors = (OSError, EOFError, ValueError, MemoryError)
    return MemberStream(file, "bzip2", fmt.BZIP2_MAGIC, bz2.BZ2Decompressor, errors)


def xz_stream(file: DumpFile) -> Stream:
    """Return the decoder of an xz file."""

    def decoder() -> _Decoder:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_MAX)

    return MemberStream(file, "xz", fmt.XZ_MAGIC, decoder, (lzma.LZMAError, EOFError, ValueError, MemoryError))


class ZstdStream(Stream):
    """A zstd file whose frames are known already."""

    def __init__(self, file: DumpFile, index: ZstdIndex) -> None:
        super().__init__(file, "zstd")
        self._end = file.size if index.is_cut_off else index.end
        if index.is_cut_off:
            self.problem = Problem.CUT_OFF
        elif index.end < file.size:
            self.problem = Problem.TRAILING

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes of the file, for zstd's reader."""
        size = PIECE if size < 0 else min(size, PIECE)
        data = self.file.read(self.position, min(size, self._end - self.position))
        self.position += len(data)
        return data

    @override
    def pieces(self) -> Iterator[bytes]:
        import zstandard

        context = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
        reader = context.stream_reader(self, read_across_frames=True)  # type: ignore[arg-type]
        while True:
            try:
                piece = reader.read(PIECE)
            except (zstandard.ZstdError, MemoryError) as error:
                if self.problem is Problem.CUT_OFF and self.position >= self._end:
                    return
                raise self._broken(error) from error
            if not piece:
                return
            yield piece

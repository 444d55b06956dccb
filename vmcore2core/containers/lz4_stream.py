"""lz4 files, in the frame format or in the legacy format, decoded from start to end.

python-lz4 decodes frames, and the blocks of legacy frames, which are split here.

References: LZ4's doc/lz4_Frame_format.md (1.6.2); programs/lz4io.c, LZ4IO_decodeLegacyStream() (1.9.4), for where a
legacy frame ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.streams import PIECE, READ, Problem, Stream
from vmcore2core.errors import CodecError, FormatError, package_missing
from vmcore2core.formats import packed as fmt
from vmcore2core.overrides import override

_EXPANSION_MAX = 255
"""Most bytes that one byte of a block decodes to: it adds up to 255 to a match's length."""


class Lz4Stream(Stream):
    """An lz4 file."""

    def __init__(self, file: DumpFile) -> None:
        super().__init__(file, "lz4")

    @override
    def pieces(self) -> Iterator[bytes]:
        try:
            import lz4  # noqa: F401 - for the sentence
        except ImportError as error:
            raise CodecError(f"{self.file.path} is compressed with lz4, and {package_missing(error)}") from error
        while self.position < self.file.size and self.problem is None:
            magic = self.file.read(self.position, len(fmt.LZ4_MAGIC))
            if magic == fmt.LZ4_MAGIC:
                yield from self._frame()
            elif magic == fmt.LZ4_LEGACY_MAGIC:
                yield from self._legacy()
            elif magic in fmt.ZSTD_SKIPPABLE_MAGICS:  # the same in both formats
                raw = self.file.read(self.position, fmt.ZSTD_SKIPPABLE_HEADER)
                self.position += fmt.ZSTD_SKIPPABLE_HEADER + int.from_bytes(raw[len(magic) :], "little")
                self.problem = Problem.CUT_OFF if self.position > self.file.size else None
            else:
                self.problem = Problem.TRAILING

    def _frame(self) -> Iterator[bytes]:
        from lz4.frame import LZ4FrameDecompressor

        flags = self.file.read(self.position + fmt.LZ4_FLG, 1)
        if flags and flags[0] & fmt.LZ4_FLG_DICT_ID:
            raise FormatError(f"an lz4 frame descriptor with FLG {flags[0]:#x}", self.position, "no dictionary")
        decoder = LZ4FrameDecompressor()
        while not decoder.eof:
            data = self.file.read(self.position, READ) if decoder.needs_input else b""
            if decoder.needs_input and not data:
                self.problem = Problem.CUT_OFF
                return
            self.position += len(data)
            try:
                piece = decoder.decompress(data, PIECE)
            except (RuntimeError, MemoryError) as error:
                raise self._broken(error) from error
            if piece:
                yield piece
        self.position -= len(decoder.unused_data or b"")

    def _legacy(self) -> Iterator[bytes]:
        """Yield the blocks of a legacy frame, which ends with the file or at an impossible block size."""
        self.position += len(fmt.LZ4_LEGACY_MAGIC)
        while self.position < self.file.size:
            size = int.from_bytes(self.file.read(self.position, fmt.LZ4_BLOCK_SIZE), "little")
            if self.position + fmt.LZ4_BLOCK_SIZE > self.file.size:
                self.problem = Problem.CUT_OFF
                return
            if not 0 < size <= fmt.LZ4_LEGACY_PACKED_MAX:
                return
            self.position += fmt.LZ4_BLOCK_SIZE
            data = self.file.read(self.position, size)
            if len(data) < size:
                self.problem = Problem.CUT_OFF
                return
            self.position += size
            yield self._decoded(data)

    def _decoded(self, data: bytes) -> bytes:
        """Return the decoded bytes of a legacy block.

        Raises:
            CodecError: it does not decode, or to more than a block has.
        """
        from lz4.block import LZ4BlockError, decompress

        try:
            decoded: bytes = decompress(data, uncompressed_size=min(fmt.LZ4_LEGACY_BLOCK, len(data) * _EXPANSION_MAX))
        except (LZ4BlockError, ValueError, MemoryError) as error:
            raise self._broken(error) from error
        return decoded

"""lz4 files, in the frame format or in the legacy format, decoded from start to end.

The library decodes blocks. The frames are parsed here, because the library has no decoder that returns bounded pieces.

References: LZ4's doc/lz4_Frame_format.md (1.6.2) and doc/lz4_Block_format.md; programs/lz4io.c,
LZ4IO_decodeLegacyStream() (1.9.4), for where a legacy frame ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.streams import Problem, Stream
from vmcore2core.errors import FormatError
from vmcore2core.formats import packed as fmt
from vmcore2core.overrides import override

_EXPANSION_MAX = 255
"""Most bytes that one byte of a block decodes to: it adds up to 255 to a match's length."""


class _Descriptor(NamedTuple):
    """What FLG and BD say of a frame, and its content size if it has one."""

    block_max: int
    linked: bool
    block_checksum: bool
    content_checksum: bool
    content_size: int | None


class Lz4Stream(Stream):
    """An lz4 file."""

    def __init__(self, file: DumpFile) -> None:
        super().__init__(file, "lz4")
        import cramjam

        self._decompress = cramjam.lz4.decompress_block_into
        self._error: type[Exception] = cramjam.DecompressionError

    @override
    def pieces(self) -> Iterator[bytes]:
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

    def _descriptor(self) -> _Descriptor | None:
        """Read a frame's header; None if the file ends inside it."""
        raw = self.file.read(self.position, fmt.LZ4_DESCRIPTOR + fmt.LZ4_CONTENT_SIZE + fmt.LZ4_HC)
        if len(raw) < fmt.LZ4_DESCRIPTOR:
            self.problem = Problem.CUT_OFF
            return None
        flg, bd = raw[fmt.LZ4_FLG], raw[fmt.LZ4_BD]
        block_max = fmt.LZ4_BLOCK_SIZES.get(bd >> fmt.LZ4_BD_SIZE_SHIFT & fmt.LZ4_BD_SIZE_MASK)
        odd = flg & (fmt.LZ4_FLG_DICT_ID | fmt.LZ4_FLG_RESERVED) or bd & fmt.LZ4_BD_RESERVED
        if flg & fmt.LZ4_VERSION_MASK != fmt.LZ4_VERSION or odd or block_max is None:
            what = f"an lz4 frame descriptor with FLG {flg:#x} and BD {bd:#x}"
            raise FormatError(what, self.position, "version 1, no dictionary, blocks of 64 KiB to 4 MiB")
        has_size = bool(flg & fmt.LZ4_FLG_CONTENT_SIZE)
        end = fmt.LZ4_DESCRIPTOR + (fmt.LZ4_CONTENT_SIZE if has_size else 0)
        if len(raw) < end + fmt.LZ4_HC:
            self.problem = Problem.CUT_OFF
            return None
        checksum = _xxh32(raw[fmt.LZ4_FLG : end]) >> fmt.LZ4_HC_SHIFT & 0xFF
        if raw[end] != checksum:
            raise FormatError(f"an lz4 header checksum of {raw[end]:#x}", self.position + end, f"{checksum:#x}")
        self.position += end + fmt.LZ4_HC
        return _Descriptor(
            block_max=block_max,
            linked=not flg & fmt.LZ4_FLG_BLOCK_INDEPENDENCE,
            block_checksum=bool(flg & fmt.LZ4_FLG_BLOCK_CHECKSUM),
            content_checksum=bool(flg & fmt.LZ4_FLG_CONTENT_CHECKSUM),
            content_size=int.from_bytes(raw[fmt.LZ4_DESCRIPTOR : end], "little") if has_size else None,
        )

    def _frame(self) -> Iterator[bytes]:
        frame = self._descriptor()
        if frame is None:
            return
        checksum = _Xxh32() if frame.content_checksum else None
        size, before = 0, b""
        while packed_size := self._number():
            piece = self._block(packed_size, frame, before)
            if piece is None:
                return
            size += len(piece)
            before = (before + piece)[-fmt.LZ4_OFFSET_MAX :] if frame.linked else b""
            if checksum is not None:
                checksum.update(piece)
            yield piece
        if packed_size is None:
            return
        if checksum is not None:
            expected = self._number()
            if expected is not None and checksum.digest() != expected:
                raise self._broken("a frame does not match its checksum")
        if frame.content_size not in (None, size):
            raise self._broken(f"a frame decodes to {size:#x} bytes, expected {frame.content_size:#x}")

    def _block(self, packed_size: int, frame: _Descriptor, before: bytes) -> bytes | None:
        """Return a block's decoded bytes; None if the file ends inside it or its checksum.

        Args:
            packed_size: its size as it is written, with the bit for a block that is stored.
            frame: the block's frame.
            before: the decoded bytes that the block may refer to.
        """
        size = packed_size & ~fmt.LZ4_UNCOMPRESSED
        if size > frame.block_max:
            what = f"an lz4 block of {size:#x} bytes"
            raise FormatError(what, self.position - fmt.LZ4_BLOCK_SIZE, f"{frame.block_max:#x} at most")
        data = self._take(size)
        if data is None:
            return None
        if frame.block_checksum:
            expected = self._number()
            if expected is None:
                return None
            if _xxh32(data) != expected:
                raise self._broken("a block does not match its checksum")
        return data if packed_size & fmt.LZ4_UNCOMPRESSED else self._decoded(data, frame.block_max, before)

    def _legacy(self) -> Iterator[bytes]:
        """Yield the blocks of a legacy frame, which ends with the file or at an impossible block size."""
        self.position += len(fmt.LZ4_LEGACY_MAGIC)
        while self.position < self.file.size:
            size = self._number()
            if size is None:
                return
            if not 0 < size <= fmt.LZ4_LEGACY_PACKED_MAX:
                self.position -= fmt.LZ4_BLOCK_SIZE
                return
            data = self._take(size)
            if data is None:
                return
            yield self._decoded(data, fmt.LZ4_LEGACY_BLOCK, b"")

    def _take(self, size: int) -> bytes | None:
        """Return the next bytes; None if the file ends before or inside them."""
        data = self.file.read(self.position, size)
        if len(data) < size:
            self.problem = Problem.CUT_OFF
            return None
        self.position += size
        return data

    def _number(self) -> int | None:
        raw = self._take(fmt.LZ4_BLOCK_SIZE)
        return None if raw is None else int.from_bytes(raw, "little")

    def _decoded(self, data: bytes, block_max: int, before: bytes) -> bytes:
        if not before:
            return self._raw(data, block_max, 0)
        block = self._raw(_as_prefix(before, 0x00) + data, block_max, _PREFIX_DECODED)
        # A match that reaches back before the frame's first byte would copy the prefix's filling.
        if len(before) < fmt.LZ4_OFFSET_MAX and block != self._raw(
            _as_prefix(before, 0xFF) + data, block_max, _PREFIX_DECODED
        ):
            raise self._broken("a block refers to bytes before the frame")
        return block

    def _raw(self, data: bytes, block_max: int, skip: int) -> bytes:
        """Return the decoded bytes of ``data`` without the first ``skip``, at most ``block_max``.

        Raises:
            CodecError: it does not decode, or to more.
        """
        out = bytearray(skip + min(block_max, len(data) * _EXPANSION_MAX))
        try:
            decoded = self._decompress(data, out)
        except (self._error, ValueError, MemoryError) as error:
            raise self._broken(error) from error
        return bytes(memoryview(out)[skip:decoded])


_PREFIX_TAIL = 4
_PREFIX_DECODED = _PREFIX_TAIL + fmt.LZ4_OFFSET_MAX


def _as_prefix(before: bytes, fill: int) -> bytes:
    """Return an lz4 sequence that decodes to 4 bytes, filling, and ``before``, so that the next ones may refer to it.

    A sequence is literals, then a match of at least 4 bytes. The first 4 literals are the last 4 bytes of ``before``;
    the match copies them to the end. The filling is so long that no later match reaches the first 4 bytes.
    """
    wanted = bytes([fill]) * (fmt.LZ4_OFFSET_MAX - len(before)) + before
    rest = len(wanted) - fmt.LZ4_RUN_MASK
    head = bytes([fmt.LZ4_RUN_MASK << fmt.LZ4_RUN_SHIFT]) + b"\xff" * (rest // 255) + bytes([rest % 255])
    return head + wanted[-_PREFIX_TAIL:] + wanted[:-_PREFIX_TAIL] + len(wanted).to_bytes(2, "little")


class _Xxh32:
    """XXH32 with seed 0: lz4's encoder writes it behind the data that it encodes. No dependency offers it by itself."""

    def __init__(self) -> None:
        import cramjam

        self._encoder = cramjam.lz4.Compressor(level=0, content_checksum=True)

    def update(self, data: bytes) -> None:
        self._encoder.compress(data)
        self._encoder.flush()  # the encoder's output is not needed

    def digest(self) -> int:
        return int.from_bytes(bytes(self._encoder.finish())[-fmt.LZ4_CHECKSUM :], "little")


def _xxh32(data: bytes) -> int:
    checksum = _Xxh32()
    checksum.update(data)
    return checksum.digest()

"""Files of blocks that are compressed one by one: to read a byte, only its block is decoded."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers.dumpfile import DumpFile, LayeredFile
from vmcore2core.errors import CodecError
from vmcore2core.overrides import override

CACHE_BYTES = 48 << 20
"""Decoded blocks that are kept, whatever their size."""


class BlockFile(LayeredFile):
    """The decoded bytes of all blocks, concatenated.

    On opening, a subclass makes an index without decoding anything, and sets ``_starts`` and ``size`` from it.

    Attributes:
        _starts: uint64[n], where each block begins in the decoded bytes, ascending; the last one ends at ``size``.
    """

    _starts: U64Array

    def __init__(self, inner: DumpFile) -> None:
        super().__init__(inner)
        self._starts = np.zeros(0, np.uint64)
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached_bytes, self._cached_bytes_max = 0, CACHE_BYTES

    @abstractmethod
    def _decode(self, index: int, size: int) -> bytes:
        """Return the bytes of a block.

        Args:
            index: of the block.
            size: bytes that the index says it decodes to.

        Raises:
            CodecError: it does not decode to that size.
        """

    def _block(self, index: int) -> bytes:
        block = self._cache.get(index)
        if block is None:
            block = self._decode(index, self._end(index) - self._start(index))
            self._keep(index, block)
        else:
            self._cache.move_to_end(index)
        return block

    def _keep(self, index: int, block: bytes) -> None:
        self._cached_bytes += len(block) - len(self._cache.get(index, b""))
        self._cache[index] = block
        while self._cached_bytes > self._cached_bytes_max and len(self._cache) > 1:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])

    def _find(self, offset: int) -> int:
        """Return the index of the block with a byte."""
        return int(np.searchsorted(self._starts, np.uint64(offset), side="right")) - 1

    def _start(self, index: int) -> int:
        return int(self._starts[index])

    def _end(self, index: int) -> int:
        return int(self._starts[index + 1]) if index + 1 < len(self._starts) else self.size

    @override
    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes, decoded.

        Raises:
            CodecError: a block does not decode.
        """
        end = min(offset + size, self.size)
        if not 0 <= offset < end:
            return b""
        index = self._find(offset)
        chunks = []
        while offset < end:
            block_end = min(end, self._end(index))
            if block_end > offset:
                start = self._start(index)
                chunks.append(self._block(index)[offset - start : block_end - start])
                offset = block_end
            index += 1
        return b"".join(chunks)

    @override
    def gather(self, offsets: U64Array, rows: U64Array, out: U8Array) -> list[int]:
        """Blocks are decoded in their order, each once."""
        page_size = out.shape[1]
        bad = []
        for i in np.argsort(offsets, kind="stable").tolist():
            row = int(rows[i])
            try:
                out[row] = np.frombuffer(self.read(int(offsets[i]), page_size), dtype=np.uint8)
            except CodecError:
                bad.append(row)
        return bad

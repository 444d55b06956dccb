"""Several files of memory as one: a vendor's ramdump has one file for each bank of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.overrides import override

ALIGN = 4096
"""Files begin at multiples of this, so no page lies in two files."""


class JoinedFile(DumpFile):
    """Files, concatenated; each begins at a multiple of ``ALIGN``.

    Args:
        files: at least one; they are closed with this one.

    Attributes:
        starts: where each begins.
    """

    def __init__(self, files: Sequence[DumpFile]) -> None:  # there is no file of its own to open
        self.path, self.files = files[0].path, tuple(files)
        self.starts = [0]
        for file in files:
            self.starts.append(self.starts[-1] + -(-file.size // ALIGN) * ALIGN)
        self.size = self.starts.pop()

    @override
    def read(self, offset: int, size: int) -> bytes:
        """Between two files there are zeros."""
        out = bytearray(max(0, min(size, self.size - offset)))
        for start, file in zip(self.starts, self.files, strict=True):
            first = max(offset, start)
            piece = file.read(first - start, offset + len(out) - first) if first < offset + len(out) else b""
            out[first - offset : first - offset + len(piece)] = piece
        return bytes(out)

    @override
    def gather(self, offsets: U64Array, rows: U64Array, out: U8Array) -> list[int]:
        bad: list[int] = []
        which = np.searchsorted(np.array(self.starts, np.uint64), offsets, side="right") - 1
        for i in np.unique(which).tolist():
            mine = which == i
            bad += self.files[i].gather(offsets[mine] - np.uint64(self.starts[i]), rows[mine], out)
        return bad

    @override
    def changed(self) -> str | None:
        return next((what for file in self.files if (what := file.changed()) is not None), None)

    @override
    def strong_identity(self) -> str | None:
        """Each file has its own."""
        return None

    @override
    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

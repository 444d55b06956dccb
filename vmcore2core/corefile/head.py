"""What a core has before its first page, without joining it: its notes are as large as the registers of all threads."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate


class Head:
    """Bytes in pieces, which the snapshot may hold too.

    Args:
        pieces: the bytes, in file order.

    Attributes:
        size: number of bytes.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = tuple(filter(None, pieces))
        *self._starts, self.size = accumulate(map(len, self._pieces), initial=0)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on, fewer at the end."""
        first = max(0, bisect_right(self._starts, offset) - 1)
        found = self._pieces[first : bisect_left(self._starts, offset + size)]
        start = offset - self._starts[first] if found else 0
        return b"".join(found)[start : start + size]

"""Part of a file as a file object, for libraries that need one."""

from __future__ import annotations

import io
from collections.abc import Callable

from vmcore2core.overrides import override


class ReaderFile(io.RawIOBase):
    """The bytes that a function returns, as a file object.

    Args:
        read: returns bytes by (offset, size); fewer than asked for only at the end.
        size: of all.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read_at, self._size, self._at = read, size, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._at

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = (0, self._at, self._size)[whence] + offset
        if at < 0:
            raise ValueError(f"{at} is before the file's beginning")
        self._at = at
        return at

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = self._read_at(self._at, min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

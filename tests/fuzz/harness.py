"""The interface of a harness, the outcomes of its inputs, and bytes turned into choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vmcore2core.errors import Vmcore2coreError

NUMBERS = (0, 1, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@dataclass(frozen=True)
class Harness:
    """One thing that reads hostile bytes.

    Attributes:
        name: for the command line.
        seeds: inputs to begin with: good ones.
        run: reads an input, and returns what came of it, where that is not "read"; whatever the bytes are, it raises
            nothing but ``Vmcore2coreError``.
        sizes: bytes of an input at most.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], str | None]
    sizes: int = 1 << 16


class Parts:
    """Parts of an input that are read one by one: an error in one ends no other.

    Attributes:
        read: how many were read.
        failed: how many ended in an error.
    """

    def __init__(self) -> None:
        self.read = self.failed = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Read one in this block."""
        try:
            yield
            self.read += 1
        except Vmcore2coreError:
            self.failed += 1

    @property
    def result(self) -> str:
        """What came of all: "read", "partly read", "not read"."""
        return "read" if not self.failed else "partly read" if self.read else "not read"


class Choices:
    """Choices out of bytes, as they come; all zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return max(0, len(self.data) - self.at)

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece.ljust(size, b"\0")

    def below(self, limit: int) -> int:
        """Return a number from 0 to ``limit`` - 1."""
        return int.from_bytes(self.take(4), "little") % max(limit, 1)

    def word(self, near: int = 0) -> int:
        """Return a 64-bit word: any, a special one, or one near another."""
        kind = self.below(4)
        if kind == 0:
            return int.from_bytes(self.take(8), "little")
        if kind == 1:
            return NUMBERS[self.below(len(NUMBERS))]
        if kind == 2:
            return near ^ 1 << self.below(64)
        return (near + self.below(1 << 16) - (1 << 15)) % (1 << 64)

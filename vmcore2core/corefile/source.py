"""Reads the bytes of a finished core, from a plain file or a compressed one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from vmcore2core.errors import DumpError


class CoreSource(Protocol):
    """Where a core's bytes come from.

    Attributes:
        size: size of the unpacked core.
        cut_off: a sentence if the end is known to be missing, else None.
    """

    size: int
    cut_off: str | None

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the core, fewer at its end.

        Raises:
            DumpError: they cannot be read, or do not decode.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class FileSource:
    """A plain file.

    Raises:
        DumpError: it cannot be opened.
    """

    cut_off: str | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DumpError(f"{path} cannot be read: {error.strerror or error}") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes of the file."""
        try:
            return os.pread(self._file.fileno(), size, offset)
        except (OSError, OverflowError) as error:
            raise DumpError(f"{self._path} cannot be read at {offset:#x}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

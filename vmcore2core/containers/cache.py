"""Dumps that cannot be read where they are, kept below the user's cache directory.

What is there is whole: a file gets its name when its last byte is written.

References: XDG Base Directory Specification 0.8, $XDG_CACHE_HOME.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import DumpError

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all, or 0 where that is not known)."""

ProgressBar = Callable[[str], AbstractContextManager[Progress | None]]
"""Called with what is being done; a bar while it lasts, or None where there is nothing to draw on."""

RESERVE = 64 << 20
"""Bytes that are left free on the cache's file system."""

HOLE = 1 << 16
"""Zeros from so many bytes on become a hole."""


class CachedFile(DumpFile):
    """A file of the cache in the place of what it was made of: errors name the latter."""

    def __init__(self, path: Path, cached: Path) -> None:
        super().__init__(cached)
        self.path = path


def cache_folder(path: Path, kind: str) -> Path:
    """Return where such files are kept.

    Args:
        path: the dump, for the message.
        kind: what has to be done with it: "unpacked".

    Raises:
        DumpError: the user has no such place.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():  # the specification: a relative one is to be ignored
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            base = ""
        if not Path(base).is_absolute():
            raise DumpError(
                f"{path} has to be {kind}, and there is no cache directory to do so: set XDG_CACHE_HOME, or give a "
                f"file that can be read in place"
            )
    return Path(base) / "vmcore2core" / kind


def progress_bar(progress: ProgressBar | None, label: str) -> AbstractContextManager[Progress | None]:
    """Return a bar, where there is something to draw on."""
    return contextlib.nullcontext() if progress is None else progress(label)


@dataclass(frozen=True)
class Store:
    """One file on its way to the cache.

    Attributes:
        folder: where it goes.
        name: part of its name until it is whole.
        why: what it is and that it needs room, the beginning of a sentence.
        remedy: what else to do where there is no room.
        progress: draws a bar.
        label: what it says.
        done: what ``Progress`` is called with after each piece.
    """

    folder: Path
    name: str
    why: str
    remedy: str
    progress: ProgressBar | None
    label: str
    done: Callable[[], tuple[int, int]]

    def check_room(self, size: int) -> None:
        """Raise ``DumpError`` where the disk has no room for ``size`` bytes."""
        free = _free(self.folder)
        if free < size + RESERVE:
            raise DumpError(
                f"{self.why}, and {self.folder} has {free} bytes free: {self.remedy}, or set XDG_CACHE_HOME"
            )

    @contextlib.contextmanager
    def written(self, pieces: Iterable[bytes], size: int) -> Iterator[Path]:
        """Give the file, under a temporary name, for the body to rename; it is gone where that fails.

        Args:
            pieces: what comes, one behind the other.
            size: bytes that there will be at least.

        Raises:
            DumpError: it cannot be written.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check_room(size)
            handle, temporary_name = tempfile.mkstemp(prefix=f".{self.name}.", dir=self.folder)
            temporary = Path(temporary_name)
            try:
                with os.fdopen(handle, "wb") as target, progress_bar(self.progress, self.label) as update:
                    self._write(pieces, target, update)
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise DumpError(f"{self.why}, and {self.folder}: {error.strerror or error}") from error

    def _write(self, pieces: Iterable[bytes], target: BinaryIO, update: Progress | None) -> None:
        """Write what comes, with holes where it is zeros; stop before the disk is full."""
        since_check = 0
        for piece in pieces:
            for at in range(0, len(piece), HOLE):
                part = piece[at : at + HOLE]
                if len(part) == HOLE and not part.strip(b"\0"):
                    target.seek(HOLE, os.SEEK_CUR)
                else:
                    target.write(part)
                    since_check += len(part)
            if since_check >= RESERVE // 2:
                since_check = 0
                self.check_room(0)
            if update is not None:
                update(*self.done())
        target.truncate()
        # A file that has its name before its bytes are on the disk would be taken as whole after a power cut.
        target.flush()
        os.fsync(target.fileno())


def _free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize

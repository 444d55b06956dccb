"""Dumps that come through a pipe, such as ``ssh machine makedumpfile -F ... | vmcore2core - --pid 812``.

Reading a dump needs seeks, and a pipe can be read only once. So its content is kept in the cache; later runs can name
that file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vmcore2core.containers.cache import CachedFile, Keeping, Store, cache_folder
from vmcore2core.containers.dumpfile import DumpFile, os_error
from vmcore2core.errors import UsageError

log = logging.getLogger(__name__)

STDIN = Path("-")
"""The word for standard input."""

STDIN_FD = 0
PIECE = 1 << 20


def open_plain(path: Path, keeping: Keeping) -> DumpFile:
    """Open a file, or a copy of what comes through a pipe.

    Args:
        path: the file; a FIFO; ``STDIN``.
        keeping: how to keep the copy.

    Raises:
        DumpError: it cannot be read, or there is no space for the copy.
        UsageError: standard input is a terminal.
    """
    if path == STDIN:
        if os.isatty(STDIN_FD):
            raise UsageError("standard input is a terminal, expected a dump")
        is_file = stat.S_ISREG(os.fstat(STDIN_FD).st_mode)
        return DumpFile(Path("/dev/stdin")) if is_file else _received(Path("standard input"), STDIN_FD, keeping)
    if path.is_fifo():
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise os_error(path, error) from error
        try:
            return _received(path, handle, keeping)
        finally:
            os.close(handle)
    return DumpFile(path)


def _received(path: Path, handle: int, keeping: Keeping) -> DumpFile:
    digest = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        while piece := _read(path, handle):
            digest.update(piece)
            yield piece

    folder = cache_folder(path, "received")
    why = f"{path} is a pipe, which has to be kept to be read"
    remedy = "send it to a file where there is room"
    store = Store(folder, "pipe", why, remedy, keeping, f"receiving {path.name}", lambda written: (written, 0))
    kept, target = store.keep(pieces(), 0, digest.hexdigest)
    if target is not None:
        log.warning(
            "%s is kept as %s until newer ones need its room: name that the next time, and delete it when done",
            path,
            target,
        )
    return CachedFile(path, kept)


def _read(path: Path, handle: int) -> bytes:
    """Return the next bytes, b"" at the end; errors name the pipe, not the cache."""
    try:
        return os.read(handle, PIECE)
    except OSError as error:
        raise os_error(path, error) from error

"""Blocks of a dump that came from a server, kept in the cache, so that later runs do not ask for them again.

The folder ``blocks`` of the cache has a file for each version of a dump. Its blocks lie there where they lie in the
dump, between holes; behind them is a table with a hash of each. Without its hash, a block is not there. So a block
counts only when all of it was written, whoever else writes to the file at the same time, and whatever a power cut
leaves of it. Files are trusted as those of ``cache`` are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from pathlib import Path

from vmcore2core.containers.cache import cache_folder, free_bytes, prune
from vmcore2core.errors import DumpError, OutputError
from vmcore2core.folders import bytes_on_disk, open_own_file, opened_folder

log = logging.getLogger(__name__)

KEPT_MAX = 4 << 30
"""Most bytes on disk for one dump, and for all others together."""

FREE_MIN = 1 << 30
"""Bytes that are left free on the cache's file system."""

HASH_SIZE = 16
_ABSENT = bytes(HASH_SIZE)

CHECK_BYTES = 16 << 20
"""After so many new bytes, the space is checked again."""


class KeptBlocks:
    """The blocks of one version of a dump.

    Args:
        path: the dump, for messages.
        identity: a text that no other content has.
        size: bytes of the dump.
        block_size: bytes of a block.
    """

    def __init__(self, path: Path, identity: str, size: int, block_size: int) -> None:
        self._block_size, self._size = block_size, size
        self._table = -(-size // block_size) * block_size
        self._name = hashlib.sha256(f"{block_size} {identity}".encode()).hexdigest()
        self._folder: Path | None = None
        with contextlib.suppress(DumpError):
            self._folder = cache_folder(path, "blocks")
        self._fd: int | None = None
        self._unchecked = CHECK_BYTES
        self._open()

    def _open(self, *, make: bool = False) -> None:
        """Open the file; if it is missing, make it if asked to."""
        if self._folder is None:
            return
        try:
            with opened_folder(self._folder, make=make) as directory:
                self._fd = self._opened(directory, make=make)
                if make:
                    prune(directory, self._name, KEPT_MAX)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._give_up(error.strerror)
        except OutputError as error:
            log.warning("%s; so nothing is kept for later runs", error)
            self._folder = None

    def _opened(self, directory: int, *, make: bool) -> int:
        shown = f"{self._folder}/{self._name}"
        if make:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with contextlib.suppress(FileExistsError):
                return self._made(os.open(self._name, flags, 0o600, dir_fd=directory), directory)
        handle = open_own_file(directory, self._name, shown, os.O_RDWR)
        with contextlib.suppress(OSError):
            os.utime(handle)
        log.info("%s: blocks of earlier runs", shown)
        return handle

    def _made(self, handle: int, directory: int) -> int:
        """Give the new file its size; if that takes space (FAT has no holes), remove it.

        Raises:
            OSError: it does, or the system refuses.
        """
        with contextlib.suppress(OSError):
            os.ftruncate(handle, self._table)
            if bytes_on_disk(os.fstat(handle)) < CHECK_BYTES:
                return handle
        os.close(handle)
        os.unlink(self._name, dir_fd=directory)
        raise OSError(errno.ENOTSUP, "the file system makes no holes in files of such a size")

    def _give_up(self, why: str | None) -> None:
        log.info("%s/%s: no more blocks are kept: %s", self._folder, self._name, why)
        self._folder = None

    def has(self, index: int) -> bool:
        """Tell whether a block seems to be there."""
        return self._hash_of(index) != _ABSENT

    def _hash_of(self, index: int) -> bytes:
        if self._fd is None:
            return _ABSENT
        try:
            return os.pread(self._fd, HASH_SIZE, self._table + index * HASH_SIZE) or _ABSENT
        except OSError:
            return _ABSENT

    def get(self, index: int) -> bytes | None:
        """Return a block; None if it is not there, or not whole."""
        known = self._hash_of(index)
        if known == _ABSENT or self._fd is None:
            return None
        start = index * self._block_size
        try:
            block = os.pread(self._fd, min(self._block_size, self._size - start), start)
        except OSError:
            return None
        return block if _hash(index, block) == known else None

    def put(self, index: int, block: bytes) -> None:
        """Keep a block, if there is room; a failure is no error, as the server has the block."""
        if self._fd is None:
            self._open(make=True)
        if self._folder is None or self._fd is None or not self._has_room(len(block)):
            return
        try:
            for at, piece in (
                (index * self._block_size, block if block.strip(b"\0") else b""),
                (self._table + index * HASH_SIZE, _hash(index, block)),
            ):
                if os.pwrite(self._fd, piece, at) != len(piece):
                    self._give_up("a write was cut short")
                    return
        except OSError as error:
            self._give_up(error.strerror)

    def _has_room(self, size: int) -> bool:
        self._unchecked += size
        if self._unchecked < CHECK_BYTES or self._fd is None:
            return True
        self._unchecked = 0
        if bytes_on_disk(os.fstat(self._fd)) > KEPT_MAX:
            self._give_up(f"it has {KEPT_MAX} bytes")
        elif free_bytes(self._fd) < FREE_MIN:
            self._give_up(f"less than {FREE_MIN} bytes are free")
        return self._folder is not None

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _hash(index: int, block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=HASH_SIZE, salt=index.to_bytes(16, "little")).digest()

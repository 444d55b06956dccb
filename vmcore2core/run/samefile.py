"""Check whether another machine sees the same file at a path, by its size, time and first bytes."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vmcore2core.containers.dumpfile import DumpFile, os_error
from vmcore2core.containers.remote import RemoteFile, Url, located

HEAD_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What identifies a file.

    Attributes:
        path: absolute path, or the whole URL.
        size: its size in bytes.
        time: its last change, in seconds since 1970; None for a URL.
        tag: the server's version tag of a URL, or None.
        head: SHA-256 of its first 64 KiB, in hexadecimal.
    """

    path: str
    size: int
    time: int | None
    tag: str | None
    head: str

    def difference(self) -> str | None:
        """Return a sentence if this machine has another file at this path, else None.

        Raises:
            DumpError: the file does not exist, or cannot be read.
        """
        path = located(self.path)
        here = identity_of(path)
        if here == self:
            return None
        if here.size != self.size:
            return f"{path} has {here.size:#x} bytes, expected {self.size:#x}"
        if here.head != self.head:
            return f"{path} begins with other bytes"
        ours, theirs = ((one.tag, one.time)[one.tag is None] for one in (self, here))
        return f"{path} is of {theirs}, expected {ours}"


def identity_of(path: Path) -> FileIdentity:
    """Return the identity of a file.

    Args:
        path: absolute, or a ``Url``.

    Raises:
        DumpError: it cannot be read.
    """
    time = None
    if not isinstance(path, Url):
        try:
            time = int(path.stat().st_mtime)  # some file systems and clients drop fractions of a second
        except OSError as error:
            raise os_error(path, error) from error
    with closing(RemoteFile(path, cache=False) if isinstance(path, Url) else DumpFile(path)) as file:
        head = hashlib.sha256(file.read(0, HEAD_SIZE)).hexdigest()
        return FileIdentity(path.text if isinstance(path, Url) else str(path), file.size, time, file.identity(), head)

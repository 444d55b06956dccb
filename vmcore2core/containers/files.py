"""Opening a dump's file: plain, compressed, flattened, remote, or from a pipe."""

from __future__ import annotations

from pathlib import Path

from vmcore2core.containers.cache import Keeping
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.flattened import FlattenedFile, is_flattened
from vmcore2core.containers.packed import KEPT, unwrapped
from vmcore2core.containers.piped import open_plain
from vmcore2core.containers.remote import RemoteFile, Url
from vmcore2core.errors import DumpError


def open_dump_file(path: Path, keeping: Keeping = KEPT) -> DumpFile:
    """Return the file; if it is compressed, its content; if it is flattened, the dump that it describes.

    Args:
        path: the file, or a ``Url``; a pipe, or - for standard input, is kept in the cache.
        keeping: how to keep a copy in the cache.

    Raises:
        FormatError, CodecError: the compressed or flattened file is broken.
        DumpError: it cannot be read, or there is no place to unpack it to.
    """
    file = RemoteFile(path, cache=keeping.cache) if isinstance(path, Url) else _local(path, keeping)
    try:
        file = unwrapped(file, keeping)
        return FlattenedFile(file) if is_flattened(file.head()) else file
    except BaseException:
        file.close()
        raise


def _local(path: Path, keeping: Keeping) -> DumpFile:
    if path.is_dir():
        raise DumpError(f"{path} is a directory, not a dump file")
    return open_plain(path, keeping)

"""Opening a dump's file, whatever it is wrapped in."""

from __future__ import annotations

from pathlib import Path

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.flattened import FlattenedFile, is_flattened
from vmcore2core.errors import DumpError


def open_dump_file(path: Path) -> DumpFile:
    """Return the file; a flattened one as the dump that it describes.

    Raises:
        FormatError: it is a broken flattened file.
        DumpError: it cannot be read.
    """
    if path.is_dir():
        raise DumpError(f"{path} is a directory, not a dump file")
    file = DumpFile(path)
    if not is_flattened(file.head()):
        return file
    file.close()
    return FlattenedFile(path)

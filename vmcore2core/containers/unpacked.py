"""Dumps that were unpacked, kept below the user's cache directory under the hash of the compressed file.

What is there is whole: a file gets its name when its last byte is written.

References: XDG Base Directory Specification 0.8, $XDG_CACHE_HOME.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.streams import Problem, Stream
from vmcore2core.errors import DumpError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

ProgressBar = Callable[[str], AbstractContextManager[Progress | None]]
"""Called with what is being done; a bar while it lasts, or None where there is nothing to draw on."""

RESERVE = 64 << 20
"""Bytes that are left free on the cache's file system."""

HASH_STEP = 1 << 22
HOLE = 1 << 16
"""Zeros from so many bytes on become a hole."""

_SUFFIXES = {None: "", Problem.CUT_OFF: ".cut-off", Problem.TRAILING: ".trailing"}


class UnpackedFile(DumpFile):
    """A file of the cache in the place of the compressed one: errors name the latter."""

    def __init__(self, path: Path, unpacked: Path) -> None:
        super().__init__(unpacked)
        self.path = path


def unpack(file: DumpFile, name: str, stream: Stream, size: int | None, progress: ProgressBar | None) -> DumpFile:
    """Return a compressed file as what it unpacks to, from the cache if it is there.

    Args:
        file: the compressed file.
        name: of the codec.
        stream: its decoder.
        size: bytes that it will unpack to, where the file tells.
        progress: draws a bar.

    Raises:
        CodecError: it does not decode.
        DumpError: there is no place to unpack it to.
    """
    folder = cache_folder(file.path)
    identity = _identity(file)
    for problem, suffix in _SUFFIXES.items():
        target = folder / (identity + suffix)
        if target.is_file():
            log.info("%s: taking what it was unpacked to, %s", file.path, target)
            return _opened(file, name, target, problem)
    log.warning(
        "%s is compressed with %s in a way that cannot be read in place: unpacking it to %s, once; delete that when "
        "done",
        file.path,
        name,
        folder / identity,
    )
    with _reporting(f"{file.path} cannot be unpacked to {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_room(file.path, name, folder, size if size is not None else file.size)
        handle, temporary = tempfile.mkstemp(prefix=f".{identity}.", dir=folder)
        try:
            with os.fdopen(handle, "wb") as target_file, _bar(progress, f"unpacking {file.path.name}") as update:
                _write(stream, target_file, folder, update)
            target = folder / (identity + _SUFFIXES[stream.problem])
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return _opened(file, name, target, stream.problem)


def _opened(file: DumpFile, name: str, target: Path, problem: Problem | None) -> DumpFile:
    unpacked = UnpackedFile(file.path, target)
    if problem is not None:
        unpacked.cut_off = f"the {name} file {problem.value}: it unpacks to {unpacked.size:#x} bytes"
    file.close()
    return unpacked


def cache_folder(path: Path) -> Path:
    """Return where unpacked dumps are kept.

    Args:
        path: the dump, for the message.

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
                f"{path} has to be unpacked, and there is no cache directory to do so: set XDG_CACHE_HOME, or unpack it"
            )
    return Path(base) / "vmcore2core" / "unpacked"


def _identity(file: DumpFile) -> str:
    """Return a hash of all of the compressed file."""
    digest = hashlib.sha256()
    for at in range(0, file.size, HASH_STEP):
        digest.update(file.buffer(at, min(HASH_STEP, file.size - at)))
    return digest.hexdigest()


def _free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def _check_room(path: Path, name: str, folder: Path, size: int) -> None:
    free = _free(folder)
    if free < size + RESERVE:
        raise DumpError(
            f"{path} is compressed with {name} and unpacks to at least {size} bytes, and {folder} has {free} bytes "
            f"free: unpack it yourself where there is room, or set XDG_CACHE_HOME"
        )


def _write(stream: Stream, target: BinaryIO, folder: Path, update: Progress | None) -> None:
    """Write what comes, with holes where it is zeros; stop before the disk is full."""
    since_check = 0
    for piece in stream.pieces():
        for at in range(0, len(piece), HOLE):
            part = piece[at : at + HOLE]
            if len(part) == HOLE and not part.strip(b"\0"):
                target.seek(HOLE, os.SEEK_CUR)
            else:
                target.write(part)
                since_check += len(part)
        if since_check >= RESERVE // 2:
            since_check = 0
            _check_room(stream.file.path, stream.name, folder, 0)
        if update is not None:
            update(min(stream.position, stream.file.size), stream.file.size)
    target.truncate()
    # A file that has its name before its bytes are on the disk would be taken as whole after a power cut.
    target.flush()
    os.fsync(target.fileno())


@contextlib.contextmanager
def _reporting(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DumpError(f"{what}: {error.strerror or error}") from error


def _bar(progress: ProgressBar | None, label: str) -> AbstractContextManager[Progress | None]:
    return contextlib.nullcontext() if progress is None else progress(label)

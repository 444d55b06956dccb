"""Dumps that were unpacked, kept in the cache under the hash of the compressed file."""

from __future__ import annotations

import hashlib
import logging

from vmcore2core.containers.cache import CachedFile, ProgressBar, Store, cache_folder
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.streams import Problem, Stream

log = logging.getLogger(__name__)

HASH_STEP = 1 << 22

_SUFFIXES = {None: "", Problem.CUT_OFF: ".cut-off", Problem.TRAILING: ".trailing"}


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
    folder = cache_folder(file.path, "unpacked")
    identity = _identity(file)
    for problem, suffix in _SUFFIXES.items():
        target = folder / (identity + suffix)
        if target.is_file():
            log.info("%s: taking what it was unpacked to, %s", file.path, target)
            return _opened(file, name, CachedFile(file.path, target), problem)
    log.warning(
        "%s is compressed with %s in a way that cannot be read in place: unpacking it to %s, once; delete that when "
        "done",
        file.path,
        name,
        folder / identity,
    )
    room = size if size is not None else file.size
    why = f"{file.path} is compressed with {name} and unpacks to at least {room} bytes"
    store = Store(
        folder,
        identity,
        why,
        "unpack it yourself where there is room",
        progress,
        f"unpacking {file.path.name}",
        lambda: (min(stream.position, file.size), file.size),
    )
    with store.written(stream.pieces(), room) as temporary:
        target = folder / (identity + _SUFFIXES[stream.problem])
        temporary.replace(target)
    return _opened(file, name, CachedFile(file.path, target), stream.problem)


def _opened(file: DumpFile, name: str, unpacked: CachedFile, problem: Problem | None) -> DumpFile:
    if problem is not None:
        unpacked.cut_off = f"the {name} file {problem.value}: it unpacks to {unpacked.size:#x} bytes"
    elif file.cut_off is not None:
        unpacked.cut_off = file.cut_off
    file.close()
    return unpacked


def _identity(file: DumpFile) -> str:
    """Return a hash of all of the compressed file, or of what stands for that."""
    known = file.identity()
    if known is not None:
        return hashlib.sha256(known.encode()).hexdigest()
    digest = hashlib.sha256()
    for at in range(0, file.size, HASH_STEP):
        digest.update(file.buffer(at, min(HASH_STEP, file.size - at)))
    return digest.hexdigest()

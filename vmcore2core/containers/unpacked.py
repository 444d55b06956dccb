"""Dumps that were unpacked, kept in the cache under the hash of the compressed file.

A hostile compressed file may unpack to far more than its size. So its first bytes are checked before any are written,
and unpacking stops with an error at a limit that depends on its size.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterator

from vmcore2core.containers.cache import CachedFile, Keeping, Store, cache_folder, find
from vmcore2core.containers.dumpfile import HEAD_SIZE, DumpFile
from vmcore2core.containers.streams import Problem, Stream
from vmcore2core.errors import DumpError, UnknownFormat

log = logging.getLogger(__name__)

HASH_STEP = 1 << 22

SIZE_ALWAYS = 1 << 30
"""Size to which any file may unpack."""

RATIO_MAX = 256
"""Limit for larger files, in multiples of their size: an idle machine's memory reaches some 100, gzip's zeros 1030."""

SIZE_MAX = 1 << 44
"""Size that no file may exceed: 16 TiB."""

LIFTED_BY = "--unpack-any-size lifts this limit"

_SUFFIXES = {None: "", Problem.CUT_OFF: ".cut-off", Problem.TRAILING: ".trailing"}


def unpack(file: DumpFile, name: str, stream: Stream, size: int | None, keeping: Keeping) -> DumpFile:
    """Return the unpacked content of a compressed file, from the cache if it is there.

    Args:
        file: the compressed file.
        name: of the codec.
        stream: its decoder.
        size: bytes that it will unpack to, if the file tells.
        keeping: how to keep the copy.

    Raises:
        CodecError: it does not decode.
        UnknownFormat: its content is no dump.
        DumpError: there is no space to unpack it, or its content is too large.
    """
    folder = cache_folder(file.path, "unpacked")
    identity = _identity(file)
    for problem, suffix in _SUFFIXES.items() if keeping.cache else ():
        handle = find(folder, identity + suffix)
        if handle is not None:
            log.info("%s: taking the unpacked copy, %s/%s%s", file.path, folder, identity, suffix)
            return _opened(file, name, CachedFile(file.path, handle, file.strong_identity()), problem)
    limit = None if keeping.any_size else min(max(SIZE_ALWAYS, RATIO_MAX * file.size), SIZE_MAX)
    if limit is not None and size is not None and size > limit:
        raise _too_large(file, f"{size:#x}", limit)
    file.read_once()
    pieces = _looked_at(file, name, _bounded(file, stream, limit), keeping)
    log.warning(
        "%s is compressed with %s in a way that cannot be read in place: unpacking it to %s, once%s",
        file.path,
        name,
        folder / identity if keeping.cache else "a file without a name",
        "; delete that when done" if keeping.cache else "",
    )
    room = size if size is not None else file.size
    why = f"{file.path} is compressed with {name} and unpacks to at least {room} bytes"
    store = Store(
        folder,
        identity,
        why,
        "unpack it yourself where there is room",
        keeping,
        f"unpacking {file.path.name}",
        lambda written: (written, written * file.size // max(1, min(stream.position, file.size))),
    )
    handle, _ = store.keep(pieces, room, lambda: identity + _SUFFIXES[stream.problem])
    return _opened(file, name, CachedFile(file.path, handle, file.strong_identity()), stream.problem)


def _bounded(file: DumpFile, stream: Stream, limit: int | None) -> Iterator[bytes]:
    """Yield the decoded bytes up to the limit."""
    total = 0
    for piece in stream.pieces():
        total += len(piece)
        if limit is not None and total > limit:
            raise _too_large(file, f"more than {limit:#x}", limit)
        yield piece


def _too_large(file: DumpFile, size: str, limit: int) -> DumpError:
    return DumpError(
        f"{file.path} has {file.size:#x} bytes and unpacks to {size}, expected {limit:#x} at most; {LIFTED_BY}"
    )


def _looked_at(file: DumpFile, name: str, pieces: Iterator[bytes], keeping: Keeping) -> Iterator[bytes]:
    """Return the same pieces, unless their first bytes cannot be a dump's."""
    begun: deque[bytes] = deque()
    for piece in pieces:
        begun.append(piece)
        if sum(map(len, begun)) >= HEAD_SIZE:
            break
    refusal = None if keeping.refusal is None else keeping.refusal(b"".join(begun)[:HEAD_SIZE])
    if refusal is not None:
        raise UnknownFormat(f"{file.path} is compressed with {name}, and what it unpacks to {refusal}")
    return _from(begun, pieces)


def _from(begun: deque[bytes], pieces: Iterator[bytes]) -> Iterator[bytes]:
    while begun:
        yield begun.popleft()  # release each piece, because it may be large
    yield from pieces


def _opened(file: DumpFile, name: str, unpacked: CachedFile, problem: Problem | None) -> DumpFile:
    if problem is not None:
        unpacked.cut_off = f"the {name} file {problem.value}: it unpacks to {unpacked.size:#x} bytes"
    elif file.cut_off is not None:
        unpacked.cut_off = file.cut_off
    file.close()
    return unpacked


def _identity(file: DumpFile) -> str:
    """Return a hash of the whole compressed file, or of its server's version tag."""
    known = file.identity()
    if known is not None:
        # A copy from when the tag could still mean two contents is not taken later.
        known = file.strong_identity() or known
        return hashlib.sha256(known.encode()).hexdigest()
    digest = hashlib.sha256()
    for at in range(0, file.size, HASH_STEP):
        digest.update(file.buffer(at, min(HASH_STEP, file.size - at)))
    return digest.hexdigest()

"""Dumps on another machine, by a URL that fsspec opens: https://, s3://, ssh://.

Only the blocks that are needed are read; those that lie near each other are asked for at once. If the server says which
version of the file it has, later runs find them in the cache (``kept_blocks``). fsspec and the packages of protocols
are imported when the first URL comes.

References: fsspec's documentation, "API Reference": fsspec.core.url_to_fs(), AbstractFileSystem.open() (2026.9).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path, PosixPath
from typing import Any, cast
from urllib.parse import unquote, unquote_plus

import numpy as np

from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.containers.blockfile import BlockFile
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.kept_blocks import KeptBlocks
from vmcore2core.errors import DumpError, ServerFailed
from vmcore2core.overrides import override

BLOCK = 64 << 10
"""Bytes of a request: kernel structures lie together, and a single page would take as long."""

BLOCKS_AT_ONCE_MAX = 64
"""Most blocks of a request if they are needed in sequence: 4 MiB."""

GAP_MAX = 8
"""Blocks between two others that are asked for along with them: another request would take as long as 512 KiB."""

CACHE_BYTES_BESIDE = 16 << 20
"""Bytes of blocks that are in memory, too, if the cache on disk has them."""

CERTAIN_AFTER = 60
"""A file's time tells its content apart from others only after so many seconds (RFC 9110, 8.8.2.2)."""

SECRET_MIN = 4
"""Shortest part of a URL, in characters, that is searched for in a server's message."""

PACKAGES = "pip install fsspec, and what its protocol needs, such as aiohttp for https, s3fs for s3"

_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Url(PosixPath):
    """A URL in the place of a path; a ``Path`` would turn two slashes into one.

    As text it has only scheme, host and path: the rest may be a password, or a signature that works like one.

    Attributes:
        text: all of it.
    """

    text: str

    def __new__(cls, text: str) -> Url:
        """Keep the text."""
        url = super().__new__(cls, _public(text))
        url.text = text
        return url

    def __init__(self, text: str) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(_public(text))

    @override
    def __str__(self) -> str:
        return _public(self.text)


def _public(text: str) -> str:
    """Return a URL without user, password, query and fragment."""
    scheme, _, rest = text.partition("://")
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _secrets(text: str) -> Iterator[str]:
    """Yield the parts of a URL that must not be shown, as written and decoded; the longest first."""
    authority, _, query = text.partition("://")[2].partition("?")
    authority = authority.partition("/")[0].rpartition("@")[0]
    query, _, fragment = query.partition("#")
    values = [pair.partition("=")[2] for pair in query.split("&")]
    written = [text, authority, *authority.split(":", 1)[1:], query, fragment, *values]
    found = {form for one in written for form in (one, unquote(one), unquote_plus(one)) if len(one) >= SECRET_MIN}
    yield from sorted(found, key=len, reverse=True)


_SIGNING = re.compile(
    r"(x-(amz|goog|oss|cos|obs)-.*|q-.*|signature|sig|s[epvrt]|spr|sip|sk[a-z]+|expires|policy|key-pair-id|.*accesskeyid"
    r"|.*accessid|(access_)?token)=",
    re.IGNORECASE,
)
"""Parts of a query that a signed URL has and that change with each signature: of AWS, Google, Azure and others."""


def _resource(text: str) -> str:
    """Return what of a URL says which file it is: without user, password, fragment and signature."""
    query = text.partition("#")[0].partition("?")[2]
    rest = [pair for pair in query.split("&") if pair and not _SIGNING.match(pair)]
    return "&".join([_public(text), *rest])


def located(text: str) -> Path:
    """Return the path or the ``Url`` that a word of the command line stands for."""
    return Url(text) if _URL.match(text) else Path(text)


_OF_PARENTS: list[object] = []
"""What forked processes inherited of connections. To drop the last reference would close them for the parent, too."""


class _WholeRemoteFile(DumpFile):
    """Reads from the server at each call, without a cache.

    Raises:
        DumpError: it cannot be read; the sentence says what helps.
    """

    def __init__(self, url: Url) -> None:  # there is no file of this machine to open
        self.path: Path = url
        self._url = url
        self._sends_parts = False
        try:
            info = self._connect()
            self.size = int(info.get("size") or 0)
            self._tag, self._version = _tag(info), _version(info)
            self._open()
        except Exception as error:
            # Not "from error": what --debug shows of that has the whole URL.
            raise self._failed(error) from None
        if info.get("type") == "directory":
            raise DumpError(f"{url} is a directory, not a dump file")
        if info.get("size") is None:
            raise DumpError(f"{url}: its server does not say how large it is; copy the dump to a file")

    def _connect(self) -> dict[str, Any]:
        """Return what the server says of the file."""
        from fsspec.core import url_to_fs

        self._system, self._name = url_to_fs(self._url.text)
        info: dict[str, Any] = self._system.info(self._name)
        return info

    def _open(self) -> None:
        self._remote = self._system.open(self._name, "rb", cache_type="none", **self._only_this_version())
        self._pid = os.getpid()

    def _of_this_process(self) -> None:
        """Connect again in a forked worker, which cannot use its parent's connection, nor close it."""
        if self._pid != os.getpid():
            _OF_PARENTS.append((self._system, self._remote))
            self._check_same(self._connect())
            self._open()

    def _check_same(self, info: dict[str, Any]) -> None:
        if (int(info.get("size") or 0), _tag(info)) != (self.size, self._tag):
            raise ServerFailed(self._has_changed)

    @property
    def _has_changed(self) -> str:
        return f"{self.path} has changed while it was read: its server has another version of it now"

    def _only_this_version(self) -> dict[str, Any]:
        """Return the request header that accepts only the present version of the file (RFC 9110, 13.1.1).

        A weak tag ("W/...") never matches.
        """
        strong = _is_strong(self._tag) and self._protocols & {"http", "https"}
        return {"headers": {"If-Match": self._tag}} if strong else {}

    @override
    def changed(self) -> str | None:
        """The server tells its size and version."""
        try:
            self._of_this_process()
            self._check_same(self._system.info(self._name))
        except DumpError as error:
            return str(error)
        except Exception as error:
            raise self._failed(error) from None
        return None

    def _failed(self, error: Exception) -> DumpError:
        """Return the sentence. Each protocol's package has its own exceptions, without a common base class."""
        from http import HTTPStatus

        if isinstance(error, ImportError):
            return DumpError(f"{self.path} needs a Python package that is not installed ({error}): {PACKAGES}")
        if isinstance(error, FileNotFoundError):
            # fsspec's http raises this for every failure; its cause tells the real one.
            if error.__cause__ is None or getattr(error.__cause__, "status", None) == HTTPStatus.NOT_FOUND:
                return DumpError(f"{self.path} cannot be read: there is no such file")
            error = cast("Exception", error.__cause__)
        if isinstance(error, ValueError) and ("range requests" in str(error) or "streaming" in str(error)):
            return ServerFailed(
                f"{self.path} cannot be read: its server does not give parts of a file (range requests), expected "
                f"one that does; copy the dump to a file"
            )
        if getattr(error, "status", None) == HTTPStatus.PRECONDITION_FAILED:
            return ServerFailed(self._has_changed)
        if type(error).__name__ == "TooManyRedirects":  # of aiohttp, whose text says nothing
            return ServerFailed(f"{self.path} cannot be read: its server redirects from one URL to another without end")
        what = " ".join(str(error).split()) or type(error).__name__
        for secret in _secrets(self._url.text):
            what = what.replace(secret, "...")
        what = _ANY_URL.sub(lambda found: _public(found[0]), what)
        return ServerFailed(f"{self.path} cannot be read: {what}")

    @override
    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        try:
            self._of_this_process()
            self._check_parts()
            self._remote.seek(offset)
            raw = bytes(self._remote.read(size)) if size else b""
        except DumpError:
            raise
        except Exception as error:
            raise self._failed(error) from None
        if len(raw) != size:
            raise ServerFailed(f"{self.path}: {len(raw):#x} bytes came of {size:#x} at {offset:#x}: it has changed")
        return raw

    def _check_parts(self) -> None:
        """Ask for one byte: only then does a server say that it does not send parts of a file."""
        if not self._sends_parts:
            self._remote.seek(max(0, self.size - 1))
            self._remote.read(1)
            self._sends_parts = True

    @override
    def strong_identity(self) -> str | None:
        """The server tells it, or does not say enough for that."""
        if self._version is None or self._protocols & {"file", "local", "memory"}:
            return None
        return f"{_resource(self._url.text)} {self._version} {self.size}"

    @property
    def _protocols(self) -> set[str]:
        return {self._system.protocol} if isinstance(self._system.protocol, str) else set(self._system.protocol)

    @override
    def identity(self) -> str | None:
        """Return a text that changes with the content, if the server has one."""
        return None if self._tag is None else f"{self.path} {self._tag} {self.size}"

    @override
    def close(self) -> None:
        """Close the connection."""
        self._remote.close()

    _remote: Any


def _tag(info: dict[str, Any]) -> object:
    """Return the server's tag of a file's version, or None."""
    return next((info[key] for key in ("ETag", "Last-Modified", "mtime") if info.get(key)), None)


def _is_strong(tag: object) -> bool:
    return isinstance(tag, str) and tag.startswith('"')


def _version(info: dict[str, Any]) -> str | None:
    """Return the strong tag of a file's version, or the time of its last change unless that is too new; or None."""
    if _is_strong(info.get("ETag")):
        return f"ETag {info['ETag']}"
    for key in ("Last-Modified", "mtime"):
        changed = _seconds(info.get(key))
        if changed is not None and 0 < changed < time.time() - CERTAIN_AFTER:
            return f"{key} {changed}"
    return None


def _seconds(when: object) -> float | None:
    """Return a time, in the forms that protocols have, as seconds since 1970; None if it is none."""
    from email.utils import parsedate_to_datetime

    try:
        when = parsedate_to_datetime(when) if isinstance(when, str) else when
        return when.timestamp() if isinstance(when, datetime) else float(cast("float", when))
    except (TypeError, ValueError, OverflowError):
        return None


class RemoteFile(BlockFile):
    """A file on another machine; its blocks are cached as those of a compressed file.

    If blocks are needed in sequence, as for a core's large mappings, requests grow.

    Args:
        url: of the file.
        cache: whether blocks are kept for later runs, and taken from earlier ones.
    """

    span_max = DumpFile.span_max

    def __init__(self, url: Url, *, cache: bool = True) -> None:
        remote = _WholeRemoteFile(url)
        super().__init__(remote)
        self.size = remote.size
        self._nr_blocks = -(-self.size // BLOCK)
        self._next, self._at_once = 0, 1
        identity = remote.strong_identity() if cache else None
        self._kept = None if identity is None else KeptBlocks(url, identity, self.size, BLOCK)
        if self._kept is not None:
            self._cached_bytes_max = min(self._cached_bytes_max, CACHE_BYTES_BESIDE)

    @override
    def identity(self) -> str | None:
        return self.inner.identity()

    @override
    def read_once(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    @override
    def _find(self, offset: int) -> int:
        return offset // BLOCK

    @override
    def _start(self, index: int) -> int:
        return index * BLOCK

    @override
    def _end(self, index: int) -> int:
        return min((index + 1) * BLOCK, self.size)

    @override
    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        if BLOCK < end - offset <= CACHE_BYTES_BESIDE:  # of more, the first blocks would be gone before they are read
            self._fetch(range(offset // BLOCK, -(-end // BLOCK)))
        return super().read(offset, size)

    @override
    def gather(self, offsets: U64Array, rows: U64Array, out: U8Array) -> list[int]:
        """What lies near each other is asked for at once."""
        order = np.argsort(offsets, kind="stable")
        blocks = (offsets[order] // np.uint64(BLOCK)).astype(np.int64).tolist()
        for first, last in _joined(blocks):
            mine = order[first:last]
            reached = int(offsets[mine[-1]]) + out.shape[1] - 1
            self._fetch([*blocks[first:last], reached // BLOCK])
            super().gather(offsets[mine], rows[mine], out)
        return []

    def _has(self, index: int) -> bool:
        return index in self._cache or (self._kept is not None and self._kept.has(index))

    def _fetch(self, blocks: Iterable[int]) -> None:
        """Ask for those of some blocks that are not there, ascending."""
        lacking = [index for index in blocks if not self._has(index)]
        for first, last in _joined(lacking):
            self._request(lacking[first], lacking[last - 1] + 1)

    def _request(self, first: int, end: int) -> bytes:
        """Ask for blocks, and for those between them and one that is there; return the blocks from ``first`` on.

        If this goes on where the last request ended, or near that, it goes further than the last one.
        """
        self._at_once = min(2 * self._at_once, BLOCKS_AT_ONCE_MAX) if 0 <= first - self._next <= GAP_MAX else 1
        below = range(first - 1, max(first - 1 - GAP_MAX, -1), -1)
        start = next((index + 1 for index in below if self._has(index)), first)
        while end < min(start + self._at_once, self._nr_blocks) and not self._has(end):
            end += 1
        self._next = end
        raw = self.inner.read(start * BLOCK, (end - start) * BLOCK)
        for index, at in enumerate(range(0, len(raw), BLOCK), start):
            self._keep(index, raw[at : at + BLOCK])
            if self._kept is not None:
                self._kept.put(index, raw[at : at + BLOCK])
        return raw[(first - start) * BLOCK :]

    @override
    def _decode(self, index: int, size: int) -> bytes:
        kept = None if self._kept is None else self._kept.get(index)
        return self._request(index, index + 1)[:size] if kept is None else kept

    @override
    def close(self) -> None:
        """Close the connection and the cache."""
        if self._kept is not None:
            self._kept.close()
        super().close()


def _joined(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yield ``[first, last)`` of those blocks, ascending, that are best asked for at once."""
    first = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] - blocks[i - 1] > GAP_MAX or blocks[i] - blocks[first] >= BLOCKS_AT_ONCE_MAX:
            if blocks:
                yield first, i
            first = i

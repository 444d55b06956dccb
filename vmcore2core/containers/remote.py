"""Dumps on another machine, by a URL that fsspec opens: https://, s3://, ssh://.

Only the blocks that are needed are read, once each while the cache has space. fsspec and the packages of protocols are
imported when the first URL comes.

References: fsspec's documentation, "API Reference": fsspec.core.url_to_fs(), AbstractFileSystem.open() (2026.9).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path, PosixPath
from typing import Any, cast
from urllib.parse import unquote, unquote_plus

from vmcore2core.containers.blockfile import BlockFile
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.errors import DumpError
from vmcore2core.overrides import override

BLOCK = 64 << 10
"""Bytes of a request: kernel structures lie together, and a single page would take as long."""

BLOCKS_AT_ONCE_MAX = 64
"""Most blocks of a request if they are needed in sequence: 4 MiB."""

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


def located(text: str) -> Path:
    """Return the path or the ``Url`` that a word of the command line stands for."""
    return Url(text) if _URL.match(text) else Path(text)


class _WholeRemoteFile(DumpFile):
    """Reads from the server at each call, without a cache.

    Raises:
        DumpError: it cannot be read; the sentence says what helps.
    """

    def __init__(self, url: Url) -> None:  # there is no file of this machine to open
        self.path: Path = url
        self._url = url
        try:
            from fsspec.core import url_to_fs

            self._system, self._name = url_to_fs(url.text)
            info = self._system.info(self._name)
            self.size = int(info.get("size") or 0)
            self._tag = _tag(info)
            self._remote = self._system.open(self._name, "rb", cache_type="none", **self._only_this_version())
            # A server that does not send parts of a file says so at the first such request, not before.
            self._remote.seek(max(0, self.size - 1))
            self._remote.read(1)
        except Exception as error:
            # Not "from error": what --debug shows of that has the whole URL.
            raise self._failed(error) from None
        if info.get("type") == "directory":
            raise DumpError(f"{url} is a directory, not a dump file")
        if info.get("size") is None:
            raise DumpError(f"{url}: its server does not say how large it is; copy the dump to a file")

    def _only_this_version(self) -> dict[str, Any]:
        """Return the request header that accepts only the present version of the file (RFC 9110, 13.1.1).

        A weak tag ("W/...") never matches.
        """
        protocols = {self._system.protocol} if isinstance(self._system.protocol, str) else set(self._system.protocol)
        strong = isinstance(self._tag, str) and self._tag.startswith('"')
        return {"headers": {"If-Match": self._tag}} if strong and protocols & {"http", "https"} else {}

    @override
    def changed(self) -> str | None:
        """The server tells its size and version."""
        try:
            info = self._system.info(self._name)
        except Exception as error:
            raise self._failed(error) from None
        if (int(info.get("size") or 0), _tag(info)) == (self.size, self._tag):
            return None
        return f"{self.path} has changed while it was read: its server has another version of it now"

    def _failed(self, error: Exception) -> DumpError:
        """Return the sentence. Each protocol's package has its own exceptions, without a common base class."""
        if isinstance(error, ImportError):
            return DumpError(f"{self.path} needs a Python package that is not installed ({error}): {PACKAGES}")
        if isinstance(error, FileNotFoundError):
            # fsspec's http raises this for every failure; its cause tells the real one.
            if error.__cause__ is None or getattr(error.__cause__, "status", None) == HTTPStatus.NOT_FOUND:
                return DumpError(f"{self.path} cannot be read: there is no such file")
            error = cast("Exception", error.__cause__)
        if isinstance(error, ValueError) and ("range requests" in str(error) or "streaming" in str(error)):
            return DumpError(
                f"{self.path} cannot be read: its server does not give parts of a file (range requests), expected "
                f"one that does; copy the dump to a file"
            )
        if getattr(error, "status", None) == HTTPStatus.PRECONDITION_FAILED:
            return DumpError(f"{self.path} has changed while it was read: its server has another version of it now")
        what = " ".join(str(error).split()) or type(error).__name__
        for secret in _secrets(self._url.text):
            what = what.replace(secret, "...")
        what = _ANY_URL.sub(lambda found: _public(found[0]), what)
        return DumpError(f"{self.path} cannot be read: {what}")

    @override
    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        try:
            self._remote.seek(offset)
            raw = bytes(self._remote.read(size)) if size else b""
        except Exception as error:
            raise self._failed(error) from None
        if len(raw) != size:
            raise DumpError(f"{self.path}: {len(raw):#x} bytes came of {size:#x} at {offset:#x}: it has changed")
        return raw

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


class RemoteFile(BlockFile):
    """A file on another machine; its blocks are cached as those of a compressed file.

    If blocks are needed in sequence, as for a core's large mappings, requests grow.
    """

    def __init__(self, url: Url) -> None:
        remote = _WholeRemoteFile(url)
        super().__init__(remote)
        self.size = remote.size
        self._next, self._at_once = 0, 1

    @override
    def identity(self) -> str | None:
        return self.inner.identity()

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
    def _decode(self, index: int, size: int) -> bytes:
        self._at_once = min(2 * self._at_once, BLOCKS_AT_ONCE_MAX) if index == self._next else 1
        raw = self.inner.read(index * BLOCK, self._at_once * BLOCK)
        for number, at in enumerate(range(BLOCK, len(raw), BLOCK), index + 1):
            self._keep(number, raw[at : at + BLOCK])
        self._next = index + self._at_once
        return raw[:size]

"""Files by build ID from debuginfod servers, kept where the debuginfod client keeps them.

We send only build IDs, and only to the servers that $DEBUGINFOD_URLS names. Downloads are bounded in size and time, and
a file is accepted only if it has the requested build ID.

Reference: elfutils' debuginfod-find(1) and debuginfod/debuginfod-client.c (0.188): GET URL/buildid/BUILDID/executable
and .../debuginfo; the cache has CACHE/BUILDID/executable and .../debuginfo, and an empty file where no server had one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from stat import S_ISREG, S_IWGRP, S_IWOTH
from typing import IO

from vmcore2core import __version__
from vmcore2core.containers.remote import located
from vmcore2core.errors import OutputError, UsageError
from vmcore2core.folders import opened_folder, trusted_owners

TIMEOUT = 90
"""Seconds without a byte after which we give up a server, as the debuginfod client does."""
MAXTIME = 600
"""Most seconds for one file."""
MAXSIZE = 4 << 30
"""Most bytes of one file."""
CACHE_MISS = 600
"""Seconds for which an empty file in the cache means that no server had the file, as in the debuginfod client."""
CHUNK = 1 << 20
_SERVER = re.compile(r"https?://[^/]")

log = logging.getLogger(__name__)


class Kind(Enum):
    """Which file to request for a build ID."""

    EXECUTABLE = "executable"
    DEBUGINFO = "debuginfo"


@dataclass
class Debuginfod:
    """The servers, and the cache.

    Attributes:
        urls: of the servers.
        cache: the client's cache.
        timeout: seconds without a byte.
        maxtime: seconds for one file.
        maxsize: bytes of one file.
        notices: sentences about servers that did not answer.
    """

    urls: tuple[str, ...]
    cache: Path
    timeout: float = TIMEOUT
    maxtime: float = MAXTIME
    maxsize: int = MAXSIZE
    notices: list[str] = field(default_factory=list)
    _down: set[str] = field(default_factory=set)
    _absent: set[tuple[bytes, Kind]] = field(default_factory=set)

    def find(self, build_id: bytes, kind: Kind) -> Path | None:
        """Return a file from the cache, after asking the servers if it is not there; None if no server has it."""
        if not build_id or (build_id, kind) in self._absent:
            return None
        kept = self.cache / build_id.hex() / kind.value
        if _is_there(kept):
            return kept
        if not _missed_lately(kept):
            for url in self.urls:
                if url not in self._down and self._fetched(url, build_id, kept):
                    return kept
        self._absent.add((build_id, kind))
        return None

    def _fetched(self, url: str, build_id: bytes, kept: Path) -> bool:
        """Ask one server; tell whether the file is in the cache now."""
        import tempfile  # these imports take a tenth of a second, which runs without servers need not spend
        from http.client import NOT_FOUND, HTTPException
        from urllib.error import HTTPError

        asked = f"{url}/buildid/{build_id.hex()}/{kept.name}"
        try:
            with opened_folder(kept.parent, make=True):
                pass  # the folder exists and is ours
            with tempfile.NamedTemporaryFile(dir=kept.parent, prefix=f"{kept.name}.", delete=False) as part:
                try:
                    self._receive(asked, part.file)
                    Path(part.name).replace(kept)
                except BaseException:
                    Path(part.name).unlink()
                    raise
        except HTTPError as error:
            error.close()
            if error.code != NOT_FOUND:
                self._gave_up(url, f"HTTP status {error.code}")
        except (HTTPException, OSError, OutputError) as error:
            self._gave_up(url, str(getattr(error, "reason", error)))
        else:
            log.info("%s: received", asked)
            return True
        finally:
            with contextlib.suppress(OSError):
                kept.parent.rmdir()  # no file came
        return False

    def _gave_up(self, url: str, why: str) -> None:
        self._down.add(url)
        shown = str(located(url))  # without a password
        self.notices.append(f"debuginfod server {shown} is not asked any more: {why.replace(url, shown)}")

    def _receive(self, asked: str, part: IO[bytes]) -> None:
        from urllib.request import Request, urlopen

        deadline = time.monotonic() + self.maxtime
        # The scheme is http or https: servers() takes no other.
        request = Request(asked, headers={"User-Agent": f"vmcore2core/{__version__}"})  # noqa: S310
        with urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
            size = 0
            while chunk := answer.read1(CHUNK):
                size += len(chunk)
                if size > self.maxsize:
                    raise OSError(f"{asked} has more than {self.maxsize} bytes")
                if time.monotonic() > deadline:
                    raise OSError(f"{asked} takes more than {self.maxtime:.0f} s")
                part.write(chunk)


def _is_there(kept: Path) -> bool:
    """Tell whether the cache has a file, and no other user can have put it there."""
    try:
        status = kept.stat()
    except OSError:
        return False
    ours = status.st_uid in trusted_owners() and not status.st_mode & (S_IWGRP | S_IWOTH)
    return S_ISREG(status.st_mode) and status.st_size > 0 and ours


def _missed_lately(kept: Path) -> bool:
    try:
        return time.time() - kept.stat().st_mtime < CACHE_MISS
    except OSError:
        return False


def debuginfod(environ: Mapping[str, str] = os.environ) -> Debuginfod:
    """Return the servers and the cache that the debuginfod client's environment variables name.

    Raises:
        UsageError: $DEBUGINFOD_URLS names no server.
    """
    urls = [url.rstrip("/") for url in environ.get("DEBUGINFOD_URLS", "").split()]
    good = [url for url in urls if _SERVER.match(url)]
    if not good:
        raise UsageError("--debuginfod needs the servers' URLs (http or https) in $DEBUGINFOD_URLS")
    return Debuginfod(
        tuple(good),
        _cache(environ),
        _number(environ, "DEBUGINFOD_TIMEOUT", TIMEOUT),
        _number(environ, "DEBUGINFOD_MAXTIME", MAXTIME),
        _number(environ, "DEBUGINFOD_MAXSIZE", MAXSIZE),
    )


def _cache(environ: Mapping[str, str]) -> Path:
    named = environ.get("DEBUGINFOD_CACHE_PATH")
    if named:
        return Path(named)
    home = Path(environ.get("HOME", "/"))
    old = home / ".debuginfod_client_cache"
    if old.is_dir():
        return old
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "debuginfod_client"


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a limit; as in the client, 0 or a value that is not a number means the default."""
    value = environ.get(name, "")
    return int(value) if value.isdecimal() and int(value) else default

"""Runs inside gdb and lldb: downloads an executable by its build ID from debuginfod servers, into their client's cache.

It sends only build IDs, and only to the servers in $DEBUGINFOD_URLS. Start scripts load this file from the folder of
the cores.

References: debuginfod(8), "WEBAPI"; debuginfod_find_debuginfo(3), "FILES"; ``vmcore2core.folders`` for which owners'
folders are trusted.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

DOWNLOAD_MAX = 1 << 30  # bytes per file
DOWNLOAD_SECONDS = 90  # per file


def download(build_id: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the executable with a build ID from the cache or a server in $DEBUGINFOD_URLS; None if neither has it."""
    urls = environ.get("DEBUGINFOD_URLS", "").split()
    if not urls:
        return None
    home = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = environ.get("DEBUGINFOD_CACHE_PATH") or Path(home) / "debuginfod_client"
    target = Path(cache) / build_id / "executable"
    if is_ours(target) and target.stat().st_size:
        return target
    for url in urls:
        if url.startswith(("http://", "https://")):
            try:
                _fetch(f"{url.rstrip('/')}/buildid/{build_id}/executable", target)
            except (OSError, ValueError):
                continue
            return target
    return None


def is_ours(path: Path) -> bool:
    """Tell whether nobody else can have put a file or folder there, by the rules of vmcore2core's ``folders``.

    The file and each folder above it must belong to the user, to root, or to the user who called sudo, and others must
    not be able to write to it, except to a folder above it with the sticky bit. It must not be a link, FIFO or device.
    """
    caller = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    owners = {0, os.geteuid(), *([int(caller)] if caller.isdecimal() else [])}
    try:
        links = [one.lstat() for one in (path, *path.parent.resolve().parents, path.parent.resolve())]
    except OSError:
        return False
    own, *above = links
    return (
        (stat.S_ISREG(own.st_mode) or stat.S_ISDIR(own.st_mode))
        and not _others_write(own, owners)
        and all(one.st_uid in owners for one in links)
        and all(not _others_write(one, owners) or one.st_mode & stat.S_ISVTX for one in above)
    )


def _others_write(status: os.stat_result, owners: set[int]) -> bool:
    """Tell whether anybody but the owners can write to a file or folder.

    Group write permission is harmless if the owner is the group's only member: Debian gives each user such a group.
    """
    if not status.st_mode & stat.S_IWGRP or status.st_mode & stat.S_IWOTH:
        return bool(status.st_mode & stat.S_IWOTH)
    try:
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    return not (group.gr_name in _names(owners) and set(group.gr_mem) <= {group.gr_name})


def _names(users: set[int]) -> Iterator[str]:
    for user in users:
        with contextlib.suppress(KeyError):
            yield pwd.getpwuid(user).pw_name


def _fetch(url: str, target: Path) -> None:
    """Download a file, within limits of size and time; it gets its name only when it is complete.

    Raises:
        OSError, ValueError: the download failed, or is too large or too slow.
    """
    for folder in (*reversed(target.parent.parents), target.parent):  # only the user may access it, whatever the umask
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    if not is_ours(target.parent):
        raise OSError(f"others can write to {target.parent}")
    fd, part = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as file, urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:  # noqa: S310
            _copy(answer, file)
        Path(part).replace(target)
    except BaseException:
        Path(part).unlink()
        raise


def _copy(answer: IO[bytes], file: IO[bytes]) -> None:
    end = time.monotonic() + DOWNLOAD_SECONDS
    while piece := answer.read(1 << 20):
        if file.tell() + len(piece) > DOWNLOAD_MAX or time.monotonic() > end:
            raise ValueError("too large or too slow")
        file.write(piece)

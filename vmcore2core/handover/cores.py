"""The cores of a directory: files with a core's name, and files that its index lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmcore2core.errors import DumpError
from vmcore2core.handover.index import INDEX_MAX, INDEX_NAME

CORE_NAME = re.compile(r"core|core\.(?:.+\.)?\d+(?:\.zst)?|.+\.core(?:\.zst)?", re.DOTALL)
"""``core.COMM.PID``, what kernels (kernel.core_pattern) and systemd-coredump write, and ``app.core``."""


def cores_of(directory: Path) -> list[Path]:
    """Return the cores of a directory, sorted by name; a core that its index lists may not exist.

    Raises:
        DumpError: the directory cannot be read, has no core, or its index is broken.
    """
    try:
        there = {path.name for path in directory.iterdir() if CORE_NAME.fullmatch(path.name) and path.is_file()}
    except OSError as error:
        raise DumpError(f"{directory} cannot be read: {error.strerror}") from error
    found = there | set(_indexed(directory / INDEX_NAME))
    if not found:
        raise DumpError(f"{directory} has no core, expected files with names such as core.COMM.PID")
    return [directory / name for name in sorted(found)]


def _indexed(path: Path) -> Iterator[str]:
    """Yield the cores' names that an index lists; nothing if there is no index."""
    try:
        with path.open("rb") as file:
            document: Any = json.loads(file.read(INDEX_MAX))
        for process in document["processes"]:
            yield _plain(process["core"]["file"])
    except FileNotFoundError:
        return
    except OSError as error:
        raise DumpError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DumpError(f"{path} is not an index that vmcore2core wrote: {error!r}") from error


def _plain(name: str) -> str:
    """Return a file's name, checked to stay in its directory.

    Raises:
        ValueError: the name leads out of the directory.
    """
    if Path(name).name != name or not name:
        raise ValueError(f"{name!r} is no name of a file beside it")
    return name

"""Dump formats: from a file to page frames.

A format is one module here that ends in ``CONTAINER = NameContainer``; nothing else has to know of it.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.foreign import describe
from vmcore2core.errors import UnknownFormat, UsageError

__all__ = ["all_containers", "open_container"]


def all_containers() -> tuple[type[DumpContainer], ...]:
    """Return the class of every dump format, by module name."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        container = getattr(importlib.import_module(f"{__name__}.{module.name}"), "CONTAINER", None)
        if container is not None:
            found.append(container)
    return tuple(found)


def open_container(paths: Sequence[Path]) -> DumpContainer:
    """Open a dump.

    Args:
        paths: the dump's file, or files where the format has several.

    Raises:
        UsageError: no path was given.
        UnknownFormat: no container claims the first file; the message says what it looks like.
        FormatError: it is broken.
        DumpError: it cannot be read.
    """
    if not paths:
        raise UsageError("no dump file was given")
    with contextlib.closing(open_dump_file(paths[0])) as file:
        claims = [container for container in all_containers() if container.detect(file.head())]
        if not claims:
            raise UnknownFormat(f"{paths[0]} {describe(file.head())}")
    return _construct(claims[0], paths)


def _construct(container: type[DumpContainer], paths: Sequence[Path]) -> DumpContainer:
    """Call the constructor; the contract of ``DumpContainer`` fixes its argument, but no type can say so."""
    opened: DumpContainer = container(paths)  # type: ignore[call-arg]
    return opened

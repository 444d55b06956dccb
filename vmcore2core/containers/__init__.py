"""Dump formats: from a file to page frames.

A format is one module here that ends in ``CONTAINER = NameContainer``; no other file changes for it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.cache import Keeping
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.files import open_dump_file
from vmcore2core.containers.flattened import is_flattened
from vmcore2core.containers.foreign import describe, is_kernel_image, recognise
from vmcore2core.containers.packed import KEPT
from vmcore2core.containers.raw import RawContainer
from vmcore2core.errors import UnknownFormat, UsageError

__all__ = ["all_containers", "open_container"]


def each_container() -> Iterator[type[DumpContainer]]:
    """Yield the class of every dump format in the order of module names; import each when it is its turn."""
    for module in pkgutil.iter_modules(__path__):
        container = getattr(importlib.import_module(f"{__name__}.{module.name}"), "CONTAINER", None)
        if container is not None:
            yield container


def all_containers() -> tuple[type[DumpContainer], ...]:
    """Return the class of every dump format, by module name."""
    return tuple(each_container())


def open_container(paths: Sequence[Path], memory_map: str | None = None, keeping: Keeping = KEPT) -> DumpContainer:
    """Open a dump.

    Args:
        paths: the dump's file, or its files if the format has several.
        memory_map: tells where memory lies in a file without a header (``raw.parse_map``); None for other files.
        keeping: how to keep a file that must be unpacked or comes through a pipe.

    Raises:
        UsageError: no path was given, or too many for the format, or a map for a file that needs none.
        UnknownFormat: no container claims any of the files; the message says what the first one looks like.
        FormatError: it is broken.
        DumpError: it cannot be read.
    """
    if not paths:
        raise UsageError("no dump file was given")
    if memory_map is None and len(paths) == 1:  # of several, some have no header
        keeping = replace(keeping, refusal=_refusal)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(contextlib.closing(open_dump_file(path, keeping))) for path in paths]
        claimant = _claimant(files)
        _check_no_kernel_image(files)
        container = _construct(claimant, files) if memory_map is None else _mapped(claimant, files, memory_map)
        container.files = tuple(files)
        opened.pop_all()  # the container closes them now
        return container


def _refusal(head: bytes) -> str | None:
    """Return why these first bytes are no dump's, as the rest of a sentence; None if they may be."""
    if is_flattened(io.BytesIO(head)) or any(container.detect(io.BytesIO(head)) for container in each_container()):
        return None
    return describe(io.BytesIO(head))


def _claimant(files: Sequence[DumpFile]) -> type[DumpContainer] | None:
    """Return the format of the first file that any container claims: the others may have no header at all."""
    for file in files:
        for container in each_container():
            if container.detect(file.head()):
                return container
    return None


def _check_no_kernel_image(files: Sequence[DumpFile]) -> None:
    """Check that no file beside the dump is a kernel: users of crash name vmlinux and vmcore.

    Raises:
        UsageError: one is.
    """
    for file in files if len(files) > 1 else ():
        if is_kernel_image(file.head()):
            raise UsageError(f"{file.path} {recognise(file.head())}")


def _mapped(claimant: type[DumpContainer] | None, files: Sequence[DumpFile], memory_map: str) -> DumpContainer:
    if claimant is not None and claimant.takes_map:
        placed: DumpContainer = claimant(files, memory_map)  # type: ignore[call-arg]
        return placed
    if claimant is not None:
        raise UsageError(
            f"{files[0].path} is a dump of format {claimant.DOC.name}, which tells itself where memory lies: "
            f"--map is for files without a header"
        )
    known = recognise(files[0].head())
    if known is not None:
        raise UsageError(f"{files[0].path} {known}; --map is for files without a header")
    return RawContainer(files, memory_map)


def _construct(container: type[DumpContainer] | None, files: Sequence[DumpFile]) -> DumpContainer:
    """Call the constructor; the contract of ``DumpContainer`` fixes its argument, but no type can say so."""
    if container is None:
        why = f" ({files[0].cut_off})" if files[0].cut_off else ""
        raise UnknownFormat(f"{files[0].path} {describe(files[0].head())}{why}")
    opened: DumpContainer = container(files)  # type: ignore[call-arg]
    return opened

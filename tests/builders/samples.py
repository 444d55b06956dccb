"""The same few pages in every dump format, to be broken in every way.

A builder module of ``tests.builders`` may end in ``SAMPLES``: name -> ``Sample``; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import random
from collections.abc import Mapping
from dataclasses import dataclass

import tests.builders
from tests.builders.elfdump import page

PAGE_SIZE = 4096

PAGES: Mapping[int, bytes] = {
    **{pfn: page(pfn) for pfn in (0, 1, 2)},
    3: random.Random(5).randbytes(PAGE_SIZE),
    **{pfn: page(pfn) for pfn in (8, 9)},
    10: bytes(PAGE_SIZE),
    **{pfn: page(pfn) for pfn in (11, 40)},
}
"""Page frames of a small machine: text that names itself, noise, zeros."""


def ranges(pages: Mapping[int, bytes] = PAGES) -> list[tuple[int, bytes]]:
    """Return the runs of pages as (physical address, bytes)."""
    runs = itertools.groupby(enumerate(sorted(pages)), lambda item: item[1] - item[0])
    found = []
    for _, members in runs:
        pfns = [pfn for _, pfn in members]
        found.append((pfns[0] * PAGE_SIZE, b"".join(pages[pfn] for pfn in pfns)))
    return found


@dataclass(frozen=True)
class Sample:
    """A dump with ``PAGES``.

    Attributes:
        container: the name of its format.
        files: the contents of its file or files, in the order in which they are given.
        memory_map: for ``--map``.
        silent: sizes to which the first file can be cut without its format being able to tell.
        zeros: pages beside ``PAGES`` that its format has as zeros.
    """

    container: str
    files: tuple[bytes, ...]
    memory_map: str | None = None
    silent: frozenset[int] = frozenset()
    zeros: frozenset[int] = frozenset()


def all_samples() -> dict[str, Sample]:
    """Return every sample by its name."""
    found: dict[str, Sample] = {}
    for module in pkgutil.iter_modules(tests.builders.__path__):
        found |= getattr(importlib.import_module(f"tests.builders.{module.name}"), "SAMPLES", {})
    return found

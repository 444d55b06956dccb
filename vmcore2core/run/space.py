"""Estimate the size of cores, and check the free space."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vmcore2core.errors import OutputError
from vmcore2core.memory.pages import LAST_KNOWN, UserPageState
from vmcore2core.process.snapshot import Captured

HEAD_SIZE = 1 << 16
"""Bytes for headers and notes; each further thread takes THREAD_SIZE."""
THREAD_SIZE = 1 << 13


class CoreSize(NamedTuple):
    """The size of a future core: most bytes on disk (zero pages become holes), and its approximate file size."""

    on_disk: int
    apparent: int


class PlannedCore(NamedTuple):
    """A core that would be written: its path, most bytes on disk, and its approximate file size."""

    pid: int
    comm: str
    path: str
    on_disk: int
    size: int

    def line(self) -> str:
        """Return its line on stdout."""
        return f"{self.path}: {amount(self.on_disk)} at most, {amount(self.size)} with holes"


def core_size(captured: Captured) -> CoreSize:
    """Estimate the size of a process's core."""
    snapshot, memory = captured.snapshot, captured.memory
    regions = {region.start: region for region in memory.regions}
    stored = known = 0
    for vma in snapshot.vmas:
        if not vma.dumped or vma.start not in regions:
            continue
        region = replace(regions[vma.start], end=vma.dump_end(snapshot.page_size))
        for state, n in memory.survey(region).counts.items():
            known += n if state <= LAST_KNOWN else 0
            stored += n if state <= LAST_KNOWN and state != UserPageState.ZERO else 0
    head = HEAD_SIZE + THREAD_SIZE * len(snapshot.threads) + sum(len(run.tags) for run in snapshot.tags)
    return CoreSize(head + stored * snapshot.page_size, head + known * snapshot.page_size)


def check_space(directory: Path, needed: int) -> None:
    """Check that a file system has enough space.

    Raises:
        OutputError: it has not enough.
    """
    try:
        found = os.statvfs(directory)
    except OSError:
        return  # then writing will find out
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise OutputError(
            f"{directory} has room for {amount(free)}, expected {amount(needed)}: what the cores need at most; "
            "nothing is written"
        )


def amount(size: int) -> str:
    """Return a number of bytes as text in binary units."""
    return next((f"{size / (1 << shift):.1f} {unit}" for shift, unit in _units() if size >> shift), f"{size} bytes")


def _units() -> Iterator[tuple[int, str]]:
    yield from ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB"))

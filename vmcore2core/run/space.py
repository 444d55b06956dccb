"""Estimate the size of cores."""

from __future__ import annotations

from typing import NamedTuple

from vmcore2core.memory.pages import LAST_KNOWN, UserPageState
from vmcore2core.printable import amount
from vmcore2core.process.snapshot import Captured
from vmcore2core.process.text import mapped_in

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
        region = regions[vma.start]._replace(end=vma.dump_end(snapshot.page_size))
        if vma.beyond_filter:
            region, stored = mapped_in(region), stored + 1  # the file's first page may be in the page cache alone
        for state, n in memory.survey(region).counts.items():
            known += n if state <= LAST_KNOWN else 0
            stored += n if state <= LAST_KNOWN and state != UserPageState.ZERO else 0
    head = HEAD_SIZE + THREAD_SIZE * len(snapshot.threads) + sum(len(run.tags) for run in snapshot.tags)
    return CoreSize(head + stored * snapshot.page_size, head + known * snapshot.page_size)

"""Find secrets in the memory that will be written of a process, page by page as the writer gets it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from vmcore2core.corefile.plan import build_plan
from vmcore2core.errors import TaskError
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import counted
from vmcore2core.process.redact import BlankedStream, environment
from vmcore2core.process.secrets import Search, Secrets, merged
from vmcore2core.process.snapshot import Captured, Processes


def without_secrets(
    secrets: Secrets, processes: Processes, leader: StructView, captured: Captured
) -> tuple[Captured, Secrets]:
    """Return a process with the secrets in its memory blanked, and all secrets that were searched for.

    Args:
        secrets: the secrets to find; the values of the process's own environment are added.
        processes: the dump's processes.
        leader: the thread group's leader.
        captured: the process.
    """
    notices = list(captured.snapshot.notices)
    if secrets.known:
        try:
            secrets = secrets.with_environment(environment(processes, leader, captured))
        except TaskError:
            notices.append("--redact secrets: where its environment is, is not known, so its values are not looked for")
    search = Search(secrets)
    for start, data in _written(captured):
        search.add(start, data)
    found = merged(search.found)
    if found:
        size = sum(end - start for start, end in found)
        blanked = f"{counted(size, 'byte')} in {counted(len(found), 'place')}"
        notices.append(f"--redact secrets: blanked {blanked}; it is a net with holes")
    snapshot = captured.snapshot._replace(
        blanked=tuple(merged([*captured.snapshot.blanked, *found])),
        notices=tuple(dict.fromkeys(notices)),
    )
    return captured._replace(snapshot=snapshot), secrets


def _written(captured: Captured) -> Iterator[tuple[int, bytes]]:
    """Yield the memory that would be written of a process: the address and the bytes of each run of pages."""
    snapshot, page = captured.snapshot, captured.snapshot.page_size
    stream = BlankedStream(captured.memory, snapshot.blanked, page)
    for segment in build_plan(snapshot).segments:
        for vaddr, pages in stream.batches([(segment.start, segment.start + segment.filesz)]):
            cuts = [0, *(np.flatnonzero(np.diff(vaddr) != page) + 1).tolist(), len(vaddr)]
            for first, last in itertools.pairwise(cuts):
                if first < last:
                    yield int(vaddr[first]), pages[first:last].tobytes()

"""Files that are more than once in a dump: what one lacks in memory, another with the same build ID may have.

Containers, chroots and copies have the same programs and libraries as files of their own, each with its own pages in
the page cache.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.addresses import KernelAddr
from vmcore2core.handover.mapped import BROKEN, MappedFiles
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.process.capture import Processes
from vmcore2core.process.filepages import FilePages

OTHERS_MAX = 64
"""Files with one build ID that are looked at."""


class SameBuilds:
    """The files of all processes, by build ID.

    Args:
        processes: of the dump.
        cache: the page cache.
    """

    def __init__(self, processes: Processes, cache: PageCache) -> None:
        self._processes, self._cache = processes, cache
        self._files: dict[bytes, dict[int, bytes]] = {}

    def learn(self, mapped: MappedFiles) -> None:
        """Remember the files of a process: those whose build ID its memory has."""
        for path, file in mapped.files.items():
            if file.build_id is not None:
                self._files.setdefault(file.build_id, {}).setdefault(file.mapping, path)

    def complete(self, pages: FilePages, mapping: int, build_id: bytes | None) -> Iterator[tuple[bytes, int]]:
        """Give a file the pages that it lacks, and yield the path of each file that had some, and how many.

        Args:
            pages: of the file.
            mapping: kernel virtual address of its ``struct address_space``.
            build_id: of the file, or None where it is not known.
        """
        others = {} if build_id is None else self._files.get(build_id, {})
        for address, path in list(others.items())[:OTHERS_MAX]:
            if address == mapping or pages.known.all():
                continue
            try:
                view = self._processes.kernel.view("address_space", KernelAddr(address))
                taken = pages.take(FilePages(self._cache, view, self._processes.swap.space))
            except BROKEN:
                continue
            if taken:
                yield path, taken

"""Files with the same build ID: one copy in the page cache may have the pages that another lacks.

Containers, chroots and copies have the same programs and libraries as separate files, each with its own pages in the
page cache.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.addresses import KernelAddr
from vmcore2core.handover.mapped import BROKEN, MappedFiles
from vmcore2core.kernel.filemap import PageCache
from vmcore2core.process.filepages import FilePages
from vmcore2core.process.snapshot import Processes

OTHERS_MAX = 64
"""Most files with one build ID that are searched."""


class SameBuilds:
    """The files of all processes, by build ID.

    Args:
        processes: the dump's processes.
        cache: the page cache.
    """

    def __init__(self, processes: Processes, cache: PageCache) -> None:
        self._processes, self._cache = processes, cache
        self._files: dict[bytes, dict[int, bytes]] = {}

    def learn(self, mapped: MappedFiles) -> None:
        """Remember the process's files whose build ID is in its memory."""
        for path, file in mapped.files.items():
            if file.build_id is not None:
                self._files.setdefault(file.build_id, {}).setdefault(file.mapping, path)

    def complete(self, pages: FilePages, mapping: int, build_id: bytes | None) -> Iterator[tuple[bytes, int]]:
        """Add missing pages to a file from other copies; yield the path of each copy used, and its number of pages.

        Args:
            pages: the file's pages.
            mapping: kernel virtual address of its ``struct address_space``.
            build_id: the file's build ID, or None if unknown.
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

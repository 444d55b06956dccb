"""Files with the same build ID: one copy in the page cache may have the pages that another lacks.

Containers, chroots and copies have the same programs and libraries as separate files, each with its own pages in the
page cache.
"""

from __future__ import annotations

from itertools import islice

from vmcore2core.handover.mapped import MappedFiles

OTHERS_MAX = 64
"""Most files with one build ID that are searched."""


class SameBuilds:
    """The files of all processes, by build ID."""

    def __init__(self) -> None:
        self._files: dict[bytes, dict[int, bytes]] = {}

    def learn(self, mapped: MappedFiles) -> None:
        """Remember the process's files whose build ID is in its memory."""
        for path, file in mapped.files.items():
            if file.build_id is not None:
                self._files.setdefault(file.build_id, {}).setdefault(file.mapping, path)

    def others(self, build_id: bytes | None, mapping: int) -> tuple[tuple[int, bytes], ...]:
        """Return ``struct address_space`` and path of each other file with a build ID.

        Args:
            build_id: of the file, or None if unknown.
            mapping: kernel virtual address of its own ``struct address_space``.
        """
        files = {} if build_id is None else self._files.get(build_id, {})
        return tuple(one for one in islice(files.items(), OTHERS_MAX) if one[0] != mapping)

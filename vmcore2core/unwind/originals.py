"""The files that a process's images were loaded from, found when a stack first needs one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vmcore2core.elf.build_id import build_id
from vmcore2core.process.binaries import Binaries, MappedImage
from vmcore2core.process.copies import Copies
from vmcore2core.process.sysroot import OriginalFile
from vmcore2core.unwind.eh_index import EhIndexes
from vmcore2core.unwind.lines import LineTables
from vmcore2core.unwind.reading import PagedRead


@dataclass
class Files:
    """The sources besides memory that unwinding uses.

    Attributes:
        binaries: where to search for files; None for nowhere.
        copies: other copies of the files in the page cache, or None.
        lines: the line tables of files.
        indexes: the call frame information of programs, by function.
    """

    binaries: Binaries | None = None
    copies: Copies | None = None
    lines: LineTables = field(default_factory=LineTables)
    indexes: EhIndexes = field(default_factory=EhIndexes)

    @property
    def notices(self) -> list[str]:
        """Sentences about files that were used or rejected, and about missing tools or settings."""
        found = [] if self.binaries is None else self.binaries.all_notices
        return [*found, self.lines.problem] if self.lines.problem else found


class Original:
    """The file of one image, and its separate debug information.

    Args:
        image: the image as it is mapped.
        files: where to search for its file.
    """

    def __init__(self, image: MappedImage, files: Files) -> None:
        self.image, self.lines, self.indexes, self._binaries = image, files.lines, files.indexes, files.binaries
        self.read = PagedRead(self._fetch, image.page_size)

    @property
    def path(self) -> Path | None:
        """Path of the file, or None if none was found."""
        return None if self._program is None else self._program.path

    @property
    def build_id(self) -> bytes | None:
        """The build ID in memory, else the build ID of the file that was found."""
        if self.image.build_id is not None or self._program is None:
            return self.image.build_id
        return build_id(self._program.bytes_at, self.image.elf_class, self.image.byte_order)

    def debug_information(self, link: bytes | None) -> OriginalFile | None:
        """Return the separate debug file, or None.

        Args:
            link: the name in the image's .gnu_debuglink, or None.
        """
        known = self.build_id
        if self._binaries is None or known is None:
            return None
        return self._binaries.debug_information(self.image, known, link)

    @cached_property
    def _program(self) -> OriginalFile | None:
        return None if self._binaries is None else self._binaries.program(self.image)

    def _fetch(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the file, with zeros from its end to the end of the page, as in a mapping."""
        return None if self._program is None else padded(self._program, offset, size, self.image.page_size)


def padded(file: OriginalFile, offset: int, size: int, page_size: int) -> bytes | None:
    """Return bytes of a file, with zeros up to the end of its last page."""
    if offset + size > -(-file.size // page_size) * page_size:
        return None
    raw = file.bytes_at(offset, max(min(size, file.size - offset), 0))
    return None if raw is None else raw.ljust(size, b"\0")


def whole_file(file: OriginalFile, page_size: int) -> PagedRead:
    """Return a reader of a file by its offsets."""
    return PagedRead(lambda offset, size: padded(file, offset, size, page_size), page_size)

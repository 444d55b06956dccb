"""The files that a process's images were loaded from, found when a stack first needs one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vmcore2core.process.binaries import Binaries, MappedImage
from vmcore2core.process.copies import Copies
from vmcore2core.process.sysroot import OriginalFile, build_id
from vmcore2core.unwind.lines import LineTables
from vmcore2core.unwind.reading import PagedRead


@dataclass
class Files:
    """What stacks use beside memory.

    Attributes:
        binaries: where files are looked for; None for nowhere.
        copies: other copies of them in memory, or None.
        lines: source lines by file.
    """

    binaries: Binaries | None = None
    copies: Copies | None = None
    lines: LineTables = field(default_factory=LineTables)

    @property
    def notices(self) -> list[str]:
        """Sentences about files that are used or are not, and about what is missing to use them."""
        found = [] if self.binaries is None else self.binaries.all_notices
        return [*found, self.lines.problem] if self.lines.problem else found


class Original:
    """The file of one image, and its separate debug information.

    Args:
        image: as it is mapped.
        files: where it is looked for.
    """

    def __init__(self, image: MappedImage, files: Files) -> None:
        self.image, self.lines, self._binaries = image, files.lines, files.binaries
        self.read = PagedRead(self._fetch, image.page_size)

    @property
    def path(self) -> Path | None:
        """Where the file is, or None where none was found."""
        return None if self._program is None else self._program.path

    @property
    def build_id(self) -> bytes | None:
        """What memory has, else what the file that was taken has."""
        if self.image.build_id is not None or self._program is None:
            return self.image.build_id
        return build_id(self._program.bytes_at, self.image.elf_class, self.image.byte_order)

    def debug_information(self, link: bytes | None) -> OriginalFile | None:
        """Return the separate debug file, or None.

        Args:
            link: name in the image's .gnu_debuglink, or None.
        """
        known = self.build_id
        if self._binaries is None or known is None:
            return None
        return self._binaries.debug_information(self.image, known, link)

    @cached_property
    def _program(self) -> OriginalFile | None:
        return None if self._binaries is None else self._binaries.program(self.image)

    def _fetch(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the file; zeros behind its end, up to the end of a page, as a mapping has them."""
        return None if self._program is None else padded(self._program, offset, size, self.image.page_size)


def padded(file: OriginalFile, offset: int, size: int, page_size: int) -> bytes | None:
    """Return bytes of a file, with zeros up to the end of its last page."""
    if offset + size > -(-file.size // page_size) * page_size:
        return None
    raw = file.bytes_at(offset, max(min(size, file.size - offset), 0))
    return None if raw is None else raw.ljust(size, b"\0")


def whole_file(file: OriginalFile, page_size: int) -> PagedRead:
    """Return how to read a file."""
    return PagedRead(lambda offset, size: padded(file, offset, size, page_size), page_size)

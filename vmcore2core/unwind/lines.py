"""Source lines and inlined functions, by symbolic's SymCache (pip install symbolic).

symbolic reads DWARF 2 to 5 in Rust. It builds one table from all of a file's line programs, and is then asked by
address. Debug information from the dump itself is never read this way: nothing limits the time and memory that hostile
line programs would take.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from symbolic.symcache import SourceLocation, SymCache

TABLES_MAX = 16
FILE_MAX = 2 << 30
"""Largest file of debug information to read, in bytes; building its table takes about as much memory."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of a source file; ``function`` is the linkage name, ``line`` counts from 1; "" and 0 are "not known"."""

    function: bytes
    file: str
    line: int


class LineTable:
    """The source lines of one file.

    Args:
        table: the file's SymCache.
    """

    def __init__(self, table: SymCache) -> None:
        self._lookup: Callable[[int], Iterable[SourceLocation]] = table.lookup

    def at(self, offset: int) -> tuple[SourceLine, ...]:
        """Return the source lines of an address: inlined functions' lines first, starting with the innermost.

        Args:
            offset: the address minus the file's lowest loaded address.
        """
        try:
            found = list(self._lookup(offset))
        except Exception as error:
            log.info("no source line of %#x: %s", offset, error)
            return ()
        return tuple(SourceLine((one.symbol or "").encode(), one.full_path or "", one.line) for one in found)


@dataclass
class LineTables:
    """The line tables of the most recently used files.

    Attributes:
        problem: why no tables can be made, as a sentence; None until a table is needed.
    """

    problem: str | None = None
    _tables: OrderedDict[Path, LineTable | None] = field(default_factory=OrderedDict)

    def of_file(self, path: Path) -> LineTable | None:
        """Return the table of a file with debug information, or None if it cannot be made."""
        if path not in self._tables:
            self._tables[path] = self._made(path)
            if len(self._tables) > TABLES_MAX:
                self._tables.popitem(last=False)
        self._tables.move_to_end(path)
        return self._tables[path]

    def _made(self, path: Path) -> LineTable | None:
        try:
            from symbolic.debuginfo import Archive
        except ImportError:
            self.problem = (
                "debug information is there, but source lines and inlined functions need the Python package symbolic: "
                "pip install symbolic"
            )
            return None
        try:
            if path.stat().st_size > FILE_MAX:
                return None
            archive = Archive.open(str(path))
            return LineTable(next(iter(archive.iter_objects())).make_symcache())
        except Exception as error:
            log.info("no source lines of %s: %s", path, error)
            return None

"""How to write a core: shared by single runs, runs over a whole dump, remote workers and the capture kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmcore2core.interfaces import Compression

if TYPE_CHECKING:
    from vmcore2core.process.dump_filter import DumpFilter
    from vmcore2core.process.redact import Redaction
    from vmcore2core.process.secrets import Secrets


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """How to write a core and the files beside it.

    Attributes:
        dump_filter: which kinds of memory go into the core; None for the process's own coredump_filter.
        redaction: what to leave out on purpose.
        compression: the file's compression, or None.
        force: replace existing files.
        minidump: write a minidump in place of a core.
        indexed: gather the process's entry for the index.
        companions: find the files that the process has mapped, to write them beside the core.
        debug_directory: tree of debug packages, for the stacks in the index; None for the usual one.
        debuginfod: ask the servers in $DEBUGINFOD_URLS for files, for the stacks in the index.
        verbose: log more.
        copiers: number of forked processes that copy the pages of a large uncompressed core.
    """

    dump_filter: DumpFilter | None = None
    redaction: Redaction | None = None
    compression: Compression | None = None
    force: bool = False
    minidump: bool = False
    indexed: bool = False
    companions: bool = False
    debug_directory: str | None = None
    debuginfod: bool = False
    verbose: bool = False
    copiers: int = 1

    @property
    def suffix(self) -> str:
        """The suffix after core.COMM.PID in the file's name."""
        if self.minidump:
            return ".dmp"
        return ".zst" if self.compression else ""

    @property
    def torn_text(self) -> bool:
        """Whether cores include text of incomplete files: if no dump filter is given, and files go beside the core."""
        return self.dump_filter is None and self.indexed and self.companions

    @property
    def secrets(self) -> Secrets | None:
        """The secrets to find and blank, without those from a process's own environment."""
        return None if self.redaction is None else self.redaction.secrets

    @property
    def hide(self) -> Callable[[Any], Any]:
        """A function that blanks secrets in messages and in JSON values."""
        return _unchanged if self.secrets is None else self.secrets.hide


PLAIN = CoreOptions()
"""Write everything that the process's coredump_filter selects, and replace no file."""


def _unchanged(value: Any) -> Any:  # noqa: ANN401 - what JSON has
    return value

"""How a core is written: the same for one process, for all of a dump, by workers elsewhere and in a capture kernel."""

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
    """How a core is written, and what is made beside it.

    Attributes:
        dump_filter: which memory belongs into it; None for what the process's own coredump_filter says.
        redaction: what is left out of it on purpose.
        compression: of the file.
        force: replace what is there.
        minidump: write a minidump in place of a core.
        indexed: look up what the index says of the process.
        companions: look up which files the process has mapped, to write them beside the core.
        debug_directory: debug packages' tree, for the stacks in the index; None for the usual one.
        debuginfod: ask the servers in $DEBUGINFOD_URLS for files, likewise.
        verbose: say more.
        copiers: how many processes, forked from this one, copy the pages of a large core that is not compressed.
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
        """What follows core.COMM.PID in the file's name."""
        if self.minidump:
            return ".dmp"
        return ".zst" if self.compression else ""

    @property
    def torn_text(self) -> bool:
        """Whether cores have text of files that are not whole: where nobody says what they have, and files go along."""
        return self.dump_filter is None and self.indexed and self.companions

    @property
    def secrets(self) -> Secrets | None:
        """What is looked for and blanked, without what a process's own environment adds."""
        return None if self.redaction is None else self.redaction.secrets

    @property
    def hide(self) -> Callable[[Any], Any]:
        """What blanks secrets in what is said or listed."""
        return _unchanged if self.secrets is None else self.secrets.hide


PLAIN = CoreOptions()
"""A core of all that the process's coredump_filter asks for, which replaces nothing."""


def _unchanged(value: Any) -> Any:  # noqa: ANN401 - what JSON has
    return value

"""The files beside a core that a debugger needs: its programs and libraries, and start scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vmcore2core.errors import LayoutUnknown, MemoryFault, Vmcore2coreError
from vmcore2core.handover.mapped import MappedFiles
from vmcore2core.handover.recovered import RecoveredFiles, Recovery
from vmcore2core.handover.scripts import write_helpers
from vmcore2core.handover.tree import SYSROOT_NAME
from vmcore2core.handover.written import FileToWrite, WrittenFile
from vmcore2core.printable import text
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.snapshot import Processes


class Companions:
    """The files of all processes of a directory; add processes in the dump's order, so that each run writes the same.

    Args:
        processes: the dump's processes.
        directory: where the cores are.
        force: replace existing files.
        secrets: a file that contains one is not written.

    Attributes:
        problem: why no files can be recovered at all, as a sentence, or None.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(
        self, processes: Processes, directory: Path, *, force: bool = False, secrets: Secrets | None = None
    ) -> None:
        self.problem: str | None = None
        self._recovery: Recovery | None = None
        write_helpers(directory, force=force)
        try:
            self._recovery = Recovery(processes, directory / SYSROOT_NAME, force=force, secrets=secrets)
        except (LayoutUnknown, MemoryFault) as error:
            self.problem = f"programs and libraries are not written beside the cores: {error}"

    def learn(self, files: MappedFiles | str | None) -> None:
        """Remember which files a process has: another file with the same build ID may have the pages that one lacks."""
        if self._recovery is not None and files is not None and not isinstance(files, str):
            self._recovery.same.learn(files)

    def plan(self, files: Sequence[MappedFiles | str | None]) -> Iterator[FileToWrite]:
        """Yield the files that workers may write before the processes are added; see ``Recovery.plan``."""
        if self._recovery is not None:
            yield from self._recovery.plan(one for one in files if one is not None and not isinstance(one, str))

    def wrote(self, file: FileToWrite, done: WrittenFile) -> None:
        """Take the result of a file that a worker wrote."""
        if self._recovery is not None:
            self._recovery.wrote(file, done)

    @property
    def no_room(self) -> bool:
        """Whether a file of the processes so far was not written because the disk is full."""
        return self._recovery is not None and self._recovery.no_room

    def remove(self) -> None:
        """Remove the programs and libraries; folders that were there before stay."""
        if self._recovery is not None:
            self._recovery.remove()

    def add(self, files: MappedFiles | str | None) -> tuple[RecoveredFiles | None, list[str]]:
        """Write the files of a process; return them, and sentences about files that were not written.

        Args:
            files: the process's files; or why they are not known, as a sentence.
        """
        if self._recovery is None or files is None:
            return None, []
        if isinstance(files, str):
            return None, [files]
        try:
            recovered = self._recovery.add(files)
        except Vmcore2coreError as error:
            return None, [str(error)]
        return recovered, list(recovered.sentences)


def most_on_disk(processes: Processes, directory: Path, files: Iterable[MappedFiles | str | None]) -> int:
    """Return the most bytes that programs and libraries of processes take, as far as that is known."""
    found = [one for one in files if isinstance(one, MappedFiles)]
    try:
        recovery = Recovery(processes, directory / SYSROOT_NAME)
    except (LayoutUnknown, MemoryFault):
        return 0  # none will be written; ``Companions`` says it
    for one in found:
        recovery.same.learn(one)
    return recovery.most_on_disk(found)


def debug_entry(recovered: RecoveredFiles | None, scripts: Sequence[str], sentences: Sequence[str]) -> dict[str, Any]:
    """Return the index's "debug" object, which describes the files beside a core."""
    return {
        "sysroot": recovered.sysroot.name if recovered is not None else None,
        "program": text(recovered.program) if recovered is not None else None,
        "scripts": list(scripts),
        "notices": list(sentences),
    }

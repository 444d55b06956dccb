"""What lies beside a core, so that a debugger finds all: its programs and libraries, and start scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmcore2core.errors import LayoutUnknown, MemoryFault, Vmcore2coreError
from vmcore2core.handover.recovered import RecoveredFiles, Recovery
from vmcore2core.handover.scripts import write_scripts
from vmcore2core.handover.tree import SYSROOT_NAME
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import text
from vmcore2core.process.capture import Captured, Processes


class Companions:
    """Files and scripts of all cores in a directory; to be made in the dump's order, so that they are the same again.

    Args:
        processes: of the dump.
        directory: where the cores are.
        force: replace existing files.

    Attributes:
        problem: why no files can be had at all, as a sentence, or None.
    """

    def __init__(self, processes: Processes, directory: Path, *, force: bool = False) -> None:
        self._force = force
        self.problem: str | None = None
        self._recovery: Recovery | None = None
        try:
            self._recovery = Recovery(processes, directory / SYSROOT_NAME, force=force)
        except (LayoutUnknown, MemoryFault) as error:
            self.problem = f"programs and libraries are not written beside the cores: {error}"

    def add(self, leader: StructView, core: Path, captured: Captured | None = None) -> dict[str, Any]:
        """Write what belongs to a core, and return what the index says of it ("debug").

        Args:
            leader: the process.
            core: its core.
            captured: the process, if it was captured already.
        """
        recovered, sentences = self._files(leader, captured)
        scripts: list[str] = []
        try:
            scripts = [path.name for path in write_scripts(core, recovered, force=self._force)]
        except Vmcore2coreError as error:
            sentences.append(str(error))
        return {
            "sysroot": recovered.sysroot.name if recovered is not None else None,
            "program": text(recovered.program) if recovered is not None else None,
            "scripts": scripts,
            "notices": sentences,
        }

    def _files(self, leader: StructView, captured: Captured | None) -> tuple[RecoveredFiles | None, list[str]]:
        if self._recovery is None:
            return None, []
        try:
            recovered = self._recovery.add(leader, captured)
        except Vmcore2coreError as error:
            return None, [str(error)]
        return recovered, list(recovered.sentences)

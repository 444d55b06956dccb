"""Converts a process of a bundled dump as the command does, with one defect planted in the captured process.

``python -m tests.e2e.planted FOLDER WHAT...`` converts for each WHAT once into a directory and once for ``--json``. The
last line has, by WHAT, both exit statuses, the first one's stdout, its index, and the JSON of the second one.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.e2e.guests import FIXTURES
from vmcore2core.__main__ import vmcore2core
from vmcore2core.addresses import UserAddr
from vmcore2core.process.model import AbsentReason, AbsentRun, ProcessSnapshot, ThreadLeftOut, Vma
from vmcore2core.process.snapshot import Captured, Processes

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


def planted(snapshot: ProcessSnapshot, what: str) -> ProcessSnapshot:
    """Return the process with ``what``: the name of an ``AbsentReason``, or one of what is named here."""
    first, *others = snapshot.threads
    match what:
        case "nothing":
            return snapshot
        case "thread left out":
            left = ThreadLeftOut(first.tid + 1, first.comm, "planted")
            return snapshot._replace(threads_left_out=(left,))
        case "warning":
            return snapshot._replace(warnings=("planted",))
        case "notice":
            return snapshot._replace(notices=("planted",))
        case "unknown register":
            return snapshot._replace(threads=(first._replace(gregs_unknown=("rax",)), *others))
        case "blanked":
            return snapshot._replace(blanked=((int(snapshot.vmas[0].start), int(snapshot.vmas[0].start) + 8),))
        case _:
            return snapshot._replace(vmas=tuple(_without_a_page(snapshot, AbsentReason[what])))


def _without_a_page(snapshot: ProcessSnapshot, reason: AbsentReason) -> list[Vma]:
    chosen = next(vma for vma in snapshot.vmas if vma.name == "[stack]")
    run = AbsentRun(chosen.start, UserAddr(chosen.start + snapshot.page_size), reason)
    return [vma._replace(absent=(run, *vma.absent)) if vma is chosen else vma for vma in snapshot.vmas]


def _run(*args: str | Path) -> tuple[object, str]:
    """Run the command in this process, and return its exit status and what it printed."""
    sys.argv = ["vmcore2core", *map(str, args)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            vmcore2core()
        except SystemExit as ended:
            return ended.code, printed.getvalue()
    raise AssertionError("a command ends with an exit status")


def _both(what: str, folder: Path) -> dict[str, Any]:
    capture = Processes.capture

    def changed(self: Processes, *args: Any, **more: Any) -> Captured:
        captured = capture(self, *args, **more)
        return captured._replace(snapshot=planted(captured.snapshot, what))

    with patch.object(Processes, "capture", changed):
        status, line = _run(DUMP, "--all", "--exclude", "lab-*", "--no-companions", "-o", folder / "cores")
        status_json, document = _run(DUMP, "--pid", "1", "--json", "-o", folder / "core")
    index = json.loads((folder / "cores" / "index.json").read_text())
    return {"statuses": [status, status_json], "line": line, "index": index, "json": json.loads(document)}


def main() -> None:
    """Convert twice for each word."""
    folder, *words = sys.argv[1:]
    print(json.dumps({what: _both(what, Path(folder) / what) for what in words}))


if __name__ == "__main__":
    main()

"""The open files of processes as ``vmcore-tasks files`` shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcore2core.errors import MemoryFault
from vmcore2core.process.identity import Identity
from vmcore2core.process.openfiles import FileTables, OpenFiles
from vmcore2core.session import Session


def open_files(session: Session, chosen: Sequence[Identity], *, without_any: bool = False) -> Iterator[OpenFiles]:
    """Yield the open files of processes, in the order of the task list.

    Args:
        session: the dump.
        chosen: the processes.
        without_any: include processes without open files.

    Raises:
        LayoutUnknown: the layout lacks the members for open files.
    """
    tables = FileTables(session.processes)
    for process in chosen:
        try:
            yield from (one for one in tables.of(process.leader) if one.files or without_any)
        except MemoryFault as error:
            session.processes.warn(f"the task at {process.leader.address:#x} cannot be read: {error}")

"""The open files of processes as ``vmcore-tasks files`` shows them."""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.errors import MemoryFault
from vmcore2core.process.openfiles import FileTables, OpenFiles
from vmcore2core.session import Session
from vmcore2core.tasks.maps import Selection, chosen_leaders


def open_files(session: Session, wanted: Selection) -> Iterator[OpenFiles]:
    """Yield the open files of processes, in the order of the task list.

    Args:
        session: the dump.
        wanted: which processes, by PID (of any thread) and name; else all that have any.

    Raises:
        TaskNotFound: no task has this PID.
        LayoutUnknown: the layout does not tell of open files.
    """
    tables = FileTables(session.processes)
    for leader in chosen_leaders(session, wanted.pids, wanted.comms, session.processes.leaders):
        try:
            yield from (one for one in tables.of(leader) if one.files or wanted.pids or wanted.comms)
        except MemoryFault as error:
            session.processes.warn(f"the task at {leader.address:#x} cannot be read: {error}")

"""A small core for backtraces, as ``vmcore-tasks dump`` writes it."""

from __future__ import annotations

from pathlib import Path

from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import TaskError
from vmcore2core.kernel import sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.printable import counted
from vmcore2core.process.redact import parse_redaction
from vmcore2core.process.snapshot import Captured
from vmcore2core.session import CoreResult, Session


def mini_core(
    session: Session, leader: StructView, output: Path, *, tid: int | None = None, force: bool = False
) -> CoreResult:
    """Write a core that holds only the memory that backtraces need.

    Args:
        session: the dump.
        leader: the process.
        output: where the core goes.
        tid: the only thread to write.
        force: replace an existing file.

    Raises:
        TaskError, MemoryFault, LayoutError: the process cannot be converted.
        OutputError: the core cannot be written.
    """
    captured = session.processes.capture(leader)
    if tid is not None:
        captured = _with_one_thread(captured, tid)
    options = CoreOptions(redaction=parse_redaction(["stacks"]), force=force)
    return session.extract(leader, output, options, captured=captured)


def _with_one_thread(captured: Captured, tid: int) -> Captured:
    """Return a process without its other threads.

    Raises:
        TaskError: the thread's registers are not known.
    """
    snapshot = captured.snapshot
    only = tuple(thread for thread in snapshot.threads if thread.tid == tid)
    if not only:
        reasons = [left.reason for left in snapshot.threads_left_out if left.tid == tid]
        raise TaskError(tid, f"no core is written of thread {tid}: {''.join(reasons) or 'it has exited'}")
    others = len(snapshot.threads) + len(snapshot.threads_left_out) - 1
    notice = f"--tid {tid}: {counted(others, 'other thread')} of the process left out, as was asked"
    return captured._replace(
        snapshot=snapshot._replace(
            threads=only,
            threads_left_out=(),
            notices=(*snapshot.notices, notice),
        ),
        answers=tuple(answer for answer in captured.answers if sched.task_pid(answer[0]) == tid),
    )

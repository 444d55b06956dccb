"""``vmcore-tasks threads``."""

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump
from vmcore2core.commands.tasks.shown import Pid, thread_document


@takes_dump
def threads(
    *,
    pid: Pid,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """List the threads of a process."""
    with opened(dump) as vmcore:
        rows = vmcore.process(pid).threads
        if as_json:
            print_document("vmcore-tasks-threads", threads=[thread_document(row) for row in rows])
            return
        print(f"{'TID':>7} S {'CPU':>3} {'NAME':<16} REGISTERS FROM")
        for row in rows:
            print(f"{row.tid:>7} {row.state} {'-' if row.cpu is None else row.cpu:>3} {row.comm:<16} {row.source}")

"""Data of a process that a minidump holds and its core lacks, or holds elsewhere."""

from __future__ import annotations

from functools import partial

from vmcore2core.corefile.minidump import write_minidump
from vmcore2core.corefile.minidump_head import Facts, Range
from vmcore2core.corefile.writer import Writer
from vmcore2core.errors import Vmcore2coreError
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.timekeeping import clock
from vmcore2core.process.model import ProcessSnapshot
from vmcore2core.process.snapshot import Captured
from vmcore2core.session import Session
from vmcore2core.tasks.maps import map_row


def minidump_writer(session: Session, leader: StructView, captured: Captured) -> Writer:
    """Return the function that writes the minidump of a process."""
    snapshot = captured.snapshot
    word = session.kernel.arch.pointer_size
    lines = [map_row(vma, snapshot.page_size).line(word) for vma in snapshot.vmas]
    facts = Facts(
        system=" ".join(session.boot.utsname).strip(),
        time=_time(session),
        arguments=_strings(session, leader, "arg_start", "arg_end"),
        environment=_strings(session, leader, "env_start", "env_end"),
        maps="".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"),
        status=_status(snapshot),
    )
    return partial(write_minidump, facts)


def _time(session: Session) -> int | None:
    """Return the time of the panic or, without one, of the kernel's clock; None if neither is known."""
    crashed = session.boot.vmcoreinfo.crash_time
    if crashed is not None:
        return crashed
    now = clock(session.kernel)
    return None if now is None else int(now.now)


def _strings(session: Session, leader: StructView, first: str, last: str) -> Range | None:
    """Return the range of the arguments or the environment, from mm_struct; None if that is not known."""
    word = session.kernel.arch.pointer_size
    try:
        owner = session.processes.mm_of(leader)
        start, end = owner.find_uint(first, word), owner.find_uint(last, word)
    except Vmcore2coreError:
        return None
    return None if start is None or end is None or not 0 < start < end else (start, end)


def _status(snapshot: ProcessSnapshot) -> bytes:
    """Return the lines of /proc/PID/status that are known (fs/proc/array.c: proc_pid_status())."""
    info = snapshot.psinfo
    known = {
        b"Name": snapshot.comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n"),
        b"State": None if info.pr_sname is None else info.pr_sname.encode(),
        b"Tgid": str(snapshot.tgid).encode(),
        b"Pid": str(snapshot.tgid).encode(),
        b"PPid": None if info.pr_ppid is None else str(info.pr_ppid).encode(),
        b"Threads": str(len(snapshot.threads) + len(snapshot.threads_left_out)).encode(),
    }
    return b"".join(b"%s:\t%s\n" % (name, value) for name, value in known.items() if value is not None)

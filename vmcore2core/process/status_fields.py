"""The contents of NT_PRSTATUS and NT_PRPSINFO besides registers.

References: fs/binfmt_elf.c: fill_prstatus(), fill_psinfo() (Linux 7.2); kernel/sched/cputime.c: thread_group_cputime().
The kernel writes these notes when a signal kills the process. Here no signal did: the pending signals are those at the
time of the dump, and the times are the last ones that the kernel accounted.
"""

from __future__ import annotations

from typing import Protocol, TypedDict

from vmcore2core.errors import CorruptStructure, MemoryFault
from vmcore2core.kernel import sched
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.model import PsInfo

NANOSECONDS = 8  # bytes of a u64


class Times(Protocol):
    """The threads of a group."""

    def time(self, name: str) -> int | None:
        """Return the sum of a member's nanoseconds, or None if it is not known.

        Raises:
            MemoryFault: one cannot be read.
        """
        ...


class PrStatus(TypedDict):
    """Fields of ``ThreadSnapshot`` with the same names; None if not known."""

    pr_sigpend: int | None
    pr_sighold: int | None
    pr_ppid: int | None
    pr_pgrp: int | None
    pr_sid: int | None
    pr_utime: int | None
    pr_stime: int | None
    pr_cutime: int | None
    pr_cstime: int | None


def prstatus(task: StructView, group: Times) -> PrStatus:
    """Return the contents of a thread's NT_PRSTATUS besides registers.

    Args:
        task: its ``struct task_struct``.
        group: all threads of its group: the leader's times are the group's.

    Raises:
        MemoryFault: a structure cannot be read.
    """
    ids = sched.task_ids(task)
    signal = task.follow("signal", "signal_struct")
    leads = sched.task_pid(task) == sched.task_tgid(task)
    return PrStatus(
        pr_sigpend=_sigset(task, "pending.signal"),
        pr_sighold=_sigset(task, "blocked"),
        pr_ppid=sched.real_parent_pid(task),
        pr_pgrp=ids["pr_pgrp"],
        pr_sid=ids["pr_sid"],
        pr_utime=_group_time(group, signal, "utime") if leads else task.find_uint("utime", NANOSECONDS),
        pr_stime=_group_time(group, signal, "stime") if leads else task.find_uint("stime", NANOSECONDS),
        pr_cutime=signal.find_uint("cutime", NANOSECONDS) if signal is not None else None,
        pr_cstime=signal.find_uint("cstime", NANOSECONDS) if signal is not None else None,
    )


def _sigset(task: StructView, member: str) -> int | None:
    """Return the first word of a ``sigset_t``, as in NT_PRSTATUS."""
    found = task.kernel.layout.find_member("task_struct", member)
    if found is None:
        return None
    return task.kernel.uint(task.address + found.offset, task.kernel.arch.pointer_size)


def _group_time(group: Times, signal: StructView | None, name: str) -> int | None:
    """Return the sum of the times of a group's threads and of those that have exited, in nanoseconds.

    A sum of wrong times wraps, as the kernel's does: it adds u64.
    """
    times = group.time(name), 0 if signal is None else signal.find_uint(name, NANOSECONDS)
    return None if None in times else sum(time or 0 for time in times) % (1 << 64)


def psinfo(leader: StructView, args: bytes | None, warnings: list[str]) -> PsInfo:
    """Return the contents of a process's NT_PRPSINFO.

    Args:
        leader: the thread group's leader.
        args: the command line's strings, each with its NUL, or None if it is not known.
        warnings: where a sentence goes if a structure cannot be read.
    """
    parent, ids = None, sched.TaskIds(pr_uid=None, pr_gid=None, pr_pgrp=None, pr_sid=None)
    try:
        parent, ids = sched.real_parent_pid(leader), sched.task_ids(leader)
    except (MemoryFault, CorruptStructure) as error:
        warnings.append(f"whose it is (its credentials) is not known: {error}")
    state = sched.task_state(leader)
    letter = sched.task_state_char(leader)
    return PsInfo(
        pr_pid=sched.task_tgid(leader),
        pr_fname=sched.task_comm(leader),
        pr_psargs=args.replace(b"\0", b" ") if args is not None else None,
        pr_state=(state & 0x7F).bit_length(),
        pr_sname=letter if letter in "RSDTZW" else ".",
        pr_zomb=letter == "Z",
        pr_nice=sched.task_nice(leader),
        pr_flag=sched.task_flags(leader),
        pr_ppid=parent,
        **ids,
    )


def prstatus_or_unknown(task: StructView, group: Times, warnings: list[str]) -> PrStatus:
    """Return ``prstatus``; if a needed structure cannot be read, add a warning and return unknown values."""
    try:
        return prstatus(task, group)
    except (MemoryFault, CorruptStructure) as error:
        warnings.append(
            f"what NT_PRSTATUS says besides registers is not known of the thread at {task.address:#x}: {error}"
        )
        return PrStatus(
            pr_sigpend=None,
            pr_sighold=None,
            pr_ppid=None,
            pr_pgrp=None,
            pr_sid=None,
            pr_utime=None,
            pr_stime=None,
            pr_cutime=None,
            pr_cstime=None,
        )

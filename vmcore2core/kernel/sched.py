"""The members of ``struct task_struct`` that describe one task (include/linux/sched.h)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from vmcore2core.errors import MemoryFault
from vmcore2core.kernel.struct import StructView

TASK_COMM_LEN = 16
PF_EXITING = 0x0000_0004
PF_KTHREAD = 0x0020_0000
EXIT_DEAD, EXIT_ZOMBIE = 0x10, 0x20
NICE_PRIOS = range(100, 141)  # MAX_RT_PRIO to MAX_PRIO, which idle tasks have
PID_MAX_LIMIT = 1 << 22  # include/linux/threads.h, 64-bit

# fs/proc/array.c: task_state_array, indexed by task_state_index(); the core's pr_sname uses "RSDTZW".
_STATES = ((0x01, "S"), (0x02, "D"), (0x04, "T"), (0x08, "t"), (0x10, "X"), (0x20, "Z"), (0x40, "P"), (0x80, "I"))


def task_pid(task: StructView) -> int:
    """Return ``task->pid``, the thread's number in the initial PID namespace."""
    return task.sint("pid", size=4)


def task_tgid(task: StructView) -> int:
    """Return ``task->tgid``."""
    return task.sint("tgid", size=4)


def task_comm(task: StructView) -> bytes:
    """Return ``task->comm`` up to its NUL."""
    return task.bytes_of("comm", TASK_COMM_LEN).split(b"\0", 1)[0]


def task_flags(task: StructView) -> int:
    """Return ``task->flags`` (PF_*)."""
    return task.uint("flags", size=4)


def task_state(task: StructView) -> int:
    """Return ``task->__state`` and ``exit_state`` together.

    Since Linux kernel commit 2f064a59a11f ("sched: Change task_struct::state") (in v5.14), state is an unsigned int
    called __state; before that it is a long called state.
    """
    state = task.uint("__state", "state", size=4) & 0xFFFF_FFFF
    return state | task.uint("exit_state", size=4)


def task_state_char(task: StructView) -> str:
    """Return the letter that ps(1) shows (fs/proc/array.c: get_task_state())."""
    state = task_state(task)
    if state == 0x402:  # TASK_IDLE: TASK_UNINTERRUPTIBLE | TASK_NOLOAD
        return "I"
    bits = state & 0x7F
    if not bits:
        return "R"
    return next(letter for bit, letter in reversed(_STATES) if bits & bit)


def is_kthread(task: StructView) -> bool:
    """Tell whether the task is a kernel thread."""
    return bool(task_flags(task) & PF_KTHREAD)


def task_on_cpu(task: StructView) -> bool | None:
    """Tell whether the task was running on a CPU, or None if the layout does not know ``on_cpu``."""
    value = task.find_uint("on_cpu", 4)
    return None if value is None else bool(value)


def task_cpu(task: StructView) -> int | None:
    """Return the CPU a task runs on or ran on last, or None if the layout does not know.

    Since Linux kernel commit bcf9033e5449 ("sched: move CPU field back into thread_info if THREAD_INFO_IN_TASK=y")
    (in v5.16), it is in thread_info; before that, on architectures with THREAD_INFO_IN_TASK, in task_struct. On others
    (32-bit ARM before v5.16), thread_info is at the lowest address of the kernel stack.
    """
    for name in ("thread_info.cpu", "cpu"):
        value = task.find_uint(name, 4)
        if value is not None:
            return value
    try:
        return task.kernel.view("thread_info", task.pointer("stack")).find_uint("cpu", 4)
    except MemoryFault:
        return None  # a task that has exited has no stack


def real_parent_tgid(task: StructView) -> int | None:
    """Return the parent's tgid as the initial PID namespace numbers it (0 for none), or None if not known."""
    if not task.has("real_parent"):
        return None
    try:
        parent = task.follow("real_parent", "task_struct")
        return task_tgid(parent) if parent is not None else 0
    except MemoryFault:
        return None


def real_parent_pid(task: StructView) -> int | None:
    """Return ``real_parent->pid``: the thread that forked it, as cores have it; None if not known."""
    if not task.has("real_parent"):
        return None
    parent = task.follow("real_parent", "task_struct")
    return task_pid(parent) if parent is not None else 0


def task_nice(task: StructView) -> int | None:
    """Return the nice value (PRIO_TO_NICE in include/linux/sched/prio.h), or None if it is not known or none."""
    static_prio = task.find_uint("static_prio", 4)
    return None if static_prio is None or static_prio not in NICE_PRIOS else static_prio - 120


def task_start_boottime(task: StructView) -> int | None:
    """Return when the task began, in nanoseconds of CLOCK_BOOTTIME, or None if it is not known.

    Since Linux kernel commit cf25e24db61c ("time: Rename tsk->real_start_time to ->start_boottime") (in v5.5), it has
    this name.
    """
    found = task.find_uint("start_boottime", 8)
    return task.find_uint("real_start_time", 8) if found is None else found


def cpu_time(tasks: Iterable[StructView], signal: StructView | None) -> int | None:
    """Return the nanoseconds that tasks were on a CPU, or None if that is not known.

    /proc/PID/stat has the same sum (kernel/sched/cputime.c: thread_group_cputime(), cputime_adjust()).

    Args:
        tasks: ``struct task_struct`` of each.
        signal: ``struct signal_struct`` of a group, for its threads that are gone, or None.
    """
    times = [task.find_uint("se.sum_exec_runtime", 8) for task in tasks]
    times += [] if signal is None else [signal.find_uint("sum_sched_runtime", 8)]
    known = [time for time in times if time is not None]
    return sum(known) if len(known) == len(times) else None


class TaskIds(TypedDict):
    """Credentials and groups as NT_PRPSINFO names them; None if not known."""

    pr_uid: int | None
    pr_gid: int | None
    pr_pgrp: int | None
    pr_sid: int | None


def task_ids(task: StructView) -> TaskIds:
    """Return the real uid and gid, the process group and the session, as the initial namespaces number them.

    Raises:
        CorruptStructure: a number is impossible.
        MemoryFault: it cannot be read.
    """
    cred = task.follow("real_cred", "cred") if task.has("real_cred") else None
    signal = task.follow("signal", "signal_struct")
    return TaskIds(
        pr_uid=cred.find_uint("uid", 4) if cred else None,
        pr_gid=cred.find_uint("gid", 4) if cred else None,
        pr_pgrp=_signal_pid(signal, "PIDTYPE_PGID"),
        pr_sid=_signal_pid(signal, "PIDTYPE_SID"),
    )


def _signal_pid(signal: StructView | None, kind: str) -> int | None:
    """Return ``pid_nr(signal->pids[kind])`` in the initial namespace, 0 for none, None if not known."""
    if signal is None or not signal.has("pids"):
        return None
    index = signal.kernel.layout.find_constant(kind)
    numbers = signal.kernel.layout.find_member("pid", "numbers")
    if index is None or numbers is None:
        return None
    # Since Linux kernel commit 2c4704756cab ("pids: Move the pgrp and session pid pointers from task_struct to
    # signal_struct") (in v4.19). struct upid of level 0, the initial namespace, comes first and begins with nr.
    pid = signal.kernel.read_pointer(signal.addr_of("pids") + index * signal.kernel.arch.pointer_size)
    number = signal.kernel.uint(pid + numbers.offset, 4) if pid else 0
    if number >= PID_MAX_LIMIT:
        raise signal.corrupt("pids", f"{kind} is number {number}, expected less than {PID_MAX_LIMIT}")
    return number

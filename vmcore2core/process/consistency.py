"""Check that a process's structures agree with each other: an overwritten word seldom fits the others.

A failed check names the member, its address and offset, and which layout source gave the offset. Members that the
layout does not know are not checked. No check can notice damage to registers, to numbers that a process may set freely
(comm, gid, the nice value within its range, flags of a task), or to signals: one may be pending without being queued,
as __send_signal_locked() drops the siginfo when RLIMIT_SIGPENDING is reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.kernel import pid, runqueue, sched
from vmcore2core.kernel.mm import mm_flags
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.structs import read_uints
from vmcore2core.kernel.tasks import Tasks
from vmcore2core.process.kernelstack import kernel_stack

EXIT_STATES = {0, sched.EXIT_DEAD, sched.EXIT_ZOMBIE, sched.EXIT_DEAD | sched.EXIT_ZOMBIE}
STATE_END = 1 << 20  # TASK_STATE_MAX is 1 << 16 in Linux 7.2
UNBLOCKABLE = 1 << 8 | 1 << 18  # SIGKILL, SIGSTOP; on every supported architecture
MMF_BITS = 40  # of mm->flags; Linux 7.2 uses 32
U64_MAX = (1 << 64) - 1
_TIMES = ("utime", "stime")

Flags = NDArray[np.bool_]


class Consistency:
    """Checks of all processes of a dump."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._numbers_known = True

    @cached_property
    def _cpu_time_max(self) -> int | None:
        return runqueue.cpu_time_max(self.kernel)

    def of_task(self, task: StructView, leader: StructView, owner: StructView) -> list[str]:
        """Return what is wrong with a thread, a sentence each.

        Args:
            task: ``struct task_struct``.
            leader: of its group.
            owner: ``struct mm_struct`` of the process.
        """
        checks = (
            self._links(task, leader, owner),
            self._scheduling(task),
            self._signals(task),
            self._ids(task),
            self._stack(task),
        )
        return [sentence for check in checks for sentence in _sentences(check)]

    def suspects(self, tasks: Tasks, leader: StructView, owner: StructView) -> Flags:
        """Tell for which threads ``of_task`` may yield a sentence, bool[n]; stacks are left to ``kernel_stacks``.

        The leader is always one of them: the others are compared with it.

        Args:
            tasks: the threads.
            leader: of their group.
            owner: ``struct mm_struct`` of the process.
        """
        try:
            odd: Flags = ~tasks.whole | (tasks.addresses == np.uint64(leader.address))
            odd |= self._odd_links(tasks, leader, owner) | self._odd_scheduling(tasks)
            odd |= self._odd_signals(tasks) | self._odd_ids(tasks)
        except (MemoryFault, CorruptStructure):
            return np.ones(len(tasks), np.bool_)
        return odd

    def of_process(self, leader: StructView, owner: StructView) -> list[str]:
        """Return what is wrong with the structures that the threads share."""
        return [sentence for check in (self._signal_struct(leader), self._mm(owner)) for sentence in _sentences(check)]

    def _links(self, task: StructView, leader: StructView, owner: StructView) -> Iterator[CorruptStructure]:
        yield from _expect(task, "tgid", sched.task_pid(leader), sched.task_tgid(task))
        yield from _expect_pointer(task, "group_leader", int(leader.address))
        yield from _expect_pointer(task, "signal", int(leader.pointer("signal")))
        if task.pointer("mm"):
            yield from _expect_pointer(task, "mm", int(owner.address))
            yield from _expect_pointer(task, "active_mm", int(owner.address))
        yield from self._number(task)
        parent = task.follow("real_parent", "task_struct") if task.has("real_parent") else None
        if parent is not None:
            yield from self._number(parent)
            # forget_original_parent() gives children to another parent before their own is released.
            if parent.has("thread_pid") and not parent.pointer("thread_pid"):
                yield task.corrupt("real_parent", f"{parent.address:#x}, where no task is")
            yield from self._siblings(task, leader, parent)

    def _odd_links(self, tasks: Tasks, leader: StructView, owner: StructView) -> Flags:
        odd: Flags = tasks.uint("tgid", size=4) != np.uint64(sched.task_pid(leader) & 0xFFFF_FFFF)
        odd |= ~tasks.points_to("group_leader", leader.address) | ~tasks.points_to("signal", leader.pointer("signal"))
        odd |= ~tasks.points_to("mm", owner.address) | ~tasks.points_to("active_mm", owner.address)
        numbers = self.kernel.layout.find_member("pid", "numbers")
        if tasks.has("thread_pid") and numbers is not None:
            found, there = read_uints(self.kernel, tasks.ulong("thread_pid") + np.uint64(numbers.offset), 4)
            odd |= ~there | (found != tasks.uint("pid", size=4))
        if tasks.has("real_parent"):
            parent = leader.follow("real_parent", "task_struct")
            gone = parent is None or (parent.has("thread_pid") and not parent.pointer("thread_pid"))
            if parent is None or gone or any(self._number(parent)):
                return np.ones(len(tasks), np.bool_)
            odd |= ~tasks.points_to("real_parent", parent.address)
        return odd

    def _siblings(self, task: StructView, leader: StructView, parent: StructView) -> Iterator[CorruptStructure]:
        """Compare a task's parent with that of its group's leader, and with that of the leader's next sibling."""
        other = leader
        if task.address == leader.address:
            if not task.has("sibling") or not parent.has("children"):
                return
            at, following = task.addr_of("sibling"), task.pointer("sibling")
            if following in (at, parent.addr_of("children")):
                return
            other = self.kernel.container_of(following, "task_struct", "sibling")
        found = other.follow("real_parent", "task_struct")
        # When a parent exits, its children get another parent one by one.
        if found is None or found.address == parent.address or _is_exiting(found) or _is_exiting(parent):
            return
        whose = "the leader" if other is leader else f"the child beside it, {other.address:#x},"
        yield task.corrupt("real_parent", f"{parent.address:#x}, expected {found.address:#x} as {whose} has")

    def _stack(self, task: StructView) -> Iterator[CorruptStructure]:
        """Compare a task's stack with other records of it; a thread with no known stack is left out anyway."""
        with contextlib.suppress(CorruptStructure):
            _, wrong = kernel_stack(task)
            if wrong is not None:
                yield wrong

    def _number(self, task: StructView) -> Iterator[CorruptStructure]:
        """Compare a task's PID with the one in its ``struct pid``."""
        if not task.has("thread_pid") or self.kernel.layout.find_member("pid", "numbers") is None:
            return
        found = task.follow("thread_pid", "pid")
        if found is not None:  # otherwise it was released
            number = self.kernel.uint(found.addr_of("numbers"), 4)
            yield from _expect(task, "pid", number, sched.task_pid(task))

    def _scheduling(self, task: StructView) -> Iterator[CorruptStructure]:
        exit_state = task.uint("exit_state", size=4)
        if exit_state not in EXIT_STATES:
            yield task.corrupt("exit_state", f"{exit_state:#x}, expected 0, 0x10, 0x20 or both")
        state = task.uint("__state", "state", size=4) & 0xFFFF_FFFF
        if state >= STATE_END:
            yield task.corrupt("__state" if task.has("__state") else "state", f"{state:#x}, which no task can be in")
        on_cpu = task.find_uint("on_cpu", 4)
        if on_cpu not in (None, 0, 1):
            yield task.corrupt("on_cpu", f"{on_cpu:#x}, expected 0 or 1")
        prio = task.find_uint("static_prio", 4)
        if prio is not None and prio not in sched.NICE_PRIOS:
            yield task.corrupt("static_prio", f"{prio}, expected 100 to 140")
        yield from self._times(task, _TIMES)

    def _odd_scheduling(self, tasks: Tasks) -> Flags:
        odd: Flags = ~np.isin(tasks.uint("exit_state", size=4), list(EXIT_STATES))
        odd |= tasks.uint("__state", "state", size=4) & np.uint64(0xFFFF_FFFF) >= STATE_END
        on_cpu, prio = tasks.find_uint("on_cpu", 4), tasks.find_uint("static_prio", 4)
        if on_cpu is not None:
            odd |= on_cpu > 1
        if prio is not None:
            odd |= (prio < sched.NICE_PRIOS.start) | (prio >= sched.NICE_PRIOS.stop)
        for times in (tasks.find_uint(name, 8) for name in _TIMES):
            if times is not None and self._cpu_time_max is not None:
                odd |= times > np.uint64(min(self._cpu_time_max, U64_MAX))
        return odd

    def _times(self, view: StructView, names: tuple[str, ...]) -> Iterator[CorruptStructure]:
        if self._cpu_time_max is None:
            return
        for name in names:
            value = view.find_uint(name, 8)
            if value is not None and value > self._cpu_time_max:
                yield view.corrupt(name, f"{value} ns, more than all CPUs had since boot")

    def _signals(self, task: StructView) -> Iterator[CorruptStructure]:
        word = self.kernel.arch.pointer_size
        if task.has("blocked"):
            blocked = self.kernel.uint(task.addr_of("blocked"), word)
            # sigfillset() before sigprocmask() in the kernel itself: smb_send_rqst().
            if blocked & UNBLOCKABLE and blocked != (1 << 8 * word) - 1:
                yield task.corrupt("blocked", f"{blocked:#x}: SIGKILL and SIGSTOP cannot be blocked")

    def _odd_signals(self, tasks: Tasks) -> Flags:
        blocked, every = tasks.sigset("blocked"), np.uint64((1 << 8 * self.kernel.arch.pointer_size) - 1)
        if blocked is None:
            return np.zeros(len(tasks), np.bool_)
        odd: Flags = (blocked & np.uint64(UNBLOCKABLE) != 0) & (blocked != every)
        return odd

    def _ids(self, task: StructView) -> Iterator[CorruptStructure]:
        cred = task.follow("real_cred", "cred") if task.has("real_cred") else None
        yield from self._cred(cred)

    def _odd_ids(self, tasks: Tasks) -> Flags:
        """Tell which have credentials that are odd; threads mostly share them."""
        if not tasks.has("real_cred"):
            return np.zeros(len(tasks), np.bool_)
        creds, which = np.unique(tasks.ulong("real_cred"), return_inverse=True)
        odd = [self._is_odd_cred(self.kernel.view("cred", address)) for address in creds.tolist()]
        return np.array(odd, np.bool_)[which]

    def _is_odd_cred(self, cred: StructView) -> bool:
        try:
            cred.find_uint("uid", 4)
            cred.find_uint("gid", 4)
            return any(self._cred(cred))
        except MemoryFault:
            return True

    def _cred(self, cred: StructView | None) -> Iterator[CorruptStructure]:
        user = cred.follow("user", "user_struct") if cred is not None and cred.has("user") else None
        if cred is not None and user is not None and user.has("uid") and cred.has("uid"):
            yield from _expect(cred, "uid", user.uint("uid", size=4), cred.uint("uid", size=4))

    def _signal_struct(self, leader: StructView) -> Iterator[CorruptStructure]:
        signal = leader.follow("signal", "signal_struct")
        if signal is None:
            return
        yield from self._times(signal, (*_TIMES, "cutime", "cstime"))
        numbers = self.kernel.layout.find_member("pid", "numbers")
        if not signal.has("pids") or numbers is None:
            return
        for kind in ("PIDTYPE_PGID", "PIDTYPE_SID"):
            index = self.kernel.layout.find_constant(kind)
            if index is None:
                continue
            address = self.kernel.read_pointer(signal.addr_of("pids") + index * self.kernel.arch.pointer_size)
            if address and self._numbers_known:
                number = self.kernel.uint(address + numbers.offset, 4)
                known = self._find_pid(number)
                if self._numbers_known and known != address:
                    yield signal.corrupt("pids", f"{kind} is number {number}, which is not in the PID table")

    def _find_pid(self, number: int) -> int | None:
        try:
            if not number:  # init_struct_pid: the process is in no group and no session
                return int(pid.init_task(self.kernel).pointer("thread_pid"))
            return pid.find_pid(self.kernel, number) if number < sched.PID_MAX_LIMIT else None
        except (LayoutError, CorruptStructure, MemoryFault):
            self._numbers_known = False
            return None

    def _mm(self, owner: StructView) -> Iterator[CorruptStructure]:
        word, end = self.kernel.arch.pointer_size, self.kernel.arch.user_end
        for first, last in (("arg_start", "arg_end"), ("env_start", "env_end"), ("start_brk", "brk")):
            low, high = owner.find_uint(first, word), owner.find_uint(last, word)
            if low is not None and high is not None and not low <= high <= end:
                yield owner.corrupt(first, f"{low:#x}, expected at most mm_struct.{last}, which is {high:#x}")
        yield from self._pgd(owner)
        stack = owner.find_uint("start_stack", word)
        if stack is not None and stack > end:
            yield owner.corrupt("start_stack", f"{stack:#x}, beyond user memory")
        flags = mm_flags(owner)
        if flags is not None and flags >> MMF_BITS:
            yield owner.corrupt("flags", f"{flags:#x}, which has bits that no kernel uses")
        users = owner.find_uint("mm_users", 4)
        if users is not None and not 0 < users < 1 << 31:
            yield owner.corrupt("mm_users", f"{users:#x}, expected 1 or more")

    def _pgd(self, owner: StructView) -> Iterator[CorruptStructure]:
        """Check that the page table's ``struct page`` names this mm as its owner, if the kernel records owners."""
        layout, paging = self.kernel.layout, self.kernel.arch.paging
        known = (layout.find_member(*member) for member in paging.pgd_mm)
        found = next((member for member in known if member is not None), None)
        if found is None:
            return
        vmemmap, size = paging.vmemmap(self.kernel), layout.find_size("page")
        if vmemmap is None or not size:
            return
        pgd = owner.pointer("pgd")
        frame = self.kernel.memory.to_phys(pgd) // self.kernel.memory.kernel_map.spec.page_size
        whose = self.kernel.read_pointer(vmemmap + frame * size + found.offset)
        if whose != owner.address:
            yield owner.corrupt("pgd", f"{pgd:#x}, a page that is not this mm's page table but {whose:#x}'s")


def _is_exiting(task: StructView) -> bool:
    return bool(sched.task_flags(task) & sched.PF_EXITING)


def _expect(view: StructView, name: str, expected: int, found: int) -> Iterator[CorruptStructure]:
    if found != expected:
        yield view.corrupt(name, f"{found}, expected {expected}")


def _expect_pointer(view: StructView, name: str, expected: int) -> Iterator[CorruptStructure]:
    if view.has(name) and view.pointer(name) != expected:
        yield view.corrupt(name, f"{view.pointer(name):#x}, expected {expected:#x}")


def _sentences(checks: Iterator[CorruptStructure]) -> Iterator[str]:
    try:
        for error in checks:
            yield str(error)
    except (MemoryFault, CorruptStructure) as error:
        yield str(error)

"""What a thread that sleeps in the kernel waits for, and which threads can wake it.

References: futex(2); glibc's sysdeps/nptl/bits/struct_mutex.h and nptl/pthread_mutex_lock.c (2.41); musl's
src/internal/pthread_impl.h (1.2.5): _m_lock; kernel/fork.c: wait_for_vfork_done() (Linux 7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from vmcore2core.errors import CorruptStructure, LayoutError, MemoryFault
from vmcore2core.interfaces import ByteOrder
from vmcore2core.kernel import files, locks, sched
from vmcore2core.kernel.files import Descriptor
from vmcore2core.kernel.pid import task_nspids
from vmcore2core.kernel.rbtree import rb_nodes
from vmcore2core.kernel.socket import socket_of
from vmcore2core.kernel.struct import StructView
from vmcore2core.kernel.syscall import FUTEX_PRIVATE_FLAG, NamedCall
from vmcore2core.printable import counted, text
from vmcore2core.process.openfiles import Ends, Holder
from vmcore2core.process.snapshot import Processes

FUTEX_WAITERS, FUTEX_TID_MASK = 0x8000_0000, 0x3FFF_FFFF
LOCKED_WITH_WAITERS = 2
"""glibc's pthread_mutex_t.__lock if a thread waits for it."""
OWNER = 8
"""Offset of __owner in a 64-bit glibc's mutex: {__lock, __count, __owner, ...}."""
F_SETLKW, F_OFD_SETLKW = 7, 38
INFINITE = 0xFFFF_FFFF
NAMED_MAX = 8
POLLFDS_MAX, SELECT_MAX, EPOLL_MAX = 256, 1024, 4096

ReadUser = Callable[[int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a thread waits for.

    Attributes:
        kind: "futex", "pipe", "socket", "poll", "child", "file lock", "mutex", "timer", "signal", "file", "other".
        what: a description in words.
        address: of the futex or the lock.
        holders: known TIDs of threads that can end the wait.
        all_known: whether nothing else can end it: no timeout, no device, no other machine.
    """

    kind: str
    what: str
    address: int | None = None
    holders: tuple[int, ...] = ()
    all_known: bool = False


@dataclass(frozen=True)
class Sleeper:
    """A thread in a system call, with its process's memory and files.

    Attributes:
        task: ``struct task_struct``.
        leader: of its process.
        call: the system call.
        functions: kernel functions that it is in, innermost first.
        read: reads user memory.
        named: describes a user address in words.
        order: byte order of the process.
    """

    task: StructView
    leader: StructView
    call: NamedCall
    functions: tuple[str, ...]
    read: ReadUser
    named: Callable[[int], str]
    order: ByteOrder

    def value(self, index: int) -> int:
        """Return an argument's register, or 0 if the call has fewer."""
        return self.call.arguments[index].value if index < len(self.call.arguments) else 0

    def word(self, address: int) -> int | None:
        """Return 32 bits of user memory."""
        raw = self.read(address, 4)
        return None if raw is None else int.from_bytes(raw, self.order)


class Waits:
    """What threads wait for.

    Args:
        processes: of the dump.
        ends: which processes have which pipes and sockets.
    """

    def __init__(self, processes: Processes, ends: Ends) -> None:
        self._processes, self._ends = processes, ends
        self._threads: dict[int, list[StructView]] = {}
        self._tids: dict[int, tuple[int, ...]] = {}
        self._names: dict[int, str] = {}
        self._tables: dict[int, dict[int, Descriptor]] = {}
        for leader in processes.leaders():
            try:
                self._threads[sched.task_tgid(leader)] = threads = list(processes.threads(leader))
                self._names |= {sched.task_pid(task): text(sched.task_comm(task)) for task in threads}
            except MemoryFault:
                continue

    def of(self, sleeper: Sleeper) -> Wait:
        """Return what a thread waits for; kind "other" if that is not known."""
        try:
            lock = locks.kernel_lock(sleeper.task)
            if lock is not None:
                return self._kernel_lock(lock)
            found = _KINDS.get(sleeper.call.name or "")
            wait = None if found is None else found(self, sleeper)
        except (MemoryFault, CorruptStructure, LayoutError):
            wait = None
        return wait or Wait("other", _inside(sleeper.functions))

    def _who(self, tids: Sequence[int]) -> str:
        """Return threads in words: "815 (app), 816 (app)"; of many, the first ones and how many more."""
        words = [f"{tid} ({self._names.get(tid, '?')})" for tid in tids[:NAMED_MAX]]
        more = f" and {len(tids) - NAMED_MAX} more" if len(tids) > NAMED_MAX else ""
        return ", ".join(words) + more

    def _of_process(self, pid: int) -> tuple[int, ...]:
        if pid not in self._tids:  # of many processes at one pipe, each asks for all the others
            self._tids[pid] = tuple(sched.task_pid(task) for task in self._threads.get(pid, ()))
        return self._tids[pid]

    def _of_holders(self, holders: Iterable[Holder], but: int) -> tuple[int, ...]:
        """Return the threads of the processes that have a file open, except the thread ``but``."""
        pids = dict.fromkeys(holder.pid for holder in holders)
        return tuple(tid for pid in pids for tid in self._of_process(pid) if tid != but)

    def _kernel_lock(self, lock: locks.KernelLock) -> Wait:
        owner = None
        if lock.owner:
            owner = sched.task_pid(self._processes.kernel.view("task_struct", lock.owner))
        who = "" if owner is None else f", held by {self._who([owner])}"
        holders = () if owner is None else (owner,)
        return Wait("mutex", f"{lock.kind} at {lock.address:#x}{who}", lock.address, holders, owner is not None)

    def _futex(self, sleeper: Sleeper) -> Wait:
        address, op, value = sleeper.value(0), sleeper.value(1), sleeper.value(2)
        owner = self._futex_owner(sleeper, address, value & 0xFFFF_FFFF, shared=not op & FUTEX_PRIVATE_FLAG)
        place = f"futex at {address:#x} ({sleeper.named(address)})"
        if owner is None:
            return Wait("futex", place, address)
        timeless = sleeper.value(3) == 0
        return Wait("futex", f"{place}, held by {self._who([owner])}", address, (owner,), timeless)

    def _futex_owner(self, sleeper: Sleeper, address: int, value: int, *, shared: bool) -> int | None:
        """Return the TID of a lock's owner, in the futex (PI, robust, musl) or in glibc's mutex around it."""
        word = sleeper.word(address)
        if word is None:
            return None
        if word & FUTEX_WAITERS:
            return self._numbered(sleeper, word & FUTEX_TID_MASK, shared=shared)
        if word == value == LOCKED_WITH_WAITERS:
            return self._numbered(sleeper, sleeper.word(address + OWNER) or 0, shared=shared)
        return None

    def _numbered(self, sleeper: Sleeper, number: int, *, shared: bool) -> int | None:
        """Return the TID of the thread with a number in its own PID namespace; None if there is none, or several.

        Args:
            sleeper: of whose process it is.
            number: as the process sees it.
            shared: whether it may be another process's.
        """
        if not 0 < number < sched.PID_MAX_LIMIT:
            return None
        own = [task for task in self._threads.get(sched.task_tgid(sleeper.leader), ()) if _own_number(task) == number]
        if not own and shared:
            own = self._by_number.get(number, [])
        return sched.task_pid(own[0]) if len(own) == 1 else None

    @cached_property
    def _by_number(self) -> dict[int, list[StructView]]:
        """All threads by their numbers in their own PID namespaces."""
        found: dict[int, list[StructView]] = {}
        for task in (task for tasks in self._threads.values() for task in tasks):
            found.setdefault(_own_number(task), []).append(task)
        return found

    @cached_property
    def _by_parent(self) -> dict[int, list[tuple[int, StructView]]]:
        """PID and leader of the children of each process."""
        found: dict[int, list[tuple[int, StructView]]] = {}
        for pid, tasks in self._threads.items():
            parent = sched.real_parent_tgid(tasks[0]) if tasks else None
            if parent is not None:
                found.setdefault(parent, []).append((pid, tasks[0]))
        return found

    def _descriptor(self, sleeper: Sleeper, fd: int) -> Descriptor | None:
        table = files.table_of(sleeper.task)
        if table is None:
            return None
        if table.address not in self._tables:
            self._tables[table.address] = {one.fd: one for one in files.descriptors(table)}
        return self._tables[table.address].get(fd & 0xFFFF_FFFF)

    def _file(self, sleeper: Sleeper) -> Wait | None:
        """Return the wait of a call whose first argument is a descriptor."""
        return self._of_descriptor(sleeper, sleeper.value(0))

    def _of_descriptor(self, sleeper: Sleeper, fd: int) -> Wait | None:
        one = self._descriptor(sleeper, fd)
        if one is None:
            return None
        me, inode = sched.task_pid(sleeper.task), one.inode
        if files.is_kind(inode, files.S_IFIFO):
            access = "w" if sleeper.call.name in ("write", "writev") else "r"
            tids = self._of_holders(self._ends.of_pipe(inode, access), me)
            return Wait("pipe", f"pipe of fd {fd}; {_other_end(self._who(tids))}", None, tids, bool(tids))
        if files.is_kind(inode, files.S_IFSOCK):
            socket = socket_of(one.file)
            ends = self._ends.of_socket(socket)
            tids = self._of_holders(ends or (), me)
            other = "" if ends is None else f"; {_other_end(self._who(tids))}"
            return Wait("socket", f"socket of fd {fd} ({socket}){other}", None, tids, bool(tids))
        return Wait("file", f"fd {fd}")

    def _accept(self, sleeper: Sleeper) -> Wait | None:
        one = self._descriptor(sleeper, sleeper.value(0))
        socket = None if one is None else socket_of(one.file)
        return Wait("socket", f"a connection to fd {sleeper.value(0)} ({socket})")

    def _poll(self, sleeper: Sleeper) -> Wait | None:
        count = sleeper.value(1)
        raw = sleeper.read(sleeper.value(0), 8 * count) if 0 < count <= POLLFDS_MAX else None
        if count == 0:
            return Wait("timer" if not self._endless(sleeper) else "signal", "time to pass, or a signal")
        if raw is None:
            return Wait("poll", counted(count, "descriptor"))
        fds = [int.from_bytes(raw[at : at + 4], sleeper.order, signed=True) for at in range(0, len(raw), 8)]
        return self._any_of(sleeper, [fd for fd in fds if fd >= 0])

    def _select(self, sleeper: Sleeper) -> Wait | None:
        """Return the wait for the descriptors in three sets: one bit for each descriptor, in the process's words."""
        size = -(-min(sleeper.value(0), SELECT_MAX) // 64) * 8
        sets = [sleeper.read(sleeper.value(i), size) for i in (1, 2, 3) if sleeper.value(i)]
        if not sets:
            return Wait("signal" if self._endless(sleeper) else "timer", "time to pass, or a signal")
        if None in sets:
            return Wait("poll", counted(sleeper.value(0), "descriptor"))
        fds = {fd for one in sets if one is not None for fd in _bits(one, sleeper.order)}
        return self._any_of(sleeper, sorted(fds))

    def _epoll(self, sleeper: Sleeper) -> Wait | None:
        one = self._descriptor(sleeper, sleeper.value(0))
        ep = None if one is None else one.file.follow("private_data", "eventpoll")
        return None if ep is None else self._any_of(sleeper, list(_epoll_fds(ep)), f"epoll fd {sleeper.value(0)}: ")

    def _any_of(self, sleeper: Sleeper, fds: list[int], of: str = "") -> Wait:
        """Return the wait for any of several descriptors: a thread that makes one of them ready can end it."""
        waits = [self._of_descriptor(sleeper, fd) for fd in fds]
        tids = tuple(dict.fromkeys(tid for wait in waits if wait is not None for tid in wait.holders))
        known = all(wait is not None and wait.all_known for wait in waits) and self._endless(sleeper)
        names = ", ".join(f"fd {fd}" for fd in fds[:8]) + (f" and {len(fds) - 8} more" if len(fds) > 8 else "")
        return Wait("poll", f"{of}{names or 'nothing'}", None, tids, known and bool(tids))

    @staticmethod
    def _endless(sleeper: Sleeper) -> bool:
        if sleeper.call.name == "ppoll":
            return sleeper.value(2) == 0
        if sleeper.call.name in ("select", "pselect6"):
            return sleeper.value(4) == 0
        timeout = sleeper.value(3 if (sleeper.call.name or "").startswith("epoll") else 2)
        return timeout & 0xFFFF_FFFF == INFINITE

    def _child(self, sleeper: Sleeper) -> Wait:
        children = dict(self._by_parent.get(sched.task_tgid(sleeper.leader), ()))
        number = sleeper.value(0 if sleeper.call.name == "wait4" else 1) & 0xFFFF_FFFF
        asked = {pid: task for pid, task in children.items() if _own_number(task) == number} or children
        tids = tuple(tid for pid in asked for tid in self._of_process(pid))
        which = "child" if len(asked) == 1 else "any child of"
        return Wait(
            "child", f"{which} {', '.join(f'{pid} ({self._names.get(pid)})' for pid in asked)}", None, tids, bool(tids)
        )

    def _vfork(self, sleeper: Sleeper) -> Wait | None:
        if not any("vfork" in name or "wait_for_completion" in name for name in sleeper.functions):
            return None
        children = self._by_parent.get(sched.task_tgid(sleeper.leader), ())
        found = [pid for pid, task in children if task.has("vfork_done") and task.pointer("vfork_done")]
        tids = tuple(tid for pid in found for tid in self._of_process(pid))
        return Wait("child", f"child {self._who(found)} to exec or to exit, as vfork() does", None, tids, bool(tids))

    def _file_lock(self, sleeper: Sleeper) -> Wait | None:
        if sleeper.call.name == "fcntl" and sleeper.value(1) not in (F_SETLKW, F_OFD_SETLKW):
            return None
        one = self._descriptor(sleeper, sleeper.value(0))
        if one is None:
            return None
        me, pid = sched.task_pid(sleeper.task), sched.task_tgid(sleeper.leader)
        for lock in locks.file_locks(one.inode):
            if pid not in lock.waiting:
                continue
            # Any process with the same struct file can release a lock of flock().
            shared = self._ends.by_file.get(lock.file, ()) if lock.kind == "flock" else ()
            tids = self._of_holders(shared, me) or self._of_process(lock.pid)
            held = f", held by {self._who(tids)}" if tids else ""
            return Wait("file lock", f"{lock.kind} lock of fd {sleeper.value(0)}{held}", None, tids, bool(tids))
        return Wait("file lock", f"lock of fd {sleeper.value(0)}")

    def _time(self, sleeper: Sleeper) -> Wait:
        return Wait("timer", "time to pass")

    def _signal(self, sleeper: Sleeper) -> Wait:
        return Wait("signal", "a signal")


def _own_number(task: StructView) -> int:
    """Return a thread's number in its own PID namespace."""
    try:
        return (task_nspids(task) or (sched.task_pid(task),))[-1]
    except (LayoutError, CorruptStructure, MemoryFault):
        return sched.task_pid(task)


def _epoll_fds(ep: StructView) -> Iterator[int]:
    for node in islice(rb_nodes(ep.kernel, ep.addr_of("rbr"), "eventpoll.rbr"), EPOLL_MAX):
        yield ep.kernel.container_of(node, "epitem", "rbn").uint("ffd.fd", size=4)


def _bits(raw: bytes, order: ByteOrder) -> Iterator[int]:
    """Yield the numbers of the bits that are set in a bitmap of words of 64 bits."""
    for at in range(0, len(raw), 8):
        word = int.from_bytes(raw[at : at + 8], order)
        yield from (8 * at + bit for bit in range(64) if word >> bit & 1)


def _other_end(who: str) -> str:
    return f"other end: {who or 'no process has it'}"


SCHEDULER = ("__schedule", "schedule", "schedule_timeout", "schedule_preempt_disabled", "io_schedule", "__switch_to")


def _inside(functions: tuple[str, ...]) -> str:
    """Return in which function of the kernel a thread sleeps, without the scheduler's own."""
    found = next((name for name in functions if name not in SCHEDULER), None)
    return "?" if found is None else f"in {found}()"


_KINDS: Mapping[str, Callable[[Waits, Sleeper], Wait | None]] = {
    "futex": Waits._futex,
    **dict.fromkeys(("read", "readv", "write", "writev", "recvfrom", "recvmsg", "recvmmsg"), Waits._file),
    **dict.fromkeys(("sendto", "sendmsg", "sendmmsg"), Waits._file),
    **dict.fromkeys(("accept", "accept4"), Waits._accept),
    **dict.fromkeys(("poll", "ppoll"), Waits._poll),
    **dict.fromkeys(("select", "pselect6"), Waits._select),
    **dict.fromkeys(("epoll_wait", "epoll_pwait"), Waits._epoll),
    **dict.fromkeys(("wait4", "waitid"), Waits._child),
    **dict.fromkeys(("vfork", "clone", "clone3"), Waits._vfork),
    **dict.fromkeys(("flock", "fcntl"), Waits._file_lock),
    **dict.fromkeys(("nanosleep", "clock_nanosleep"), Waits._time),
    **dict.fromkeys(("pause", "rt_sigsuspend", "rt_sigtimedwait"), Waits._signal),
}

"""What threads wait for in cases that no guest has: locks of musl and of containers, broken arguments."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from tests.builders.kernelimage import EXPORT, MORE, KernelImage, Offsets
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.syscall import Argument, NamedCall
from vmcore2core.process.openfiles import Ends
from vmcore2core.process.snapshot import Processes
from vmcore2core.process.waits import Sleeper, Waits

OFFSETS: Offsets = {
    "task_struct": {"blocker": (2400, 8), "files": (1600, 8), "thread_pid": (1200, 8)},
    "pid": {"level": (4, 4)},
    "files_struct": {"fdt": (32, 8)},
    "fdtable": {"max_fds": (0, 4), "fd": (8, 8), "close_on_exec": (16, 8), "open_fds": (24, 8)},
    "file": {"f_inode": (32, 8), "f_mode": (4, 4)},
    "inode": {"i_mode": (0, 2)},
    "mutex": {"owner": (0, 8)},
}
WORD = 0x7F00_0000_0010


class Machine:
    """Two processes, of which the second has two threads, and what their memory has."""

    def __init__(self) -> None:
        self.image = KernelImage(EXPORT, MORE, OFFSETS)
        self.tasks = [self.task(812, 812), self.task(900, 900), self.task(901, 900)]
        self.memory: dict[int, bytes] = {}
        self._kernel: Kernel | None = None

    def task(self, pid: int, tgid: int) -> int:
        return self.image.make("task_struct", pid=pid, tgid=tgid, comm=b"t%d" % pid)

    def in_container(self, task: int, number: int) -> None:
        """Give a task a number in a namespace of its own."""
        pid = self.image.make("pid", level=1)
        self.image.write(pid + 96, struct.pack("<IIQIIQ", 0, 0, 0, number, 0, 0))
        self.image.set("task_struct", task, thread_pid=pid)

    @property
    def kernel(self) -> Kernel:
        self._kernel = self._kernel or self.image.kernel()
        return self._kernel

    def leaders(self) -> Iterator[StructView]:
        yield from (self.kernel.view("task_struct", task) for task in self.tasks[:2])

    def threads(self, leader: StructView) -> Iterator[StructView]:
        chosen = self.tasks[:1] if leader.address == self.tasks[0] else self.tasks[1:]
        yield from (self.kernel.view("task_struct", task) for task in chosen)

    def what(
        self, name: str, *values: int, functions: tuple[str, ...] = (), of: int = 1
    ) -> tuple[str, str, tuple[int, ...], bool]:
        """Return what a thread waits for in a system call: by default, the second process's first thread."""
        processes = cast("Processes", self)
        waits = Waits(processes, Ends(processes))
        views = [self.kernel.view("task_struct", task) for task in self.tasks]
        arguments = tuple(Argument(None, value, "") for value in values)
        sleeper = Sleeper(
            views[of], views[0 if of == 0 else 1], NamedCall(0, name, arguments), functions, self.read, hex, "little"
        )
        found = waits.of(sleeper)
        return found.kind, found.what, found.holders, found.all_known

    def read(self, address: int, size: int) -> bytes | None:
        found = self.memory.get(address)
        return None if found is None or len(found) < size else found[:size]


def test_a_lock_of_musl_has_its_owner_in_the_futex() -> None:
    machine = Machine()
    machine.memory[WORD] = struct.pack("<I", 0x8000_0000 | 901)
    expected = ("futex", f"futex at {WORD:#x} ({WORD:#x}), held by 901 (t901)", (901,), True)
    assert machine.what("futex", WORD, 0x80, 0x8000_0385, 0) == expected
    # With a timeout it ends by itself.
    assert machine.what("futex", WORD, 0x80, 0x8000_0385, 0x7F00)[2:] == ((901,), False)


@pytest.mark.parametrize(
    ("word", "owner"), [(0, 901), (1, 901), (2, 0), (2, 5), (2, 1 << 30), (0x8000_0000, 0), (0x8000_0005, 0)]
)
def test_what_is_no_lock_with_an_owner_has_none(word: int, owner: int) -> None:
    machine = Machine()
    machine.memory[WORD] = struct.pack("<I", word)
    machine.memory[WORD + 8] = struct.pack("<I", owner)
    assert machine.what("futex", WORD, 0x80, 2, 0) == ("futex", f"futex at {WORD:#x} ({WORD:#x})", (), False)


def test_a_futex_that_is_not_in_the_dump_has_no_owner() -> None:
    assert Machine().what("futex", WORD, 0x80, 2, 0)[2:] == ((), False)


def test_an_owner_is_a_number_of_the_processs_own_namespace() -> None:
    machine = Machine()
    machine.in_container(machine.tasks[1], 1)
    machine.in_container(machine.tasks[2], 7)
    machine.memory[WORD] = struct.pack("<I", 2)
    machine.memory[WORD + 8] = struct.pack("<I", 7)
    assert machine.what("futex", WORD, 0x80, 2, 0)[2] == (901,)
    # Of a lock in shared memory, another process may be the holder: here, as only one has this number.
    assert machine.what("futex", WORD, 0, 2, 0, of=0)[2] == (901,)
    assert machine.what("futex", WORD, 0x80, 2, 0, of=0)[2] == ()
    other = Machine()
    for task in other.tasks[1:]:
        other.in_container(task, 7)
    other.memory = machine.memory
    assert other.what("futex", WORD, 0, 2, 0, of=0)[2] == ()


def test_a_lock_of_the_kernel_comes_before_the_system_call() -> None:
    machine = Machine()
    lock = machine.image.words(machine.image.alloc(32), machine.tasks[2] | 1)
    machine.image.set("task_struct", machine.tasks[1], blocker=lock)
    assert machine.what("pause") == ("mutex", f"mutex at {lock:#x}, held by 901 (t901)", (901,), True)
    machine = Machine()
    machine.image.set("task_struct", machine.tasks[1], blocker=machine.image.alloc(32) | 1)
    assert machine.what("pause")[1].startswith("semaphore at 0x")


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("poll", (0, 0, -1), ("signal", "time to pass, or a signal")),
        ("poll", (0, 0, 500), ("timer", "time to pass, or a signal")),
        ("ppoll", (WORD, 2, 0), ("poll", "2 descriptors")),
        ("poll", (WORD, 1000, 0), ("poll", "1000 descriptors")),
        ("select", (0, 0, 0, 0, 0), ("signal", "time to pass, or a signal")),
        ("pselect6", (8, WORD, 0, 0, 1), ("poll", "8 descriptors")),
        ("fcntl", (3, 5), ("other", "in do_it()")),
        ("clone3", (3, 5), ("other", "in do_it()")),
        ("epoll_wait", (3, 5), ("other", "in do_it()")),
        ("read", (3, 5), ("other", "in do_it()")),
        ("flock", (3, 5), ("other", "in do_it()")),
        ("io_uring_enter", (3, 5), ("other", "in do_it()")),
    ],
)
def test_what_is_not_told_is_the_function_of_the_kernel(
    name: str, values: tuple[int, ...], expected: tuple[str, str]
) -> None:
    assert Machine().what(name, *values, functions=("__schedule", "schedule", "do_it"))[:2] == expected


def test_outside_of_every_function_there_is_nothing_to_say() -> None:
    assert Machine().what("io_uring_enter", functions=("schedule",))[1] == "?"


def test_select_names_the_descriptors_of_its_sets() -> None:
    machine = Machine()
    machine.memory[WORD] = struct.pack("<2Q", 1 << 3 | 1 << 63, 1 << 1)
    machine.memory[WORD + 64] = struct.pack("<2Q", 1 << 5, 0)
    assert machine.what("select", 70, WORD, WORD + 64, 0, 0)[:2] == ("poll", "fd 3, fd 5, fd 63, fd 65")
    machine.memory[WORD] = struct.pack("<2Q", 0xFFFF, 0)
    assert machine.what("select", 70, WORD, 0, 0, 0)[1].endswith("fd 7 and 8 more")


def test_poll_passes_over_negative_descriptors() -> None:
    machine = Machine()
    machine.memory[WORD] = struct.pack("<ihhihh", -1, 1, 0, 9, 1, 0)
    assert machine.what("poll", WORD, 2, -1 & 0xFFFF_FFFF)[:2] == ("poll", "fd 9")


def test_a_sleeper_has_zero_for_arguments_that_a_call_lacks() -> None:
    sleeper = Sleeper(
        cast("StructView", None), cast("StructView", None), NamedCall(0, "x", ()), (), lambda *_: None, hex, "little"
    )
    assert sleeper.value(3) == 0
    assert replace(sleeper, read=lambda *_: b"\1\0\0\0").word(0) == 1


def test_of_many_threads_the_first_are_named() -> None:
    machine = Machine()
    waits = Waits(cast("Processes", machine), Ends(cast("Processes", machine)))
    assert waits._who([900, 901]) == "900 (t900), 901 (t901)"
    assert waits._who(range(900, 910)).endswith("907 (?) and 2 more")


def test_the_threads_of_a_process_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many processes at one pipe asks for all the others."""
    machine = Machine()
    waits = Waits(cast("Processes", machine), Ends(cast("Processes", machine)))
    assert waits._of_process(900) == (900, 901)
    monkeypatch.setattr("vmcore2core.process.waits.sched.task_pid", None)
    assert waits._of_process(900) == (900, 901)

"""The ``struct task_struct`` of a whole thread group at once: a column of numbers for each member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U64Array
from vmcore2core.formats._cabi import NUMPY_ORDER
from vmcore2core.kernel.sched import TASK_COMM_LEN
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.structs import Structs, as_numbers

POINTERS = "group_leader signal mm active_mm thread_pid real_parent real_cred stack stack_vm_area".split()
SIGSETS = ("pending.signal", "blocked")
NR_MM_COUNTERS = 4  # enum in include/linux/mm_types_task.h, since Linux 4.5
INTS = "pid tgid __state exit_state on_cpu static_prio".split()
LONGS = ("state", "utime", "stime")


class Tasks(Structs):
    """The threads of a group.

    Args:
        kernel: the dumped kernel.
        views: ``struct task_struct`` of each.

    Attributes:
        views: likewise.
    """

    def __init__(self, kernel: Kernel, views: Sequence[StructView]) -> None:
        word, saved_sp = kernel.arch.pointer_size, kernel.arch.registers.saved_sp
        words = [*POINTERS, *SIGSETS, *([f"thread.{saved_sp}"] if saved_sp else [])]
        members = {"comm": TASK_COMM_LEN, **dict.fromkeys(words, word), **dict.fromkeys(INTS, 4)}
        members |= dict.fromkeys(LONGS, 8)
        members["rss_stat.count"] = 4 * NR_MM_COUNTERS
        if kernel.arch.many_threads is not None:
            members |= {f"thread.{name}": size for name, size in kernel.arch.many_threads.saved.items()}
        self.views = views
        super().__init__(kernel, "task_struct", [int(view.address) for view in views], members.items())

    def points_to(self, name: str, address: int) -> NDArray[np.bool_]:
        """Tell which ones have this pointer: all if the layout does not know the member."""
        return self.ulong(name) == np.uint64(address) if self.has(name) else np.ones(len(self), np.bool_)

    def sigset(self, name: str) -> U64Array | None:
        """Return the first word of each one's ``sigset_t``, uint64[n]; None if the layout does not know the member."""
        if not self.has(name):
            return None
        return as_numbers(self.column(name, self.kernel.arch.pointer_size)[0], self.kernel.arch.byte_order)

    @property
    def named(self) -> NDArray[np.bool_]:
        """Which ones' names and signal sets were read in full, bool[n]: the layout may have less of them."""
        word, there = self.kernel.arch.pointer_size, self.column("comm", TASK_COMM_LEN)[1].copy()
        for name in filter(self.has, SIGSETS):
            there &= self.column(name, word)[1]
        return there

    def rss_counts(self, owner: int) -> list[int]:
        """Return the sum of ``rss_stat.count`` of all tasks with this ``struct mm_struct``."""
        raw, order = self.column("rss_stat.count", 4 * NR_MM_COUNTERS)[0], NUMPY_ORDER[self.kernel.arch.byte_order]
        counts: list[int] = raw[self.points_to("mm", owner)].view(f"{order}i4").sum(axis=0, dtype=np.int64).tolist()
        return counts

    def comms(self, rows: NDArray[np.intp]) -> list[bytes]:
        """Return the names of some tasks, as ``sched.task_comm`` does."""
        return [raw.tobytes().split(b"\0", 1)[0] for raw in self.column("comm", TASK_COMM_LEN)[0][rows]]

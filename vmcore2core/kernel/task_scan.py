"""Thread-group leaders, found by searching physical memory: the last resort if lists and tables are torn.

A leader's ``group_leader`` points to the leader itself, so this word tells its own address, including the page offset.
numpy filters memory by that, and few candidates remain to be checked one by one. volatility's psscan and crash's
``foreach`` over slabs use other marks. Freed tasks stay in memory until it is used again; their list entries are
poisoned, and they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vmcore2core.addresses import U8Array
from vmcore2core.errors import LayoutInvalid, MemoryFault
from vmcore2core.kernel.sched import PID_MAX_LIMIT, TASK_COMM_LEN
from vmcore2core.kernel.struct import Kernel, StructView

TASK_ALIGN = {8: 64, 4: 32}  # least of task_struct_cachep, by bytes of a pointer: L1_CACHE_BYTES
SIZE_MAX = 1 << 16
CANDIDATES_MAX = 1 << 20

Update = Callable[[int, int], None]
"""Takes (bytes done, bytes in all)."""


class TaskScan:
    """A search of all memory in the dump.

    Args:
        kernel: the dumped kernel.

    Raises:
        LayoutUnknown: task_struct.group_leader or its size is not known.
        LayoutInvalid: an offset is impossible.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        layout = kernel.layout
        self._word, order = kernel.arch.pointer_size, "<" if kernel.arch.byte_order == "little" else ">"
        self._align = TASK_ALIGN[self._word]
        self._pointer, self._int = np.dtype(f"{order}u{self._word}"), np.dtype(f"{order}i4")
        self._offsets = {
            name: layout.member("task_struct", name).offset for name in ("group_leader", "pid", "tgid", "stack")
        }
        self._size = max(layout.size("task_struct"), max(self._offsets.values()) + 8)
        if self._size > SIZE_MAX or any(offset % 4 for offset in self._offsets.values()):
            raise LayoutInvalid(f"struct task_struct of {self._size:#x} bytes cannot be searched for")

    def leaders(self, update: Update | None = None) -> Iterator[StructView]:
        """Yield possible leaders, in order of physical addresses.

        Args:
            update: called with the progress of the search.
        """
        physical, done, found = self.kernel.memory.physical, 0, 0
        total = sum(memory_range.size for memory_range in physical.container.dumped_ranges())
        tail, tail_end = np.zeros(0, np.uint8), -1
        for base, pages in physical.scan():
            here = pages.reshape(-1)
            start = base
            if base == tail_end:  # a task may begin in the piece before
                here, start = np.concatenate([tail, here]), cast("int", base) - len(tail)  # type: ignore[assignment]
            for address, at in self._candidates(here, int(start)):
                found += 1
                if found > CANDIDATES_MAX:
                    return
                task = self.kernel.view("task_struct", address)
                if self._is_leader(task, at):
                    yield task
            keep = min(len(here), self._size - self._align)
            tail, tail_end = here[len(here) - keep :].copy(), int(base) + pages.size
            done += pages.size
            if update is not None:
                update(done, total)

    def _candidates(self, memory: U8Array, start: int) -> list[tuple[int, int]]:
        """Return (group_leader, physical address) of each candidate.

        Args:
            memory: uint8[n], contiguous.
            start: physical address of its first byte.
        """
        last = len(memory) - self._size
        if last < 0:
            return []
        at = np.arange(-start % self._align, last + 1, self._align)
        leader = self._values(memory, at, "group_leader", self._pointer)
        page = self.kernel.memory.kernel_map.spec.page_size
        # The page offset is the same in both address spaces.
        good = (leader != 0) & (leader % np.uint64(page) == ((at + start) % page).astype(np.uint64))
        at, leader = at[good], leader[good]
        pid, tgid = (self._values(memory, at, name, self._int) for name in ("pid", "tgid"))
        good = (pid > 0) & (pid < PID_MAX_LIMIT) & (pid == tgid)
        stack = self._values(memory, at, "stack", self._pointer)
        good &= stack % np.uint64(4096) == 0
        return [(int(a), int(p) + start) for a, p in zip(leader[good], at[good], strict=True)]

    def _values(
        self, memory: U8Array, at: NDArray[np.int64], name: str, dtype: np.dtype[np.generic]
    ) -> NDArray[np.uint64]:
        """Return a member of each candidate, widened."""
        columns = at[:, None] + self._offsets[name] + np.arange(dtype.itemsize)
        raw = np.ascontiguousarray(memory[columns])
        wide = np.uint64 if dtype.kind == "u" else np.int64
        return cast("NDArray[np.uint64]", raw.view(dtype).reshape(-1).astype(wide))

    def _is_leader(self, task: StructView, paddr: int) -> bool:
        """Tell whether a candidate is mapped at its group_leader, has a name, and is linked into its group."""
        try:
            if self.kernel.memory.to_phys(task.address) != paddr:
                return False
            comm = task.bytes_of("comm", TASK_COMM_LEN)
            if b"\0" not in comm or not comm[:1].strip(b"\0"):
                return False
            node, size = task.addr_of("thread_node"), self._word
            following, before = self.kernel.read_pointer(node), self.kernel.read_pointer(node + size)
            return self._points_to(following + size, node) or self._points_to(before, node)
        except MemoryFault:
            return False

    def _points_to(self, at: int, expected: int) -> bool:
        try:
            return self.kernel.read_pointer(at) == expected
        except MemoryFault:
            return False

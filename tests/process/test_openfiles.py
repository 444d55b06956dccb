"""Many processes at one pipe, as no bundled guest has: lists say how many there are, and waits have them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from tests.process.test_waits import Machine
from vmcore2core.kernel.files import FMODE_READ, FMODE_WRITE, S_IFIFO
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.openfiles import Ends, FileRow, Holder, OpenFiles
from vmcore2core.process.snapshot import Processes

O_PATH = 0  # no access
MANY = 40


class Crowd(Machine):
    """Processes that have one pipe open, each by descriptor 0."""

    def __init__(self, *modes: int) -> None:
        super().__init__()
        self.pipe = self.image.make("inode", i_mode=S_IFIFO)
        self.tasks = [self.task(1000 + number, 1000 + number) for number in range(len(modes))]
        for task, mode in zip(self.tasks, modes, strict=True):
            self.image.set("task_struct", task, files=self._table(mode))

    def _table(self, mode: int) -> int:
        """Return a table of which descriptor 0 is open."""
        image = self.image
        file = image.make("file", f_inode=self.pipe, f_mode=mode)
        fd, opened = image.words(image.alloc(8), file), image.words(image.alloc(8), 1)
        fdt = image.make("fdtable", max_fds=1, fd=fd, open_fds=opened, close_on_exec=image.words(image.alloc(8), 0))
        return image.make("files_struct", fdt=fdt)

    def leaders(self) -> Iterator[StructView]:
        yield from (self.kernel.view("task_struct", task) for task in self.tasks)

    def threads(self, leader: StructView) -> Iterator[StructView]:
        yield leader

    def other_ends(self, access: str) -> list[int]:
        ends = Ends(cast("Processes", self))
        return [one.pid - 1000 for one in ends.of_pipe(self.kernel.view("inode", self.pipe), access)]


def row(ends: int | None) -> FileRow:
    held = None if ends is None else tuple(Holder(1000 + number, "worker", 1, "w") for number in range(ends))
    return FileRow(3, 0x1000, "pipe:[1]", "FIFO", "r", 0, 0, False, 15, 1, other_ends=held)


def test_the_other_end_of_a_pipe_is_what_can_write_or_read() -> None:
    crowd = Crowd(FMODE_READ, FMODE_WRITE, FMODE_READ | FMODE_WRITE, O_PATH)
    assert crowd.other_ends("r") == [1, 2]
    assert crowd.other_ends("w") == [0, 2]
    assert crowd.other_ends("rw") == [0, 1, 2]
    assert crowd.other_ends("") == []


def test_a_thread_at_a_pipe_waits_for_all_processes_at_its_other_end() -> None:
    crowd = Crowd(FMODE_READ, *[FMODE_WRITE] * MANY)
    kind, what, holders, all_known = crowd.what("read", 0, of=0)
    assert (kind, all_known) == ("pipe", True)
    assert what.endswith(f"1008 (t1008) and {MANY - 8} more")
    assert holders == tuple(range(1001, 1001 + MANY))


@pytest.mark.parametrize(("ends", "listed"), [(0, 0), (32, 32), (33, 32), (1000, 32)])
def test_json_of_all_processes_lists_the_first_other_ends(ends: int, listed: int) -> None:
    found = row(ends).as_json()
    assert [one["pid"] for one in found["other_ends"]] == [1000 + number for number in range(listed)]
    assert found["other_ends_count"] == ends
    every = row(ends).as_json(all_ends=True)
    assert (len(every["other_ends"]), every["other_ends_count"]) == (ends, ends)


def test_json_of_a_table_does_likewise() -> None:
    table = OpenFiles(7, 7, "reader", "/", "/", (row(1000), row(None)))
    shared, file = table.as_json()["files"]
    assert (len(shared["other_ends"]), shared["other_ends_count"]) == (32, 1000)
    assert (file["other_ends"], file["other_ends_count"]) == (None, None)
    assert len(table.as_json(all_ends=True)["files"][0]["other_ends"]) == 1000


def test_the_line_names_eight_and_says_how_many_more() -> None:
    assert row(1000).line().endswith("1007 (worker) fd 1 and 992 more")
    assert row(8).line().endswith("1007 (worker) fd 1")


def test_processes_at_one_pipe_share_the_list_of_its_ends() -> None:
    """A list for each of them would grow with the square of their number, in memory too."""
    crowd = Crowd(*[FMODE_READ | FMODE_WRITE] * 2)
    ends, inode = Ends(cast("Processes", crowd)), crowd.kernel.view("inode", crowd.pipe)
    assert ends.of_pipe(inode, "rw") is ends.of_pipe(inode, "rw")

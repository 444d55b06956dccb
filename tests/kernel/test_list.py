"""Circular lists, good and broken."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import EXPORT, TEXT, KernelImage
from vmcore2core.containers.base import PageState
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.struct import Kernel


def ring(count: int) -> tuple[KernelImage, int, list[int]]:
    """Return an image with tasks linked by ``tasks`` (offset 832) to a head."""
    image = KernelImage(EXPORT)
    head = image.alloc(16)
    tasks = [image.make("task_struct", pid=i + 1) for i in range(count)]
    image.link(head, *(task + 832 for task in tasks))
    return image, head, tasks


def walked(kernel: Kernel, head: int) -> tuple[list[int], CorruptStructure | None]:
    """Return the structures that come out, and the error after them."""
    found: list[int] = []
    try:
        found.extend(int(task.address) for task in list_for_each_entry(kernel, head, "task_struct", "tasks"))
    except CorruptStructure as error:
        return found, error
    return found, None


def test_entries_come_in_order_and_without_the_head() -> None:
    image, head, tasks = ring(3)
    assert walked(image.kernel(), head) == (tasks, None)


def test_a_head_that_points_to_itself_is_an_empty_list() -> None:
    image, head, _ = ring(0)
    assert walked(image.kernel(), head) == ([], None)


def test_a_prev_that_does_not_point_back_ends_the_walk_after_the_good_entries() -> None:
    image, head, tasks = ring(3)
    image.words(tasks[2] + 832 + 8, head)
    found, error = walked(image.kernel(), head)
    assert found == tasks[:2]
    assert error is not None
    assert (error.address, error.where) == (tasks[1] + 832, "task_struct.tasks")
    assert f"{tasks[2] + 832:#x}, whose prev is {head:#x}" in str(error)


def test_a_cycle_that_misses_the_head_ends_the_walk() -> None:
    image, head, tasks = ring(3)
    image.words(tasks[2] + 832, tasks[1] + 832)
    found, error = walked(image.kernel(), head)
    assert found == tasks
    assert error is not None
    assert error.address == tasks[2] + 832


def test_a_next_that_cannot_be_read_ends_the_walk() -> None:
    image, head, tasks = ring(3)
    image.words(tasks[1] + 832, 0xDEAD_0000_0000_0100)  # LIST_POISON1
    found, error = walked(image.kernel(), head)
    assert found == tasks[:2]
    assert error is not None
    assert "0xdead000000000108 is not mapped" in str(error)


def test_an_entry_on_a_page_that_is_not_in_the_dump_ends_the_walk() -> None:
    image, head, tasks = ring(3)
    page = (tasks[2] + 832 - TEXT) >> 12
    assert (tasks[1] + 832 - TEXT) >> 12 != page
    found, error = walked(image.kernel(states={page: PageState.EXCLUDED}), head)
    assert found == tasks[:2]
    assert "excluded" in str(error)


def test_messages_name_type_and_member() -> None:
    image, head, _ = ring(1)
    image.words(head, 8)
    with pytest.raises(CorruptStructure, match=r"^task_struct\.tasks at 0x[0-9a-f]+: "):
        list(list_for_each_entry(image.kernel(), head, "task_struct", "tasks"))

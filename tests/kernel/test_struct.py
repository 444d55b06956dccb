"""Errors about unreadable and wrong members name type, member, address and offset."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import EXPORT, OLD, KernelImage
from vmcore2core.errors import CorruptStructure, MemoryFault, NotMapped
from vmcore2core.kernel.struct import chain

NOWHERE = 0xFFFF_C900_0000_0000


def test_a_member_that_cannot_be_read_is_named() -> None:
    view = KernelImage(EXPORT).kernel().view("task_struct", NOWHERE)
    with pytest.raises(NotMapped) as caught:
        view.pointer("mm")
    assert (caught.value.address, caught.value.where) == (NOWHERE + 912, "task_struct.mm, offset 0x390")
    assert str(caught.value).startswith(f"address {NOWHERE + 912:#x} (task_struct.mm, offset 0x390) is not mapped")
    with pytest.raises(MemoryFault, match=r"\(task_struct\.__state or state, offset 0x18\)"):
        view.uint("__state", "state", size=4)


def test_what_was_read_first_stays_named() -> None:
    fault = NotMapped(8, "why").reading("a.b, offset 0x0")
    assert fault.reading("c.d, offset 0x8") is fault
    assert str(fault) == "address 0x8 (a.b, offset 0x0) is not mapped: why"


def test_what_is_wrong_is_said_with_its_offset_and_who_told_it() -> None:
    view = KernelImage(EXPORT).kernel().view("task_struct", 0x1000)
    error = view.corrupt("mm", "0x1, expected 0x2")
    assert str(error) == "task_struct.mm at 0x1390: 0x1, expected 0x2 (offset 0x390, from table)"
    assert (error.address, error.where, error.offset, error.source) == (0x1390, "task_struct.mm", 0x390, "table")


def test_a_chain_that_comes_back_yields_each_once() -> None:
    image = KernelImage(OLD)
    first, second = image.make("vm_area_struct"), image.make("vm_area_struct")
    image.set("vm_area_struct", first, vm_next=second)
    image.set("vm_area_struct", second, vm_next=first)
    links = chain(image.kernel().view("vm_area_struct", first), "vm_next", "vm_area_struct", 100)
    assert [int(next(links).address), int(next(links).address)] == [first, second]
    with pytest.raises(CorruptStructure, match=r"vm_area_struct\.vm_next at .* leads back"):
        next(links)

"""Columns of members equal the members read one by one, also if memory lacks some of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.kernelimage import KernelImage
from vmcore2core.kernel.structs import Structs, as_numbers, read_words

VALUES = [0x1000 * (number + 1) for number in range(300)]


def images(*, sized: bool) -> tuple[KernelImage, list[int]]:
    image = KernelImage(sized=sized)
    return image, [image.make("vm_area_struct", vm_start=value, vm_end=value + 0x1000) for value in VALUES]


@pytest.mark.parametrize("sized", [True, False])
def test_a_column_is_what_each_has(sized: bool) -> None:
    image, addresses = images(sized=sized)
    shuffled = np.random.default_rng(5).permutation(addresses).tolist()
    table = Structs(image.kernel(), "vm_area_struct", shuffled)
    assert table.whole.all() == sized
    assert table.ulong("vm_start").tolist() == [VALUES[addresses.index(at)] for at in shuffled]
    assert [table.view(row).ulong("vm_end") for row in range(len(table))] == (
        table.ulong("vm_start") + np.uint64(0x1000)
    ).tolist()
    assert table.find_uint("no_member", 8) is None
    assert not table.ulong("no_member").any()


@pytest.mark.parametrize("sized", [True, False])
def test_what_cannot_be_read_is_zero_and_not_whole(sized: bool) -> None:
    image, addresses = images(sized=sized)
    nowhere = [0xFFFF_FFFF_FFFF_FF80, 0x10, 0xFFFF_8880_FFFF_F000]
    table = Structs(image.kernel(), "vm_area_struct", [*nowhere, addresses[7]])
    assert table.ulong("vm_start").tolist() == [0, 0, 0, VALUES[7]]
    assert table.whole.tolist() == [False, False, False, sized]


def test_numbers_are_of_either_byte_order() -> None:
    raw = np.array([[0, 1, 2, 3], [0xFF, 0, 0, 0x80]], np.uint8)
    assert as_numbers(raw, "little").tolist() == [0x03020100, 0x800000FF]
    assert as_numbers(raw, "big").tolist() == [0x00010203, 0xFF000080]


def test_words_are_read_from_anywhere() -> None:
    image, addresses = images(sized=True)
    kernel = image.kernel()
    offset = kernel.layout.member("vm_area_struct", "vm_start").offset
    words, there = read_words(kernel, np.array([addresses[3] + offset, 0x10, addresses[1] + offset], np.uint64))
    assert (words.tolist(), there.tolist()) == ([VALUES[3], 0, VALUES[1]], [True, False, True])

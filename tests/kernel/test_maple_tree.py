"""Maple trees put together by hand, as lib/maple_tree.c lays them out (64-bit: 16 slots, 10 in arange_64 nodes)."""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import EXPORT, TEXT, KernelImage
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.maple_tree import MapleTree

LEAF, RANGE, ARANGE = 1, 2, 3
TOP = (1 << 64) - 1


def tree(image: KernelImage, root: int) -> MapleTree:
    """Return a tree with this ma_root: a node's entry has the type, and bit 1 for the root."""
    at = image.make("maple_tree", ma_root=root)
    return MapleTree(image.kernel().view("maple_tree", at))


def rooted(enode: int) -> int:
    return enode & ~4 | 2


def walked(found: MapleTree) -> tuple[list[int], CorruptStructure | None]:
    entries: list[int] = []
    try:
        entries.extend(int(entry) for entry in found.entries())
    except CorruptStructure as error:
        return entries, error
    return entries, None


def pointers(count: int, first: int = 0xFFFF_8880_0000_1000) -> list[int]:
    return [first + 256 * i for i in range(count)]


def test_an_empty_tree_has_no_entries() -> None:
    assert walked(tree(KernelImage(EXPORT), 0)) == ([], None)


def test_one_entry_at_index_0_stands_in_the_root_itself() -> None:
    assert walked(tree(KernelImage(EXPORT), 0xFFFF_8880_0000_1000)) == ([0xFFFF_8880_0000_1000], None)


@pytest.mark.parametrize("reserved", [2, 1030, 1026, 4094])
def test_a_reserved_entry_in_the_root_is_no_pointer(reserved: int) -> None:
    """XA_ZERO_ENTRY is xa_mk_internal(257) = 1030, XA_RETRY_ENTRY 1026 (include/linux/xarray.h)."""
    assert walked(tree(KernelImage(EXPORT), reserved)) == ([], None)


def test_a_leaf_gives_its_entries_and_skips_gaps() -> None:
    image = KernelImage(EXPORT)
    a, b = pointers(2)
    leaf = image.maple_node(LEAF, [0xFFF, 0x1FFF, 0x2FFF, 0x3FFF, TOP], [0, a, 0, b, 0], end=4)
    assert walked(tree(image, rooted(leaf))) == ([a, b], None)


def test_an_empty_last_pivot_reaches_to_the_nodes_maximum() -> None:
    """mas_logical_pivot(): a pivot of 0 behind the first means the node's maximum."""
    image = KernelImage(EXPORT)
    a, b = pointers(2)
    leaf = image.maple_node(LEAF, [0xFFF, 0], [a, b], end=1)
    assert walked(tree(image, rooted(leaf))) == ([a, b], None)


def test_a_full_leaf_has_an_entry_where_others_have_metadata() -> None:
    image = KernelImage(EXPORT)
    entries = pointers(16)
    leaf = image.maple_node(LEAF, [0x1000 * (i + 1) - 1 for i in range(15)], entries)
    assert walked(tree(image, rooted(leaf))) == (entries, None)


def test_a_leaf_of_15_slots_keeps_metadata_that_is_no_entry() -> None:
    image = KernelImage(EXPORT)
    entries = pointers(15)
    leaf = image.maple_node(LEAF, [*(0x1000 * (i + 1) - 1 for i in range(14)), TOP], entries, end=14)
    assert walked(tree(image, rooted(leaf))) == (entries, None)


def test_stale_pivots_and_slots_behind_the_end_of_a_leaf_are_not_read() -> None:
    image = KernelImage(EXPORT)
    a, b, stale = pointers(3)
    leaf = image.maple_node(LEAF, [0xFFF, TOP, 0x7FFF, 0x1FFF], [a, b, stale, stale], end=1)
    assert walked(tree(image, rooted(leaf))) == ([a, b], None)


def test_stale_pivots_and_slots_behind_the_end_of_an_arange_node_are_not_read() -> None:
    image = KernelImage(EXPORT)
    a, b, stale = pointers(3)
    low = image.maple_node(LEAF, [0xFFF, 0x1FFF], [a, 0], end=1)
    high = image.maple_node(LEAF, [0x2FFF, TOP], [b, 0], end=1)
    old = image.maple_node(LEAF, [0xFFF, TOP], [stale, 0], end=1)
    top = image.maple_node(ARANGE, [0x1FFF, 0x3FFF, 0x5FFF], [low, high, old], end=1)
    assert walked(tree(image, rooted(top))) == ([a, b], None)


def test_two_levels_of_arange_nodes_come_in_order() -> None:
    """An mm's tree is an allocation tree: its inner nodes are arange_64, with pivots at 8, slots at 80, meta at 240."""
    image = KernelImage(EXPORT, pages=256)
    entries = pointers(10 * 10 * 3)
    todo = iter(entries)
    middles, bounds = [], []
    at = 0
    for m in range(10):
        leaves, pivots = [], []
        for k in range(10):
            ends = [at + 0xFFF, at + 0x1FFF, at + 0x2FFF]
            at += 0x3000
            if m == k == 9:
                ends[2] = TOP
            leaves.append(image.maple_node(LEAF, ends, [next(todo) for _ in range(3)], end=2))
            pivots.append(ends[2])
        middles.append(image.maple_node(ARANGE, pivots[:9], leaves, end=9))
        bounds.append(pivots[9])
    top = image.maple_node(ARANGE, bounds[:9], middles, end=9)
    assert walked(tree(image, rooted(top))) == (entries, None)


def test_range_nodes_serve_as_inner_nodes_of_other_trees() -> None:
    image = KernelImage(EXPORT)
    a, b = pointers(2)
    low = image.maple_node(LEAF, [0xFFF, 0x1FFF], [a, 0], end=1)
    high = image.maple_node(LEAF, [0x2FFF, TOP], [b, 0], end=1)
    top = image.maple_node(RANGE, [0x1FFF, TOP], [low, high], end=1)
    assert walked(tree(image, rooted(top))) == ([a, b], None)


def test_reserved_entries_in_a_leaf_are_no_pointers() -> None:
    image = KernelImage(EXPORT)
    (a,) = pointers(1)
    leaf = image.maple_node(LEAF, [0xFFF, 0x1FFF, 0x2FFF, TOP], [1030, a, 1026, 0], end=3)
    assert walked(tree(image, rooted(leaf))) == ([a], None)


@pytest.mark.parametrize("kind", [0, 4, 5, 15])
def test_an_unknown_node_type_ends_the_walk_after_the_good_entries(kind: int) -> None:
    image = KernelImage(EXPORT)
    (a,) = pointers(1)
    good = image.maple_node(LEAF, [0xFFF, 0x1FFF], [a, 0], end=1)
    odd = image.maple_node(kind, [0x2FFF, TOP], [a, 0], end=1)
    top = image.maple_node(ARANGE, [0x1FFF], [good, odd], end=1)
    found, error = walked(tree(image, rooted(top)))
    assert found == [a]
    assert error is not None
    assert (error.address, error.where) == (odd & ~255, "maple_node")
    assert f"node type {kind}" in str(error)


def test_a_node_that_stands_in_the_tree_twice_ends_the_walk() -> None:
    image = KernelImage(EXPORT)
    (a,) = pointers(1)
    leaf = image.maple_node(LEAF, [0xFFF, TOP], [a, 0], end=1)
    top = image.maple_node(ARANGE, [0x1FFF], [leaf, leaf], end=1)
    found, error = walked(tree(image, rooted(top)))
    assert found == [a]
    assert error is not None
    assert error.address == leaf & ~255


def test_a_node_that_is_its_own_child_ends_the_walk() -> None:
    image = KernelImage(EXPORT)
    top = image.maple_node(ARANGE, [0xFFFF], [0, 0], end=1)
    image.words((top & ~255) + 80, top)
    found, error = walked(tree(image, rooted(top)))
    assert found == []
    assert error is not None
    assert "leads back into itself" in str(error)


def test_a_chain_of_nodes_deeper_than_a_tree_can_be_ends_the_walk() -> None:
    """MAPLE_HEIGHT_MAX is 31 (include/linux/maple_tree.h)."""
    image = KernelImage(EXPORT)
    (a,) = pointers(1)
    node = image.maple_node(LEAF, [0xFFF, TOP], [a, 0], end=1)
    for _ in range(40):
        node = image.maple_node(ARANGE, [TOP], [node], end=0)
    found, error = walked(tree(image, rooted(node)))
    assert found == []
    assert "too deep" in str(error)


def test_a_pivot_below_the_one_before_ends_the_walk_after_the_good_entries() -> None:
    image = KernelImage(EXPORT)
    a, b, c = pointers(3)
    leaf = image.maple_node(LEAF, [0x5FFF, 0x2FFF, TOP], [a, b, c], end=2)
    found, error = walked(tree(image, rooted(leaf)))
    assert found == [a]
    assert "pivot 1 of 2 is 0x2fff, expected 0x6000 to" in str(error)


def test_a_node_that_cannot_be_read_ends_the_walk_after_the_good_entries() -> None:
    image = KernelImage(EXPORT)
    (a,) = pointers(1)
    good = image.maple_node(LEAF, [0xFFF, 0x1FFF], [a, 0], end=1)
    top = image.maple_node(ARANGE, [0x1FFF], [good, 0xDEAD_0000_0000_010C], end=1)
    found, error = walked(tree(image, rooted(top)))
    assert found == [a]
    assert error is not None
    assert error.address == 0xDEAD_0000_0000_0100


def test_metadata_that_points_behind_the_slots_does_not_read_behind_them() -> None:
    image = KernelImage(EXPORT)
    entries = pointers(10)
    leaves = [
        image.maple_node(LEAF, [0x1000 * i + 0x7FF, 0x1000 * (i + 1) - 1 if i < 9 else TOP], [e, 0], end=1)
        for i, e in enumerate(entries)
    ]
    top = image.maple_node(ARANGE, [0x1000 * (i + 1) - 1 for i in range(9)], leaves, end=255)
    assert walked(tree(image, rooted(top))) == (entries, None)


def test_nodes_lie_in_the_image() -> None:
    """The builder's own promise: entries carry type and flags in a node's low 8 bits."""
    enode = KernelImage(EXPORT).maple_node(LEAF, [TOP], [0], end=0)
    assert enode & 255 == LEAF << 3 | 4
    assert enode >= TEXT


@pytest.mark.parametrize("pivot", [TOP, 0x9_0000])
def test_a_pivot_that_is_too_large_hides_no_entry_unnoticed(pivot: int) -> None:
    """The last of its node's, or beyond what the node above gives it: what follows would be gone."""
    image = KernelImage(EXPORT)
    a, b, c, d = pointers(4)
    first = image.maple_node(LEAF, [0xFFF, pivot, 0x2FFF, 0xFFFF], [a, 0, b, c], end=3)
    second = image.maple_node(LEAF, [0x1_0FFF, TOP], [d, 0], end=1)
    top = image.maple_node(ARANGE, [0xFFFF, TOP], [first, second], end=1)
    found, error = walked(tree(image, rooted(top)))
    assert found == [a]
    assert f"pivot 1 of 3 is {pivot:#x}, expected 0x1000 to 0xffff" in str(error)

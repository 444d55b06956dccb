"""XArrays, whole and broken; nodes of 64 slots are of literal form (tests.builders.kernelimage)."""

from __future__ import annotations

import time

import pytest

from tests.builders.kernelimage import EXPORT, MORE, TEXT, KernelImage
from vmcore2core.errors import CorruptStructure
from vmcore2core.kernel.xarray import XArray

LINKS = {"xa_node": {"offset": (1, 1), "count": (2, 1), "parent": (8, 8), "array": (16, 8)}}
INDEX_MAX = (1 << 64) - 1
ENTRY = TEXT + 0x4000


def walked(image: KernelImage, root: int) -> tuple[list[tuple[int, int, int]], CorruptStructure | None]:
    found: list[tuple[int, int, int]] = []
    try:
        for run in XArray(image.kernel().view("xarray", root)).runs(0, INDEX_MAX):
            found.append((run.first, run.last, run.entry))  # noqa: PERF401 - what came before an error counts
    except CorruptStructure as error:
        return found, error
    return found, None


def two_levels() -> tuple[KernelImage, int, int, int]:
    """Return an array with entries at 0 and 65, and its two lower nodes, with all links."""
    image = KernelImage(EXPORT, MORE, LINKS)
    root = image.alloc(16)
    below = [image.xa_node(0, {0: ENTRY}), image.xa_node(0, {1: ENTRY + 64})]
    top = image.xa_node(6, dict(enumerate(below)))
    image.words(root + 8, top)
    image.set("xa_node", top - 2, offset=0, count=2, parent=0, array=root)
    for slot, node in enumerate(below):
        image.set("xa_node", node - 2, offset=slot, count=1, parent=top - 2, array=root)
    return image, root, top - 2, below[1] - 2


def test_entries_come_with_their_indices() -> None:
    image, root, _, _ = two_levels()
    assert walked(image, root) == ([(0, 0, ENTRY), (65, 65, ENTRY + 64)], None)


@pytest.mark.parametrize(
    ("member", "value"), [("parent", 0x1234), ("array", 0x1234), ("offset", 7), ("count", 9), ("shift", 6)]
)
def test_a_node_that_is_another_ones_ends_the_walk_after_the_good_entries(member: str, value: int) -> None:
    image, root, _, last = two_levels()
    offset, _ = image.table.offsets["xa_node"][member]
    image.set("xa_node", last, {member: value})
    found, error = walked(image, root)
    assert found == [(0, 0, ENTRY)]
    assert error is not None
    assert error.where == f"xa_node.{member}"
    assert error.offset == offset
    assert error.address in (last, last + offset)


def test_a_node_below_the_last_level_ends_the_walk() -> None:
    image, root, top, last = two_levels()
    image.words(last + 40, top + 2)
    image.set("xa_node", last, count=2)
    assert walked(image, root)[0] == [(0, 0, ENTRY)]


@pytest.mark.no_cover
def test_slots_that_all_lead_to_one_node_do_not_multiply() -> None:
    """Ten levels of 64 slots would be 64^10 visits."""
    image = KernelImage(EXPORT, MORE)  # a layout that knows no links
    root = image.alloc(16)
    node = image.xa_node(0, dict.fromkeys(range(64), ENTRY))
    for shift in range(6, 60, 6):
        node = image.xa_node(shift, dict.fromkeys(range(64), node))
    image.words(root + 8, node)
    begun = time.process_time()
    found, error = walked(image, root)
    assert time.process_time() - begun < 1
    assert len(found) == 64
    assert error is not None
    assert "leads back into itself" in str(error)

"""Page tables that lead to each other map impossibly much: a sentence, and a core without that memory."""

from __future__ import annotations

import time

import pytest

from tests.builders.kernelimage import TEXT
from tests.process.scene import HEAP, STACK, VM_READ, VM_WRITE, Scene
from vmcore2core.corefile.plan import build_plan
from vmcore2core.process.model import AbsentReason
from vmcore2core.run.space import core_size

TABLE, HUGE = 0x7, 0x87  # _PAGE_PRESENT | _PAGE_RW | _PAGE_USER, and _PAGE_PSE
TOP = 1 << 39
PAGE = 4096


def table(scene: Scene, entry: int) -> int:
    """Make a table of 512 same entries."""
    return scene.image.page(entry.to_bytes(8, "little") * 512)


def stretched(kind: str) -> tuple[Scene, int]:
    scene, nr_top = Scene(), 82
    if kind == "huge pages":
        below = table(scene, HUGE)  # 512 times the first GiB
    else:
        last = table(scene, TABLE if kind == "pages" else 0)
        below = table(scene, table(scene, last | TABLE) | TABLE)
    for slot in range(1, 1 + nr_top):
        scene.image.words(TEXT + scene.image.ROOT + 8 * slot, below | TABLE)
    mm = scene.mm(
        (HEAP, HEAP + 2 * PAGE, VM_READ | VM_WRITE),
        (TOP, TOP + nr_top * TOP, VM_READ | VM_WRITE),
        (STACK, STACK + 0x3000, VM_READ | VM_WRITE),
        start_stack=STACK + 0x2000,
    )
    scene.group(scene.task(100), mm=mm)
    scene.image.user_page(HEAP, b"heap")
    return scene, TOP + nr_top * TOP


@pytest.mark.parametrize("kind", ["huge pages", "pages", "empty tables"])
def test_one_mapping_of_42_tib_whose_tables_are_one(kind: str) -> None:
    scene, end = stretched(kind)
    begun = time.monotonic()
    captured = scene.capture()
    size = core_size(captured)
    assert time.monotonic() - begun < 60  # for each window of 4 GiB anew it took hours
    (warning,) = (sentence for sentence in captured.snapshot.warnings if "page tables map more than" in sentence)
    assert f"so nothing of {TOP:#x}-{end:#x} is taken" in warning
    absent = {int(vma.start): vma.absent for vma in captured.snapshot.vmas}
    ((low, high, reason),) = [(run.start, run.end, run.reason) for run in absent[TOP]]
    assert (low, high, reason) == (TOP, end, AbsentReason.TABLE_BROKEN)
    assert absent[HEAP] == ()
    assert size.on_disk < 1 << 20
    assert sum(segment.filesz for segment in build_plan(captured.snapshot).segments) < 1 << 16
    assert captured.memory.read(HEAP, 4) == b"heap"
    assert captured.memory.read(TOP, 4) is None
    assert list(captured.memory.batches([(TOP, TOP + (1 << 32))])) == []


def test_a_mapping_of_42_tib_that_is_as_good_as_empty_is_none() -> None:
    """As sanitizers, Go and V8 make them."""
    scene = Scene()
    mm = scene.mm((TOP, 83 * TOP, VM_READ | VM_WRITE), (STACK, STACK + 0x3000, 3), start_stack=STACK + 0x2000)
    scene.group(scene.task(100), mm=mm)
    for at in range(5):
        scene.image.user_page(TOP + at * (TOP * 3 + PAGE), b"%d" % at)
    captured = scene.capture()
    assert not [sentence for sentence in captured.snapshot.warnings if "page tables" in sentence]
    assert captured.memory.read(TOP + 4 * (TOP * 3 + PAGE), 1) == b"4"

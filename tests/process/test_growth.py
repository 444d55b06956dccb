"""The work of a conversion grows linearly with mappings and threads; the number of page reads does not grow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.process.scene import HEAP, VM_EXEC, VM_READ, VM_WRITE, Scene
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Output, write_core
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory import pagetable
from vmcore2core.memory.physical import PhysicalMemory

FEW, MANY = 3, 12  # mappings of one leaf of the tree


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts calls: members of structures, pages one by one, batches of pages, levels of page tables."""
    counts: Counter[str] = Counter()

    def count(owner: object, name: str, what: str) -> None:
        plain = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            counts[what] += 1
            return plain(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(StructView, "_read", "members")
    count(PhysicalMemory, "_page", "pages")
    count(PhysicalMemory, "read_blocks", "batches")
    count(pagetable, "_level", "levels")
    return counts


def mapped(count: int) -> Scene:
    """Return a process of so many mappings of two pages, of which one was touched."""
    scene = Scene(pages=4 * count + 100)
    flags = (VM_READ | VM_WRITE, VM_READ | VM_WRITE | VM_EXEC)
    mm = scene.mm(*((HEAP + i * 0x2000, HEAP + (i + 1) * 0x2000, flags[i % 2]) for i in range(count)))
    for i in range(count):
        scene.image.user_page(HEAP + i * 0x2000, b"%d" % i)
    scene.group(scene.task(100), mm=mm)
    return scene


def threaded(count: int) -> Scene:
    """Return a process of so many threads."""
    scene = Scene(pages=8 * count + 200)
    mm = scene.mm((HEAP, HEAP + 0x2000, VM_READ | VM_WRITE))
    scene.group(*(scene.task(100 + i, 100) for i in range(count)), mm=mm)
    return scene


def written(scene: Scene, folder: Path, work: Counter[str]) -> Counter[str]:
    processes = scene.processes()
    leader = processes.find(100)
    before = Counter(work)
    captured = processes.capture(leader, dump_filter=None)
    write_core(captured.snapshot, captured.memory, Output(folder / "core", CoreOptions(force=True)))
    return Counter({name: work[name] - before[name] for name in work})


def test_mappings_are_read_together(work: Counter[str], tmp_path: Path) -> None:
    few, many = (written(mapped(count), tmp_path, work) for count in (FEW, MANY))
    assert (many["batches"], many["levels"]) == (few["batches"], few["levels"])
    assert many["members"] - few["members"] <= 28 * (MANY - FEW)


def test_threads_cost_as_much_each(work: Counter[str], tmp_path: Path) -> None:
    few, many = (written(threaded(8 * count), tmp_path, work) for count in (FEW, MANY))
    assert many["levels"] == few["levels"]
    assert many["members"] - few["members"] <= 30 * 8 * (MANY - FEW)
    assert many["pages"] - few["pages"] <= 3 * 8 * (MANY - FEW)

"""Special mappings: the kernel's array of their pages tells what is there, mapped in or not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.builders.paging import US, P
from tests.process.scene import CODE, VM_EXEC, VM_READ, Scene
from vmcore2core.corefile.writer import Output, write_core
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.model import AbsentReason
from vmcore2core.process.snapshot import Captured

SIGPAGE = 0x7FFF_0000_0000
VMEMMAP = 0xFFFF_EA00_0000_0000
PAGE = 64  # SIZE(page)
VM_IO, VM_PFNMAP = 0x4000, 0x400
STRUCT = {"name": (0, 8), "pages": (8, 8), "fault": (16, 8)}


def scene_of(
    pages: int = 2, *, name: bytes = b"[sigpage]", fault: int = 0, flags: int = VM_READ | VM_EXEC, known: str = "pages"
) -> tuple[Scene, list[int]]:
    """Return a process with a special mapping of three pages, and the physical addresses of the kernel's for it."""
    scene = Scene()
    image = scene.image
    image.table.offsets["vm_area_struct"]["vm_private_data"] = (104, 8)
    image.table.offsets["vm_special_mapping"] = STRUCT if known else {"name": (0, 8)}
    image.table.symbols["vmemmap"] = VMEMMAP
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC), (SIGPAGE, SIGPAGE + 0x3000, flags))
    scene.group(scene.task(100), mm=mm)
    image.table_at(SIGPAGE, (39, 30, 21))
    places = [image.page(b"special page %d" % i) for i in range(pages)]
    array = image.words(image.alloc(32), *(VMEMMAP + PAGE * (place >> 12) for place in places), *(0,) * (3 - pages))
    mapping = image.make("vm_special_mapping", name=image.string(name))
    if known:
        image.set("vm_special_mapping", mapping, pages=array, fault=fault)
    image.set("vm_area_struct", scene.vmas[1], anon_vma=0, vm_ops=0xFFFF_FFFF_8100_2000, vm_private_data=mapping)
    return scene, places


def absent(captured: Captured) -> list[tuple[int, int, AbsentReason]]:
    return [(run.start, run.end, run.reason) for run in captured.snapshot.vmas[1].absent]


def test_pages_that_are_not_mapped_in_are_in_the_core_whatever_the_filter_says(tmp_path: Path) -> None:
    scene, places = scene_of(3)
    scene.image.map(SIGPAGE + 0x1000, places[1] | P | US)
    processes = scene.processes()
    captured = processes.capture(processes.find(100), dump_filter=DumpFilter(0))
    vma = captured.snapshot.vmas[1]
    assert (vma.name, vma.dumped, vma.absent) == ("[sigpage]", True, ())
    write_core(captured.snapshot, captured.memory, Output(tmp_path / "core"))
    data = (tmp_path / "core").read_bytes()
    assert all(b"special page %d" % i in data for i in range(3))


def test_where_the_array_ends_pages_are_absent_and_not_zeros() -> None:
    scene, _ = scene_of(2)
    assert absent(scene.capture()) == [(SIGPAGE + 0x2000, SIGPAGE + 0x3000, AbsentReason.NOT_CACHED)]


def test_a_broken_entry_ends_the_array() -> None:
    scene, places = scene_of(3)
    good = VMEMMAP + PAGE * (places[1] >> 12)
    at = bytes(scene.image.data).index(struct.pack("<Q", good))
    struct.pack_into("<Q", scene.image.data, at, good + 8)
    assert absent(scene.capture()) == [(SIGPAGE + 0x1000, SIGPAGE + 0x3000, AbsentReason.NOT_CACHED)]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        pytest.param({"fault": 0xFFFF_FFFF_8100_3000}, "[sigpage]", id="its pages come from a function"),
        pytest.param({"known": ""}, "[sigpage]", id="the layout does not know"),
        pytest.param({"name": b"no brackets"}, "", id="something else's private data"),
    ],
)
def test_other_mappings_are_as_they_were(changed: dict[str, object], name: str) -> None:
    vma = scene_of(3, **changed)[0].capture().snapshot.vmas[1]  # type: ignore[arg-type]
    assert (vma.name, vma.dumped) == (name, False)


@pytest.mark.parametrize("flag", [VM_IO, VM_PFNMAP])
def test_memory_of_devices_stays_out(flag: int) -> None:
    vma = scene_of(3, flags=VM_READ | flag)[0].capture().snapshot.vmas[1]
    assert (vma.name, vma.dumped) == ("[sigpage]", False)

"""The vDSO's pages come from the kernel image, if one of them proves it.

Tests arch/x86/vdso.py.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.builders.kernelimage import TEXT
from tests.builders.paging import US, P
from tests.process.scene import CODE, VM_EXEC, VM_READ, Scene
from vmcore2core.corefile.writer import Output, write_core
from vmcore2core.process.model import AbsentReason

VDSO = 0x7FFF_0000_0000
OUTSIDE = 0x200_0000  # beyond the image's 16 MiB


def vdso_scene(size: int = 0x3000) -> tuple[Scene, list[int]]:
    """Return a scene with an image of a vDSO in memory, and the physical addresses of its pages; none is mapped."""
    scene = Scene()
    auxv = struct.pack("<6Q", 6, 4096, 33, VDSO, 0, 0)
    mm = scene.mm((CODE, CODE + 0x1000, VM_READ | VM_EXEC), (VDSO, VDSO + size, VM_READ | VM_EXEC), saved_auxv=auxv)
    scene.image.set("vm_area_struct", scene.vmas[1], anon_vma=0)
    scene.group(scene.task(100), mm=mm)
    # Tables first, so that the image's pages lie in one piece.
    scene.image.table_at(VDSO, (39, 30, 21))
    return scene, [scene.image.page((b"" if i else b"\x7fELF") + b"vdso page %d" % i) for i in range(size // 0x1000)]


def test_pages_beside_a_mapped_one_are_in_the_core(tmp_path: Path) -> None:
    scene, pages = vdso_scene()
    scene.image.map(VDSO + 0x1000, pages[1] | P | US)
    captured = scene.capture()
    vma = captured.snapshot.vmas[1]
    assert (vma.name, vma.dumped, vma.absent) == ("[vdso]", True, ())
    write_core(captured.snapshot, captured.memory, Output(tmp_path / "core"))
    data = (tmp_path / "core").read_bytes()
    assert all(b"vdso page %d" % i in data for i in range(3))


def test_without_a_mapped_page_it_is_absent_and_not_zeros() -> None:
    scene, _ = vdso_scene()
    (run,) = scene.capture().snapshot.vmas[1].absent
    assert (run.start, run.end, run.reason) == (VDSO, VDSO + 0x3000, AbsentReason.NOT_CACHED)


def test_a_page_outside_the_kernel_image_shows_nothing() -> None:
    """A page that the process wrote (a breakpoint) is a copy elsewhere: its neighbours are anybody's."""
    scene, _ = vdso_scene()
    scene.image.map(VDSO + 0x1000, OUTSIDE | P | US)
    absent = scene.capture().snapshot.vmas[1].absent
    assert [(run.start, run.reason) for run in absent] == [
        (VDSO, AbsentReason.NOT_CACHED),
        (VDSO + 0x1000, AbsentReason.NOT_IN_DUMP),
        (VDSO + 0x2000, AbsentReason.NOT_CACHED),
    ]


def test_an_image_that_would_begin_before_memory_is_none() -> None:
    scene, _ = vdso_scene()
    scene.image.map(VDSO + 0x2000, 0x1000 | P | US)
    absent = scene.capture().snapshot.vmas[1].absent
    assert [run.reason for run in absent] == [AbsentReason.NOT_CACHED]


def test_a_vdso_that_the_auxv_does_not_name_is_not_guessed() -> None:
    scene, pages = vdso_scene()
    scene.image.map(VDSO, pages[0] | P | US)
    mm = scene.image.word(scene.leaders[0] + scene.image.offset("task_struct", "mm"))
    scene.image.set("mm_struct", mm, saved_auxv=struct.pack("<4Q", 6, 4096, 0, 0))
    vma = scene.capture().snapshot.vmas[1]
    assert (vma.name, vma.dumped) == ("", False)


def tell_image(scene: Scene, paddr: int) -> None:
    """Let the layout know mm->context.vdso_image, and that it is at a physical address of the kernel image."""
    scene.image.table.offsets["mm_struct"]["context.vdso_image"] = (800, 8)
    scene.image.table.offsets["vdso_image"] = {"data": (0, 8)}
    mm = scene.image.word(scene.leaders[0] + scene.image.offset("task_struct", "mm"))
    image = scene.image.words(scene.image.alloc(16), TEXT + paddr, 0x3000)
    scene.image.words(mm + 800, image)


def test_without_a_mapped_page_the_kernel_tells_where_the_image_is(tmp_path: Path) -> None:
    """A child that never called it after fork() has no page of it mapped."""
    scene, pages = vdso_scene()
    tell_image(scene, pages[0])
    captured = scene.capture()
    assert captured.snapshot.vmas[1].absent == ()
    write_core(captured.snapshot, captured.memory, Output(tmp_path / "core"))
    data = (tmp_path / "core").read_bytes()
    assert all(b"vdso page %d" % i in data for i in range(3))


@pytest.mark.parametrize("paddr", [0x1000, OUTSIDE], ids=["what is there is no ELF file", "not in memory"])
def test_an_image_that_cannot_be_one_is_not_taken(paddr: int) -> None:
    scene, _ = vdso_scene()
    tell_image(scene, paddr)
    assert [run.reason for run in scene.capture().snapshot.vmas[1].absent] == [AbsentReason.NOT_CACHED]


def test_a_copy_of_a_page_within_the_kernel_image_shows_nothing() -> None:
    """Where the image's end is not known, memory behind it is searched, too."""
    scene, _ = vdso_scene()
    copy = [scene.image.page(b"somebody's"), scene.image.page(b"a copy"), scene.image.page(b"somebody's")]
    scene.image.map(VDSO + 0x1000, copy[1] | P | US)
    absent = scene.capture().snapshot.vmas[1].absent
    assert [(run.start, run.end) for run in absent] == [(VDSO, VDSO + 0x1000), (VDSO + 0x2000, VDSO + 0x3000)]

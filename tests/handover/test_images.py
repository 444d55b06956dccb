"""Where each file is loaded: the dynamic linker's own list is the truth, of processes that have it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.guests import GUESTS, bundled
from tests.handover.test_recovered import leaders
from vmcore2core.handover.images import images_of
from vmcore2core.process.linkmap import link_map
from vmcore2core.process.snapshot import Captured
from vmcore2core.session import Session


@pytest.fixture(scope="module", params=GUESTS)
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    with Session([bundled(request.param, tmp_path_factory.mktemp("dump"))]) as session:
        yield session.processes.capture(leaders(session, "lab-dynamic")[0], with_absent=False)


def test_each_file_is_where_the_dynamic_linker_says(captured: Captured) -> None:
    objects = link_map(captured.snapshot, captured.memory.read).objects
    linker = {loaded.l_addr for loaded in objects}
    images = images_of(captured)
    # The list has the vDSO, too, which is no file.
    assert {image.bias for image in images} == linker - {v.start for v in captured.snapshot.vmas if v.name == "[vdso]"}
    assert all(image.listed and image.build_id for image in images)
    assert [image.path for image in images if image.program] == [b"/bin/lab-dynamic"]
    assert [image.address for image in images] == sorted(image.address for image in images)
    for image in images:
        vma = next(vma for vma in captured.snapshot.vmas if vma.start == image.address)
        assert (vma.path, (vma.pgoff or 0) * 4096) == (image.path, image.offset)


def test_a_file_whose_header_is_not_in_memory_has_the_place_of_its_text(
    captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = images_of(captured)
    read = captured.memory.read
    starts = [v.start for v in captured.snapshot.vmas if v.pgoff == 0]
    monkeypatch.setattr(captured.memory, "read", lambda at, size: None if at in starts else read(at, size))
    images = images_of(captured)
    assert [(i.path, i.address, i.offset) for i in images] == [(i.path, i.address, i.offset) for i in whole]
    assert {(i.bias, i.build_id, i.listed) for i in images} == {(None, None, False)}


def test_a_file_that_is_mapped_to_be_read_is_no_image(captured: Captured) -> None:
    vmas = tuple(
        v._replace(vm_flags=v.vm_flags & ~4) if v.path == b"/lib/libvictim.so" else v for v in captured.snapshot.vmas
    )
    there = images_of(captured._replace(snapshot=captured.snapshot._replace(vmas=vmas)))
    assert b"/lib/libvictim.so" not in {image.path for image in there}
    assert len(there) == len(images_of(captured)) - 1


def test_text_that_was_remapped_to_huge_pages_still_belongs_to_its_file(captured: Captured) -> None:
    """As libhugetlbfs and Java do: nothing says any more that a file was mapped there."""
    vmas = tuple(
        v._replace(path=None, pgoff=None) if v.vm_flags & 4 and v.path == b"/lib/libc.so.6" else v
        for v in captured.snapshot.vmas
    )
    assert images_of(captured._replace(snapshot=captured.snapshot._replace(vmas=vmas))) == images_of(captured)

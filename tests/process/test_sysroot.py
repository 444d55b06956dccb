"""Original files: which are accepted, and which of their pages a process gets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.builders.paging import US, FlatContainer, P, PhysicalImage
from tests.memory.test_user import BASE, SPEC, pages_of
from tests.needs import need
from vmcore2core.addresses import PageIndices, PhysAddr, UserAddr
from vmcore2core.containers.base import PageState
from vmcore2core.elf.build_id import build_id
from vmcore2core.errors import UsageError
from vmcore2core.memory.pages import Pages, UserPageState
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.memory.region import Region
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.model import AbsentReason, AbsentRun, Vma
from vmcore2core.process.sysroot import OriginalFile, Sysroot

PROGRAM = Path(__file__).resolve().parents[2] / "fixtures/sysroot/bin/lab-states"
CONTENT = PROGRAM.read_bytes()
PAGES = -(-len(CONTENT) // 4096)
NAME = b"/usr/bin/states"


def page(index: int) -> bytes:
    return CONTENT[index * 4096 : (index + 1) * 4096].ljust(4096, b"\0")


class Cached:
    """A page cache that has the first page alone."""

    def __init__(self, paddr: int) -> None:
        self.paddr = paddr

    def lookup(self, first: int, last: int) -> Pages:
        rows = [(0, self.paddr, UserPageState.PRESENT)] if first == 0 and self.paddr else []
        rows += [(i, 0, UserPageState.BEYOND_FILE) for i in range(max(first, PAGES), last + 1)]
        table = np.array(rows, np.uint64).reshape(-1, 3)
        return Pages(table[:, 0], table[:, 2].astype(np.uint8), table[:, 1])


class Process:
    """Two mappings of one program: its first two pages, and all from page 1 on, with a page behind the file's end.

    Args:
        header: whether the first page is in memory.
        excluded: whether a page that is mapped in was left out of the dump.
        pristine: whether the second mapping was never written to.
    """

    def __init__(self, *, header: bool = True, excluded: bool = False, pristine: bool = True) -> None:
        image = PhysicalImage(32)
        cached = Cached(image.page(CONTENT[:4096]) if header else 0)
        own = image.page(b"own")
        image.map(BASE + 0x10_0000 + 0x1000, own | P | US)
        starts = ((BASE, 2, 0), (BASE + 0x10_0000, PAGES, 1))
        self.regions = tuple(
            Region(UserAddr(start), UserAddr(start + pages * 4096), False, pgoff, cached, pristine=pristine)
            for start, pages, pgoff in starts
        )
        states = {own >> 12: PageState.EXCLUDED} if excluded else {}
        container = FlatContainer(bytes(image.data), states)
        self.memory = UserMemory(PhysicalMemory(container), SPEC, PhysAddr(image.ROOT), self.regions)
        reasons = {UserPageState.EXCLUDED: AbsentReason.EXCLUDED, UserPageState.NOT_CACHED: AbsentReason.NOT_CACHED}
        self.vmas = [
            Vma(
                region.start,
                region.end,
                5,
                path=NAME,
                pgoff=region.pgoff,
                absent=tuple(
                    AbsentRun(run.start, run.end, reasons.get(run.state, AbsentReason.BEYOND_FILE))
                    for run in self.memory.survey(region).unknown
                ),
            )
            for region in self.regions
        ]

    def completed(self, folder: Path) -> tuple[UserMemory, list[str]]:
        regions, notices = Sysroot(folder).complete(self.vmas, self.memory, 64, "little")
        memory = self.memory
        return UserMemory(memory.memory, memory.spec, memory.root, tuple(regions)), notices


@pytest.fixture
def sysroot(tmp_path: Path) -> Path:
    """A merged /usr: /bin is a link."""
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/bin").symlink_to("/usr/bin")
    shutil.copy(PROGRAM, tmp_path / "root/usr/bin/states")
    return tmp_path / "root"


def test_pages_that_are_in_no_memory_come_from_the_file(sysroot: Path) -> None:
    memory, (notice,) = Process().completed(sysroot)
    first, second = memory.regions
    assert pages_of(memory, first.start, first.end) == {BASE: page(0), BASE + 0x1000: page(1)}
    there = pages_of(memory, second.start, second.end)
    assert there.pop(BASE + 0x10_1000).startswith(b"own")
    assert there == {BASE + 0x10_0000 + 4096 * (i - 1): page(i) for i in range(1, PAGES) if i != 2}
    assert [(run.end, run.state) for run in memory.survey(second).unknown] == [(second.end, UserPageState.BEYOND_FILE)]
    assert memory.read(BASE + 0x10_0000, 8192) == page(1) + b"own".ljust(4096, b"\0")
    assert re.fullmatch(r"pages that .* come from .*/usr/bin/states, whose build ID [0-9a-f]{40} is .*", notice)


def test_the_build_id_is_that_of_readelf() -> None:
    shown = subprocess.run([need("eu-readelf"), "-n", PROGRAM], capture_output=True, text=True, check=True).stdout
    found = build_id(lambda offset, size: CONTENT[offset : offset + size], 64, "little")
    assert found is not None
    assert f"Build ID: {found.hex()}" in shown
    assert build_id(lambda offset, size: CONTENT[offset : offset + size], 32, "little") is None
    assert build_id(lambda *_: None, 64, "little") is None


@pytest.mark.parametrize("pristine", [True, False])
def test_a_page_left_out_of_the_dump_is_the_files_only_if_it_was_never_written_to(
    sysroot: Path, *, pristine: bool
) -> None:
    memory, _ = Process(excluded=True, pristine=pristine).completed(sysroot)
    second = memory.regions[1]
    assert memory.read(BASE + 0x10_1000, 4096) == (page(2) if pristine else None)
    assert memory.survey(second).counts[UserPageState.EXCLUDED] == (not pristine)


def test_another_build_is_not_used_and_it_is_said(sysroot: Path) -> None:
    target = sysroot / "usr/bin/states"
    identity = build_id(lambda offset, size: CONTENT[offset : offset + size], 64, "little")
    assert identity is not None
    target.write_bytes(CONTENT.replace(identity, bytes(20)))
    memory, (notice,) = Process().completed(sysroot)
    assert f"is not used: its build ID is {bytes(20).hex()}, that of memory {identity.hex()}" in notice
    assert memory.read(BASE + 0x1000, 1) is None
    target.write_bytes(b"#!/bin/sh\n")
    assert "it has no build ID" in Process().completed(sysroot)[1][0]


def test_without_the_header_in_memory_nothing_is_believed(sysroot: Path) -> None:
    memory, (notice,) = Process(header=False).completed(sysroot)
    assert notice.endswith("is not used: the build ID of the file that was mapped is not in memory")
    assert memory.read(BASE + 0x1000, 1) is None


def test_a_file_that_changes_afterwards_is_not_read(sysroot: Path) -> None:
    memory, _ = Process().completed(sysroot)
    target = sysroot / "usr/bin/states"
    target.write_bytes(CONTENT[:-1] + b"!")
    os.utime(target, (1, 1))
    assert memory.read(BASE + 0x1000, 1) is None
    assert UserPageState.DAMAGED in {run.state for run in memory.survey(memory.regions[0]).unknown}


def test_paths_stay_in_the_folder(sysroot: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    (sysroot / "out").symlink_to(tmp_path / "secret")
    (sysroot / "loop").symlink_to("loop")
    (sysroot / "relative").symlink_to("usr/bin/states")
    found = Sysroot(sysroot)
    assert found.find(b"/usr/bin/states (deleted)") == (sysroot / "usr/bin/states").resolve()
    assert found.find(b"/relative") == (sysroot / "usr/bin/states").resolve()
    assert found.find(b"/bin/states") == (sysroot / "usr/bin/states").resolve()
    assert found.find(b"/../../usr/bin/states") == sysroot / "usr/bin/states"
    for path in (b"/../secret", b"/out", b"/loop", b"/", b"", b"/usr", b"/a\0b", b"/\xff\xfe"):
        assert found.find(path) is None, path
    with pytest.raises(UsageError, match="is not a directory"):
        Sysroot(tmp_path / "secret")


def test_the_last_page_is_zero_behind_the_files_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    pages, good = OriginalFile(tmp_path / "file", 4096).read(PageIndices(np.array([1, 2], np.uint64)))
    assert pages[0].tobytes() == (b"x" * 904).ljust(4096, b"\0")
    assert good.tolist() == [True, False]

"""Twenty terabytes that a process mapped and hardly touched: a core that file systems take, and debuggers read."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest

from tests.corefile.snapshots import loads
from tests.e2e.debuggers import gdb, lldb
from tests.e2e.guests import FIXTURES
from tests.process.scene import CODE, STACK, VM_EXEC, VM_READ, VM_WRITE, Scene
from vmcore2core.corefile import plan
from vmcore2core.corefile.inspect import CoreFile, problems
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Output, PagesChanged, write_core
from vmcore2core.process import sparse
from vmcore2core.process.snapshot import Captured

BIG, SIZE = 0x1000_0000_0000, 20 << 40
TOUCHED = {0: b"first", 3 << 40: b"in the middle", (3 << 40) + 0x2000: b"near it", SIZE - 4096: b"the last"}


SMALLER = 1 << 36


@pytest.fixture
def smaller_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have 64 GiB treated as terabytes are: they are walked sooner."""
    monkeypatch.setattr(sparse, "SIZE_MAX", 1 << 34)
    monkeypatch.setattr(sparse, "GAPS", (1 << 37, 1 << 30))
    monkeypatch.setattr(plan, "HOLE_SIZE", 1 << 30)


def scene(size: int = SIZE) -> Scene:
    found = Scene()
    mm = found.mm(
        (CODE, CODE + 0x1000, VM_READ | VM_EXEC),
        (BIG, BIG + size, VM_READ | VM_WRITE),
        (STACK, STACK + 0x3000, VM_READ | VM_WRITE),
        start_stack=STACK + 0x2000,
    )
    found.group(found.task(100), mm=mm)
    for at, content in TOUCHED.items():
        if at < size:
            found.image.user_page(BIG + at, content)
    return found


@pytest.fixture(scope="module")
def captured() -> Captured:
    return scene().capture()


@pytest.fixture(scope="module")
def core(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "core"
    write_core(captured.snapshot, captured.memory, Output(path))
    return path


def test_untouched_terabytes_share_one_hole(captured: Captured, core: Path) -> None:
    big = next(vma for vma in captured.snapshot.vmas if vma.start == BIG)
    assert big.untouched == (
        (BIG + 0x1000, BIG + (3 << 40)),
        (BIG + (3 << 40) + 0x3000, BIG + SIZE - 4096),
    )
    assert any(
        "bytes of memory that the process never touched share one run of zeros" in n for n in captured.snapshot.notices
    )
    assert core.stat().st_size < 1 << 36
    found = [load for load in loads(core) if BIG <= load[0] < BIG + SIZE]
    assert found[0][0] == BIG
    assert sum(load[1] for load in found) == sum(load[2] for load in found) == SIZE
    assert all(a[0] + a[1] == b[0] for a, b in pairwise(found))
    with CoreFile(core) as read:
        assert list(problems(read)) == []
        for at, content in TOUCHED.items():
            assert read.read(BIG + at, 16) == content.ljust(16, b"\0")
        assert read.read(BIG + (2 << 40), 16) == read.read(BIG + (19 << 40), 16) == bytes(16)


def test_debuggers_read_what_was_touched_and_zeros(core: Path) -> None:
    places = [BIG, BIG + (2 << 40), BIG + (3 << 40), BIG + (3 << 40) + 0x2000, BIG + (19 << 40), BIG + SIZE - 4096]
    expected = [struct.unpack("<Q", TOUCHED.get(at - BIG, b"").ljust(8, b"\0")[:8])[0] for at in places]
    shown = gdb(core, *(f'printf "%lu ", *(unsigned long *){at}' for at in places))
    assert [int(word) for word in shown.split()[-len(places) :]] == expected
    shown = lldb(
        core,
        *(f"memory read -f x -s 8 -c 1 {at:#x}" for at in places),
        program=FIXTURES / "sysroot" / "bin" / "lab-static",
    )
    assert [int(line.split(":")[1], 16) for line in shown.splitlines() if line.startswith("0x")] == expected


@pytest.mark.usefixtures("smaller_limits")
def test_a_core_with_them_can_be_compressed(tmp_path: Path) -> None:
    captured = scene(SMALLER).capture()
    write_core(captured.snapshot, captured.memory, Output(tmp_path / "core.zst", CoreOptions(compression="zstd")))
    assert (tmp_path / "core.zst").stat().st_size < 1 << 20


def test_memory_that_is_not_so_large_has_a_place_for_each_page() -> None:
    snapshot = scene(SMALLER).capture().snapshot
    assert not any(vma.untouched for vma in snapshot.vmas)
    assert not any("never touched" in notice for notice in snapshot.notices)


@pytest.mark.usefixtures("smaller_limits")
def test_shorter_gaps_are_taken_where_the_longest_do_not_do() -> None:
    big = next(vma for vma in scene(SMALLER).capture().snapshot.vmas if vma.start == BIG)
    assert big.untouched == ((BIG + 0x1000, BIG + SMALLER),)


@pytest.mark.usefixtures("smaller_limits")
def test_contents_where_there_were_none_end_the_writing(tmp_path: Path) -> None:
    captured, later = scene(SMALLER).capture(), scene(SMALLER)
    later.image.user_page(BIG + (1 << 35), b"appeared")
    with pytest.raises(PagesChanged):
        write_core(captured.snapshot, later.capture().memory, Output(tmp_path / "core"))
    assert not list(tmp_path.iterdir())

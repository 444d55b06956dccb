"""sadump's partitions, sets of disks and backups."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.builders.elfdump import page
from tests.builders.present import present_runs
from tests.builders.sadump import build_sadump, cpu_state, part_header
from tests.containers.contract import check_contract, read
from tests.e2e.guests import FIXTURES
from vmcore2core.addresses import AddressRange
from vmcore2core.arch.spec import CpuNote
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import DumpError, UsageError, Vmcore2coreError
from vmcore2core.kernel.sched import task_pid
from vmcore2core.session import Session

FIXTURE = FIXTURES / "debian-6.1-amd64" / "vmcore"
PAGES = {n: page(n) for n in (*range(3), *range(9, 40), 0x9000)}
NAMES = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 es cs ss ds fs gs rip eflags cr3".split()


def dump(tmp_path: Path, files: Sequence[bytes], order: Sequence[int] = ()) -> DumpContainer:
    paths = []
    for number in order or range(len(files)):
        paths.append(tmp_path / f"disk{number}")
        paths[-1].write_bytes(files[number])
    return open_container(paths)


def bundled_guest() -> tuple[dict[int, bytes], tuple[CpuNote, ...]]:
    with open_container([FIXTURE]) as container:
        runs = present_runs(container)
        cpus = ARCH.cpus.notes(tuple(container.notes))
    return {(s + i) // 4096: data[i : i + 4096] for s, data in runs for i in range(0, len(data), 4096)}, cpus


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("media", [False, True])
def test_pages_are_found_by_the_second_bitmap(tmp_path: Path, version: int, media: bool) -> None:
    with dump(tmp_path, build_sadump(PAGES, excluded=(3, 5), version=version, media=media)) as container:
        assert (container.DOC.name, container.warnings, container.notes) == ("sadump", [], ())
        check_contract(container, PAGES)
        assert read(container, 3, 4, 5)[0] == [PageState.EXCLUDED, PageState.MISSING, PageState.EXCLUDED]
        ends = [(0, 4), (5, 6), (9, 40), (0x9000, 0x9001)]
        assert container.memory_ranges() == tuple(AddressRange(a * 4096, b * 4096) for a, b in ends)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_set_of_disks_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    with dump(tmp_path, build_sadump(PAGES, disks=(7, 20)), order) as container:
        assert container.warnings == []
        check_contract(container, PAGES)


def test_a_missing_disk_is_named(tmp_path: Path) -> None:
    files = build_sadump(PAGES, disks=(7, 20))
    for order, there in (((0,), 7), ((0, 1), 27), ((0, 2), 7)):
        with dump(tmp_path, files, order) as container:
            assert f"disk {2 if there == 7 else 3} of the 3 of the set is missing" in container.warnings[0]
            states, _ = read(container, *sorted(PAGES))
            assert states == [PageState.PRESENT] * there + [PageState.TRUNCATED] * (len(PAGES) - there)
    with pytest.raises(UsageError, match="disk 2 of a set of sadump: disk 1 is missing"):
        dump(tmp_path, files, (1, 2))
    with pytest.raises(UsageError, match="is not of its set"):
        dump(tmp_path, [*files, part_header(2, 4096, bytes(16))], (0, 3))
    with pytest.raises(UsageError, match="2 were given"):
        dump(tmp_path, [*build_sadump(PAGES), files[0]])


def test_registers_by_apic_id(tmp_path: Path) -> None:
    cpus = [{name: 0x11 * (cpu + 1) * (i + 1) for i, name in enumerate(NAMES)} for cpu in range(3)]
    states = [cpu_state(cpus[0]), bytes(0x400), cpu_state(cpus[2])]
    with dump(tmp_path, build_sadump(PAGES, cpus=states)) as container:
        notes = ARCH.cpus.notes(tuple(container.notes))
        check_contract(container, PAGES)
    assert [(note.regs["apic_id"], note.pr_pid) for note in notes] == [(0, 1), (2, 2)]
    for note, cpu in zip(notes, (cpus[0], cpus[2]), strict=True):
        assert {name: note.regs[name] for name in NAMES} == cpu
        assert ARCH.cpus.bases(note) == {}


@pytest.mark.parametrize("form", ["partition", "set"])
def test_the_cores_are_the_same(tmp_path: Path, form: str) -> None:
    """The bundled guest, with its CPUs' registers where system management mode puts them: each process, to the byte."""
    pages, cpus = bundled_guest()
    files = build_sadump(pages, cpus=[cpu_state(cpu.regs) for cpu in cpus], disks=(999,) if form == "set" else ())
    paths = [tmp_path / name for name in ("vmcore", "disk2")[: len(files)]]
    for path, raw in zip(paths, files, strict=True):
        path.write_bytes(raw)
    running = 0
    with Session([FIXTURE]) as theirs, Session(paths) as ours:
        assert ours.warnings == []
        for leader in ours.processes.with_mm():
            mine = ours.extract(leader, tmp_path / "ours", CoreOptions(force=True))
            theirs.extract(theirs.processes.find(task_pid(leader)), tmp_path / "theirs", CoreOptions(force=True))
            running += sum("crash note" in t.gregs_source for t in mine.snapshot.threads)
            assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert running


def test_registers_of_another_cpu_are_not_believed(tmp_path: Path) -> None:
    """The two CPUs' states changed places: a thread that was in user mode has none then."""
    pages, cpus = bundled_guest()
    user = next(cpu for cpu in cpus if cpu.user_mode)
    other = cpu_state({**user.regs, "cr3": 0x5000})
    (tmp_path / "vmcore").write_bytes(build_sadump(pages, cpus=[other] * 2)[0])
    with Session([tmp_path / "vmcore"]) as session:
        left_out = 0
        for leader in session.processes.with_mm():
            result = session.extract(leader, tmp_path / "core", CoreOptions(force=True))
            left_out += len(result.snapshot.threads_left_out)
            assert not any("crash note" in t.gregs_source for t in result.snapshot.threads)
    assert left_out


WHOLE = build_sadump(PAGES)[0]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (WHOLE[:4150], "sadump_header is cut off"),
        (WHOLE[:4000], "sadump_part_header is cut off"),
        (WHOLE[:3000] + b"\1" + WHOLE[3001:], "broken signature or magicnum"),
        (build_sadump(PAGES, patches={0: b"S"})[0], "sadump_header with signature 5361"),
        (build_sadump(PAGES, patches={40: struct.pack("<I", 512)})[0], "block_size 512"),
        (build_sadump(PAGES, patches={52: struct.pack("<I", 0)})[0], "bitmap_blocks 0"),
        (build_sadump(PAGES, patches={56: struct.pack("<I", 0)})[0], "dumpable_bitmap_blocks 0"),
        (build_sadump(PAGES, patches={52: struct.pack("<I", 1 << 31)})[0], "cut off by the end of the file"),
        (build_sadump(PAGES, patches={56: struct.pack("<I", 1 << 31)})[0], "cut off by the end of the file"),
        (build_sadump(PAGES, media=True)[0].replace(b"system", b"SYSTEM", 1), "of another dump"),
        (part_header(17), "set_disk_set 17"),
        (part_header(1) + bytes(4096), "disk_num 0"),
        (part_header(1, 4096) + build_sadump(PAGES, disks=(7,))[0][4096:], "used_device 0x1000"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(DumpError) as refused:
        dump(tmp_path, [raw])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_blocks_of_bitmap_beyond_max_mapnr_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(build_sadump(PAGES, patches={56: struct.pack("<I", 1 << 28)})[0])
    os.truncate(path, 1 << 41)
    tracemalloc.start()
    try:
        with open_container([path]):
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_states_that_do_not_fit_are_none(tmp_path: Path) -> None:
    raw = build_sadump(PAGES, cpus=[cpu_state({})] * 2, patches={80: struct.pack("<I", 3)})
    with dump(tmp_path, raw) as container:
        assert container.notes == ()
        assert "the registers of its CPUs cannot be read" in container.warnings[0]


def test_cut_off_wherever_it_is(tmp_path: Path) -> None:
    for size in [*range(8, 20000, 331), *range(20000, len(WHOLE) - 1, 5000)]:
        with contextlib.suppress(Vmcore2coreError), dump(tmp_path, [WHOLE[:size]]) as container:
            assert "is cut off" in container.warnings[0]
            states, rows = read(container, *PAGES)
            for pfn, state, row in zip(PAGES, states, rows, strict=True):
                assert (state, row) in ((PageState.PRESENT, PAGES[pfn]), (PageState.TRUNCATED, b""))

"""VMware's suspended machines and snapshots."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.builders.elfdump import page
from tests.builders.vmware import block, build_vmss, cpu_group, memory_group, u32
from tests.containers.contract import check_contract, read
from vmcore2core.addresses import AddressRange
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import FormatError, UsageError, Vmcore2coreError
from vmcore2core.kernel.sched import task_pid
from vmcore2core.session import Session

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "debian-6.1-amd64" / "vmcore"
NR = 40
MEMORY = b"".join(page(n) for n in range(NR))
HIGH = 0x10_0000
REGIONS = [(0, 0, 30), (HIGH, 30, 10)]
PAGES = {n: page(n) for n in range(30)} | {HIGH + n: page(30 + n) for n in range(10)}
NAMES = (
    "rax rcx rdx rbx rbp rsp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip es cs ss ds fs gs eflags fs_base gs_base".split()
)
CPUS = [{name: 0x100 * (cpu + 1) + i for i, name in enumerate(NAMES)} | {"cr3": 0x5000 + cpu} for cpu in range(2)]


def dump(tmp_path: Path, state: bytes, memory: bytes | None = None) -> DumpContainer:
    paths = [tmp_path / "machine.vmem"] if memory is not None else []
    for path, raw in zip(paths, [memory or b""], strict=False):
        path.write_bytes(raw)
    (tmp_path / "machine.vmss").write_bytes(state)
    return open_container([*paths, tmp_path / "machine.vmss"])


@pytest.mark.parametrize("magic", [0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1, 0xBAD2BAD2])
def test_memory_inside(tmp_path: Path, magic: int) -> None:
    with dump(tmp_path, build_vmss({b"memory": memory_group(REGIONS, MEMORY)}, magic)) as container:
        assert (container.DOC.name, container.warnings, container.notes) == ("VMware", [], ())
        assert container.memory_ranges() == (AddressRange(0, 30 * 4096), AddressRange(HIGH << 12, HIGH + 10 << 12))
        check_contract(container, PAGES)


def test_memory_beside_it(tmp_path: Path) -> None:
    with dump(tmp_path, build_vmss({b"memory": memory_group(REGIONS, None)}), MEMORY) as container:
        check_contract(container, PAGES)


def test_without_regions_memory_begins_at_0(tmp_path: Path) -> None:
    with dump(tmp_path, build_vmss({b"memory": memory_group([], None)}), MEMORY) as container:
        check_contract(container, {n: page(n) for n in range(NR)})


@pytest.mark.parametrize("blocks", [False, True])
def test_registers_become_notes(tmp_path: Path, blocks: bool) -> None:
    groups = {b"memory": memory_group(REGIONS, MEMORY), b"cpu": cpu_group(CPUS, blocks=blocks)}
    with dump(tmp_path, build_vmss(groups)) as container:
        notes = ARCH.cpus.notes(tuple(container.notes))
    for cpu, note in zip(CPUS, notes, strict=True):
        assert {name: note.regs[name] for name in cpu} == cpu
        assert "kernel_gs_base" not in note.regs
    assert [note.pr_pid for note in notes] == [1, 2]


def test_no_notes_without_all_registers_or_in_32_bit_mode(tmp_path: Path) -> None:
    short = cpu_group(CPUS).replace(u32(b"S", CPUS[1]["cs"], 1, 1), b"")
    for group in (short, cpu_group(CPUS, idt=0xC000_0000)):
        with dump(tmp_path, build_vmss({b"memory": memory_group(REGIONS, MEMORY), b"cpu": group})) as container:
            assert container.notes == ()


@pytest.mark.parametrize("inside", [False, True])
def test_the_core_of_running_threads_is_the_same(tmp_path: Path, inside: bool) -> None:
    """The bundled guest's memory and registers in VMware's form, against its kdump: each process, to the byte."""
    with Session([FIXTURE]) as session:
        end = session.container.memory_ranges()[-1].end
        notes = ARCH.cpus.notes(tuple(session.container.notes))
        pages = np.zeros((end // 4096, 4096), np.uint8)
        session.container.read_pages(np.arange(end // 4096, dtype=np.uint64), pages)
    memory = pages.tobytes()
    groups = {b"memory": memory_group([], memory if inside else None), b"cpu": cpu_group([n.regs for n in notes])}
    (tmp_path / "vmcore").write_bytes(build_vmss(groups))
    paths = [tmp_path / "vmcore"]
    if not inside:
        (tmp_path / "memory").write_bytes(memory)
        paths.append(tmp_path / "memory")
    running = 0
    with Session([FIXTURE]) as theirs, Session(paths) as ours:
        assert ours.warnings == []
        for leader in ours.processes.with_mm():
            core, expected = tmp_path / "ours", tmp_path / "theirs"
            mine = ours.extract(leader, core, CoreOptions(force=True))
            their = theirs.extract(theirs.processes.find(task_pid(leader)), expected, CoreOptions(force=True))
            assert [t.gregs for t in mine.snapshot.threads] == [t.gregs for t in their.snapshot.threads]
            running += sum("crash note" in t.gregs_source for t in mine.snapshot.threads)
            assert core.read_bytes() == expected.read_bytes()
    assert running


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (build_vmss({b"memory": b""}, 0xBED0BED0), "id 0xbed0bed0"),
        (struct.pack("<III", 0xBED2BED2, 8, 0), "numgroups 0"),
        (struct.pack("<III", 0xBED2BED2, 8, 1 << 31), "numgroups 2147483648"),
        (struct.pack("<III", 0xBED2BED2, 8, 1), "the table of groups is cut off"),
        (build_vmss({b"memory": memory_group(REGIONS, None)}), "no block Memory"),
        (build_vmss({b"memory": block(b"Memory", MEMORY, compressed=True)}), "compressed memory"),
        (build_vmss({b"memory": u32(b"regionsCount", 1) + block(b"Memory", MEMORY)}), "of each of 1 regions"),
        (build_vmss({b"memory": u32(b"regionsCount", 1 << 31)}), "regionsCount 2147483648"),
        (build_vmss({b"memory": memory_group([(0, 0, 41)], MEMORY)}), "a region of 0x29000 bytes"),
        (build_vmss({b"memory": memory_group([(0, 0, 0)], MEMORY)}), "a region of 0x0 bytes"),
        (build_vmss({b"memory": b"\x3f\0" + struct.pack("<QQH", 1 << 60, 0, 0)}), "0x1000000000000000 bytes"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, state: bytes, words: str) -> None:
    with pytest.raises(FormatError) as refused:
        dump(tmp_path, state)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    state = build_vmss({b"memory": memory_group(REGIONS, MEMORY)})
    with pytest.raises(UsageError, match="is not needed"):
        dump(tmp_path, state, MEMORY)
    with pytest.raises(UsageError, match="2 files were given"):
        open_container([tmp_path / "machine.vmss"] * 2)


def test_cut_off_wherever_it_is(tmp_path: Path) -> None:
    state = build_vmss({b"memory": memory_group(REGIONS, MEMORY)})
    for size in [*range(4, 600, 3), *range(len(state) - 9000, len(state) - 1, 700)]:
        with contextlib.suppress(Vmcore2coreError), dump(tmp_path, state[:size]) as container:
            assert "cut off" in container.warnings[0]
            states, rows = read(container, *PAGES)
            for pfn, found, row in zip(PAGES, states, rows, strict=True):
                assert (found, row) in ((PageState.PRESENT, PAGES[pfn]), (PageState.TRUNCATED, b""))


def test_random_damage_raises_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = build_vmss({b"cpu": cpu_group(CPUS), b"memory": memory_group(REGIONS, MEMORY)})
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(whole) - len(MEMORY))] = rng.randrange(256)
        with contextlib.suppress(Vmcore2coreError), dump(tmp_path, bytes(raw)) as container:
            read(container, *PAGES)

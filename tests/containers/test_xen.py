"""Xen's dumps of guests, and of machines under it."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note, page
from tests.builders.present import present_runs
from tests.builders.xen import PV, build_xen, vcpu
from tests.containers.contract import check_contract, read
from tests.e2e.guests import FIXTURES
from vmcore2core.addresses import AddressRange
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import DumpError, UnknownFormat, Vmcore2coreError
from vmcore2core.kernel.sched import task_pid
from vmcore2core.session import Session

FIXTURE = FIXTURES / "debian-6.1-amd64" / "vmcore"
PAGES = {n: page(n) for n in (*range(20), *range(40, 50), 0x10_0000)}
ORDER = random.Random(3).sample(sorted(PAGES.items()), len(PAGES))
NAMES = (
    "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip eflags ss es ds fs gs "
    "fs_base gs_base kernel_gs_base cr0 cr2 cr3 cr4"
).split()


def dump(tmp_path: Path, raw: bytes) -> DumpContainer:
    (tmp_path / "core").write_bytes(raw)
    return open_container([tmp_path / "core"])


@pytest.mark.parametrize("pages", [sorted(PAGES.items()), ORDER])
def test_pages_in_any_order(tmp_path: Path, pages: list[tuple[int, bytes]]) -> None:
    with dump(tmp_path, build_xen(pages)) as container:
        assert (container.DOC.name, container.warnings, container.e_machine) == ("Xen", [], 62)
        check_contract(container, PAGES)
        ends = [(0, 20), (40, 50), (0x10_0000, 0x10_0001)]
        assert container.memory_ranges() == tuple(AddressRange(a * 4096, b * 4096) for a, b in ends)


@pytest.mark.parametrize("cs", [0x10, 0x33])
def test_registers_become_notes(tmp_path: Path, cs: int) -> None:
    cpus = [{name: 0x101 * (i + 1) + cpu for i, name in enumerate(NAMES)} | {"cs": cs} for cpu in range(2)]
    for cpu in cpus:
        cpu["kernel_gs_base" if cs & 3 else "gs_base"] |= 0xFFFF_8880_0000_0000
    with dump(tmp_path, build_xen(ORDER, [vcpu(cpu) for cpu in cpus])) as container:
        notes = ARCH.cpus.notes(tuple(container.notes))
    for cpu, found in zip(cpus, notes, strict=True):
        assert {name: found.regs[name] for name in (*NAMES, "cs")} == cpu


def test_no_registers_of_32_bit_guests_and_other_machines(tmp_path: Path) -> None:
    cpu = vcpu(dict.fromkeys(NAMES, 0) | {"cs": 0x60})
    kernel = vcpu(dict.fromkeys(NAMES, 0) | {"cs": 0x10, "gs_base": 1 << 63})
    for raw in (build_xen(ORDER, [cpu]), build_xen(ORDER, [kernel[:-8]]), build_xen(ORDER, [kernel], machine=183)):
        with dump(tmp_path, raw) as container:
            assert all(note.name == "Xen" for note in container.notes)


def test_the_cores_are_the_same(tmp_path: Path) -> None:
    """The bundled guest as Xen would have dumped it: each process, running threads too, to the byte."""
    with open_container([FIXTURE]) as container:
        runs = present_runs(container)
        cpus = ARCH.cpus.notes(tuple(container.notes))
    pages = [((s + i) // 4096, data[i : i + 4096]) for s, data in runs for i in range(0, len(data), 4096)]
    (tmp_path / "vmcore").write_bytes(build_xen(pages, [vcpu(cpu.regs) for cpu in cpus]))
    running = 0
    with Session([FIXTURE]) as theirs, Session([tmp_path / "vmcore"]) as ours:
        assert ours.warnings == []
        for leader in ours.processes.with_mm():
            mine = ours.extract(leader, tmp_path / "ours", CoreOptions(force=True))
            theirs.extract(theirs.processes.find(task_pid(leader)), tmp_path / "theirs", CoreOptions(force=True))
            running += sum("crash note" in t.gregs_source for t in mine.snapshot.threads)
            assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert running


WHOLE = build_xen(ORDER)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (build_xen(ORDER, magic=PV), "a paravirtualised guest of Xen, which is not supported"),
        (build_xen(ORDER, magic=0x1234).replace(b".xen_p2m", b".xen_pfn"), "xch_magic 0x1234"),
        (build_xen(ORDER, page_size=65536), "xch_page_size 65536"),
        (build_xen(ORDER, version=1 << 32), "format version 0x100000000"),
        (build_xen(ORDER, without=b".note.Xen"), "no section .note.Xen"),
        (build_xen(ORDER, without=b".xen_pages"), "no section .xen_pages"),
        (build_xen(ORDER, without=b".xen_pfn"), "no section .xen_pfn"),
        (build_xen([]), "0 page frames"),
        (build_xen([(1 << 52, page(1))]), "page frame 0x10000000000000"),
        (build_xen([(1, page(1)[:-1])]), "1 page frames and 0xfff bytes"),
        (WHOLE[:200], "the section header table is cut off"),
        (WHOLE[:62] + struct.pack("<H", 9) + WHOLE[64:], "e_shstrndx 9"),
        (WHOLE.replace(struct.pack("<I", 0x2000001), bytes(4)), "no note with the header"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(DumpError) as refused:
        dump(tmp_path, raw)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_machine_under_xen_is_named(tmp_path: Path) -> None:
    notes = note(b"CORE", 1, bytes(336)) + note(b"Xen", 0x1000001, bytes(88)) + note(b"VMCOREINFO_XEN", 0, b"A=1\n")
    with pytest.raises(UnknownFormat, match="a dump of a machine under Xen, which is not supported"):
        dump(tmp_path, build_elf_vmcore([Load(0x1000, page(1))], notes))


def test_cut_off_wherever_it_is(tmp_path: Path) -> None:
    for size in [*range(64, 900, 13), *range(900, len(WHOLE) - 1, 4099)]:
        with contextlib.suppress(Vmcore2coreError), dump(tmp_path, WHOLE[:size]) as container:
            assert "is cut off" in container.warnings[0]
            states, rows = read(container, *PAGES)
            for pfn, state, row in zip(PAGES, states, rows, strict=True):
                assert (state, row) in ((PageState.PRESENT, PAGES[pfn]), (PageState.TRUNCATED, b""))

"""The CPUs' registers in VirtualBox's ELF cores.

Tests containers/x86_cpus.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, page
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers import open_container
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.kernel.sched import task_pid
from vmcore2core.session import Session

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "debian-6.1-amd64" / "vmcore"
GENERAL = "rax rbx rcx rdx rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip rsp rbp eflags".split()
NAMES = [*GENERAL, *"cs ds es fs gs ss fs_base gs_base kernel_gs_base cr0 cr2 cr3 cr4".split()]
CPUS = [{name: 0x100 * (cpu + 1) + i for i, name in enumerate(NAMES)} for cpu in range(2)]


def vbox_note(name: bytes, n_type: int, desc: bytes) -> bytes:
    """n_namesz is without the NUL, and all is padded to 8 bytes."""
    desc += bytes(-len(desc) % 8)
    return struct.pack("<III", len(name), len(desc), n_type) + name.ljust(8, b"\0") + desc


def cpu(regs: Mapping[str, int], efer: int) -> bytes:
    """Pack DBGFCORECPU of dbgfcorefmt.h, with an XSAVE area of zeros."""
    raw = struct.pack("<18Q", *(regs[name] for name in GENERAL))
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        raw += struct.pack("<QIIHHI", regs.get(f"{name}_base", 0), 0xFFFFF, 0, regs[name], 0, 0)
    raw += struct.pack("<4Q", *(regs[name] for name in ("cr0", "cr2", "cr3", "cr4")))
    raw += bytes(8 * 8 + 2 * 16 + 2 * 24 + 3 * 8) + struct.pack("<7Q", efer, 0, 0, 0, 0, 0, regs["kernel_gs_base"])
    assert len(raw) == 544
    return raw + bytes(4 * 8 + 8 + 0x2000)


def notes(cpus: list[Mapping[str, int]], version: int = 0x10006, efer: int = 0xD01, count: int | None = None) -> bytes:
    head = struct.pack("<6I", 0xC01AC0DE, version, 24, 7 << 24, 1, len(cpus) if count is None else count)
    return vbox_note(b"VBCORE", 0xB00, head) + b"".join(vbox_note(b"VBCPU", 0xB01, cpu(c, efer)) for c in cpus)


def read(tmp_path: Path, raw: bytes) -> list[Mapping[str, int]]:
    (tmp_path / "core").write_bytes(build_elf_vmcore([Load(0x1000, page(1))], raw))
    with open_container([tmp_path / "core"]) as container:
        assert (container.DOC.name, container.warnings) == ("ELF", [])
        found = ARCH.cpus.notes(tuple(container.notes))
        return [note.regs for note in found]


def test_registers_become_notes(tmp_path: Path) -> None:
    for expected, found in zip(CPUS, read(tmp_path, notes([*CPUS])), strict=True):
        assert {name: found[name] for name in NAMES} == expected


@pytest.mark.parametrize(
    "raw", [notes([*CPUS], version=0x10005), notes([*CPUS], efer=0), notes([*CPUS], count=3), notes([])]
)
def test_what_is_not_known_has_no_notes(tmp_path: Path, raw: bytes) -> None:
    assert read(tmp_path, raw) == []


def test_the_core_of_running_threads_is_the_same(tmp_path: Path) -> None:
    """The bundled guest's memory and registers in VirtualBox's form, against its kdump: each process, to the byte."""
    with Session([FIXTURE]) as theirs:
        end = theirs.container.memory_ranges()[-1].end
        cpus = ARCH.cpus.notes(tuple(theirs.container.notes))
        pages = np.zeros((end // 4096, 4096), np.uint8)
        theirs.container.read_pages(np.arange(end // 4096, dtype=np.uint64), pages)
        raw = build_elf_vmcore([Load(0, pages.tobytes())], notes([c.regs for c in cpus]))
        (tmp_path / "vmcore").write_bytes(raw)
        running = 0
        with Session([tmp_path / "vmcore"]) as ours:
            for leader in ours.processes.with_mm():
                core, expected = tmp_path / "ours", tmp_path / "theirs"
                snapshot = ours.extract(leader, core, CoreOptions(force=True)).snapshot
                theirs.extract(theirs.processes.find(task_pid(leader)), expected, CoreOptions(force=True))
                running += sum("crash note" in t.gregs_source for t in snapshot.threads)
                assert core.read_bytes() == expected.read_bytes()
        assert running

"""Dumps whose VMCOREINFO is gone, note and text: the kernel is found by its symbols, and the cores are the same.

Tests layout/without_text.py, layout/image.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.elfdump import Load, Order, build_elf_vmcore, note
from tests.builders.present import present_runs
from tests.e2e.guests import FIXTURES, bundled
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers import open_container
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.errors import DumpError
from vmcore2core.layout.vmcoreinfo import parse_vmcoreinfo
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.physical import PhysicalMemory
from vmcore2core.session import Session

PAGE_SIZE = 4096
GUESTS = ("5.10-amd64", "6.1-amd64", "7.2-arm64", "7.2-riscv64", "7.2-s390x")
DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
TEXT = b"OSRELEASE="


def blanked(data: bytes) -> bytes:
    """Return memory in which each page that has the text is zeros."""
    pages = bytearray(data)
    at = data.find(TEXT)
    while at >= 0:
        start = at // PAGE_SIZE * PAGE_SIZE
        pages[start : start + 2 * PAGE_SIZE] = bytes(len(pages[start : start + 2 * PAGE_SIZE]))
        at = data.find(TEXT, at + 1)
    return bytes(pages)


def without_text(dump: Path, target: Path, blank: bytes = b"") -> Path:
    """Write a dump again as ELF, without the note and the text, and with ``blank`` overwritten by zeros."""
    with open_container([dump]) as container:
        order: Order = "big" if container.byte_order == "big" else "little"
        kept = [n for n in container.notes if n.name != "VMCOREINFO"]
        notes = b"".join(note(n.name.encode(), n.n_type, n.desc, order) for n in kept)
        loads = [Load(start, blanked(data)) for start, data in present_runs(container)]
        machine = container.e_machine or 0
    if blank:
        loads = [Load(load.paddr, load.data.replace(blank, bytes(len(blank)))) for load in loads]
    target.write_bytes(build_elf_vmcore(loads, notes, order=order, e_machine=machine))
    return target


def core(dump: Path, folder: Path) -> tuple[bytes, str]:
    """Return the core of process 1, and where VMCOREINFO is from."""
    with Session([dump]) as session:
        assert session.warnings == []
        session.extract(session.processes.find(1), folder / "core", CoreOptions(force=True))
        return (folder / "core").read_bytes(), session.boot.vmcoreinfo_origin


@pytest.mark.parametrize("guest", GUESTS)
def test_the_core_is_the_same(tmp_path: Path, guest: str) -> None:
    dump = bundled(f"debian-{guest}", tmp_path).rename(tmp_path / "vmcore") if guest != "6.1-amd64" else DUMP
    expected, _ = core(dump, tmp_path)
    (tmp_path / "bare").mkdir()
    found, origin = core(without_text(dump, tmp_path / "bare" / "vmcore"), tmp_path)
    assert origin.startswith("no VMCOREINFO; kallsyms at physical 0x")
    assert found == expected


@pytest.mark.parametrize("blank", [b"Linux\0", b"kernel_tokens"])
def test_what_is_missing_is_one_sentence(tmp_path: Path, blank: bytes) -> None:
    if blank == b"kernel_tokens":
        with open_container([DUMP]) as container:
            symbols = parse_vmcoreinfo(container.vmcoreinfo or b"")
            memory = KernelMemory(PhysicalMemory(container), ARCH.paging.kernel_map(symbols))
            blank = memory.read(symbols.symbol("kallsyms_token_index") or 0, 512)
    with pytest.raises(DumpError, match="neither the text was found nor a kernel's symbol table") as refused:
        core(without_text(DUMP, tmp_path / "vmcore", blank), tmp_path)
    assert "\n" not in str(refused.value)


def test_a_page_table_that_does_not_fit_proves_nothing(tmp_path: Path) -> None:
    """The kernel's own top table is zeros: each step before it succeeds."""
    with open_container([DUMP]) as container:
        info = parse_vmcoreinfo(container.vmcoreinfo or b"")
        memory = KernelMemory(PhysicalMemory(container), ARCH.paging.kernel_map(info))
        table = memory.read(info.symbol("init_top_pgt") or 0, PAGE_SIZE)
    with pytest.raises(DumpError, match="that a page table proves"):
        core(without_text(DUMP, tmp_path / "vmcore", table), tmp_path)

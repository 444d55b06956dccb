"""/proc/kcore and copies of it, as fs/proc/kcore.c lays it out: the kernel's areas, and RAM."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note, page
from tests.builders.present import present_runs
from tests.containers.contract import check_contract
from tests.e2e.guests import FIXTURES, convert
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"

OFFSET = (1 << 40) - 1
"""kc_vaddr_to_offset(): what of an address is its place in the file. 47 bits, but no file system has files so large."""

NO_PADDR = (1 << 64) - 1
DIRECT, VMALLOC, TEXT = 0xFFFF888000000000, 0xFFFFC90000000000, 0xFFFFFFFF81000000

PRSTATUS = note(b"CORE", 1, bytes(336))
PRPSINFO = note(b"CORE", 3, struct.pack("<bcbbQIIiiii16s80s", 0, b"R", 0, 0, 0, 0, 0, 0, 0, 0, 0, b"vmlinux", b"quiet"))
TASKSTRUCT = note(b"CORE", 4, bytes(8))


def kcore(path: Path, ram: list[tuple[int, bytes]], text: tuple[int, bytes] | None, vmcoreinfo: bytes) -> None:
    """Write a sparse file with the headers and offsets of /proc/kcore."""
    areas = [] if text is None else [Load(text[0], text[1], vaddr=TEXT)]
    areas += [Load(NO_PADDR, b"", vaddr=VMALLOC, filesz=1 << 38, offset=VMALLOC & OFFSET)]
    areas += [Load(paddr, data, vaddr=DIRECT + paddr) for paddr, data in ram]
    places = [(0x10000 + (load.vaddr & OFFSET), load.data) for load in areas]
    loads = [
        Load(load.paddr, b"", vaddr=load.vaddr, offset=at, filesz=load.filesz or len(data))
        for load, (at, data) in zip(areas, places, strict=True)
    ]
    head = build_elf_vmcore(loads, PRSTATUS + PRPSINFO + TASKSTRUCT + vmcoreinfo)
    with path.open("wb") as f:
        for at, data in [(0, head), *places]:
            f.seek(at)
            f.write(data)


RAM = [(0x1000, page(1) + page(2)), (0x100000, page(256) + page(257) + page(258))]


@pytest.fixture
def small(tmp_path: Path) -> DumpContainer:
    kcore(tmp_path / "kcore", RAM, (0x101000, page(257)), note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n"))
    return open_container([tmp_path / "kcore"])


def test_ram_is_read_by_its_physical_address(small: DumpContainer) -> None:
    with small:
        assert small.memory_ranges() == (AddressRange(0x1000, 0x3000), AddressRange(0x100000, 0x103000))
        check_contract(small, {pfn: page(pfn) for pfn in (1, 2, 256, 257, 258)})


def test_that_the_machine_went_on_is_said(small: DumpContainer) -> None:
    with small:
        (warning,) = small.warnings
    assert warning.startswith("this is the memory of a running machine (/proc/kcore), which kept running")


def test_its_notes_of_a_process_are_no_registers(small: DumpContainer) -> None:
    """NT_PRSTATUS is of nobody: all zeros."""
    with small:
        assert [n.name for n in small.notes] == ["VMCOREINFO"]


def test_nothing_depends_on_a_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmap() of /proc/kcore is refused."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(mmap, "mmap", refuse)
    kcore(tmp_path / "kcore", RAM, None, b"")
    with open_container([tmp_path / "kcore"]) as container:
        assert container.warnings
        check_contract(container, {pfn: page(pfn) for pfn in (1, 2, 256, 257, 258)})


def test_the_core_is_that_of_a_dump_and_incomplete(tmp_path: Path) -> None:
    """A process that sleeps has the same pages and registers; the exit status says that nothing is certain."""
    with open_container([DUMP]) as container:
        vmcoreinfo = note(b"VMCOREINFO", 0, container.vmcoreinfo or b"")
        kcore(tmp_path / "vmcore", present_runs(container), None, vmcoreinfo)
    assert convert(DUMP, "--pid", "1", "-o", tmp_path / "dump.core").returncode == 0
    result = convert(tmp_path / "vmcore", "--pid", "1", "-o", tmp_path / "kcore.core")
    assert (result.returncode, result.stderr.count("\n")) == (3, 1)
    assert "running machine (/proc/kcore)" in result.stderr
    assert (tmp_path / "kcore.core").read_bytes() == (tmp_path / "dump.core").read_bytes()

"""kallsyms by its form alone, in a real 5.10 kernel, whose VMCOREINFO does not say where it is."""

from __future__ import annotations

import re
import struct
import time
from pathlib import Path

import pytest

from tests.builders.elfdump import Load, build_elf_vmcore
from tests.e2e.guests import bundled
from vmcore2core.addresses import AddressRange, PhysAddr
from vmcore2core.arch.spec import KernelMap, LinearMapping
from vmcore2core.arch.x86_64.machine import ARCH
from vmcore2core.containers import open_container
from vmcore2core.errors import LayoutInvalid, MemoryFault, PageMissing
from vmcore2core.layout.kallsyms import WITNESSES, KallsymsSource
from vmcore2core.layout.kallsyms_scan import find_kallsyms
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo
from vmcore2core.memory.kernel import KernelMemory
from vmcore2core.memory.physical import PhysicalMemory

SYMBOLS = {"SYMBOL(swapper_pg_dir)": "ffffffff82000000", "SYMBOL(_stext)": "ffffffff81000000"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The dump's VMCOREINFO."""
    container = open_container([bundled("debian-5.10-amd64", tmp_path_factory.mktemp("text"))])
    assert container.vmcoreinfo is not None
    return container.vmcoreinfo


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> KernelMemory:
    container = open_container([bundled("debian-5.10-amd64", tmp_path_factory.mktemp("dump"))])
    return KernelMemory(PhysicalMemory(container), ARCH.paging.kernel_map(parse_vmcoreinfo(text)))


def test_it_agrees_with_symbols_that_it_was_not_checked_against(memory: KernelMemory, text: bytes) -> None:
    (tables,) = find_kallsyms(memory, "little")
    told = {name.decode(): int(value, 16) for name, value in re.findall(rb"SYMBOL\((\w+)\)=(\w+)", text)}
    witness = {"init_uts_ns": told["init_uts_ns"]}
    source = KallsymsSource(memory, tables, "little", witness, "found")
    others = told.keys() - WITNESSES - {"mem_section", "node_data"}  # VMCOREINFO has these two as values
    assert len(others) >= 2
    assert {name: source.symbol(name) for name in others} == {name: told[name] for name in others}
    assert source.num_syms == 105_158


@pytest.mark.parametrize("guest", ["6.1-amd64", "7.2-amd64"])
def test_newer_forms_are_where_vmcoreinfo_says(tmp_path: Path, guest: str) -> None:
    with open_container([bundled(f"debian-{guest}", tmp_path)]) as container:
        info = parse_vmcoreinfo(container.vmcoreinfo or b"")
        (tables,) = find_kallsyms(KernelMemory(PhysicalMemory(container), ARCH.paging.kernel_map(info)), "little")
    assert tables._asdict() == {
        name: info.symbol(f"kallsyms_{name}")
        for name in ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
    }


def test_tables_that_agree_with_no_symbol_are_refused(memory: KernelMemory) -> None:
    (tables,) = find_kallsyms(memory, "little")
    with pytest.raises(LayoutInvalid, match="does not agree with VMCOREINFO"):
        KallsymsSource(memory, tables, "little", {"init_uts_ns": 0xFFFF_FFFF_8000_0000}, "found")


def test_nothing_is_found_in_the_other_byte_order(memory: KernelMemory) -> None:
    assert list(find_kallsyms(memory, "big")) == []


@pytest.mark.no_cover
def test_memory_full_of_what_looks_like_tokens_takes_a_bounded_time(tmp_path: Path) -> None:
    tokens = b"ab\0" * 256 + b"".join(struct.pack("<H", 3 * i) for i in range(256))
    memory = (tokens * 4000)[: 4 << 20]
    (tmp_path / "vmcore").write_bytes(build_elf_vmcore([Load(0, memory)]))
    with open_container([tmp_path / "vmcore"]) as container:
        spec = ARCH.paging.kernel_map(VmcoreInfo({"NUMBER(phys_base)": "0", **SYMBOLS})).spec
        everything = LinearMapping(AddressRange(0, len(memory)), PhysAddr(0))
        begin = time.process_time()
        kernel = KernelMemory(PhysicalMemory(container), KernelMap(spec, PhysAddr(0), (everything,)))
        assert list(find_kallsyms(kernel, "little")) == []
    assert time.process_time() - begin < 20


class Patched:
    """Kernel memory in which some bytes are others, or cannot be read."""

    def __init__(self, memory: KernelMemory, at: int, patch: bytes | None) -> None:
        self.searched, self.physical = memory.searched, memory.physical
        self.memory, self.at, self.patch = memory, at, patch

    def read(self, address: int, size: int) -> bytes:
        data = self.memory.read(address, size)
        end = self.at + len(self.patch or b"x")
        if address < end and self.at < address + size:
            if self.patch is None:
                raise PageMissing(self.at)
            whole = bytearray(data)
            for i, byte in enumerate(self.patch):
                if address <= self.at + i < address + size:
                    whole[self.at + i - address] = byte
            return bytes(whole)
        return data


@pytest.mark.parametrize("patch", [None, b"\0", b"\xff\xff\xff\xff"])
@pytest.mark.parametrize("place", ["names", "num_syms", "token_table", "token_index"])
def test_a_broken_table_is_not_found_or_refused(memory: KernelMemory, place: str, patch: bytes | None) -> None:
    (tables,) = find_kallsyms(memory, "little")
    broken = Patched(memory, getattr(tables, place), patch)
    found = list(find_kallsyms(broken, "little"))
    for one in found:
        with pytest.raises((LayoutInvalid, MemoryFault)):
            KallsymsSource(broken, one, "little", {"init_uts_ns": 1})
    assert found == [] or place in ("names", "token_index", "num_syms")


def test_the_dump_is_bundled(tmp_path: Path) -> None:
    assert bundled("debian-5.10-amd64", tmp_path).stat().st_size > 10 << 20

"""Reading a process and its files: unknown bytes are None, never zeros."""

from __future__ import annotations

from typing import cast

import pytest

from tests.unwind.processes import CachedFile, Process
from vmcore2core.memory.user import UserMemory
from vmcore2core.unwind.reading import Mapped, PagedRead, file_read

DATA = b"".join(bytes([i]) * 4096 for i in range(1, 9))


def process_with_file(*gone: int) -> Process:
    process = Process()
    number = process.files.add(DATA)
    process.files.gone = {(number, index) for index in gone}
    process.map(0x10000, 0x12000, 4, "/x", number, 0x2000)
    return process


def file_of(process: Process, *mapped: Mapped) -> PagedRead:
    memory = cast(UserMemory, process)
    return file_read(memory, CachedFile(process.files, 0), mapped, PagedRead(process.read, 4096))


def test_a_file_is_read_across_pages() -> None:
    read = file_of(process_with_file())
    assert read(0xFFE, 4) == b"\1\1\2\2"
    assert read(0, len(DATA)) == DATA
    assert read(0x1800, 0x6000) == DATA[0x1800:0x7800]


def test_a_page_that_is_not_in_the_dump_is_not_known() -> None:
    read = file_of(process_with_file(3))
    assert read(0x3000, 1) is None
    assert read(0x2FFF, 2) is None
    assert read(0, len(DATA)) is None
    assert read(0x4000, 1) == b"\5"
    assert read(len(DATA), 1) is None


def test_a_page_that_is_not_cached_is_read_through_a_mapping_that_cannot_be_written() -> None:
    process = process_with_file(2, 3)
    process.parts = [(0x10000, b"m" * 4096)]
    read = file_of(process, Mapped(0x10000, 0x12000, 0x2000))
    assert read(0x2000, 4) == b"mmmm"
    assert read(0x3000, 4) is None


def test_known_runs_are_those_between_unknown_pages() -> None:
    read = file_of(process_with_file(0, 3, 4))
    runs = list(read.known(0x800, len(DATA) - 0x800))
    assert runs == [(0x1000, DATA[0x1000:0x3000]), (0x5000, DATA[0x5000:])]
    assert list(read.known(0x3000, 0x2000)) == []


@pytest.mark.parametrize(
    ("address", "size"), [(-1, 8), (0, -1), (0, 1 << 62), ((1 << 64) - 4, 8), (1 << 64, 1), (0, (1 << 20) + 1)]
)
def test_what_no_process_has_is_not_known(address: int, size: int) -> None:
    assert PagedRead(lambda _at, n: bytes(n), 4096)(address, size) is None


def test_a_string_ends_at_its_nul_and_not_later() -> None:
    data = b"\0name\0" + b"x" * 8186 + b"y\0"
    read = PagedRead(lambda at, size: data[at : at + size].ljust(size, b"\0") if at < len(data) else None, 4096)
    assert read.string(1) == b"name"
    assert read.string(0) == b""
    assert read.string(8190) == b"xxy"
    assert read.string(6) is None  # too long for a name
    assert read.string(1 << 20) is None

"""The index of a section without a search table: processes share one only if they have the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from vmcore2core.unwind import eh_index
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.eh_index import EhIndex, EhIndexes

ADDRESS = 0x7000
STARTS = [0x1000, 0x1400, 0x2000]
Read = Callable[[int, int], bytes | None]


def cie(encoding: int = 0x1B) -> bytes:
    """Return a CIE; by default its FDEs have pointers that are relative to themselves, in four bytes."""
    return entry(struct.pack("<IB", 0, 1) + b"zR\0\x01\x78\x10\x01" + bytes([encoding]))


def entry(body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack("<I", len(body)) + body


def section(starts: list[int], cie_at: int = ADDRESS) -> bytes:
    """Return .eh_frame of functions of 0x100 bytes; their CIE is at its beginning, or elsewhere."""
    data = cie()
    for start in starts:
        at = ADDRESS + len(data)
        data += entry(struct.pack("<IiiB", at + 4 - cie_at, start - at - 8, 0x100, 0))
    return data + bytes(4)


def memory(pieces: dict[int, bytes], asked: list[int] | None = None) -> Read:
    def read(address: int, size: int) -> bytes | None:
        if asked is not None:
            asked.append(address)
        for start, data in pieces.items():
            if start <= address <= start + len(data) - size:
                return data[address - start :][:size]
        return None

    return read


def index(indexes: EhIndexes, data: bytes, more: dict[int, bytes] | None = None, address: int = ADDRESS) -> EhIndex:
    return indexes.of(EhFrame(memory({address: data, **(more or {})}), "little", 8), address, len(data))


def test_processes_of_one_program_share_an_index() -> None:
    indexes, data = EhIndexes(), section(STARTS)
    first, second = index(indexes, data), index(indexes, data)
    assert second is first
    assert first.starts.tolist() == STARTS
    assert [first.find(pc) for pc in (0x0, 0x10FF, 0x2000)] == [None, *(first.addresses[i] for i in (0, 2))]


def test_a_file_with_other_bytes_has_its_own() -> None:
    """Whatever build ID it claims, and if only one function differs."""
    indexes = EhIndexes()
    index(indexes, section(STARTS))
    assert index(indexes, section([*STARTS[:2], 0x2010])).starts.tolist() == [0x1000, 0x1400, 0x2010]


def test_the_same_bytes_elsewhere_say_something_else() -> None:
    indexes, data = EhIndexes(), section(STARTS)
    index(indexes, data)
    assert index(indexes, data, address=ADDRESS + 0x100000).starts.tolist() == [0x101000, 0x101400, 0x102000]


def test_what_was_made_from_other_bytes_too_is_not_shared() -> None:
    """The CIE is outside the section: a process may have another one there, and with it another encoding."""
    indexes, data, elsewhere = EhIndexes(), section(STARTS, cie_at=0x6000), 0x6000
    one = index(indexes, data, {elsewhere: cie()})
    other = index(indexes, data, {elsewhere: cie(encoding=0x03)})  # absolute: these numbers are no starts
    assert one.starts.tolist() == STARTS
    assert other.starts.tolist() != STARTS


def test_a_section_that_is_not_known_in_full_is_not_shared() -> None:
    indexes, data = EhIndexes(), section(STARTS)
    cut = EhFrame(memory({ADDRESS: data[: len(data) - 20]}), "little", 8)
    one = indexes.of(cut, ADDRESS, len(data))
    assert one.problem is not None
    assert index(indexes, data).problem is None


def test_only_so_many_bytes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eh_index, "KEPT_SIZE", 100)  # two of 48 bytes
    indexes, sections = EhIndexes(), [section([start, *STARTS[1:]]) for start in (0x100, 0x200, 0x300)]
    first, second, _ = (index(indexes, data) for data in sections)
    assert index(indexes, sections[1]) is second
    assert index(indexes, sections[0]) is not first

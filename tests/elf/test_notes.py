from __future__ import annotations

import struct
import time

import pytest

from tests.builders.elfdump import note
from vmcore2core.elf import notes as module
from vmcore2core.elf.notes import parse_notes


def test_big_endian_notes() -> None:
    raw = note(b"LINUX", 0x300, b"abc", "big") + note(b"CORE", 1, b"", "big")
    found, warning = parse_notes(raw, "big", 0)
    assert [(n.name, n.n_type, n.desc) for n in found] == [("LINUX", 0x300, b"abc"), ("CORE", 1, b"")]
    assert warning is None


@pytest.mark.parametrize("padding", [4, 8, 12, 4096])
def test_zeros_between_notes_are_padding(padding: int) -> None:
    raw = note(b"CORE", 1, b"x") + bytes(padding) + note(b"CORE", 2, b"y") + bytes(padding)
    found, warning = parse_notes(raw, "little", 0)
    assert [n.n_type for n in found] == [1, 2]
    assert warning is None


def test_last_descriptor_may_lack_its_padding() -> None:
    found, warning = parse_notes(note(b"CORE", 1, b"xyz")[:-1], "little", 0)
    assert [n.desc for n in found] == [b"xyz"]
    assert warning is None


@pytest.mark.parametrize(
    ("n_namesz", "n_descsz"), [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (0xFFFFFFFD, 0xFFFFFFFD), (5, 9), (100, 0)]
)
def test_sizes_beyond_the_segment_end_the_notes_with_a_sentence(n_namesz: int, n_descsz: int) -> None:
    raw = note(b"CORE", 1, b"x") + struct.pack("<III", n_namesz, n_descsz, 7) + bytes(8)
    found, warning = parse_notes(raw, "little", 0x1000)
    assert [n.n_type for n in found] == [1]
    assert warning is not None
    assert "0x1018" in warning or "0x101c" in warning


def test_every_truncation_is_a_shorter_list_or_a_sentence() -> None:
    raw = note(b"CORE", 1, b"x" * 20) + note(b"VMCOREINFO", 0, b"y" * 20)
    for size in range(len(raw)):
        found, warning = parse_notes(raw[:size], "little", 0)
        complete = (size >= 40) + (size >= 84)
        assert len(found) == complete
        assert (warning is None) == (size in (0, 40)), size


def test_number_of_notes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOTES_MAX", 10)
    found, warning = parse_notes(note(b"A", 1, b"") * 11, "little", 0)
    assert len(found) == 10
    assert warning is not None
    assert "more than 10" in warning


@pytest.mark.no_cover
def test_notes_far_apart_take_linear_time() -> None:
    raw = (note(b"A", 1, b"") + bytes(1 << 16)) * 500
    start = time.monotonic()
    assert len(parse_notes(raw, "little", 0)[0]) == 500
    assert time.monotonic() - start < 2

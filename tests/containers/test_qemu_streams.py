"""Streams as QEMU itself writes them: machines without a kernel, stopped before their first instruction."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.containers.contract import read
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import PageState

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "qemu-streams"
MIB = 1 << 20
# What the machines' manuals say of a processor at reset, at these places of NT_PRSTATUS' registers.
ARM64_DAIF_EL1H = struct.pack("<Q", 0x400003C5)
RISCV64_RESET_VECTOR = struct.pack("<Q", 0x1000)


@pytest.mark.parametrize(
    ("name", "start", "size", "notes"),
    [
        ("pc-7.2", 0, 18 * MIB, []),
        ("q35-11.1", 0, 18 * MIB, []),
        ("virt-arm64-7.2", 0x4000_0000, 18 * MIB, [1, 2]),
        ("virt-riscv64-7.2", 0x8000_0000, 18 * MIB, [1]),
        ("s390-ccw-virtio-7.2", 0, 18 * MIB, [1, 2, 0x305, 0x304, 0x309, 0x30A]),
        ("pseries-7.2", 0, 256 * MIB, [1, 2, 0x100, 0x102]),
    ],
)
def test_a_stream_of_each_machine_is_read_whole(
    tmp_path: Path, name: str, start: int, size: int, notes: list[int]
) -> None:
    """The processors of PCs are in real mode, and have no 64-bit registers then."""
    with open_container([unpack(FOLDER / f"{name}.zst", tmp_path / "saved")]) as container:
        assert container.DOC.name == "QEMU migration"
        assert container.warnings == []
        assert container.memory_ranges() == (AddressRange(start, start + size),)
        assert [note.n_type for note in container.notes] == notes * 2


def test_the_clock_tells_what_is_below_4_gib(tmp_path: Path) -> None:
    """The machine has max-ram-below-4g=17M, and mapped-ram."""
    with open_container([unpack(FOLDER / "q35-mapped-ram-11.1.zst", tmp_path / "saved")]) as container:
        assert container.warnings == []
        assert container.memory_ranges() == (AddressRange(0, 17 * MIB), AddressRange(1 << 32, (1 << 32) + MIB))
        states, pages = read(container, 0x100001, 0x100002)
        assert states == [PageState.ZERO, PageState.PRESENT]
        assert pages[1] == struct.pack("<Q", 0x1122334455667788).ljust(4096, b"\0")


def test_registers_are_those_at_reset(tmp_path: Path) -> None:
    with open_container([unpack(FOLDER / "virt-arm64-7.2.zst", tmp_path / "arm64")]) as container:
        assert container.notes[0].desc[112 + 33 * 8 : 112 + 34 * 8] == ARM64_DAIF_EL1H
    with open_container([unpack(FOLDER / "virt-riscv64-7.2.zst", tmp_path / "riscv64")]) as container:
        assert container.notes[1].desc[112:120] == RISCV64_RESET_VECTOR
        assert container.notes[1].desc[32:36] == struct.pack("<I", 2)

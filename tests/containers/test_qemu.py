"""Files as QEMU itself writes them: one machine of 1 MiB, stopped before its first instruction, in two formats."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import unpack
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "qemu-formats"
# What QEMU has as RAM of a machine of 1 MiB: all of it but the VGA hole, which is RAM behind the hole.
FRAMES = np.arange(256, dtype=np.uint64)
RESET_VECTOR = bytes.fromhex("ea5be000f0")  # SeaBIOS: ljmp $0xf000,$0xe05b
NT_PRSTATUS = 1


def open_all(tmp_path: Path) -> dict[str, DumpContainer]:
    elf = unpack(FOLDER / "elf.zst", tmp_path / "elf")
    return {"elf": open_container([elf]), "zlib": open_container([FOLDER / "zlib"])}


def pages(container: DumpContainer) -> tuple[np.ndarray, np.ndarray]:
    out = np.zeros((len(FRAMES), 4096), np.uint8)
    states = container.read_pages(FRAMES, out)
    return out, states


def test_both_formats_hold_the_same_memory(tmp_path: Path) -> None:
    found = {name: pages(container) for name, container in open_all(tmp_path).items()}
    (elf, elf_states), (kdump, kdump_states) = found["elf"], found["zlib"]
    there = np.isin(elf_states, (PageState.PRESENT, PageState.ZERO))
    assert there.sum() >= 160
    assert (np.isin(kdump_states, (PageState.PRESENT, PageState.ZERO)) == there).all()
    assert (elf[there] == kdump[there]).all()
    assert elf[there].any()


@pytest.mark.parametrize("name", ["elf", "zlib"])
def test_the_firmware_is_where_the_processor_looks_for_it(tmp_path: Path, name: str) -> None:
    out, states = pages(open_all(tmp_path)[name])
    assert states[255] == PageState.PRESENT
    assert out[255, 0xFF0 : 0xFF0 + 5].tobytes() == RESET_VECTOR


@pytest.mark.parametrize("name", ["elf", "zlib"])
def test_the_notes_are_of_two_processors_at_reset(tmp_path: Path, name: str) -> None:
    notes = open_all(tmp_path)[name].notes
    status = [note.desc for note in notes if (note.name, note.n_type) == ("CORE", NT_PRSTATUS)]
    assert len(status) == 2
    # The processors are in real mode, so QEMU takes i386's elf_prstatus: pr_pid at 24, pr_reg at 72; eip is the 13th of
    # its registers, cs the 14th.
    assert [struct.unpack_from("<I", desc, 24)[0] for desc in status] == [1, 2]
    assert struct.unpack_from("<II", status[0], 72 + 12 * 4) == (0xFFF0, 0xF000)
    assert [note.name for note in notes].count("QEMU") == 2

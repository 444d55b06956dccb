"""A processor without XSAVE (qemu64, early Atoms): its threads have FXSAVE's registers, and no further notes."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from vmcore2core.arch.x86.regsets import Thread, process_notes, regsets
from vmcore2core.interfaces import MemoryAndLayout
from vmcore2core.layout.resolver import KernelLayout

Build = Callable[[int], tuple[Bytes, KernelLayout]]

TASK, SIZE = 0xFFFF_8880_0010_0000, 2496
CONFIG, USER_SIZE, KERNEL_SIZE, SW_BYTES = (0xFFFF_FFFF_8300_0000 + i * 0x1000 for i in range(4))
NT_FPREGSET, NT_PRXFPREG = 2, 0x46E6_2B7F
LEGACY = struct.pack("<HHBBHQQII", 0x37F, 0, 0, 0, 0, 0, 0, 0x1F80, 0xFFFF) + bytes(range(256)) + bytes(224)


def new(size: int) -> tuple[Bytes, KernelLayout]:
    """Linux 7.2: struct fpu behind task_struct, its size in struct fpstate and fpu_user_cfg."""
    fpu = TASK + SIZE
    offsets = {
        "fpu": {"fpstate": (16, 8), "__fpstate": (64, 4160)},
        "fpstate": {"size": (0, 4), "user_xfeatures": (16, 8), "regs": (64, 4096)},
        "fpu_state_config": {"max_size": (0, 4), "max_features": (8, 8)},
    }
    state = struct.pack("<IIQQ", size, size, 0, 0).ljust(64, b"\0") + LEGACY
    places = {CONFIG: struct.pack("<IIQ", size, size, 0), fpu + 16: struct.pack("<Q", fpu + 64), fpu + 64: state}
    return Bytes(places), KernelLayout([Table(offsets, sizes={"task_struct": SIZE}, symbols={"fpu_user_cfg": CONFIG})])


def old(size: int) -> tuple[Bytes, KernelLayout]:
    """Linux 5.10: the state within task_struct, its size in variables."""
    symbols = {
        "fpu_user_xstate_size": USER_SIZE,
        "fpu_kernel_xstate_size": KERNEL_SIZE,
        "xstate_fx_sw_bytes": SW_BYTES,
    }
    places = {
        USER_SIZE: struct.pack("<I", size),
        KERNEL_SIZE: struct.pack("<I", size),
        SW_BYTES: bytes(48),
        TASK + 1024: LEGACY,
    }
    return Bytes(places), KernelLayout([Table({"task_struct": {"thread.fpu.state": (1024, 4160)}}, symbols=symbols)])


@pytest.mark.parametrize("build", [new, old])
def test_without_xsave_a_thread_has_fxsaves_registers_and_no_xstate(build: Build) -> None:
    memory, layout = build(512)
    notes = regsets(Thread(TASK, {}, MemoryAndLayout(memory, layout), is_64=True))
    assert [(n.name, n.n_type, n.desc) for n in notes or ()] == [("CORE", NT_FPREGSET, LEGACY)]
    assert process_notes(MemoryAndLayout(memory, layout)) == ()


@pytest.mark.parametrize("build", [new, old])
def test_without_xsave_a_32_bit_thread_has_both_forms_of_them(build: Build) -> None:
    memory, layout = build(512)
    notes = regsets(Thread(TASK, {"cs": 0x23, "ds": 0x2B}, MemoryAndLayout(memory, layout), is_64=False)) or ()
    assert [(n.name, n.n_type, len(n.desc)) for n in notes] == [("CORE", NT_FPREGSET, 108), ("LINUX", NT_PRXFPREG, 512)]
    assert notes[1].desc == LEGACY

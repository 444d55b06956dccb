"""struct fpu found by its contents: memory by struct.pack, as Linux 7.2 lays it out."""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.x86.inference import MEMBERS, FpuInference
from vmcore2core.interfaces import MemoryAndLayout
from vmcore2core.layout.resolver import KernelLayout

SIZE = 2496
INIT, CONFIG = 0xFFFF_FFFF_8300_0000, 0xFFFF_FFFF_8310_0000
TASKS = [0xFFFF_8880_0010_0000 + i * 0x4000 for i in range(3)]
XFEATURES, ALL = 0x2E7 | 1 << 11, 2696
COMPACTED = 1 << 63


class Machine:
    """Three tasks; tests change what is in ``fpus``."""

    def __init__(self) -> None:
        self.init = [ALL, 0, XFEATURES, 0]
        self.config = [ALL - 24, ALL - 24, 0x2E7, 0x2E7]
        self.fpus = [self.fpu(task + SIZE) for task in TASKS]
        self.table = Table(sizes={"task_struct": SIZE}, symbols={"init_fpstate": INIT, "fpu_user_cfg": CONFIG})

    @staticmethod
    def fpu(address: int, xcomp: int = COMPACTED | XFEATURES, features: int = 0x207) -> bytearray:
        """last_cpu, avx512_timestamp, fpstate, __task_fpstate, perm, guest_perm; then __fpstate."""
        head = struct.pack("<QQQQ", 1, 0, address + 64, 0) + struct.pack("<QII", 0x2E7, ALL, ALL) * 2
        state = struct.pack("<IIQQQI", ALL, ALL - 24, XFEATURES, 0x2E7, 0, 1).ljust(64, b"\0")
        regs = bytes(512) + struct.pack("<QQ", features, xcomp) + bytes(48)
        return bytearray((head + state + regs).ljust(1100, b"\0"))

    def infer(self) -> dict[tuple[str, str], int]:
        places = {INIT: struct.pack("<IIQQ", *self.init), CONFIG: struct.pack("<IIQQ", *self.config)}
        places |= {task + SIZE: bytes(fpu) for task, fpu in zip(TASKS, self.fpus, strict=True)}
        return dict(
            FpuInference().infer(
                [KernelAddr(task) for task in TASKS], MemoryAndLayout(Bytes(places), KernelLayout([self.table]))
            )
        )


def test_all_offsets_are_told() -> None:
    assert Machine().infer() == dict(zip(MEMBERS, (16, 64, 0, 16, 64, 0, 8), strict=True))


def test_a_task_in_the_standard_form_agrees_too() -> None:
    machine = Machine()
    machine.fpus[1] = machine.fpu(TASKS[1] + SIZE, xcomp=0)
    assert machine.infer()


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(16, 0, id="a null pointer"),
        pytest.param(16, TASKS[0] + SIZE + 64, id="another task's state"),
        pytest.param(64, ALL + 8, id="another size"),
        pytest.param(72, XFEATURES | 1 << 12, id="other features"),
        pytest.param(80, 0x2E6, id="other features for processes"),
        pytest.param(128 + 512, 1 << 20, id="a component that is not saved"),
        pytest.param(128 + 520, COMPACTED | 7, id="another compacted layout"),
        pytest.param(128 + 528, 1, id="a reserved word"),
    ],
)
def test_one_task_that_does_not_agree_is_enough_to_tell_nothing(offset: int, value: int) -> None:
    machine = Machine()
    struct.pack_into("<Q", machine.fpus[2], offset, value)
    assert machine.infer() == {}


def test_two_pointers_that_agree_tell_nothing() -> None:
    machine = Machine()
    for task, fpu in zip(TASKS, machine.fpus, strict=True):
        struct.pack_into("<Q", fpu, 24, task + SIZE + 64)
    assert machine.infer() == {}


@pytest.mark.parametrize("config", [[0, 0, 0x2E7, 0x2E7], [1 << 20] * 4, [ALL, ALL, 0x2E4, 0x2E4], [9, ALL, 7, 7]])
def test_a_configuration_that_cannot_be_tells_nothing(config: list[int]) -> None:
    machine = Machine()
    machine.config = config
    assert machine.infer() == {}


@pytest.mark.parametrize("missing", ["init_fpstate", "fpu_user_cfg"])
def test_without_the_symbols_nothing_is_told(missing: str) -> None:
    machine = Machine()
    del machine.table.symbols[missing]
    assert machine.infer() == {}
    assert FpuInference().infer([], MemoryAndLayout(Bytes({}), KernelLayout([Machine().table]))) == {}

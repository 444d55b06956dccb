"""loongarch64's notes besides NT_PRSTATUS: arch/loongarch/kernel/ptrace.c says what each has."""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.loongarch64.machine import ARCH
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, NotMapped
from vmcore2core.layout.resolver import KernelLayout

TASK, INIT_TASK, CPU_DATA, EVENT = (KernelAddr(0x9000_0000_0700_0000 + 0x10000 * i) for i in range(4))
MEMBERS = {
    "task_struct": {
        "thread_info": (0, 56),
        "flags": (64, 4),
        "stack": (72, 8),
        "thread.fpu": (0x100, 1056),
        "thread.lbt": (0x520, 40),
        "thread.hbp_break": (0x548, 112),
        "thread.hbp_watch": (0x5B8, 112),
    },
    "thread_info": {"flags": (0, 8)},
    "cpuinfo_loongarch": {"watch_ireg_count": (0x60, 4), "watch_dreg_count": (0x64, 4)},
    "perf_event": {"hw.info": (0x40, 24)},
}
SYMBOLS = {
    "init_task": INIT_TASK,
    "cpu_data": CPU_DATA,
    **dict.fromkeys(("_save_lsx", "_save_lasx", "_save_lbt", "hw_breakpoint_slots"), 0x9000_0000_0022_0000),
}
USED_MATH = 0x2000
REGISTER = [bytes((32 * i + j) & 0x7F for j in range(32)) for i in range(32)]
FIXADE = 1 << 19
LSX, LASX = 1 << 25, 1 << 26  # Linux 6.18 on
LBT = struct.pack("<5Q", 1, 2, 3, 4, 0xFFFF_FFFF_0000_0005)


def memory(tif: int, *, flags: int = USED_MATH, fixade: int = FIXADE, event: int = 0) -> Bytes:
    task = bytearray(0x700)
    struct.pack_into("<Q", task, 0, tif | fixade)
    struct.pack_into("<I", task, 64, flags)
    task[0x100:0x510] = b"".join(REGISTER) + struct.pack("<QII", 0x0100_0000, 0x1F, 3)
    task[0x520:0x548] = LBT
    struct.pack_into("<Q", task, 0x548 + 8, event)
    # struct arch_hw_breakpoint: address, mask, len in bits 28 and 29, type in 30 and 31.
    info = bytes(0x40) + struct.pack("<QQII", 0x1_2000_0B74, 3, 2 << 28 | 1 << 30, 0xEE)
    return Bytes(
        {
            TASK: bytes(task),
            INIT_TASK: struct.pack("<Q", fixade | 3),
            CPU_DATA: bytes(0x60) + struct.pack("<II", 8, 6),
            EVENT: info,
        }
    )


def notes(space: Bytes, *without: str, **changed: object) -> dict[int, bytes] | None:
    members = {**MEMBERS, **changed}
    layout = KernelLayout([Table(members, symbols={k: v for k, v in SYMBOLS.items() if k not in without})])  # type: ignore[arg-type]
    found = ARCH.cores.regsets(TASK, {}, ARCH.cores.machine({}, None), ARCH.view(space, layout))
    if found is None:
        return None
    assert [note.name for note in found] == ["CORE", *["LINUX"] * (len(found) - 1)]
    return {note.n_type: note.desc for note in found}


def ones(size: int, used: int) -> bytes:
    """Every register: what is used of it, then ones."""
    return b"".join(register[:used] + b"\xff" * (size - used) for register in REGISTER)


@pytest.mark.parametrize(
    ("tif", "flags", "lsx", "lasx"),
    [
        pytest.param(0, USED_MATH, ones(16, 8), ones(32, 8), id="scalars"),
        pytest.param(LSX, USED_MATH, ones(16, 16), ones(32, 16), id="LSX"),
        pytest.param(LSX | LASX, USED_MATH, ones(16, 16), ones(32, 32), id="LASX"),
        pytest.param(LSX | LASX, 0, ones(16, 0), ones(32, 0), id="no math at all"),
    ],
)
def test_all_notes_are_as_the_kernel_makes_them(tif: int, flags: int, lsx: bytes, lasx: bytes) -> None:
    found = notes(memory(tif, flags=flags))
    assert found is not None
    assert list(found) == [2, 0xA02, 0xA03, 0xA04, 0xA05, 0xA06]
    assert found[2] == b"".join(register[:8] for register in REGISTER) + struct.pack("<QI", 0x0100_0000, 0x1F)
    assert (found[0xA02], found[0xA03]) == (lsx, lasx)
    assert found[0xA04] == struct.pack("<4QII", 1, 2, 3, 4, 5, 3)  # eflags, ftop
    assert found[0xA05] == struct.pack("<Q", 8) + bytes(14 * 24)
    assert found[0xA06] == struct.pack("<Q", 6) + bytes(14 * 24)


def test_flags_had_other_numbers() -> None:
    """Up to Linux 6.17: TIF_FIXADE is 11, TIF_LSX_CTX_LIVE 17, TIF_LASX_CTX_LIVE 18."""
    for tif, lasx in ((1 << 17, ones(32, 16)), (3 << 17, ones(32, 32)), (1 << 25, ones(32, 8))):
        found = notes(memory(tif, fixade=1 << 11))
        assert found is not None
        assert found[0xA03] == lasx


def test_what_is_not_known_is_left_out() -> None:
    both = notes(memory(LSX, fixade=FIXADE | 1 << 11))  # which numbers?
    assert both is not None
    assert list(both) == [2, 0xA04, 0xA05, 0xA06]
    bare = notes(memory(LSX), "init_task", "_save_lbt", "cpu_data")
    assert bare is not None
    assert list(bare) == [2]
    assert notes(memory(LSX), task_struct={"stack": (72, 8)}) is None


def test_a_hardware_breakpoint_is_address_mask_and_control() -> None:
    """encode_ctrl_reg(): len << 10 | type << 8."""
    found = notes(memory(LSX, event=EVENT))
    assert found is not None
    assert found[0xA05][8 + 24 : 8 + 48] == struct.pack("<QQII", 0x1_2000_0B74, 3, 2 << 10 | 1 << 8, 0)
    without = notes(memory(LSX, event=EVENT), perf_event={})
    assert without is not None
    assert 0xA05 not in without
    with pytest.raises(NotMapped):
        notes(memory(LSX, event=0x1000))


def test_a_table_of_breakpoints_that_cannot_be_is_an_error() -> None:
    members = {**MEMBERS["task_struct"], "thread.hbp_break": (0x548, 0x108)}
    with pytest.raises(LayoutInvalid, match="hbp_break"):
        notes(memory(LSX), task_struct=members)


@pytest.mark.parametrize(
    ("tif", "user_mode", "types"),
    [
        pytest.param(1 << 17, True, [2], id="owner, in user mode: QEMU has them"),
        pytest.param(1 << 17, False, [], id="owner, in the kernel: which may have used them"),
        pytest.param(0, True, [2, 0xA02, 0xA03, 0xA04, 0xA05, 0xA06], id="has not used the FPU since it is there"),
        pytest.param(0, False, [2, 0xA02, 0xA03, 0xA04, 0xA05, 0xA06], id="likewise, in the kernel"),
    ],
)
def test_the_cpus_registers_are_the_owners(tif: int, user_mode: bool, types: list[int]) -> None:
    cpu = Note("CORE", 2, b"\x55" * 268)
    note = CpuNote(1, 2, {}, user_mode, (cpu,))
    layout = KernelLayout([Table(MEMBERS, symbols=SYMBOLS)])
    found, missing = ARCH.cpus.regsets(TASK, {}, note, ARCH.view(memory(tif), layout))
    assert [one.n_type for one in found] == types
    assert (cpu in found, missing is not None) == (types == [2], types == [2])
    # Nothing tells who owns them: none.
    assert ARCH.cpus.regsets(TASK, {}, note, ARCH.view(memory(tif), KernelLayout([Table(MEMBERS)]))) == ((), None)

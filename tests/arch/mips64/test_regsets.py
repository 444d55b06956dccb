"""MIPS64's notes besides NT_PRSTATUS: arch/mips/kernel/ptrace.c says what each has."""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.base import Arch
from vmcore2core.arch.mips64.machine import ARCH as BIG
from vmcore2core.arch.mips64el.machine import ARCH as LITTLE
from vmcore2core.errors import NotMapped
from vmcore2core.layout.resolver import KernelLayout

TASK, STACK, CPU_DATA = (KernelAddr(0x9000_0000_0700_0000 + 0x10000 * i) for i in range(3))
MSA, SCALAR = 32 * 16 + 8, 32 * 8 + 8
"""sizeof(struct mips_fpu_struct) with CONFIG_CPU_HAS_MSA and without."""
USED_MATH = 0x2000
TIF_O32, TIF_N32 = 0xD0_0020, 0x90_0020
FPREGS_32, HYBRID, MSA_LIVE = 1 << 27, 1 << 28, 1 << 30
ASE_DSP = 0x10
REGISTERS = [bytes((16 * i + j) & 0x7F for j in range(16)) for i in range(32)]
FCR31, MSACSR, FIR, MSAIR = 0x0100_0001, 0x55, 0x77_0501, 0x66
BOTH = pytest.mark.parametrize("arch", [LITTLE, BIG], ids=["little", "big"])


def members(fpu: int) -> dict[str, dict[str, tuple[int, int]]]:
    return {
        "task_struct": {"flags": (20, 4), "stack": (8, 8), "thread.fpu": (0x100, fpu), "thread.dsp": (0x400, 56)},
        "cpuinfo_mips": {"fpu_id": (32, 4)},
    }


def order(arch: Arch) -> str:
    return {"little": "<", "big": ">"}[arch.byte_order]


def memory(arch: Arch, tif: int, *, flags: int = USED_MATH, ases: int = ASE_DSP, fpu: int = MSA) -> Bytes:
    form = order(arch)
    task = bytearray(0x500)
    struct.pack_into(f"{form}QI", task, 8, STACK, 0)
    struct.pack_into(f"{form}I", task, 20, flags)
    width = 16 if fpu == MSA else 8
    state = b"".join(register[:width] for register in REGISTERS) + struct.pack(f"{form}II", FCR31, MSACSR)
    task[0x100 : 0x100 + len(state)] = state
    struct.pack_into(f"{form}6QI", task, 0x400, *(0x5151_5151_0000_0000 + i for i in range(6)), 0x15)
    # struct cpuinfo_mips: asid_cache, ases, options, udelay_val, processor_id, fpu_id, fpu_csr31, fpu_msk31, msa_id.
    cpu = struct.pack(f"{form}3Q6I", 1, ases, 2, 3, 4, FIR, 5, 6, MSAIR)
    return Bytes({TASK: bytes(task), STACK: struct.pack(f"{form}2Q", TASK, tif), CPU_DATA: cpu})


def notes(arch: Arch, space: Bytes, fpu: int = MSA, without: str = "") -> dict[int, bytes] | None:
    known = members(fpu)
    symbols = {} if without == "cpu_data" else {"cpu_data": CPU_DATA}
    if without in known["task_struct"]:
        del known["task_struct"][without]
    layout = KernelLayout([Table(known, symbols=symbols)])
    machine = arch.cores.process_machine(TASK, {}, None, arch.view(space, layout))
    found = arch.cores.regsets(TASK, {}, machine, arch.view(space, layout))
    if found is None:
        return None
    assert [note.name for note in found] == ["CORE" if note.n_type == 2 else "LINUX" for note in found]
    return {note.n_type: note.desc for note in found}


def ones(used: int) -> bytes:
    """Every register: what is used of it, then ones."""
    return b"".join(register[:used] + b"\xff" * (16 - used) for register in REGISTERS)


@BOTH
@pytest.mark.parametrize(
    ("tif", "flags", "msa"),
    [
        pytest.param(0, USED_MATH, ones(8), id="scalars"),
        pytest.param(MSA_LIVE, USED_MATH, ones(16), id="MSA"),
        pytest.param(MSA_LIVE, 0, ones(0), id="no math at all"),
    ],
)
def test_all_notes_are_as_the_kernel_makes_them(arch: Arch, tif: int, flags: int, msa: bytes) -> None:
    found, form = notes(arch, memory(arch, tif, flags=flags)), order(arch)
    assert found == {
        0x800: struct.pack(f"{form}7Q", *(0x5151_5151_0000_0000 + i for i in range(6)), 0x15),
        2: b"".join(register[:8] for register in REGISTERS) + struct.pack(f"{form}2I", FCR31, FIR),
        0x801: struct.pack(f"{form}I", 1),
        0x802: msa + struct.pack(f"{form}4I", FIR, FCR31, MSAIR, MSACSR),
    }
    assert list(found) == [0x800, 2, 0x801, 0x802]


@BOTH
def test_o32s_dsp_registers_have_32_bits_and_n32s_have_64(arch: Arch) -> None:
    wide, narrow = (notes(arch, memory(arch, tif)) for tif in (TIF_N32, TIF_O32))
    assert wide is not None
    assert narrow is not None
    assert narrow[0x800] == struct.pack(f"{order(arch)}7I", *range(6), 0x15)
    assert len(wide[0x800]) == 56
    assert narrow[2] == wide[2]


@pytest.mark.parametrize(("tif", "mode"), [(0, 1), (FPREGS_32, 0), (HYBRID, 3), (FPREGS_32 | HYBRID, 2)])
def test_the_mode_is_what_the_flags_say(tif: int, mode: int) -> None:
    """mips_get_process_fp_mode(): PR_FP_MODE_FR is 1, PR_FP_MODE_FRE 2."""
    found = notes(LITTLE, memory(LITTLE, tif))
    assert found is not None
    assert found[0x801] == struct.pack("<I", mode)


def test_what_the_processor_or_the_kernel_lacks_has_no_note() -> None:
    found = notes(LITTLE, memory(LITTLE, 0, ases=0))
    assert found is not None
    assert list(found) == [2, 0x801, 0x802]
    found = notes(LITTLE, memory(LITTLE, 0, fpu=SCALAR), SCALAR)
    assert found is not None
    assert list(found) == [0x800, 2, 0x801]
    assert found[2][:8] == REGISTERS[0][:8]


@pytest.mark.parametrize("without", ["cpu_data", "thread.fpu", "stack"])
def test_where_the_layout_does_not_tell_there_are_none(without: str) -> None:
    assert notes(LITTLE, memory(LITTLE, 0), without=without) is None


def test_without_task_flags_there_is_no_msa_note() -> None:
    found = notes(LITTLE, memory(LITTLE, 0), without="flags")
    assert found is not None
    assert list(found) == [0x800, 2, 0x801]


def test_a_size_that_no_kernel_has_is_not_known() -> None:
    assert notes(LITTLE, memory(LITTLE, 0), 100) is None


def test_memory_that_cannot_be_read_is_an_error() -> None:
    space = memory(LITTLE, 0)
    places = {at: data for at, data in space.places.items() if at != CPU_DATA}
    with pytest.raises(NotMapped):
        notes(LITTLE, Bytes(places))

"""The registers of a saved machine's CPUs; a register's value is its name.

Tests formats/qemu_cpu.py.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.builders.migration import description, other_section
from vmcore2core.arch.arm64.machine import ARCH as ARM64
from vmcore2core.arch.ppc64le.machine import ARCH as PPC64LE
from vmcore2core.arch.riscv64.machine import ARCH as RISCV64
from vmcore2core.arch.s390x.machine import ARCH as S390X
from vmcore2core.arch.x86_64.machine import ARCH as X86_64
from vmcore2core.containers.dumpfile import DumpFile
from vmcore2core.containers.qemu_cpus import saved_cpu_notes
from vmcore2core.containers.vmstate import DeviceStates
from vmcore2core.elf.notes import Note

Field = tuple[str, list[int], int]
"""Name, values, bytes of each."""

SEGMENTS = [[selector, 0xFFFF_8000_0000_0000 + selector, 0, 0] for selector in (0x2B, 0x33, 0x2C, 0x2D, 0x2E, 0x2F)]


def value(name: str) -> int:
    return int.from_bytes(name.encode().rjust(8), "little")


def values(names: str) -> list[int]:
    return [value(name) for name in names.split()]


def x86(efer: int = 0xD01, regs: int = 8) -> list[Field]:
    return [
        ("env.regs", values("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15"), regs),
        ("env.eip", values("rip"), 8),
        ("env.eflags", values("eflags"), 8),
        *((f"env.cr[{n}]", values(f"cr{n}"), 8) for n in (0, 2, 3, 4)),
        ("env.efer", [efer], 8),
        ("env.kernelgsbase", values("kgsbase"), 8),
    ]


def notes(tmp_path: Path, *cpus: list[Field], first: int = 0, segments: bool = False) -> tuple[Note, ...]:
    """Return the notes of CPUs with these fields."""
    devices, raw = [], b"memory"
    for number, fields in enumerate(cpus, first):
        state = b"".join((n & (1 << 8 * size) - 1).to_bytes(size, "big") for _, ns, size in fields for n in ns)
        listed: list[object] = [{"name": name, "array_len": len(ns), "size": size} for name, ns, size in fields]
        if segments:
            members = [{"name": "selector", "size": 4}, {"name": "base", "size": 8}, {"name": "more", "size": 8}]
            listed.append({"name": "env.segs", "array_len": 6, "size": 20, "struct": {"fields": members}})
            state += b"".join(struct.pack(">IQII", *segment) for segment in SEGMENTS)
        section = other_section(4, 40 + number, b"cpu", state)
        raw += section[:9] + struct.pack(">I", number) + section[13:]
        devices.append({"name": "cpu", "instance_id": number, "fields": listed})
    path = tmp_path / "saved"
    path.write_bytes(raw + description(*devices))
    return saved_cpu_notes(DeviceStates(DumpFile(path), 0), 6)


def regs(found: tuple[Note, ...], arch: object) -> list[dict[str, int]]:
    cpus = arch.cpus.notes(tuple(found))  # type: ignore[attr-defined]
    assert [cpu.number for cpu in cpus] == list(range(len(cpus)))
    return [dict(cpu.regs) for cpu in cpus]


def test_x86_64(tmp_path: Path) -> None:
    cpus = regs(notes(tmp_path, x86(), x86(), segments=True), X86_64)
    assert len(cpus) == 2
    for name in "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip eflags cr0 cr2 cr3 cr4".split():
        assert cpus[1][name] == value(name), name
    bases = {"fs_base": 0xFFFF_8000_0000_002E, "gs_base": 0xFFFF_8000_0000_002F, "kernel_gs_base": value("kgsbase")}
    assert {name: cpus[0][name] for name in bases} == bases
    selectors = {"es": 0x2B, "cs": 0x33, "ss": 0x2C, "ds": 0x2D, "fs": 0x2E, "gs": 0x2F}
    assert {name: cpus[0][name] for name in selectors} == selectors


def test_arm64(tmp_path: Path) -> None:
    fields: list[Field] = [
        ("env.xregs", values(" ".join(f"x{n}" for n in range(31)) + " sp"), 8),
        ("env.pc", values("pc"), 8),
        ("cpsr", [0x8000_0000], 4),
    ]
    vectors: list[Field] = [(f"cpu/vfp:env.vfp.zregs[{n}].d", [n, 100 + n], 8) for n in range(32)]
    vectors.append(("cpu/vfp:fpscr", [0x0800_0010 | 0x0100_0000], 4))
    fpregs = struct.pack("<64QII8x", *(n for i in range(32) for n in (i, 100 + i)), 0x0800_0010, 0x0100_0000)
    assert [note.desc for note in notes(tmp_path, fields + vectors)][1:] == [fpregs]
    with_sve: list[Field] = [*fields, *vectors, ("cpu/sve:env.vfp.zregs", [0], 8)]
    assert len(notes(tmp_path, with_sve)) == 1
    (cpu,) = regs(notes(tmp_path, fields), ARM64)
    for name in (*(f"x{n}" for n in range(31)), "sp", "pc"):
        assert cpu[name] == value(name), name
    assert cpu["pstate"] == 0x8000_0000


def test_riscv64(tmp_path: Path) -> None:
    names = "zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"
    (cpu,) = regs(notes(tmp_path, [("env.gpr", values(names), 8), ("env.pc", values("pc"), 8)]), RISCV64)
    assert "zero" not in cpu
    for name in (*names.split()[1:], "pc"):
        assert cpu[name] == value(name), name


def test_ppc64(tmp_path: Path) -> None:
    """In big-endian order, as QEMU's dump where the first CPU takes interrupts so; MSR says 64 bits."""
    msr = 0x8000_0000_0000_D033
    fields: list[Field] = [
        ("env.gpr", values(" ".join(f"r{n}" for n in range(32))), 8),
        ("env.crf", [8, 2, 4, 0, 0, 0, 0, 1], 4),
        ("env.nip", values("nip"), 8),
        ("env.spr", [value("xer") if n == 1 else value("link") if n == 8 else 900 + n for n in range(1024)], 8),
        ("env.msr", [msr], 8),
        ("cpu/fpu:env.vsr", values(" ".join(f"f{n}" for n in range(32))), 8),
        ("cpu/fpu:env.fpscr", values("fpscr"), 8),
        ("cpu/altivec:env.vsr", values(" ".join(f"v{n}.low v{n}.high" for n in range(32))), 8),
        ("cpu/altivec:vscr", [0x10000], 4),
        ("cpu/vsx:env.vsr", values(" ".join(f"vs{n}" for n in range(32))), 8),
    ]
    found = notes(tmp_path, fields)
    (cpu,) = PPC64LE.cpus.notes(tuple(found))
    for n in range(32):
        assert cpu.regs[f"r{n}"] == value(f"r{n}"), n
    assert (cpu.regs["nip"], cpu.regs["msr"], cpu.regs["ctr"]) == (value("nip"), msr, 909)
    assert (cpu.regs["link"], cpu.regs["xer"], cpu.regs["ccr"]) == (value("link"), value("xer"), 0x8240_0001)
    regsets = {note.n_type: note.desc for note in cpu.regsets}
    assert regsets[2] == struct.pack("<33Q", *(value(f"f{n}") for n in range(32)), value("fpscr"))
    assert regsets[0x100][16:32] == struct.pack("<2Q", value("v1.low"), value("v1.high"))
    assert regsets[0x100][512:516] == struct.pack("<I", 0x10000)
    assert regsets[0x102] == struct.pack("<32Q", *(value(f"vs{n}") for n in range(32)))


def test_s390x(tmp_path: Path) -> None:
    fields: list[Field] = [
        ("env.regs", values(" ".join(f"r{n}" for n in range(16))), 8),
        ("env.psw.mask", [0x0705_0001_8000_0000], 8),
        ("env.psw.addr", values("addr"), 8),
        ("env.psa", [0x7FF0_0000], 8),
        ("env.aregs", list(range(100, 116)), 4),
        ("env.cregs", values(" ".join(f"c{n}" for n in range(16))), 8),
        ("cpu/fpu:env.fpc", [0x88], 4),
        *((f"cpu/fpu:env.vregs[{n}][0]", values(f"f{n}"), 8) for n in range(16)),
        *((f"cpu/vregs:env.vregs[{n}][1]", values(f"low{n}"), 8) for n in range(32)),
        *((f"cpu/vregs:env.vregs[{n}][0]", values(f"high{n}"), 8) for n in range(16, 32)),
        ("cpu/gscb:env.gscb", values("g0 g1 g2 g3"), 8),
    ]
    found = notes(tmp_path, fields)
    (cpu,) = regs(found, S390X)
    for n in range(16):
        assert cpu[f"r{n}"] == value(f"r{n}"), n
    assert (cpu["pswm"], cpu["pswa"], cpu["prefix"]) == (0x0705_0001_8000_0000, value("addr"), 0x7FF0_0000)
    assert (cpu["acr0"], cpu["acr15"], cpu["cr1"]) == (100, 115, value("c1"))
    of_type = {note.n_type: note.desc for note in found}
    assert of_type[2] == struct.pack(">II16Q", 0x88, 0, *(value(f"f{n}") for n in range(16)))
    assert of_type[0x309] == struct.pack(">16Q", *(value(f"low{n}") for n in range(16)))
    assert of_type[0x30A][:16] == struct.pack(">2Q", value("high16"), value("low16"))
    assert of_type[0x30B] == struct.pack(">4Q", *values("g0 g1 g2 g3"))


@pytest.mark.parametrize(
    ("cpus", "first"),
    [
        ([x86(efer=0x100)], 0),
        ([x86(regs=4)], 0),
        ([x86()[1:]], 0),
        ([x86()], 1),
        ([x86(), x86(efer=0)], 0),
        ([[("env.xregs", [0] * 31, 8), ("env.pc", [0], 8), ("cpsr", [0], 4)]], 0),
        ([[("env.gpr", [0] * 32, 8)]], 0),
        ([[("env.nip", [0], 8)]], 0),
    ],
)
def test_what_is_not_known_of_each_is_told_of_none(tmp_path: Path, cpus: list[list[Field]], first: int) -> None:
    """A CPU in 32-bit mode, of a 32-bit emulator; a field is not there, or CPU 0; another machine."""
    assert notes(tmp_path, *cpus, first=first, segments=True) == ()

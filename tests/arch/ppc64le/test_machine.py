"""ppc64le's registers by literal numbers: the kernel's headers, QEMU's arch_dump.c, the C compiler say what must be."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.arch.cross import cross_numbers
from tests.arch.ppc64le.test_paging import info
from tests.arch.shared import saved_user_regs
from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from tests.builders.prstatus import elf_prstatus
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.ppc64le.machine import ARCH
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import Memory
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import parse_vmcoreinfo

CC = "powerpc64le-linux-gnu-gcc"
TASK, STACK, CPU_SPEC, PACAS = (
    0xC000_0000_0100_0000,
    0xC000_0000_0110_0000,
    0xC000_0000_0120_0000,
    0xC000_0000_0130_0000,
)

# struct user_pt_regs, arch/powerpc/include/uapi/asm/ptrace.h, in its order.
PT_REGS = [*(f"r{i}" for i in range(32)), *"nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result".split()]
SF_PR = 1 << 63 | 0xD033  # EE, PR, ME, IR, DR, RI, LE
FP, VEC, VSX = 1 << 13, 1 << 25, 1 << 23
USER = {
    **{name: 0x1000 + 0x11 * i for i, name in enumerate(PT_REGS)},
    "r1": 0x3FFF_D1EE_5120,
    "nip": 0x1007_A7A4,
    "msr": SF_PR,
    "trap": 0xC00,
    "softe": 0,
}
KERNEL = {**USER, "nip": 0xC000_0000_001B_6DA4, "msr": 1 << 63 | 0x280_B033, "r1": 0xC000_0000_0297_7C90}


NOTHING = Bytes({})


def frame(regs: Mapping[str, int], order: str = "<") -> bytes:
    """Pack struct user_pt_regs: 44 words."""
    return struct.pack(f"{order}44Q", *(regs[name] for name in PT_REGS))


# Where this test's kernel keeps things in task_struct: thread.NAME -> (offset, size).
THREAD = {
    "regs": (0, 8),
    "fp_state.fpr": (0x80, 512),
    "fp_state.fpscr": (0x280, 8),
    "fpexc_mode": (0x288, 4),
    "vr_state": (0x300, 528),
    "vrsave": (0x518, 8),
    "used_vr": (0x520, 4),
    "used_vsr": (0x524, 4),
    "dscr": (0x528, 8),
    "tar": (0x530, 8),
    "ebbrr": (0x538, 8),
    "siar": (0x550, 8),
    "used_ebb": (0x574, 4),
}
FPR = bytes(range(256)) + bytes(range(255, -1, -1))
VR = bytes((7 * i) & 0xFF for i in range(528))


def table(*without: str, pt_regs: int = 384) -> Table:
    members = {f"thread.{name}": place for name, place in THREAD.items() if name not in without}
    structs = {
        "task_struct": members,
        "pt_regs": {"ppr": (352, 8)},
        "cpu_spec": {"cpu_user_features2": (28, 4)},
        "paca_struct": {"hw_cpu_id": (10, 2)},
    }
    return Table(structs, sizes={"pt_regs": pt_regs}, symbols={"cur_cpu_spec": CPU_SPEC})


def memory(
    saved_regs: Mapping[str, int] | None = None,
    *,
    at: int = STACK + 32768 - 384,
    features: int = 0xBEF0_0000,
    **thread: int,
) -> Bytes:
    """Return a task, its stack with struct pt_regs, and the processor's features."""
    task = bytearray(0x1000)
    values = {"regs": at, "vrsave": 0xFFFF_FFFF, "used_vr": 1, "used_vsr": 1, "dscr": 0xD5C4, "tar": 0x7A4, **thread}
    for name, value in values.items():
        offset, size = THREAD[name]
        task[offset : offset + size] = value.to_bytes(size, "little")
    task[0x80:0x280], task[0x300:0x510] = FPR, VR
    task[0x538:0x550] = b"ebbrrrrrebbhrrrrbescrrrr"
    task[0x550:0x570] = b"siarrrrrsdarrrrrsierrrrrmmcr2222"
    task[0x570:0x574] = b"mmcr"
    stack = bytearray(65536)
    if saved_regs is not None:
        top = frame(saved_regs) + struct.pack("<4Q", 0xC_0000_0000_0000, 0, 0, 0)
        stack[at - STACK : at - STACK + len(top)] = top
    spec = struct.pack("<28xI", features)
    return Bytes(
        {TASK: bytes(task), STACK: bytes(stack), CPU_SPEC: struct.pack("<Q", CPU_SPEC + 8), CPU_SPEC + 8: spec}
    )


def in_user_mode(mem: Memory, *without: str, pt_regs: int = 384) -> dict[str, int] | None:
    return saved_user_regs(ARCH, TASK, STACK, mem, table(*without, pt_regs=pt_regs))


# General registers.


def test_user_registers_are_where_thread_regs_says() -> None:
    found = in_user_mode(memory(USER))
    assert found is not None
    assert {name: found[name] for name in PT_REGS} == {**USER, "softe": 1}
    raw = ARCH.cores.gregs(found, ARCH.cores.machine(found, None))
    assert raw == frame({**USER, "softe": 1}) + bytes(32)


def test_msr_has_the_floating_point_exception_mode_that_the_thread_asked_for() -> None:
    found = in_user_mode(memory(USER, fpexc_mode=0x900))
    assert found is not None
    assert found["msr"] == SF_PR | 0x900


@pytest.mark.parametrize("size", [16384, 32768, 65536])
def test_without_thread_regs_they_are_where_the_stack_ends(size: int) -> None:
    assert in_user_mode(memory(USER, at=STACK + size - 384), "regs") == in_user_mode(memory(USER))
    assert in_user_mode(memory(USER, at=STACK + size - 400), "regs", pt_regs=400) == in_user_mode(memory(USER))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"msr": 1 << 63 | 0x9033}, id="not in user mode"),
        pytest.param({"msr": SF_PR & ~1}, id="big-endian"),
        pytest.param({"msr": SF_PR | 0x80}, id="a bit that no MSR has"),
        pytest.param({"nip": 0xC000_0000_0010_0000}, id="kernel nip"),
        pytest.param({"nip": 0x1001}, id="odd nip"),
        pytest.param({"r1": 0xC000_0000_0110_7000}, id="kernel stack"),
    ],
)
def test_what_cannot_be_user_registers_is_none(wrong: dict[str, int]) -> None:
    assert in_user_mode(memory({**USER, **wrong})) is None


def test_a_kernel_thread_has_none_and_a_wild_pointer_is_not_followed() -> None:
    assert in_user_mode(memory(USER, regs=0)) is None
    assert in_user_mode(memory(USER, regs=STACK + 0x10_0000)) is None
    assert in_user_mode(memory(USER, regs=STACK + 65536 - 8)) is None
    elsewhere = Bytes({**memory(USER, regs=STACK + 0x10_0000).places, STACK + 0x10_0000: frame(USER)})
    assert in_user_mode(elsewhere) is None  # another task's
    assert in_user_mode(memory(None)) is None


def test_registers_and_notes_are_as_the_c_headers_have_them(tmp_path: Path) -> None:
    names = list(ARCH.registers.names)
    where = [f"offsetof(struct pt_regs, {f'gpr[{n[1:]}]' if n[1:].isdigit() else n})" for n in names[:44]]
    sizes = ["sizeof(elf_gregset_t)", "sizeof(elf_fpregset_t)", "sizeof(elf_vrregset_t)", "sizeof(struct elf_prstatus)"]
    sizes += ["offsetof(struct elf_prstatus, pr_pid)", "offsetof(struct elf_prstatus, pr_reg)"]
    *offsets, gregset, fpregset, _, prstatus, pid, reg = cross_numbers(
        CC, tmp_path, [*where, *sizes], "asm/ptrace.h", "asm/elf.h", "sys/procfs.h"
    )
    raw = ARCH.cores.gregs({name: 0x100 + i for i, name in enumerate(names)}, ARCH.cores.machine({}, None))
    assert (len(raw), gregset, fpregset) == (384, 384, 264)
    found = [int.from_bytes(raw[at : at + 8], "little") for at in offsets]
    assert found == [0x100 + i for i in range(44)]
    assert (pid, reg, prstatus) == (32, 112, 504)


def test_a_32_bit_process_is_named() -> None:
    assert ARCH.cores.machine({"msr": 0xD033}, None).unsupported == "a 32-bit (ppc) process, which is not supported"
    assert ARCH.cores.machine({}, 0xFFFF_F000).unsupported is not None
    assert ARCH.cores.machine({"msr": SF_PR}, 1 << 52).unsupported is None
    assert (ARCH.cores.machine({}, None).e_machine, ARCH.cores.machine({}, None).elf_class) == (21, 64)


def test_the_text_and_the_machine_number_are_known() -> None:
    assert ARCH.claims(info())
    assert ARCH.claims(info("RADIX_MMU"))
    assert not ARCH.claims(parse_vmcoreinfo(b"SYMBOL(swapper_pg_dir)=c0000000029d0000\n"))
    assert arch_for_machine(21) is ARCH


def test_vmemmap_is_a_value_in_vmcoreinfo_and_a_variable_in_kallsyms() -> None:
    value = KernelLayout([Table(symbols={"vmemmap": 0xC00C << 48})])
    assert ARCH.paging.vmemmap(ARCH.view(NOTHING, value)) == 0xC00C << 48
    variable = KernelLayout([Table(symbols={"vmemmap": CPU_SPEC})])
    assert ARCH.paging.vmemmap(ARCH.view(Bytes({CPU_SPEC: struct.pack("<Q", 0xF000 << 48)}), variable)) == 0xF000 << 48
    assert ARCH.paging.vmemmap(ARCH.view(NOTHING, KernelLayout([Table()]))) is None


# Notes of the CPUs.


def prstatus(regs: Mapping[str, int], order: str, pid: int = 0) -> bytes:
    """Pack struct elf_prstatus with 48 registers, of which the last four are none."""
    return elf_prstatus(pid, frame(regs, order) + bytes(32), order=order)


def qemu(regs: Mapping[str, int], order: str) -> list[Note]:
    """Return the notes that QEMU writes of one CPU; target/ppc/arch_dump.c."""
    written = {**regs, **dict.fromkeys(("orig_gpr3", "softe", "trap", "dar", "dsisr", "result"), 0)}
    registers = [0x0102_0304_0506_0708_090A_0B0C_0D0E_0F00 + i for i in range(32)]
    vmx = b"".join(value.to_bytes(16, "big" if order == ">" else "little") for value in registers)
    return [
        Note("CORE", 1, prstatus(written, order)),
        Note("CORE", 2, struct.pack(f"{order}33Q", *(0x3FF0_0000_0000_0000 + i for i in range(32)), 0xF5C4)),
        Note("CORE", 0x100, vmx + bytes(12) + struct.pack(f"{order}I", 0x1_0001) + bytes(16)),
        Note("CORE", 0x102, struct.pack(f"{order}32Q", *(0xABCD_0000 + i for i in range(32)))),
        Note("CORE", 0x101, bytes(140)),
    ]


# As a little-endian kernel writes these registers: vscr in the first word of its 16 bytes (LE element 3 is there).
LIVE = {
    2: struct.pack("<33Q", *(0x3FF0_0000_0000_0000 + i for i in range(32)), 0xF5C4),
    0x100: b"".join((0x0102_0304_0506_0708_090A_0B0C_0D0E_0F00 + i).to_bytes(16, "little") for i in range(32))
    + struct.pack("<I12xI12x", 0x1_0001, 0xFFFF_FFFF),
    0x102: struct.pack("<32Q", *(0xABCD_0000 + i for i in range(32))),
}


@pytest.mark.parametrize("order", ["<", ">"])
def test_qemus_notes_are_read_in_either_byte_order(order: str) -> None:
    """QEMU writes what the first CPU's interrupts have; big where this very kernel is little."""
    first, second = ARCH.cpus.notes((*qemu(KERNEL, order), *qemu({**USER, "msr": SF_PR | FP | VEC | VSX}, order)))
    assert [(note.number, note.pr_pid, note.user_mode) for note in (first, second)] == [(0, 1, False), (1, 2, True)]
    names = [name for name in PT_REGS if name not in ("orig_gpr3", "softe", "trap", "dar", "dsisr", "result")]
    assert {name: first.regs[name] for name in names} == {name: KERNEL[name] for name in names}
    assert second.regs["softe"] == 1
    assert not {"orig_gpr3", "trap", "dar", "dsisr", "result"} & second.regs.keys()  # QEMU has zeros there
    made = notes_of(second, second.regs["msr"])
    assert made == {("CORE", 2): LIVE[2], ("LINUX", 0x100): LIVE[0x100], ("LINUX", 0x102): LIVE[0x102]}
    assert list(made) == [("CORE", 2), ("LINUX", 0x100), ("LINUX", 0x102)]


def test_kdumps_notes_carry_the_pid_and_every_register() -> None:
    notes = (
        Note("CORE", 1, prstatus({**USER, "msr": SF_PR}, "<", pid=1234)),
        Note("CORE", 1, prstatus(KERNEL, "<", pid=0)),
        Note("CORE", 1, bytes(503)),
        Note("LINUX", 1, prstatus(USER, "<")),
    )
    first, second = ARCH.cpus.notes(notes)
    assert (first.pr_pid, first.user_mode, first.regsets) == (1234, True, ())
    assert {name: first.regs[name] for name in PT_REGS} == {**USER, "softe": 1}
    assert (second.pr_pid, second.user_mode, second.number) == (0, False, 1)
    assert ARCH.cpus.notes(()) == ()
    assert not ARCH.cpus.notes((Note("CORE", 1, bytes(504)),))[0].user_mode


def test_a_note_is_of_the_cpu_that_the_kernel_gave_the_number() -> None:
    """The boot CPU is 0, whatever its hardware's number; a CPU that is not there has -1."""
    source = table()
    source.symbols |= {"paca_ptrs": PACAS, "nr_cpu_ids": PACAS + 8}
    ids = [4, 0, 2, 0xFFFF]
    places = {
        PACAS: struct.pack("<QI", PACAS + 16, 4),
        PACAS + 16: struct.pack("<4Q", *(PACAS + 256 * (i + 1) for i in range(4))),
    }
    places |= {PACAS + 256 * (i + 1): struct.pack("<10xH", ids[i]) for i in range(4)}
    layout = KernelLayout([source])
    assert [ARCH.cpu_numbers.number(cpu, ARCH.view(Bytes(places), layout)) for cpu in range(5)] == [2, 0, 1, 3, 4]
    assert ARCH.cpu_numbers.number(1, ARCH.view(NOTHING, KernelLayout([Table()]))) == 1


# Floating-point, vector and special registers.


def saved(mem: Memory, *without: str) -> list[Note] | None:
    layout = KernelLayout([table(*without)])
    found = ARCH.cores.regsets(KernelAddr(TASK), {}, ARCH.cores.machine({}, None), ARCH.view(mem, layout))
    return None if found is None else list(found)


def notes_of(note: CpuNote, msr: int, **thread: int) -> dict[tuple[str, int], bytes]:
    """Return the notes of a thread that was on a CPU."""
    layout, mem = KernelLayout([table()]), memory(USER, **thread)
    made, missing = ARCH.cpus.regsets(KernelAddr(TASK), {"msr": msr}, note, ARCH.view(mem, layout))
    assert missing is not None
    return {(n.name, n.n_type): n.desc for n in made}


# fpr[i] is two doublewords: on little-endian, the low half of vs(i) first, then f(i).
HIGH = b"".join(FPR[at + 8 : at + 16] for at in range(0, 512, 16))
LOW = b"".join(FPR[at : at + 8] for at in range(0, 512, 16))
VMX = VR + b"\xff\xff\xff\xff" + bytes(12)
SPECIAL = [
    Note("LINUX", 0x104, struct.pack("<Q", 0xC_0000_0000_0000)),
    Note("LINUX", 0x105, struct.pack("<Q", 0xD5C4)),
    Note("LINUX", 0x103, struct.pack("<Q", 0x7A4)),
]
PMU = Note("LINUX", 0x107, b"siarrrrrsdarrrrrsierrrrrmmcr2222mmcr\0\0\0\0")


def test_a_thread_off_the_cpu_has_all_notes_in_the_kernels_order() -> None:
    found = saved(memory(USER))
    assert found is not None
    assert [(n.name, n.n_type, n.desc) for n in found] == [
        Note("CORE", 2, HIGH + bytes(8)),
        Note("LINUX", 0x100, VMX),
        Note("LINUX", 0x102, LOW),
        *SPECIAL,
        PMU,
    ]


def test_registers_that_a_thread_never_used_have_no_note() -> None:
    found = saved(memory(USER, used_vr=0, used_vsr=0, features=0x4000_0000))
    assert found is not None
    assert [n.n_type for n in found] == [2, 0x104, 0x105, 0x103]
    found = saved(memory(USER, used_ebb=1))
    assert found is not None
    assert [n.n_type for n in found] == [2, 0x100, 0x102, 0x104, 0x105, 0x103, 0x106, 0x107]
    assert found[-2].desc == b"ebbrrrrrebbhrrrrbescrrrr"
    assert found[-1].desc == PMU[2][:36] + b"\x01\0\0\0"  # the kernel's note has it, too


def test_without_the_members_nothing_is_made_up() -> None:
    assert saved(memory(USER), "fp_state.fpr") is None
    found = saved(memory(USER), "vr_state", "dscr", "siar")
    assert found is not None
    assert [n.n_type for n in found] == [2, 0x102, 0x104, 0x103]
    narrow = table()
    narrow.offsets["task_struct"]["thread.fp_state.fpr"] = (0x80, 256)  # without CONFIG_VSX
    with pytest.raises(LayoutInvalid, match="256 bytes"):
        ARCH.cores.regsets(
            KernelAddr(TASK), {}, ARCH.cores.machine({}, None), ARCH.view(memory(USER), KernelLayout([narrow]))
        )


def test_msr_tells_which_registers_a_running_thread_has_in_the_cpu() -> None:
    _, note = ARCH.cpus.notes((*qemu(KERNEL, ">"), *qemu(USER, ">")))
    high = HIGH + bytes(8)
    assert notes_of(note, SF_PR) == {("CORE", 2): high, ("LINUX", 0x100): VMX, ("LINUX", 0x102): LOW}
    assert notes_of(note, SF_PR | FP) == {
        ("CORE", 2): LIVE[2],
        ("LINUX", 0x100): VMX,
        ("LINUX", 0x102): LIVE[0x102],
    }
    assert notes_of(note, SF_PR | VEC)[("LINUX", 0x100)] == LIVE[0x100]
    assert notes_of(note, SF_PR | FP, used_vsr=0, used_vr=0) == {("CORE", 2): LIVE[2]}
    (kdump,) = ARCH.cpus.notes((Note("CORE", 1, prstatus({**USER, "msr": SF_PR | FP | VEC}, "<", pid=7)),))
    assert notes_of(kdump, SF_PR | FP | VEC) == {}

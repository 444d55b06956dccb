"""arm64's registers and notes by struct.pack and literal numbers: the kernel's headers say what must be."""

from __future__ import annotations

import struct

import pytest

from tests.arch.shared import saved_user_regs, vmcoreinfo
from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from tests.builders.prstatus import elf_prstatus
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.arm64.machine import ARCH
from vmcore2core.arch.arm64.unwind import ends_with_call
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, LayoutUnknown
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, VmcoreInfoSource, parse_vmcoreinfo

# As Debian's 7.2 kernel writes it on QEMU's virt machine.
TEXT = b"""\
OSRELEASE=7.2.13
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffff98cc8cf03000
SYMBOL(_stext)=ffff98cc8aa10000
NUMBER(VA_BITS)=52
NUMBER(kimage_voffset)=0xffff98cc4a800000
NUMBER(TCR_EL1_T1SZ)=0xc
"""
TASK, STACK, INIT = KernelAddr(0xFFFF_0000_0123_4000), KernelAddr(0xFFFF_8000_8050_0000), 0xFFFF_98CC_8D00_0000
NAMES = [*(f"x{i}" for i in range(31)), "sp", "pc", "pstate"]
USER = {name: 0x1000 + i for i, name in enumerate(NAMES)} | {
    "sp": 0xFFFF_F50A_D000,
    "pc": 0xAAAA_AD43_1168,
    "pstate": 0x6000_1000,
}
THREAD = 3000
FLAGS = 0
MEMBERS = {
    "thread_info.flags": (FLAGS, 8),
    "thread.uw.tp_value": (THREAD, 8),
    "thread.uw.fpsimd_state": (THREAD + 16, 528),
    "thread.uw.fpmr": (THREAD + 552, 8),
    "thread.fp_type": (THREAD + 560, 4),
    "thread.svcr": (THREAD + 568, 8),
    "thread.sve_state": (THREAD + 576, 8),
    "thread.sme_state": (THREAD + 584, 8),
    "thread.vl": (THREAD + 592, 8),
    "thread.debug.hbp_break": (THREAD + 600, 128),
    "thread.debug.hbp_watch": (THREAD + 728, 128),
    "thread.keys_user": (THREAD + 856, 80),
    "thread.sctlr_user": (THREAD + 936, 8),
    "thread.mte_ctrl": (THREAD + 944, 8),
    "thread.tpidr2_el0": (THREAD + 952, 8),
    "thread.por_el0": (THREAD + 960, 8),
    "thread.gcs_el0_mode": (THREAD + 968, 4),
    "thread.gcs_el0_locked": (THREAD + 972, 4),
    "thread.gcspr_el0": (THREAD + 984, 8),
}
FPSIMD = b"".join(struct.pack("<QQ", i, i << 32) for i in range(32)) + struct.pack("<IIII", 0x10, 0x300_0000, 0, 0)
FTR, FTR_REGS, VL_INFO, EVENT = 0xFFFF_98CC_8E00_0000, 0xFFFF_98CC_8E10_0000, 0xFFFF_98CC_8E20_0000, 0xFFFF_0000_4000
# ID_AA64PFR1, PFR2, DFR0, ISAR1, ISAR2, MMFR3.
PFR1, PFR2, DFR0, ISAR1, ISAR2, MMFR3 = 0x180420, 0x180440, 0x180500, 0x180620, 0x180640, 0x180760


class Machine:
    """A kernel with one task; what a test changes is in ``members``, ``ids`` and ``places``."""

    def __init__(self, **members: bytes | int) -> None:
        self.members: dict[str, bytes | int] = {
            "thread.uw.fpsimd_state": FPSIMD,
            "thread.uw.tp_value": 0xFFFF_B07F_F680,
            "thread.vl": struct.pack("<II", 64, 32),
            **{f"thread.{name.replace('__', '.')}": value for name, value in members.items()},
        }
        self.ids = {DFR0: 0x0000_0000_3030_5009, ISAR1: 0x11 << 4 | 0x11 << 24}
        self.places: dict[int, bytes] = {}
        self.init_flags, self.flags = 1 << 16, 0
        self.table = Table({"task_struct": MEMBERS}, symbols={"init_task": INIT})
        self.table.symbols |= {"arm64_ftr_regs": FTR, "vl_info": VL_INFO}
        self.table.sizes |= {"__ftr_reg_entry": 16, "vl_info": 16}
        self.table.offsets |= {
            "__ftr_reg_entry": {"reg": (8, 8)},
            "arm64_ftr_reg": {"sys_val": (24, 8)},
            "vl_info": {"max_vl": (8, 4)},
            "perf_event": {"hw.info": (64, 24)},
            "arch_hw_breakpoint": {"address": (0, 8), "ctrl": (16, 4)},
        }
        self.table.constants |= {"VA_BITS": 52, "TCR_EL1_T1SZ": 12}

    def notes(self, **regs: int) -> dict[int, bytes]:
        task = bytearray(5000)
        for name, value in self.members.items():
            offset, size = MEMBERS[name]
            raw = value.to_bytes(size, "little") if isinstance(value, int) else value
            task[offset : offset + len(raw)] = raw
        struct.pack_into("<Q", task, FLAGS, self.flags)
        table = b""
        for i, number in enumerate(sorted({0x180400, *self.ids})):
            table += struct.pack("<IIQ", number, 0, FTR_REGS + 64 * i)
        registers = b"".join(
            bytes(24) + struct.pack("<Q", self.ids.get(number, 0)) + bytes(32)
            for number in sorted({0x180400, *self.ids})
        )
        lengths = struct.pack("<QII", 0, 256, 0) + struct.pack("<QII", 0, 128, 0)
        memory = Bytes(
            {
                TASK: bytes(task),
                INIT: struct.pack("<Q", self.init_flags),
                FTR: table.ljust(4096, b"\0"),
                FTR_REGS: registers,
                VL_INFO: lengths,
                **self.places,
            }
        )
        machine = ARCH.cores.machine(USER, None)
        found = ARCH.cores.regsets(
            TASK, {**USER, "syscallno": 115, **regs}, machine, ARCH.view(memory, KernelLayout([self.table]))
        )
        assert found is not None
        assert [note.name for note in found] == ["CORE", *["LINUX"] * (len(found) - 1)]
        return {note.n_type: note.desc for note in found}


def test_notes_of_a_thread_as_debian_on_qemu_has_them() -> None:
    machine = Machine(sctlr_user=1 << 31 | 1 << 30 | 1 << 27 | 1 << 13, keys_user=bytes(range(80)))
    notes = machine.notes()
    # FPREGSET, TLS, HW_BREAK, HW_WATCH, SYSTEM_CALL, SVE, SSVE, ZA, PAC_MASK, PAC_ENABLED_KEYS, PACA, PACG, TAGGED_ADDR
    order = [2, 0x401, 0x402, 0x403, 0x404, 0x405, 0x40B, 0x40C, 0x406, 0x40A, 0x407, 0x408, 0x409]
    assert list(notes) == order
    assert notes[2] == FPSIMD
    assert notes[0x401] == struct.pack("<QQ", 0xFFFF_B07F_F680, 0)
    assert notes[0x402] == struct.pack("<II", 0x0906, 0) + bytes(256)  # debug architecture 9; BRPs 5: 6 of them
    assert notes[0x403] == struct.pack("<II", 0x0904, 0) + bytes(256)
    assert notes[0x404] == struct.pack("<i", 115)
    # struct user_sve_header: size, max_size, vl, max_vl, flags, reserved.
    assert notes[0x405] == struct.pack("<IIHHHH", 544, 0x2240, 64, 256, 0, 0) + FPSIMD
    assert notes[0x40B] == struct.pack("<IIHHHH", 16, 16 + 128 * 32 + 16 * 16 + 16 + 16, 32, 128, 0, 0)
    assert notes[0x40C] == struct.pack("<IIHHHH", 16, 16 + 32 * 32, 32, 128, 0, 0)
    assert notes[0x406] == struct.pack("<QQ", 0x0070_0000_0000_0000, 0x0070_0000_0000_0000)
    assert notes[0x40A] == struct.pack("<Q", 0xF)
    assert notes[0x407] == bytes(range(64))
    assert notes[0x408] == bytes(range(64, 80))
    assert notes[0x409] == bytes(8)


def test_sve_registers_are_shown_as_the_thread_has_them_and_as_floating_point_registers() -> None:
    length = 64
    zregs = b"".join(bytes([i]) * length for i in range(32))
    pregs = b"".join(bytes([0x80 + i]) * 8 for i in range(16))
    ffr = b"\xff" * 8
    machine = Machine(fp_type=2, sve_state=EVENT)
    machine.places[EVENT] = zregs + pregs + ffr
    notes = machine.notes()
    assert notes[2] == b"".join(bytes([i]) * 16 for i in range(32)) + FPSIMD[512:]
    body = zregs + pregs + ffr + bytes(8) + FPSIMD[512:520] + bytes(8)
    assert notes[0x405] == struct.pack("<IIHHHH", 16 + len(body), 0x2240, 64, 256, 1, 0) + body
    assert len(notes[0x40B]) == 16


def test_streaming_mode_has_its_registers_in_ssve_and_sve_is_a_header() -> None:
    length = 32
    state = bytes(range(256)) * 8
    machine = Machine(fp_type=2, sve_state=EVENT, svcr=1)
    machine.places[EVENT] = state[: 32 * length + 16 * 4 + 4]
    notes = machine.notes()
    assert notes[0x405] == struct.pack("<IIHHHH", 16, 0x2240, 64, 256, 0, 0)
    assert struct.unpack_from("<IIHHHH", notes[0x40B])[2:] == (32, 128, 1, 0)
    assert notes[0x40B][16 : 16 + 32 * length] == state[: 32 * length]
    assert notes[2][:512] == b"".join(state[i * length : i * length + 16] for i in range(32))


def test_za_and_zt_follow_each_other() -> None:
    machine = Machine(svcr=2, sme_state=EVENT)
    machine.ids[PFR1] = 2 << 24  # FEAT_SME2
    machine.places[EVENT] = b"z" * 1024 + b"t" * 64
    notes = machine.notes()
    assert notes[0x40C] == struct.pack("<IIHHHH", 1040, 1040, 32, 128, 0, 0) + b"z" * 1024
    assert notes[0x40D] == b"t" * 64
    machine.members["thread.svcr"] = 0
    assert machine.notes()[0x40D] == bytes(64)


def test_breakpoints_are_encoded_as_ptrace_shows_them() -> None:
    slots = bytes(8) + struct.pack("<Q", EVENT) + bytes(112)
    machine = Machine(debug__hbp_watch=slots)
    # struct arch_hw_breakpoint_ctrl: 19 bits of padding, len 8, type 2, privilege 2, enabled 1.
    ctrl = 0xF << 19 | 2 << 27 | 2 << 29 | 1 << 31
    machine.places[EVENT] = bytes(64) + struct.pack("<QQI", 0x1234_5678, 0, ctrl) + bytes(8)
    notes = machine.notes()
    # DBGWCR: enabled bit 0, PAC in 1 and 2, LSC in 3 and 4, BAS in 5 to 12.
    assert notes[0x403][24:40] == struct.pack("<QII", 0x1234_5678, 0x1 | 2 << 1 | 2 << 3 | 0xF << 5, 0)
    assert notes[0x402][8:] == bytes(256)
    del machine.table.offsets["perf_event"]
    with pytest.raises(LayoutInvalid, match=r"hw\.info"):
        machine.notes()


@pytest.mark.parametrize(("init", "tagged", "inherit"), [(1 << 16, 1 << 23, 1 << 21), (1 << 3, 1 << 26, 1 << 24)])
def test_thread_flags_are_where_this_kernel_has_them(init: int, tagged: int, inherit: int) -> None:
    machine = Machine(mte_ctrl=0xFFFE | 1 << 16)  # all tags but 0 are excluded; synchronous
    machine.init_flags, machine.flags = init, init | tagged | inherit
    machine.ids[PFR1] = 2 << 8  # FEAT_MTE2
    notes = machine.notes()
    assert struct.unpack("<Q", notes[0x409]) == (1 | 1 << 1 | 1 << 3,)  # PR_TAGGED_ADDR_ENABLE, PR_MTE_TCF_SYNC, tag 0
    assert struct.unpack_from("<H", notes[0x405], 12) == (2,)  # SVE_PT_VL_INHERIT
    machine.flags = init
    assert struct.unpack("<Q", machine.notes()[0x409]) == (1 << 1 | 1 << 3,)


def test_gcs_poe_and_fpmr_where_the_processor_has_them() -> None:
    machine = Machine(uw__fpmr=0x55, por_el0=0x7777_7770, gcs_el0_mode=1, gcs_el0_locked=2, gcspr_el0=0xFFFF_9000_0FF8)
    assert not {0x40E, 0x40F, 0x410} & machine.notes().keys()
    machine.ids |= {PFR1: 1 << 44, PFR2: 1 << 32, MMFR3: 1 << 16}
    notes = machine.notes()
    assert notes[0x40E] == struct.pack("<Q", 0x55)
    assert notes[0x40F] == struct.pack("<Q", 0x7777_7770)
    assert notes[0x410] == struct.pack("<3Q", 1, 2, 0xFFFF_9000_0FF8)
    assert list(notes)[4:6] == [0x40E, 0x404]


def test_no_pointer_authentication_and_no_table_of_processors() -> None:
    machine = Machine(keys_user=bytes(range(80)))
    machine.ids[ISAR1] = 0
    assert not {0x406, 0x407, 0x408, 0x40A} & machine.notes().keys()
    machine.ids[ISAR2] = 1 << 12  # APA3
    assert {0x406, 0x407, 0x40A} <= machine.notes().keys()
    del machine.table.symbols["arm64_ftr_regs"]
    assert list(machine.notes()) == [2, 0x401, 0x404, 0x405, 0x40B, 0x40C, 0x409]


@pytest.mark.parametrize("length", [8, 24, 272, 1 << 20])
def test_a_vector_length_that_cannot_be_is_an_error(length: int) -> None:
    with pytest.raises(LayoutInvalid, match="expected a multiple of 16 up to 0x100"):
        Machine(vl=struct.pack("<II", length, 32)).notes()


def test_vector_registers_that_are_lost_are_an_error() -> None:
    with pytest.raises(LayoutInvalid, match="expected its registers"):
        Machine(fp_type=2).notes()


def sve(length: int, size: int | None = None) -> bytes:
    """Return NT_ARM_SVE with all of the registers, as QEMU has it: Z, P, FFR, padding, FPSR and FPCR, padding."""
    body = -(-(-(-(32 * length + 17 * length // 8) // 16) * 16 + 8) // 16) * 16
    return struct.pack("<IIHHHH", 16 + body if size is None else size, 0x2240, length, 256, 1, 0) + b"S" * body


@pytest.mark.parametrize(
    ("fpregset", "vectors", "left"),
    [
        pytest.param(528, sve(64), [2, 0x405, 0x409], id="both"),
        pytest.param(527, sve(64), [0x405, 0x409], id="short floating-point registers"),
        pytest.param(528, sve(32), [2, 0x409], id="vectors of another length: streaming mode"),
        pytest.param(528, sve(64, 2000), [2, 0x409], id="another size in the header"),
        pytest.param(528, sve(64)[:-16], [2, 0x409], id="vectors that are cut"),
        pytest.param(528, sve(64)[:15], [2, 0x409], id="a header that is cut"),
        pytest.param(0, b"", [], id="nothing"),
    ],
)
def test_a_cpus_note_of_a_wrong_size_is_left_out(fpregset: int, vectors: bytes, left: list[int]) -> None:
    notes = (Note("CORE", 2, b"F" * fpregset), Note("LINUX", 0x405, vectors))
    task = bytearray(5000)
    struct.pack_into("<II", task, THREAD + 592, 64, 32)
    memory = Bytes({TASK: bytes(task), INIT: struct.pack("<Q", 1 << 16), FTR: bytes(4096)})
    found, _ = ARCH.cpus.regsets(
        TASK,
        USER,
        CpuNote(0, 1, USER, user_mode=True, regsets=notes),
        ARCH.view(memory, KernelLayout([Machine().table])),
    )
    assert [n.n_type for n in found] == left
    assert all(n.desc in (b"F" * 528, sve(64)) for n in found if n.n_type != 0x409)


def test_registers_that_may_be_older_are_not_shown() -> None:
    """Without fp_type and TIF_SVE, nothing tells whether fpsimd_state or sve_state has the thread's registers."""
    without = {name: at for name, at in MEMBERS.items() if name != "thread.fp_type"}
    machine = ARCH.cores.machine(USER, None)
    memory = Bytes({TASK: bytes(5000), INIT: struct.pack("<Q", 1 << 16)})
    layout = KernelLayout([Table({"task_struct": without}, symbols={"init_task": INIT})])
    assert ARCH.cores.regsets(TASK, USER, machine, ARCH.view(memory, layout)) is not None
    del without["thread_info.flags"]
    layout = KernelLayout([Table({"task_struct": without}, symbols={"init_task": INIT})])
    assert ARCH.cores.regsets(TASK, USER, machine, ARCH.view(memory, layout)) is None


def test_a_note_of_a_newer_kernel_is_passed_over() -> None:
    """struct user_regset[]: core_note_type, n, size; a type that is none of arm64's ends it."""
    machine = Machine()
    machine.table.symbols["aarch64_regsets"] = EVENT
    machine.table.sizes["user_regset"] = 16
    machine.table.offsets["user_regset"] = {"core_note_type": (0, 4), "n": (4, 4), "size": (8, 4)}
    entries = [(1, 34, 8), (2, 132, 4), (0x4AA, 1, 8), (0x401, 1, 8), (0x404, 1, 4), (0x100, 1, 8), (0x409, 1, 8)]
    machine.places[EVENT] = b"".join(struct.pack("<IIII", *entry, 0) for entry in entries)
    # TPIDR2 is in NT_ARM_TLS since SME: n was 1.
    assert {kind: len(desc) for kind, desc in machine.notes().items()} == {2: 528, 0x401: 8, 0x404: 4}


def test_of_a_thread_on_a_cpu_only_what_the_kernel_alone_changes_comes_from_memory() -> None:
    machine = Machine(sctlr_user=1 << 31, keys_user=bytes(80))
    live = (Note("CORE", 2, b"F" * 528), Note("LINUX", 0x405, sve(64)))
    note = CpuNote(0, 1, USER, user_mode=True, regsets=live)
    machine.notes()
    memory = Bytes({TASK: bytes(5000), INIT: struct.pack("<Q", 1 << 16), FTR: bytes(4096)})
    found, why = ARCH.cpus.regsets(TASK, USER, note, ARCH.view(memory, KernelLayout([machine.table])))
    assert [n.n_type for n in found] == [2, 0x405, 0x409]
    assert why is not None
    assert "thread pointer" in why
    kernel = CpuNote(0, 1, USER, user_mode=False, regsets=live)
    assert ARCH.cpus.regsets(TASK, USER, kernel, ARCH.view(memory, KernelLayout([machine.table]))) == ((), None)


def saved(regs: dict[str, int], size: int = 16384, tail: int = 320, **table: dict[str, int]) -> dict[str, int] | None:
    """Return what is read from a stack of ``size`` bytes whose struct pt_regs is ``tail`` bytes."""
    raw = struct.pack("<34Q", *(regs[name] for name in NAMES)) + struct.pack("<Qi", 0x77, 115)
    stack = bytes(size - tail) + raw.ljust(tail, b"\0")
    return saved_user_regs(ARCH, TASK, STACK, Bytes({STACK: stack}), Table(**table))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [16384, 32768, 65536])
def test_user_registers_are_at_the_top_of_the_kernel_stack(size: int) -> None:
    expected = {**USER, "orig_x0": 0x77, "syscallno": 115}
    assert saved(USER, size, sizes={"pt_regs": 320}) == expected
    assert saved(USER, size, sizes={"pt_regs": 320, "thread_union": size}) == expected
    assert saved(USER, size, 304, sizes={"pt_regs": 304}) == expected
    assert saved(USER, size, sizes={"thread_union": size}) == expected
    symbols = {"__start_init_stack": INIT, "__end_init_stack": INIT + size}
    assert saved(USER, size, symbols=symbols) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"pstate": 0x6000_0005}, id="EL1h"),
        pytest.param({"pstate": 0x6010_0000}, id="illegal execution state"),
        pytest.param({"pstate": 0x6000_03C0}, id="interrupts were masked"),
        pytest.param({"pstate": 1 << 40}, id="reserved bits"),
        pytest.param({"pc": 0xFFFF_8000_8000_1000}, id="kernel pc"),
        pytest.param({"pc": 0x1002}, id="misaligned pc"),
        pytest.param({"pc": 0}, id="no pc"),
        pytest.param({"sp": 0xFFFF_8000_8000_1000}, id="kernel sp"),
    ],
)
def test_what_cannot_be_user_registers_is_none(wrong: dict[str, int]) -> None:
    assert saved({**USER, **wrong}, sizes={"pt_regs": 320}) is None


def test_registers_are_struct_user_pt_regs() -> None:
    machine = ARCH.cores.machine(USER, None)
    assert (machine.e_machine, machine.elf_class) == (183, 64)
    assert ARCH.cores.gregs(USER, machine) == struct.pack("<34Q", *(USER[name] for name in NAMES))
    assert arch_for_machine(183) is ARCH


def test_a_32_bit_process_has_r0_to_r15_cpsr_and_orig_r0() -> None:
    regs = {**USER, "pstate": 1 << 24 | 0x10, "pc": 0x1_0000, "orig_x0": 0x55}
    machine = ARCH.cores.machine(regs, None)
    assert (machine.e_machine, machine.elf_class) == (40, 32)
    assert ARCH.cores.machine({}, 1 << 32).elf_class == 32
    raw = struct.unpack("<18I", ARCH.cores.gregs(regs, machine))
    assert raw[:15] == tuple(USER[f"x{i}"] for i in range(15))
    assert raw[15:] == (0x1_0000, 1 << 21 | 0x10, 0x55)  # DIT is bit 21 of CPSR


def compat_note(fpsr: int, fpcr: int) -> tuple[bytes, Note]:
    """Return struct user_fpsimd_state, and NT_ARM_VFP of it: d0 to d31, FPSCR."""
    vregs = b"".join(f"   v{i:02}lo   v{i:02}hi".encode() for i in range(32))
    masked = fpsr & 0xF800_009F | fpcr & 0x07F7_9F00
    return vregs + struct.pack("<IIII", fpsr, fpcr, 0, 0), Note("LINUX", 0x400, vregs[:256] + struct.pack("<I", masked))


@pytest.mark.parametrize(("fpsr", "fpcr"), [(0, 0), (0xFFFF_FFFF, 0), (0, 0xFFFF_FFFF), (0x2800_0011, 0x0340_0000)])
def test_a_thread_of_a_32_bit_process_has_its_vfp_registers(fpsr: int, fpcr: int) -> None:
    regs = {**USER, "pstate": 0x10}
    raw, expected = compat_note(fpsr, fpcr)
    task = bytearray(5000)
    task[THREAD + 16 : THREAD + 16 + 528] = raw
    memory, machine = Bytes({TASK: bytes(task)}), ARCH.cores.machine(regs, None)
    layout = KernelLayout([Table({"task_struct": MEMBERS})])
    found = ARCH.cores.regsets(TASK, regs, machine, ARCH.view(memory, layout))
    assert found is not None
    assert [(note.name, note.n_type, note.desc) for note in found] == [expected]
    assert ARCH.cores.regsets(TASK, regs, machine, ARCH.view(memory, KernelLayout([Table()]))) is None
    # On a CPU, QEMU's note has them, AArch64's names and all.
    notes = (Note("CORE", 2, raw), Note("LINUX", 0x405, b"s" * 2224))
    live = CpuNote(0, 1, regs, user_mode=True, regsets=notes)
    found, lost = ARCH.cpus.regsets(TASK, regs, live, ARCH.view(memory, layout))
    assert [(note.name, note.n_type, note.desc) for note in found] == [expected]
    assert lost is None
    short = CpuNote(0, 1, regs, user_mode=True, regsets=(Note("CORE", 2, raw[:-1]),))
    assert ARCH.cpus.regsets(TASK, regs, short, ARCH.view(memory, layout)) == ((), None)


def test_cpu_notes_carry_the_vectors_behind_them() -> None:
    desc = elf_prstatus(2, struct.pack("<34Q", *(USER[name] for name in NAMES)))
    kernel = desc[:112] + struct.pack("<34Q", *({**USER, "pstate": 0x6000_0005}[name] for name in NAMES)) + bytes(8)
    notes = (
        Note("CORE", 1, desc),
        Note("CORE", 2, b"f" * 528),
        Note("LINUX", 0x405, b"s" * 2224),
        Note("CORE", 1, kernel),
        Note("VMCOREINFO", 0, b"x"),
        Note("CORE", 1, desc[:300]),
    )
    first, second = ARCH.cpus.notes(notes)
    assert (first.number, first.pr_pid, first.user_mode, dict(first.regs)) == (0, 2, True, USER)
    assert [(note.name, note.n_type) for note in first.regsets] == [("CORE", 2), ("LINUX", 0x405)]
    assert (second.number, second.user_mode, second.regsets) == (1, False, ())


def info(*without: str, **changed: str) -> VmcoreInfo:
    return vmcoreinfo(TEXT.decode(), without, {f"NUMBER({key})": value for key, value in changed.items()})


def test_the_page_table_and_the_image_are_where_kimage_voffset_says() -> None:
    found = ARCH.paging.kernel_map(info())
    assert found.root == 0xFFFF_98CC_8CF0_3000 - 0xFFFF_98CC_4A80_0000
    (image,) = found.image
    assert (image.range.start, image.paddr) == (0xFFFF_98CC_8AA0_0000, 0x4020_0000)
    assert [level.name for level in found.spec.levels] == ["pgd", "p4d", "pud", "pmd", "pte"]
    assert [level.name for level in ARCH.paging.kernel_map(info(TCR_EL1_T1SZ="0x10")).spec.levels][1] == "pud"
    assert ARCH.claims(info())
    assert not ARCH.claims(info("kimage", "TCR"))


@pytest.mark.parametrize("key", ["kimage_voffset", "swapper_pg_dir", "_stext", "PAGESIZE", "VA_BITS"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(LayoutUnknown, match=key):
        ARCH.paging.kernel_map(info(key))


@pytest.mark.parametrize("changed", [{"TCR_EL1_T1SZ": "0x0"}, {"TCR_EL1_T1SZ": "0x2c"}, {"VA_BITS": "50"}])
def test_a_size_of_addresses_that_there_is_not_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(LayoutUnknown):
        ARCH.paging.kernel_map(info(**changed))


def test_what_a_text_lacks_is_offered_for_each_size_of_addresses() -> None:
    offered = list(ARCH.paging.located_keys(info("kimage", "VA_BITS", "TCR"), 0xFFFF_98CC_8AA1_0000, 0x4021_0000))
    assert {found["NUMBER(kimage_voffset)"] for found in offered} == {"0xffff98cc4a800000"}
    sizes = [(found["NUMBER(VA_BITS)"], found["NUMBER(TCR_EL1_T1SZ)"]) for found in offered]
    assert sizes == [("39", "0x19"), ("48", "0x10"), ("52", "0xc"), ("52", "0x10")]
    assert list(ARCH.paging.located_keys(info(), 0x1000, 0)) == []


def test_calls() -> None:
    """bl, blr, blraa, blraaz; not b, br, ret."""
    for word in (0x9400_0010, 0x97FF_FFF0, 0xD63F_0020, 0xD73F_0822, 0xD63F_083F):
        assert ends_with_call(struct.pack("<I", word)), hex(word)
    for word in (0x1400_0010, 0xD61F_0020, 0xD65F_03C0, 0xD503_201F):
        assert not ends_with_call(struct.pack("<I", word)), hex(word)
    assert not ends_with_call(b"\x94")


def tagging(ids: dict[int, int], **constants: int) -> tuple[int, int | None] | None:
    """Return VM_MTE and the number of PG_mte_tagged; por_el0 is in thread_struct where the constants say so."""
    machine = Machine()
    machine.ids |= ids
    machine.table.constants |= constants
    if not constants.pop("por_el0", 1):
        del machine.table.offsets["task_struct"]["thread.por_el0"]
    table = b"".join(struct.pack("<IIQ", number, 0, FTR_REGS + 64 * i) for i, number in enumerate(sorted(machine.ids)))
    values = b"".join(bytes(24) + struct.pack("<Q", machine.ids[n]) + bytes(32) for n in sorted(machine.ids))
    memory = Bytes({FTR: table.ljust(4096, b"\0"), FTR_REGS: values})
    found = ARCH.tags.spec(ARCH.view(memory, KernelLayout([machine.table])))
    return None if found is None else (found.vm_flag, found.page_flag)


def test_memory_tags_are_told_where_all_processors_have_mte() -> None:
    """FEAT_MTE2; VM_MTE is VM_HIGH_ARCH_4 since Linux 6.12, VM_HIGH_ARCH_0 before; PG_mte_tagged is PG_arch_2."""
    mte2 = {PFR1: 2 << 8}
    assert tagging({PFR1: 1 << 8}) is None
    assert tagging(mte2, VMA_MTE_BIT=36, PG_arch_2=24) == (1 << 36, 24)
    assert tagging(mte2, PG_arch_2=24) == (1 << 36, 24)
    assert tagging(mte2, PG_arch_2=22, por_el0=0) == (1 << 32, 22)
    assert tagging(mte2) == (1 << 36, None)
    for name in ("VMA_MTE_BIT", "PG_arch_2"):
        with pytest.raises(LayoutInvalid, match=f"{name}.* is 64, expected 0 to 63"):
            tagging(mte2, **{name: 64})


@pytest.mark.parametrize(
    ("first", "page", "expected"),
    [
        pytest.param(0x4000_0000, 4096, 0xFFFF_FBFF_FF00_0000, id="6.1 on QEMU's virt machine"),
        pytest.param(0x4000_0000, 65536, 0xFFFF_FBFF_FFF0_0000, id="64 KiB pages"),
        pytest.param((1 << 64) - (1 << 46), 4096, 0xFFFF_FD00_0000_0000, id="negative: 52 bits on a processor for 48"),
    ],
)
def test_the_memory_map_begins_with_the_first_page_that_there_is(first: int, page: int, expected: int) -> None:
    """vmemmap is VMEMMAP_START - (memstart_addr >> PAGE_SHIFT), in units of struct page, 64 bytes."""
    told = {"VMEMMAP_START": 0xFFFF_FC00_0000_0000, "PHYS_OFFSET": first, "PAGESIZE": page}
    for missing in (None, *told):
        constants = {name: value for name, value in told.items() if name != missing}
        found = ARCH.paging.vmemmap(
            ARCH.view(Bytes({}), KernelLayout([Table(sizes={"page": 64}, constants=constants)]))
        )
        assert found == (expected if missing is None else None)
    both = Table(sizes={"page": 64}, constants=told, symbols={"vmemmap": 0xFFFF_C1FF_BF00_0000})
    assert ARCH.paging.vmemmap(ARCH.view(Bytes({}), KernelLayout([both]))) == 0xFFFF_C1FF_BF00_0000


def test_the_page_size_is_a_constant_of_vmcoreinfo() -> None:
    assert KernelLayout([VmcoreInfoSource(parse_vmcoreinfo(TEXT))]).find_constant("PAGESIZE") == 4096

"""s390x's registers and notes by literal numbers, and by the C compiler where one is installed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.arch.cross import cross_numbers
from tests.arch.shared import saved_user_regs
from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from tests.builders.prstatus import elf_prstatus
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.s390x.machine import ARCH
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.errors import NotMapped
from vmcore2core.layout.resolver import KernelLayout

CC = "s390x-linux-gnu-gcc"
GPRS = [f"r{i}" for i in range(16)]
ACRS = [f"acr{i}" for i in range(16)]
GREGS = ["pswm", "pswa", *GPRS, *ACRS, "orig_r2"]
TASK = KernelAddr(0x8123_4000)
STACK = 0x37F_FE40_0000
MACHINE = ARCH.cores.machine({}, None)

# PSW: DAT, I/O, external and machine-check interrupts enabled, problem state, condition code 1, 64-bit addresses.
USER_MASK = 0x0705_1001_8000_0000
USER = {name: int.from_bytes(name.encode().rjust(8), "big") for name in GPRS}
USER |= {"pswm": USER_MASK, "pswa": 0x104_F7E6, "r15": 0x3FF_D4B7_6BF0, "orig_r2": 0x0101, "int_code": 0x2_0106}
ACCESS = {name: 0x3FF + i for i, name in enumerate(ACRS)}


def test_registers_are_s390_regs(tmp_path: Path) -> None:
    """psw_t psw; unsigned long gprs[16]; unsigned int acrs[16]; unsigned long orig_gpr2."""
    values = {name: 0x100 + i for i, name in enumerate(GREGS)}
    raw = ARCH.cores.gregs(values, MACHINE)
    assert raw == struct.pack(">18Q16IQ", *values.values())
    assert list(MACHINE.greg_names) == GREGS
    assert ARCH.cores.gregs({"pswa": 0x1234}, MACHINE) == struct.pack(">QQ200x", 0, 0x1234)
    expressions = ["sizeof(s390_regs)", *(f"offsetof(s390_regs, {m})" for m in ("psw", "gprs", "acrs", "orig_gpr2"))]
    assert cross_numbers(CC, tmp_path, expressions, "asm/ptrace.h") == [len(raw), 0, 16, 144, 208]


# The kernel stack.


def frame(regs: dict[str, int], flags: int = 1, size: int = 192) -> bytes:
    """Pack struct pt_regs: args[1], psw, gprs, orig_gpr2, int_code, int_parm, int_parm_long, flags, last_break."""
    words = [0xA465, regs["pswm"], regs["pswa"], *(regs[name] for name in GPRS), regs["orig_r2"]]
    return (struct.pack(">20Q", *words) + struct.pack(">IIQQ", regs["int_code"], 0, 0, flags)).ljust(size, b"\x11")


def saved(top: bytes, table: Table | None = None, size: int = 16384) -> dict[str, int] | None:
    return saved_user_regs(ARCH, TASK, STACK, Bytes({STACK: top.rjust(size, b"\0")}), table or Table())


EXPECTED = {name: USER[name] for name in ("pswm", "pswa", *GPRS, "orig_r2")}


@pytest.mark.parametrize("size", [16384, 65536])
def test_user_registers_are_at_the_top_of_the_kernel_stack(size: int) -> None:
    assert saved(frame(USER), size=size) == EXPECTED
    assert saved(frame(USER), Table(constants={"THREAD_SIZE": size}), size) == EXPECTED
    assert saved(frame(USER), Table(constants={"THREAD_SIZE": size // 2}), size) is None
    assert saved(frame(USER, size=208), Table(sizes={"pt_regs": 208}), size) == EXPECTED


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        pytest.param(USER_MASK, USER_MASK, id="as it is"),
        pytest.param(USER_MASK | 0x4000 << 48, USER_MASK, id="PER is not shown"),
        pytest.param(USER_MASK | 0x80 << 32, USER_MASK | 0x80 << 32, id="runtime instrumentation is"),
        pytest.param(USER_MASK | 0x0080 << 48, USER_MASK, id="the key is not"),
        pytest.param(USER_MASK | 0x4F00 << 32, USER_MASK | 0x4F00 << 32, id="access-register mode, program mask"),
    ],
)
def test_the_psw_is_as_ptrace_shows_it(mask: int, shown: int) -> None:
    """__peek_user(): PSW_MASK_USER is 0xff0180000000, PSW_MASK_RI 0x8000000000, PSW_USER_BITS 0x0705000000000000."""
    assert saved(frame({**USER, "pswm": mask})) == {**EXPECTED, "pswm": shown}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"pswm": 0x0704_1001_8000_0000}, id="from the kernel"),
        pytest.param({"pswm": 0x0404_C001_8000_0000}, id="the kernel's own PSW"),
        pytest.param({"pswm": 0x0307_1001_8000_0000}, id="no DAT"),
        pytest.param({"pswm": 0x0707_1001_8000_0000}, id="wait state"),
        pytest.param({"pswm": 0x0705_1001_0000_0000}, id="EA without BA"),
        pytest.param({"pswm": 0x0705_1001_8000_0001}, id="reserved bit 63"),
        pytest.param({"pswm": 0x0705_1003_8000_0000}, id="reserved bit 30"),
        pytest.param({"pswm": 0x8705_1001_8000_0000}, id="reserved bit 0"),
        pytest.param({"pswm": 0x070D_1001_8000_0000}, id="reserved bit 12"),
        pytest.param({"pswm": 0}, id="never in user mode"),
        pytest.param({"pswa": 0xFFFF_FFFF_FFFF_F000}, id="beyond TASK_SIZE_MAX"),
    ],
)
def test_what_cannot_be_user_registers_is_none(wrong: dict[str, int]) -> None:
    assert saved(frame({**USER, **wrong})) is None


def test_an_empty_or_lost_stack_has_no_user_registers() -> None:
    assert saved(b"") is None
    assert saved(b"\xff" * 16384) is None
    assert ARCH.registers.user_regs(TASK, KernelAddr(STACK), ARCH.view(Bytes({}), KernelLayout([Table()]))) is None


# Notes of the CPUs.


def cpu_note(regs: dict[str, int]) -> bytes:
    """Pack struct elf_prstatus with s390_regs; QEMU on x86 writes pr_pid little-endian."""
    return elf_prstatus(1, struct.pack(">18Q16IQ", *(regs[name] for name in GREGS)))


LIVE = {**{name: 0x1000 + i for i, name in enumerate(GREGS)}, "pswm": USER_MASK | 0x4000 << 48, "orig_r2": 0}
IDLE = {**LIVE, "pswm": 0x0706_C001_8000_0000, "pswa": 0x3FF_FF1A_28AE}
FPREGSET = struct.pack(">I4x16Q", 0x0008_0000, *range(0xF0, 0x100))
LOW, HIGH, GS = bytes(range(128)), bytes(range(256)), bytes(range(32))
CTRS = struct.pack(">16Q", *(0xC0 + i for i in range(16)))
NOTES: tuple[Note, ...] = (
    Note("CORE", 1, cpu_note(IDLE)),
    Note("LINUX", 0x305, b"\x0f\xc6\x40\x00"),
    Note("CORE", 3, bytes(136)),
    Note("CORE", 1, bytes(335)),
    Note("CORE", 1, cpu_note(LIVE)),
    Note("CORE", 2, FPREGSET),
    Note("LINUX", 0x305, b"\x00\x63\xa0\x00"),
    Note("LINUX", 0x304, CTRS[:8] + struct.pack(">Q", 0x37D0_11C7) + CTRS[16:]),
    Note("LINUX", 0x309, LOW),
    Note("LINUX", 0x30A, HIGH),
    Note("LINUX", 0x30B, GS),
    Note("VMCOREINFO", 0, b"OSRELEASE=7.2"),
)


def cpus() -> tuple[CpuNote, CpuNote]:
    first, second = ARCH.cpus.notes(NOTES)
    return first, second


def test_cpu_notes_carry_mode_and_registers() -> None:
    idle, live = cpus()
    assert [(note.number, note.pr_pid, note.user_mode) for note in (idle, live)] == [(0, 1, False), (1, 2, True)]
    wanted = {name: value for name, value in LIVE.items() if name != "orig_r2"}
    assert dict(live.regs) == {**wanted, "pswm": USER_MASK, "prefix": 0x63_A000, "cr1": 0x37D0_11C7}
    assert (idle.regs["pswm"], idle.regs["pswa"], idle.regs["prefix"]) == (IDLE["pswm"], IDLE["pswa"], 0xFC6_4000)
    assert [(note.name, note.n_type, note.desc) for note in live.regsets] == [
        Note("CORE", 2, FPREGSET),
        Note("LINUX", 0x309, LOW),
        Note("LINUX", 0x30A, HIGH),
        Note("LINUX", 0x30B, GS),
    ]
    assert idle.regsets == ()
    assert dict(ARCH.cpus.bases(live)) == {name: LIVE[name] for name in ACRS}


def test_a_page_table_is_in_use_in_user_mode_only() -> None:
    """The primary ASCE, CR1: the table's origin, and bits that say how long it is."""
    idle, live = cpus()
    assert ARCH.cpus.uses_pgd(live, 0x37D0_1000)
    assert not ARCH.cpus.uses_pgd(live, 0x37D0_2000)
    assert not ARCH.cpus.uses_pgd(idle, 0)
    (in_kernel,) = ARCH.cpus.notes((NOTES[0], *NOTES[5:]))
    assert in_kernel.regs["cr1"] == live.regs["cr1"]
    assert not ARCH.cpus.uses_pgd(in_kernel, 0x37D0_1000)


def test_notes_of_a_wrong_size_are_left_out() -> None:
    notes = [*NOTES[4:5], Note("CORE", 2, FPREGSET[:-1]), Note("LINUX", 0x305, b"\0"), Note("LINUX", 0x304, CTRS[:8])]
    (note,) = ARCH.cpus.notes(tuple(notes))
    assert note.regsets == ()
    assert not {"prefix", "cr1"} & note.regs.keys()
    assert not ARCH.cpus.uses_pgd(note, 0)


def test_a_note_is_of_the_cpu_whose_lowcore_its_prefix_register_names() -> None:
    """kdump has the CPU that crashed first; the identity mapping may begin at any multiple of 2 GiB."""
    notes: tuple[CpuNote, ...] = cpus()

    def number(cpu: int, base: int = 0, **length: int) -> int | None:
        pointers = struct.pack(">4Q", base + 0x63_A000, base + 0xFC6_4000, 0, base + 0x5555_5000)
        table = Table(symbols={"lowcore_ptr": 0x5000}, constants=length)
        found = ARCH.cpu_numbers.note_of(cpu, notes, ARCH.view(Bytes({0x5000: pointers}), KernelLayout([table])))
        return None if found is None else found.number

    assert [number(cpu) for cpu in range(4)] == [1, 0, None, None]
    assert [number(cpu, 0x180_8000_0000) for cpu in range(2)] == [1, 0]
    assert [number(cpu, lowcore_ptr=1) for cpu in range(4)] == [1, None, None, None]
    notes = ARCH.cpus.notes((NOTES[0], Note("LINUX", 0x305, bytes(4))))
    assert number(2) is None  # no CPU of that number
    assert number(-1) is None
    assert number(1 << 40) is None
    with pytest.raises(NotMapped):
        number(4)


def test_without_prefix_registers_notes_are_by_number() -> None:
    notes = ARCH.cpus.notes((NOTES[0], NOTES[4]))
    layout = KernelLayout([Table(symbols={"lowcore_ptr": 0x5000})])
    assert ARCH.cpu_numbers.note_of(1, notes, ARCH.view(Bytes({}), layout)) is notes[1]
    assert ARCH.cpu_numbers.note_of(1, cpus(), ARCH.view(Bytes({}), KernelLayout([Table()]))) == cpus()[1]
    assert ARCH.cpu_numbers.note_of(2, notes, ARCH.view(Bytes({}), layout)) is None


# Threads.

THREAD = {
    "stack": (8, 8),
    "thread.acrs": (0x40, 64),
    "thread.last_break": (0x80, 8),
    "thread.gs_cb": (0x88, 8),
    "thread.gs_bc_cb": (0x90, 8),
    "thread.ri_cb": (0x98, 8),
    "thread.system_call": (0xA0, 4),
    "thread.trap_tdb": (0x100, 256),
    "thread.ufpu.fpc": (0x200, 4),
    "thread.ufpu.vxrs": (0x210, 512),
}
TABLES = {"task_struct": THREAD, "pt_regs": {"flags": (176, 8)}}
VXRS = [struct.pack(">QQ", 0xF00 + i, 0x1F00 + i) for i in range(32)]
TDB = bytes(range(255, -1, -1))
FLOATS = struct.pack(">I4x", 0x88_0000) + b"".join(vxr[:8] for vxr in VXRS[:16])
LOW_HALVES, WHOLE = b"".join(vxr[8:] for vxr in VXRS[:16]), b"".join(VXRS[16:])


def memory_of(top: bytes, *, vx: bool = True, gs_cb: int = 0, gs_bc_cb: int = 0, ri_cb: int = 0) -> Bytes:
    task = bytearray(0x500)
    struct.pack_into(">Q", task, 8, STACK)
    struct.pack_into(">16I", task, 0x40, *ACCESS.values())
    struct.pack_into(">4QI", task, 0x80, 0x10_2030, gs_cb, gs_bc_cb, ri_cb, 0xDEAD)
    task[0x100:0x200] = TDB
    struct.pack_into(">I4x", task, 0x200, 0x88_0000)
    task[0x210:0x410] = b"".join(VXRS)
    places = {TASK: bytes(task), STACK: top.rjust(16384, b"\0"), 0x7000: bytes(16) + (b"\x40" if vx else b"\xbf")}
    return Bytes({**places, 0x7100: GS, 0x7200: GS[::-1], 0x7300: bytes(range(64))})


def layout_of(*without: str) -> KernelLayout:
    tables = {tag: {k: v for k, v in members.items() if k not in without} for tag, members in TABLES.items()}
    return KernelLayout([Table(tables, symbols={} if "vx" in without else {"stfle_fac_list": 0x7000})])


def thread_notes(memory: Bytes, *without: str) -> list[Note] | None:
    found = ARCH.cores.regsets(TASK, {}, MACHINE, ARCH.view(memory, layout_of(*without)))
    return None if found is None else list(found)


SYSTEM_CALL = Note("LINUX", 0x307, struct.pack(">I", 0x2_0106))
LAST_BREAK = Note("LINUX", 0x306, struct.pack(">Q", 0x10_2030))
VECTORS = [Note("LINUX", 0x309, LOW_HALVES), Note("LINUX", 0x30A, WHOLE)]


def test_the_access_registers_have_the_thread_pointer() -> None:
    bases = ARCH.registers.thread_bases(TASK, ARCH.view(memory_of(frame(USER)), layout_of()))
    assert dict(bases) == {**ACCESS, "orig_r2": 0x0101}
    assert (
        ARCH.registers.thread_pointer({name: value for name, value in bases.items() if value is not None})
        == 0x3FF_0000_0400
    )
    assert ARCH.registers.thread_pointer({"acr0": 1}) is None
    unknown = ARCH.registers.thread_bases(TASK, ARCH.view(memory_of(b""), layout_of("thread.acrs")))
    assert dict(unknown) == dict.fromkeys(ACRS)


def test_a_thread_control_block_begins_with_its_address() -> None:
    def read_user(address: int, size: int) -> bytes | None:
        return struct.pack(">Q", 0x3FF_940F_B8C0) if (address, size) == (0x3FF_940F_B8C0, 8) else None

    assert ARCH.registers.is_thread_pointer(0x3FF_940F_B8C0, read_user)
    assert not ARCH.registers.is_thread_pointer(0x3FF_940F_B8C8, read_user)
    assert not ARCH.registers.is_thread_pointer(0, lambda *_: bytes(8))


def test_the_notes_of_a_thread_are_in_the_kernels_order() -> None:
    assert thread_notes(memory_of(frame(USER))) == [Note("CORE", 2, FLOATS), SYSTEM_CALL, LAST_BREAK, *VECTORS]
    assert len(FLOATS) == 136


def test_a_machine_without_vector_registers_has_no_such_notes() -> None:
    """Facility 129: bit 1 of byte 16."""
    expected = [Note("CORE", 2, FLOATS), SYSTEM_CALL, LAST_BREAK]
    assert thread_notes(memory_of(frame(USER), vx=False)) == expected
    assert thread_notes(memory_of(frame(USER)), "vx") == expected


def test_the_system_call_is_that_of_the_interruption_not_of_the_last_signal() -> None:
    """PIF_SYSCALL is bit 0 of pt_regs.flags."""
    for flags, number in ((1, 0x2_0106), (0, 0), (2, 0), (3, 0x2_0106)):
        notes = thread_notes(memory_of(frame(USER, flags)))
        assert notes is not None
        assert notes[1] == Note("LINUX", 0x307, struct.pack(">I", number))
    assert thread_notes(memory_of(frame(USER)), "flags") == [Note("CORE", 2, FLOATS), LAST_BREAK, *VECTORS]


def test_an_aborted_transaction_has_its_diagnostic_block() -> None:
    """s390_tdb_get(): int_code & 0x200."""
    notes = thread_notes(memory_of(frame({**USER, "int_code": 0x201}, 0)))
    zero = Note("LINUX", 0x307, bytes(4))
    assert notes == [Note("CORE", 2, FLOATS), zero, LAST_BREAK, Note("LINUX", 0x308, TDB), *VECTORS]


def test_guarded_storage_and_runtime_instrumentation_where_a_thread_uses_them() -> None:
    notes = thread_notes(memory_of(frame(USER), gs_cb=0x7100, gs_bc_cb=0x7200, ri_cb=0x7300))
    assert notes is not None
    assert notes[5:] == [
        Note("LINUX", 0x30B, GS),
        Note("LINUX", 0x30C, GS[::-1]),
        Note("LINUX", 0x30D, bytes(range(64))),
    ]
    with pytest.raises(NotMapped):
        thread_notes(memory_of(frame(USER), gs_cb=0x9999_0000))


def test_notes_that_cannot_be_found_are_none() -> None:
    assert thread_notes(memory_of(frame(USER)), "thread.ufpu.vxrs") is None
    assert thread_notes(memory_of(frame(USER)), "thread.ufpu.fpc") is None
    assert thread_notes(memory_of(b"")) is None


def live_notes(note: CpuNote, memory: Bytes) -> tuple[list[Note], str | None]:
    notes, why = ARCH.cpus.regsets(TASK, {}, note, ARCH.view(memory, layout_of()))
    return list(notes), why


def test_a_thread_on_a_cpu_has_the_cpus_registers() -> None:
    _, live = cpus()
    zero = Note("LINUX", 0x307, bytes(4))
    notes, why = live_notes(live, memory_of(frame(USER)))
    assert notes == [Note("CORE", 2, FPREGSET), zero, Note("LINUX", 0x309, LOW), Note("LINUX", 0x30A, HIGH)]
    assert why == "the address of its last branch was in the processor"
    notes, _ = live_notes(live, memory_of(frame(USER), vx=False))
    assert notes == [Note("CORE", 2, FPREGSET), zero]
    (in_kernel,) = ARCH.cpus.notes((NOTES[0], *NOTES[5:]))
    assert (len(in_kernel.regsets), live_notes(in_kernel, memory_of(frame(USER)))) == (4, ([], None))
    (bare,) = ARCH.cpus.notes(NOTES[4:5])
    assert live_notes(bare, memory_of(frame(USER))) == ([], None)


def test_a_thread_on_a_cpu_has_no_stale_control_blocks() -> None:
    """gs_cb and ri_cb are in the processor meanwhile; the broadcast block is in memory alone."""
    _, live = cpus()
    notes, _ = live_notes(live, memory_of(frame(USER), gs_cb=0x7200, gs_bc_cb=0x7200, ri_cb=0x7300))
    assert notes[4:] == [Note("LINUX", 0x30B, GS), Note("LINUX", 0x30C, GS[::-1])]


def test_the_sizes_of_notes_are_the_compilers(tmp_path: Path) -> None:
    expressions = [
        *("sizeof(struct elf_prstatus)", "offsetof(struct elf_prstatus, pr_reg)"),
        *("sizeof(s390_fp_regs)", "offsetof(s390_fp_regs, fprs)"),
    ]
    assert cross_numbers(CC, tmp_path, expressions, "sys/procfs.h", "asm/ptrace.h") == [
        len(cpu_note(LIVE)),
        112,
        136,
        8,
    ]


def test_a_31_bit_process_is_not_supported_and_says_so() -> None:
    for machine in (ARCH.cores.machine({}, 0x8000_0000), ARCH.cores.machine({"pswm": 0x0705_0000_8000_0000}, None)):
        assert (machine.elf_class, machine.unsupported) == (32, "a 31-bit process, which is not supported")
    for regs, task_size in (({}, None), (USER, None), ({}, 1 << 42), ({}, 1 << 53), ({}, (1 << 64) - 4096)):
        machine = ARCH.cores.machine(regs, task_size)
        assert (machine.e_machine, machine.elf_class, machine.unsupported) == (22, 64, None)

"""i386 by literal numbers: the kernel's headers and the C compiler say what registers and notes must be."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from tests.arch.shared import saved_user_regs
from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from tests.builders.prstatus import elf_prstatus_32
from tests.corefile.cabi import fields
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.i386.machine import ARCH
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, MemoryFault
from vmcore2core.layout.resolver import KernelLayout

# struct pt_regs, arch/x86/include/asm/ptrace.h, in its order.
PT_REGS = "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss".split()
USER = {
    **{name: int.from_bytes(name.encode().rjust(4), "big") for name in PT_REGS[:7]},
    "ds": 0x7B,
    "es": 0x7B,
    "fs": 0,
    "gs": 0x33,
    "orig_eax": 29,
    "eip": 0xB7F1_6559,
    "cs": 0x73,
    "eflags": 0x246,
    "esp": 0xBFCC_67E0,
    "ss": 0x7B,
}
TASK = KernelAddr(0xC200_1000)
STACK = KernelAddr(0xC400_2000)
GS_AT = 0x80
WITH_GS = {"task_struct": {"thread.gs": (GS_AT, 4)}}


def frame(regs: dict[str, int]) -> bytes:
    """Pack struct pt_regs as ptrace.h has it: 17 words."""
    return struct.pack("<17I", *(regs[name] for name in PT_REGS))


def saved(
    top: bytes, size: int = 8192, sizes: dict[str, int] | None = None, gs: int | None = 0x33
) -> dict[str, int] | None:
    memory = Bytes({STACK: top.rjust(size, b"\0"), TASK + GS_AT: struct.pack("<I", gs or 0)})
    table = Table(WITH_GS if gs is not None else {}, sizes=sizes)
    return saved_user_regs(ARCH, TASK, STACK, memory, table)


@pytest.mark.parametrize("padding", [8, 16], ids=["", "CONFIG_VM86"])
@pytest.mark.parametrize("told", [None, {"thread_union": 8192}], ids=["", "told"])
def test_user_registers_are_at_the_top_of_the_kernel_stack(padding: int, told: dict[str, int] | None) -> None:
    assert saved(frame(USER) + bytes(padding), sizes=told) == USER


def test_a_larger_stack_is_one_that_the_layout_tells() -> None:
    assert saved(frame(USER) + bytes(8), 16384, {"thread_union": 16384}) == USER


def test_selectors_come_without_what_is_above_their_16_bits() -> None:
    """__csh has CS_FROM_* flags, the others what a push left there (arch/x86/entry/entry_32.S)."""
    high = {name: 0xABCD_0000 | USER[name] for name in ("ds", "es", "fs", "gs", "cs", "ss")}
    assert saved(frame({**USER, **high}) + bytes(8)) == USER


def test_gs_is_that_of_thread_struct_and_not_the_vector_on_the_stack() -> None:
    regs = {**USER, "gs": 0x5B10}
    assert saved(frame(regs) + bytes(8)) == USER
    assert saved(frame(regs) + bytes(8), gs=0) == {**USER, "gs": 0}


def test_gs_is_not_known_where_thread_struct_is_not() -> None:
    assert saved(frame(USER) + bytes(8), gs=None) == {k: v for k, v in USER.items() if k != "gs"}


def test_a_kernel_with_a_canary_in_gs_keeps_the_users_on_the_stack() -> None:
    """struct stack_canary was a type of i386 with CONFIG_STACKPROTECTOR until Linux 5.13."""
    assert saved(frame({**USER, "gs": 0x3B}) + bytes(8), sizes={"stack_canary": 24}) == {**USER, "gs": 0x3B}


def test_selectors_of_a_table_of_its_own_are_a_processs() -> None:
    regs = {**USER, "cs": 0x1F, "ss": 0x27}
    assert saved(frame(regs) + bytes(8)) == regs


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"cs": 0x60, "ss": 0x68}, id="kernel mode"),
        pytest.param({"cs": 0}, id="no code segment"),
        pytest.param({"cs": 0x7B}, id="data segment as code segment"),
        pytest.param({"cs": 0x33}, id="code segment of a 64-bit kernel"),
        pytest.param({"ss": 0x68}, id="kernel stack segment"),
        pytest.param({"eflags": 0x244}, id="bit 1 of eflags is always set"),
        pytest.param({"eflags": 1 << 22 | 0x246}, id="no flags above 22 bits"),
        pytest.param({"eip": 0xC100_0000}, id="kernel eip"),
        pytest.param({"esp": 0xC400_3F00}, id="kernel esp"),
    ],
)
def test_what_cannot_be_user_registers_is_none(wrong: dict[str, int]) -> None:
    assert saved(frame({**USER, **wrong}) + bytes(8)) is None


@pytest.mark.parametrize("orig_eax", [3, 7, 0x73])
def test_a_system_calls_number_is_no_selector(orig_eax: int) -> None:
    """With the other padding, orig_eax stands where cs is, and eflags where ss is."""
    regs = {**USER, "orig_eax": orig_eax, "eflags": 0x247, "eip": 0xB7F1_655B}
    for padding in (8, 16):
        assert saved(frame(regs) + bytes(padding)) == regs


def test_an_empty_or_lost_stack_has_no_user_registers() -> None:
    assert saved(b"") is None
    assert saved(b"\xff" * 8192) is None
    assert (
        ARCH.registers.user_regs(TASK, KernelAddr(0xC800_0000), ARCH.view(Bytes({}), KernelLayout([Table(WITH_GS)])))
        is None
    )


def test_gregs_are_struct_user_regs_struct() -> None:
    theirs = {"ds": "xds", "es": "xes", "fs": "xfs", "gs": "xgs", "cs": "xcs", "ss": "xss"}
    at, size = fields("user_regs_struct", tuple(theirs.get(name, name) for name in PT_REGS), "sys/user.h", 32)
    machine = ARCH.cores.machine(USER, None)
    assert (machine.e_machine, machine.elf_class, machine.unsupported) == (3, 32, None)
    values = {name: 0x1000_0000 + i for i, name in enumerate(PT_REGS)}
    raw = ARCH.cores.gregs(values, machine)
    assert len(raw) == size
    found = {name: int.from_bytes(raw[offset : offset + width], "little") for name, (offset, width) in at.items()}
    assert found == {theirs.get(name, name): value for name, value in values.items()}


def test_the_machine_is_that_of_the_elf_header() -> None:
    assert arch_for_machine(3) is ARCH
    assert arch_for_machine(62) is not ARCH


# Notes of the CPUs.


def prstatus(pid: int, regs: dict[str, int]) -> bytes:
    return elf_prstatus_32(pid, frame(regs))


def qemu_note(cr3: int) -> bytes:
    """Pack QEMUCPUState of target/i386/arch_dump.c: version, size, 18 registers, 10 segments, cr0-cr4, gs base."""
    raw = struct.pack("<II", 1, 440) + bytes(18 * 8) + bytes(10 * 24)
    raw += struct.pack("<5Q", 0x8005_0033, 0, 0xDEAD_0000, cr3, 0x6F0) + bytes(8)
    assert len(raw) == 440
    return raw


KERNEL = {**USER, "cs": 0x60, "ss": 0x68, "eip": 0xC1A0_0000, "esp": 0xC400_3F00, "fs": 0xD8}


def test_a_note_tells_registers_pid_and_mode() -> None:
    notes = (
        Note("CORE", 1, prstatus(1, {**USER, "ds": 0xFFFF_007B})),
        Note("CORE", 1, prstatus(2, KERNEL)),
        Note("CORE", 3, bytes(124)),
        Note("QEMU", 0, qemu_note(0x3000_4FE0)),
        Note("QEMU", 0, qemu_note(0x3000_5000)),
    )
    user, kernel = ARCH.cpus.notes(notes)
    assert {name: user.regs[name] for name in PT_REGS} == USER
    assert (user.number, user.pr_pid, user.user_mode, user.regs["cr3"]) == (0, 1, True, 0x3000_4FE0)
    assert (kernel.number, kernel.pr_pid, kernel.user_mode) == (1, 2, False)
    assert kernel.regs["eip"] == 0xC1A0_0000


def test_virtual_8086_mode_is_user_mode_whatever_cs_is() -> None:
    """SDM volume 1, 3.4.3: EFLAGS.VM is bit 17."""
    (note,) = ARCH.cpus.notes((Note("CORE", 1, prstatus(1, {**USER, "cs": 0x1230, "eflags": 0x2_0246})),))
    assert note.user_mode


@pytest.mark.parametrize("size", [0, 8, 143])
def test_a_note_too_short_for_registers_is_passed_over(size: int) -> None:
    assert ARCH.cpus.notes((Note("CORE", 1, prstatus(1, USER)[:size]),)) == ()


def test_kdumps_notes_have_no_control_registers() -> None:
    (note,) = ARCH.cpus.notes((Note("CORE", 1, prstatus(812, USER)),))
    assert note.pr_pid == 812
    assert not ARCH.cpus.uses_pgd(note, 0)


@pytest.mark.parametrize(
    ("gs", "known"),
    [
        pytest.param(0x33, {"gs": 0x33}, id="the user's"),
        pytest.param(0, {"gs": 0}, id="the user has none"),
        pytest.param(0xE0, {}, id="the kernel's canary before 5.13"),
    ],
)
def test_gs_in_the_kernel_is_the_users_but_for_the_canarys(gs: int, known: dict[str, int]) -> None:
    (note,) = ARCH.cpus.notes((Note("CORE", 1, prstatus(1, {**KERNEL, "gs": gs})),))
    assert ARCH.cpus.bases(note) == known


@pytest.mark.parametrize(
    ("cr3", "uses"),
    [
        pytest.param(0x3000_4FE0, True, id="PAE: 32 bytes"),
        pytest.param(0x3000_4FE0 | 0x18, True, id="PWT and PCD"),
        pytest.param(0x3000_5FE0, True, id="the user's copy, isolated"),
        pytest.param(0x3000_4FC0, False, id="the 32 bytes before"),
        pytest.param(0x3000_6FE0, False, id="another page"),
    ],
)
def test_cr3_tells_whose_page_table_a_cpu_uses(cr3: int, uses: bool) -> None:
    note = CpuNote(0, 1, {"cr3": cr3}, user_mode=True)
    assert ARCH.cpus.uses_pgd(note, 0x3000_4FE0) is uses


# Floating point, thread-local storage, I/O ports.

FPSTATE_AT, FPU_AT, IO_AT, CONFIG = 0x40, 0x400, 0x300, 0xC180_0000
LEGACY = bytes(range(1, 256)) * 3
FPU_MEMBERS = {
    "task_struct": {
        "thread.fpu.fpstate": (FPU_AT + 8, 4),
        "thread.tls_array": (0x200, 24),
        "thread.io_bitmap": (IO_AT, 4),
    },
    "fpu": {"fpstate": (8, 4), "__fpstate": (FPSTATE_AT, 4096)},
    "fpstate": {"size": (0, 4), "user_xfeatures": (16, 8), "regs": (64, 4096)},
    "fpu_state_config": {"max_size": (0, 4), "max_features": (8, 8)},
    "io_bitmap": {"bitmap": (12, 8192)},
}


def regsets(
    state: bytes, descriptors: bytes = bytes(24), ports: bytes | None = None, size: int | None = None
) -> tuple[Note, ...] | None:
    """Return the notes of a task whose struct fpstate has these registers."""
    task = bytearray(0x1000 + len(state))
    fpstate = FPU_AT + FPSTATE_AT
    struct.pack_into("<2I", task, FPU_AT + 8, TASK + fpstate, 0xBAD)  # a pointer ends after four bytes
    struct.pack_into("<IIQQ", task, fpstate, size if size is not None else len(state), 0, 3, 3)
    task[fpstate + 64 : fpstate + 64 + len(state)] = state
    task[0x200 : 0x200 + 24] = descriptors
    if ports is not None:
        struct.pack_into("<2I", task, IO_AT, 0xC500_0000, 0xBAD)
    places = {
        TASK: bytes(task),
        CONFIG: struct.pack("<IIQQ", len(state), len(state), 3, 3),
        0xC500_0000: bytes(12) + (ports or b""),
        # xstate_offsets, xstate_sizes, xstate_fx_sw_bytes, init_fpstate
        0xC181_0000: struct.pack("<10i", 0, 160, *(-1,) * 8),
        0xC182_0000: struct.pack("<10i", 160, 256, *(-1,) * 8),
        0xC183_0000: b"\x03".ljust(48, b"\0"),
        0xC184_0000: bytes(64) + b"\x7f\x03".ljust(512, b"\0"),
    }
    names = ("xstate_offsets", "xstate_sizes", "xstate_fx_sw_bytes", "init_fpstate")
    symbols = {"fpu_user_cfg": CONFIG, **{name: 0xC181_0000 + i * 0x1_0000 for i, name in enumerate(names)}}
    layout = KernelLayout([Table(FPU_MEMBERS, symbols=symbols, constants={"XFEATURE_MAX": 10})])
    return ARCH.cores.regsets(TASK, USER, ARCH.cores.machine(USER, None), ARCH.view(Bytes(places), layout))


def fxsave(fcs: int = 0x73, fos: int = 0x7B) -> bytes:
    """FXSAVE outside of 64-bit mode (SDM volume 1, figure 10-2): fcs and fos are at 12 and 20."""
    head = struct.pack("<4H4I2I", 0x37F, 0x3800, 0x80, 0x1EB, 0x0804_A0C0, fcs, 0xBFCC_6000, fos, 0x1F80, 0xFFFF)
    registers = bytes.fromhex("35c26821a2da0fc90040").ljust(16, b"\0") + LEGACY[:112]
    return (head + registers + LEGACY[:256]).ljust(512, b"\0")


# struct user_i387_ia32_struct: cwd, swd, twd, fip, fcs (with fop above it), foo, fos, 8 registers of 10 bytes.
I387_HEAD = struct.pack("<7I", 0xFFFF_037F, 0xFFFF_3800, 0xFFFF_3FFF, 0x0804_A0C0, 0x01EB_0073, 0xBFCC_6000, 0x7B)


def kinds(notes: tuple[Note, ...] | None) -> list[tuple[str, int, int]]:
    assert notes is not None
    return [(note.name, note.n_type, len(note.desc)) for note in notes]


def test_a_processor_with_xsave_has_three_notes_of_one_state() -> None:
    state = fxsave() + struct.pack("<8Q", 3, 0, 0, 0, 0, 0, 0, 0)
    notes = regsets(state)
    assert kinds(notes) == [("CORE", 2, 108), ("LINUX", 0x46E62B7F, 512), ("LINUX", 0x202, 576)]
    assert notes is not None
    assert notes[0].desc[:28] == I387_HEAD
    assert notes[0].desc[28:38] == bytes.fromhex("35c26821a2da0fc90040")
    assert notes[1].desc == fxsave()


def test_a_processor_without_xsave_has_fxsaves_state_alone() -> None:
    notes = regsets(fxsave())
    assert kinds(notes) == [("CORE", 2, 108), ("LINUX", 0x46E62B7F, 512)]
    assert notes is not None
    assert (notes[0].desc[:28], notes[1].desc) == (I387_HEAD, fxsave())


def test_a_processor_without_fxsave_has_fsaves_state_alone() -> None:
    state = I387_HEAD + LEGACY[:80] + struct.pack("<I", 0xBAD)  # struct fregs_state ends with a word of the kernel's
    notes = regsets(state)
    assert kinds(notes) == [("CORE", 2, 108)]
    assert notes is not None
    assert notes[0].desc == I387_HEAD + LEGACY[:80]


@pytest.mark.parametrize("size", [0, 107, 1 << 17])
def test_a_state_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(LayoutInvalid, match="FPU state"):
        regsets(fxsave(), size=size)


def test_thread_local_storage_begins_at_entry_6_and_ports_come_last() -> None:
    """GDT_ENTRY_TLS_MIN is 6 on 32-bit kernels, 12 on 64-bit ones (arch/x86/include/asm/segment.h)."""
    descriptor = struct.pack("<Q", 0xB6DF_F2B3_3B40_FFFF & ~0xFF_0000_0000 | 0xDB << 32)
    notes = regsets(fxsave(), descriptor + bytes(16), b"\xfe" + b"\xff" * 8191)
    assert [kind[:2] for kind in kinds(notes)] == [
        *(("CORE", 2), ("LINUX", 0x46E62B7F)),
        *(("LINUX", 0x200), ("LINUX", 0x201)),
    ]
    assert notes is not None
    first, second = struct.iter_unpack("<4I", notes[2].desc[:32])
    assert (first[0], first[1] & 0xFFFF, second[0]) == (6, 0x3B40, 7)
    assert notes[3].desc == b"\xfe" + b"\xff" * 8191


def test_without_the_layout_of_the_state_there_are_no_notes() -> None:
    machine = ARCH.cores.machine(USER, None)
    assert ARCH.cores.regsets(TASK, USER, machine, ARCH.view(Bytes({}), KernelLayout([Table()]))) is None


# Others.


def test_flatmems_array_is_what_mem_map_points_to() -> None:
    layout = KernelLayout([Table(symbols={"mem_map": 0xC1A0_0000})])
    assert ARCH.paging.vmemmap(ARCH.view(Bytes({0xC1A0_0000: struct.pack("<I", 0xC7EF_E000)}), layout)) == 0xC7EF_E000
    assert ARCH.paging.vmemmap(ARCH.view(Bytes({0xC1A0_0000: bytes(4)}), layout)) is None  # SPARSEMEM leaves it NULL
    assert ARCH.paging.vmemmap(ARCH.view(Bytes({}), KernelLayout([Table()]))) is None
    with pytest.raises(MemoryFault):
        ARCH.paging.vmemmap(ARCH.view(Bytes({}), layout))


def test_the_vdsos_image_is_found_by_pointers_of_four_bytes() -> None:
    table = Table({"mm_struct": {"context.vdso_image": (16, 4)}, "vdso_image": {"data": (0, 4)}})
    places = {0xC200_0010: struct.pack("<2I", 0xC180_0000, 0xBAD), 0xC180_0000: struct.pack("<2I", 0xC181_0000, 0xBAD)}
    layout = KernelLayout([table])
    assert (
        ARCH.vdso.image(KernelAddr(0xC200_0000), ARCH.cores.machine({}, None), ARCH.view(Bytes(places), layout))
        == 0xC181_0000
    )
    assert (
        ARCH.vdso.image(
            KernelAddr(0xC200_0000),
            ARCH.cores.machine({}, None),
            ARCH.view(Bytes({0xC200_0010: bytes(8)}), layout),
        )
        is None
    )
    assert (
        ARCH.vdso.image(
            KernelAddr(0xC200_0000), ARCH.cores.machine({}, None), ARCH.view(Bytes({}), KernelLayout([Table()]))
        )
        is None
    )


def test_unwinding_knows_registers_by_their_own_names() -> None:
    """psABI i386 1.1, table 2.14."""
    spec = ARCH.unwind.spec(ARCH.cores.machine(USER, None))
    assert spec is not None
    assert spec.registers == ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip")
    assert (spec.word, spec.stack_pointer, spec.frame_pointer, spec.return_address) == (4, 4, 5, 8)
    assert spec.preserved == {3, 5, 6, 7}
    for trampoline in spec.trampolines:
        offsets: Mapping[str, tuple[object, ...]] = trampoline.registers.fields or {}
        fields_of = {name: offsets[field][1] for name, field in trampoline.names.items()}
        assert (fields_of["eip"], fields_of["esp"], fields_of["ebp"]) == (56, 28, 24)  # struct sigcontext_32

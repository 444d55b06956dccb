"""32-bit ARM by literal numbers: the kernel's headers say what registers and notes must be."""

from __future__ import annotations

import struct

import pytest

from tests.arch.shared import saved_user_regs
from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from tests.builders.prstatus import elf_prstatus_32
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch import arch_for_machine
from vmcore2core.arch.arm.machine import ARCH
from vmcore2core.arch.spec import CpuNote
from vmcore2core.elf.notes import Note
from vmcore2core.errors import LayoutInvalid, NotMapped
from vmcore2core.interfaces import Layout
from vmcore2core.layout.resolver import KernelLayout

# uregs[] by arch/arm/include/uapi/asm/ptrace.h: ARM_r0 is uregs[0], ..., ARM_fp 11, ARM_ip 12, ARM_sp 13, ARM_lr 14,
# ARM_pc 15, ARM_cpsr 16, ARM_ORIG_r0 17.
REGS = "r0 r1 r2 r3 r4 r5 r6 r7 r8 r9 r10 fp ip sp lr pc cpsr orig_r0".split()
USER = {
    **{name: int.from_bytes(name.encode()[-4:].rjust(4), "big") for name in REGS},
    "sp": 0xBEC9_2C38,
    "lr": 0x0002_A695,
    "pc": 0x0001_1136,
    "cpsr": 0x800F_0030,
}
TASK, STACK, OWNERS, MEM_MAP, PFN_OFFSET = (KernelAddr(0xC200_0000 + 0x10000 * i) for i in range(5))
CURRENT_CPU = 1


def frame(regs: dict[str, int]) -> bytes:
    return struct.pack("<18I", *(regs[name] for name in REGS))


def saved(top: bytes, size: int = 8192, sizes: dict[str, int] | None = None) -> dict[str, int] | None:
    return saved_user_regs(
        ARCH, TASK, STACK, Bytes({STACK: (top + bytes(8)).rjust(size, b"\0")}), Table({}, sizes=sizes)
    )


@pytest.mark.parametrize(("size", "told"), [(8192, None), (8192, {"thread_union": 8192}), (16384, None)])
def test_user_registers_are_eight_bytes_below_the_stacks_end(size: int, told: dict[str, int] | None) -> None:
    assert saved(frame(USER), size, told) == USER


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        pytest.param({"cpsr": 0x400F_0010, "pc": 0x1_0B3C}, True, id="ARM state"),
        pytest.param({"cpsr": 0x0600_FC30}, True, id="within an IT block"),
        pytest.param({"pc": 0xFFFF_0FC0, "cpsr": 0x10}, True, id="kuser helper"),
        pytest.param({"cpsr": 0x6000_0013}, False, id="SVC mode"),
        pytest.param({"cpsr": 0x6000_001F}, False, id="system mode"),
        pytest.param({"cpsr": 0x6000_0090}, False, id="interrupts off"),
        pytest.param({"cpsr": 0x6000_0050}, False, id="fast interrupts off"),
        pytest.param({"cpsr": 0x400F_0010, "pc": 0x1_0B3E}, False, id="ARM state between instructions"),
        pytest.param({"pc": 0x1_1137}, False, id="odd"),
        pytest.param({"pc": 0xC010_0000}, False, id="pc in the kernel"),
        pytest.param({"pc": 0}, False, id="nothing"),
        pytest.param({"sp": 0xC200_1F00}, False, id="sp in the kernel"),
    ],
)
def test_what_can_be_user_registers_is_taken(changed: dict[str, int], taken: bool) -> None:
    assert (saved(frame({**USER, **changed})) is not None) is taken


def test_a_stack_that_is_not_there_has_none() -> None:
    assert (
        ARCH.registers.user_regs(TASK, KernelAddr(0xC900_0000), ARCH.view(Bytes({}), KernelLayout([Table({})]))) is None
    )


def prstatus(pid: int, regs: dict[str, int]) -> bytes:
    return elf_prstatus_32(pid, frame(regs), fpvalid=1)


VFP = struct.pack("<32QI", *(0xD000 + i for i in range(32)), 0x0300_0010)


def test_the_notes_of_qemu_have_the_cpus_registers() -> None:
    kernel = {**USER, "cpsr": 0x6000_0193, "pc": 0xC010_0000, "orig_r0": 0}
    notes = (
        Note("CORE", 1, prstatus(1, kernel)),
        Note("LINUX", 0x400, VFP),
        Note("VMCOREINFO", 0, b"OSRELEASE=6.1\n"),
        Note("CORE", 1, prstatus(2, {**USER, "orig_r0": 0})),
        Note("LINUX", 0x400, VFP[:-1]),
        Note("CORE", 1, b"short"),
        Note("CORE", 1, prstatus(3, USER)),
    )
    first, second, third = ARCH.cpus.notes(notes)
    # QEMU does not write orig_r0 (struct arm_user_regs: 17 registers and padding).
    without = {name: value for name, value in USER.items() if name != "orig_r0"}
    assert (first.number, first.pr_pid, first.user_mode, first.regsets) == (
        *(0, 1, False),
        (Note("LINUX", 0x400, VFP),),
    )
    assert second == CpuNote(1, 2, without, True, ())
    assert third == CpuNote(2, 3, USER, True, ())


def test_a_core_has_the_registers_in_their_order() -> None:
    machine = ARCH.cores.machine({}, 0xBF00_0000)
    assert (machine.e_machine, machine.elf_class) == (40, 32)
    assert ARCH.cores.gregs(USER, machine) == frame(USER)
    assert arch_for_machine(40) is ARCH
    assert ARCH.cores.flags(TASK, ARCH.view(Bytes({}), KernelLayout([]))) == 0


# struct thread_info in task_struct: fpstate at 0x70, vfpstate at 0x100; struct vfp_hard_struct: fpregs, fpexc, fpscr,
# fpinst, fpinst2, and, with CONFIG_SMP, cpu.
SMP = {"fpregs": (0, 256), "fpexc": (256, 4), "fpscr": (260, 4), "cpu": (272, 4)}
MEMBERS = {
    "task_struct": {
        "stack": (0x400, 4),
        "thread_info.cpu": (8, 4),
        "thread_info.fpstate": (0x70, 140),
        "thread_info.vfpstate": (0x100, 280),
    },
    "vfp_hard_struct": SMP,
}
FPA = bytes(range(116))


def layout(*without: str, **changed: object) -> Layout:
    symbols = {"vfp_current_hw_state": OWNERS, "vfp_sync_hwstate": 0xC010_4000}
    table = Table({**MEMBERS, **changed}, symbols={k: v for k, v in symbols.items() if k not in without})  # type: ignore[dict-item]
    return KernelLayout([table])


def thread(last_cpu: int = 4, owners: tuple[int, int] = (0, 0), *, registers: int = 32) -> Bytes:
    info = bytearray(0x404)
    struct.pack_into("<I", info, 8, CURRENT_CPU)
    info[0x70 : 0x70 + 116] = FPA
    d = struct.pack(f"<{registers}Q", *(0xD000 + i for i in range(registers)))
    hard = d + struct.pack("<5I", 0x4000_0000, 0x0300_0010, 0, 0, last_cpu)
    info[0x100 : 0x100 + len(hard)] = hard
    struct.pack_into("<I", info, 0x400, STACK)
    return Bytes({TASK: bytes(info), STACK: bytes(info), OWNERS: struct.pack("<2I", *owners)})


MACHINE = ARCH.cores.machine({}, None)
SAVED = (Note("CORE", 2, FPA), Note("LINUX", 0x400, VFP))
HALF = struct.pack("<32QI", *(0xD000 + i for i in range(16)), *bytes(16), 0x0300_0010)


def notes(memory: Bytes, of: Layout) -> tuple[Note, ...] | None:
    return ARCH.cores.regsets(TASK, {}, MACHINE, ARCH.view(memory, of))


def test_a_thread_off_the_cpu_has_the_kernels_notes() -> None:
    """arm_regsets[]: NT_PRFPREG is struct user_fp, NT_ARM_VFP struct user_vfp."""
    assert notes(thread(), layout()) == SAVED
    assert notes(thread(), layout("vfp_current_hw_state")) == SAVED  # kallsyms has functions at least
    with pytest.raises(NotMapped):
        notes(Bytes({}), layout())


def test_a_processor_of_16_registers_fills_half_of_the_note() -> None:
    short = {"fpregs": (0, 128), "fpexc": (128, 4), "fpscr": (132, 4), "cpu": (144, 4)}
    for size in (128, None):  # told, or told by the member behind
        half = {**short, "fpregs": (0, size)}
        assert notes(thread(registers=16), layout(vfp_hard_struct=half)) == (SAVED[0], Note("LINUX", 0x400, HALF))


def test_a_kernel_without_vfp_has_no_note_of_it() -> None:
    assert notes(thread(), layout("vfp_current_hw_state", "vfp_sync_hwstate")) == SAVED[:1]


@pytest.mark.parametrize("missing", ["thread_info.fpstate", "thread_info.vfpstate"])
def test_without_the_members_nothing_is_known(missing: str) -> None:
    members = {name: place for name, place in MEMBERS["task_struct"].items() if name != missing}
    assert notes(thread(), layout(task_struct=members)) is None
    assert notes(thread(), layout(vfp_hard_struct={})) is None


def test_before_5_16_thread_info_is_at_the_lowest_address_of_the_stack() -> None:
    old = {"cpu": (8, 4), "fpstate": (0x70, 140), "vfpstate": (0x100, 280)}
    of = layout(task_struct={"stack": (0x400, 4)}, thread_info=old)
    assert notes(thread(), of) == SAVED
    assert notes(Bytes({STACK: thread().places[STACK], TASK + 0x400: struct.pack("<I", STACK)}), of) == SAVED


@pytest.mark.parametrize(("owner", "there"), [(0, True), (TASK + 0x500, True), (TASK + 0x100, False)])
def test_without_smp_the_processor_may_have_a_waiting_threads_registers(owner: int, there: bool) -> None:
    alone = {name: place for name, place in SMP.items() if name != "cpu"}
    memory, of = thread(owners=(owner, 0)), layout(vfp_hard_struct=alone)
    if there:
        assert notes(memory, of) == SAVED
    else:
        with pytest.raises(LayoutInvalid, match="may be in the processor"):
            notes(memory, of)
    with pytest.raises(LayoutInvalid, match="may be in the processor"):
        notes(memory, layout("vfp_current_hw_state", vfp_hard_struct=alone))


LIVE = Note("LINUX", 0x400, struct.pack("<32QI", *(0xAAAA,) * 32, 0))


@pytest.mark.parametrize(
    ("last_cpu", "owners", "user_mode", "of_cpu", "expected"),
    [
        # vfp_state_in_hw(): the thread used the VFP last on this CPU, and nobody after it.
        pytest.param(1, (0, TASK + 0x100), True, (LIVE,), (SAVED[0], LIVE), id="in the processor"),
        pytest.param(1, (0, TASK + 0x100), True, (), (), id="in the processor, and not in the dump"),
        pytest.param(1, (0, TASK + 0x100), False, (LIVE,), (), id="the kernel may be loading them"),
        pytest.param(1, (0, TASK + 0x500), True, (LIVE,), SAVED, id="another thread's are"),
        pytest.param(1, (0, 0), True, (LIVE,), SAVED, id="nobody's are"),
        pytest.param(0, (TASK + 0x100, TASK + 0x100), True, (LIVE,), SAVED, id="used on another CPU since"),
        pytest.param(4, (0, TASK + 0x100), True, (LIVE,), SAVED, id="NR_CPUS: to be loaded anew"),
    ],
)
def test_a_running_threads_registers_are_where_the_kernel_left_them(
    last_cpu: int,
    owners: tuple[int, int],
    user_mode: bool,
    of_cpu: tuple[Note, ...],
    expected: tuple[Note, ...],
) -> None:
    note = CpuNote(CURRENT_CPU, 2, USER, user_mode, of_cpu)
    assert ARCH.cpus.regsets(TASK, USER, note, ARCH.view(thread(last_cpu, owners), layout())) == (expected, None)


def test_where_nothing_tells_who_owns_the_processors_registers_there_are_none() -> None:
    note = CpuNote(CURRENT_CPU, 2, USER, True, (LIVE,))
    assert ARCH.cpus.regsets(TASK, USER, note, ARCH.view(thread(), layout("vfp_current_hw_state"))) == ((), None)
    without = {name: place for name, place in MEMBERS["task_struct"].items() if name != "thread_info.cpu"}
    assert ARCH.cpus.regsets(TASK, USER, note, ARCH.view(thread(), layout(task_struct=without))) == ((), None)


def test_page_frames_count_from_the_first_of_memory() -> None:
    """include/asm-generic/memory_model.h: mem_map[pfn - ARCH_PFN_OFFSET], which is PHYS_PFN_OFFSET."""
    memory = Bytes({MEM_MAP: struct.pack("<I", 0xC7EF_6000), PFN_OFFSET: struct.pack("<I", 0x4_0000)})
    symbols = {"mem_map": MEM_MAP, "__pv_phys_pfn_offset": PFN_OFFSET}
    table = Table({}, sizes={"page": 32}, symbols=symbols)
    assert ARCH.paging.vmemmap(ARCH.view(memory, KernelLayout([table]))) == 0xC7EF_6000 - 32 * 0x4_0000
    for missing in symbols:
        rest = {name: place for name, place in symbols.items() if name != missing}
        assert (
            ARCH.paging.vmemmap(ARCH.view(memory, KernelLayout([Table({}, sizes={"page": 32}, symbols=rest)]))) is None
        )


def test_the_gate_and_the_vdso_are_where_the_layout_says() -> None:
    table = Table({}, symbols={"gate_vma": 0xC170_1000, "vdso_start": 0xC0F0_0000})
    assert ARCH.gate.vma(ARCH.view(Bytes({}), KernelLayout([table]))) == 0xC170_1000
    assert (
        ARCH.vdso.image(TASK, ARCH.cores.machine({}, None), ARCH.view(Bytes({}), KernelLayout([table]))) == 0xC0F0_0000
    )
    assert ARCH.gate.vma(ARCH.view(Bytes({}), KernelLayout([]))) is None
    assert ARCH.vdso.image(TASK, ARCH.cores.machine({}, None), ARCH.view(Bytes({}), KernelLayout([]))) is None

"""$s0 to $s7 and $fp, which a system call leaves to the kernel's functions: instructions as objdump prints them.

Tests arch/mips64/code.py.
"""

from __future__ import annotations

import struct

import pytest

from tests.builders.kernelimage import Table
from tests.builders.places import Bytes
from vmcore2core.addresses import KernelAddr
from vmcore2core.arch.base import Arch
from vmcore2core.arch.mips64.code import frame_at, frame_at_call
from vmcore2core.arch.mips64.machine import ARCH as BIG
from vmcore2core.arch.mips64el.machine import ARCH as LITTLE
from vmcore2core.arch.spec import CodeFrame
from vmcore2core.interfaces import ByteOrder
from vmcore2core.layout.resolver import KernelLayout

NOP = 0
S0, S1, S2, S7, FP, RA = 16, 17, 18, 23, 30, 31
JAL_RESUME = 0x0C63_C100
JALR_T2 = 0x0140_F809
JR_RA, JR_V0 = 0x03E0_0008, 0x0040_0008
TEXT = 0xFFFF_FFFF_8190_0000


def frame(size: int) -> int:
    """daddiu sp, sp, -size; a negative size takes it away."""
    return 0x67BD_0000 | -size & 0xFFFF


def sd(register: int, offset: int) -> int:
    """sd register, offset(sp)"""
    return 0xFFA0_0000 | register << 16 | offset


def ld(register: int, offset: int) -> int:
    """ld register, offset(sp)"""
    return 0xDFA0_0000 | register << 16 | offset


def move(register: int, source: int) -> int:
    """move register, source"""
    return source << 21 | register << 11 | 0x2D


def branch(distance: int, op: int = 0x1440) -> int:
    """bnez v0, of so many instructions from the delay slot on; 0x1000 is b, 0x5440 bnezl."""
    return op << 16 | distance & 0xFFFF


def code(*words: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}{len(words)}I", *words)


def at_call(*words: int, order: ByteOrder = "little", call: int = JAL_RESUME) -> tuple[int, dict[int, int], set[int]]:
    """Return size, what is saved where, and what is not known, at the last such call."""
    at = len(words) - 1 - words[::-1].index(call)
    raw = code(*words, order="<" if order == "little" else ">")
    found = frame_at_call(raw, TEXT, 4 * at, order)
    return (0, {}, set()) if found is None else (found.size, dict(found.saved), set(found.changed))


PROLOGUE = (frame(48), sd(RA, 40), sd(S1, 32), sd(S0, 24))
Answer = tuple[int, dict[int, int], set[int]]
NOTHING: Answer = (0, {}, set())
SAVED: Answer = (48, {RA: 40, S1: 32, S0: 24}, set())


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_prologue_says_where_registers_are(order: ByteOrder) -> None:
    assert at_call(*PROLOGUE, move(S0, 4), JAL_RESUME, NOP, order=order) == SAVED


def test_a_delay_slot_belongs_to_its_branch() -> None:
    assert at_call(frame(48), sd(RA, 40), branch(2), sd(S0, 24), NOP, NOP, JAL_RESUME, sd(S1, 32)) == SAVED
    # Branch-likely runs it only if it is taken: the other way does not save.
    words = (frame(48), sd(RA, 40), branch(2, 0x5440), sd(S0, 24), NOP, NOP, JAL_RESUME, NOP)
    assert at_call(*words) == (48, {RA: 40}, {S0})


def test_the_first_store_is_the_callers_value() -> None:
    words = (*PROLOGUE, move(S0, 4), sd(S0, 8), JAL_RESUME, NOP)
    assert at_call(*words) == SAVED
    # A register that was changed before it was stored was a value of the function's own.
    assert at_call(frame(48), sd(RA, 40), move(S0, 4), sd(S0, 24), JAL_RESUME, NOP) == (48, {RA: 40}, {S0})


def test_a_register_that_is_changed_on_one_way_alone_is_not_known() -> None:
    words = (frame(48), sd(RA, 40), branch(2), NOP, move(S2, 4), NOP, JAL_RESUME, NOP)
    assert at_call(*words) == (48, {RA: 40}, {S2})


def test_only_a_function_that_reaches_the_call_counts() -> None:
    early = (frame(64), sd(RA, 56), sd(S7, 48), NOP, ld(RA, 56), JR_RA, frame(-64))
    # The next function has its prologue behind a shortcut return.
    shortcut = (branch(3), NOP, JR_RA, NOP)
    assert at_call(*early, *shortcut, *PROLOGUE, JAL_RESUME, NOP) == SAVED
    assert at_call(*early, *shortcut, JAL_RESUME, NOP) == NOTHING
    # A call that does not return is followed by another function.
    panic = (frame(64), sd(RA, 56), sd(S7, 48), 0x0C63_D000, NOP)
    assert at_call(*panic, *PROLOGUE, JAL_RESUME, NOP) == SAVED


def test_a_tail_call_of_the_next_function_is_no_way_of_this_one() -> None:
    """schedule_hrtimeout_range() follows schedule_hrtimeout_range_clock(), which ends with __stack_chk_fail()."""
    fail = (JR_RA, NOP, 0x0C63_D000, NOP)
    again = 0x0800_0000 | (TEXT & 0xFFF_FFFF) >> 2
    raw = code(*PROLOGUE, branch(6), NOP, JAL_RESUME, NOP, *fail, again, NOP)
    found = frame_at_call(raw, TEXT, 4 * 6, "little")
    assert found is not None
    assert found.saved == {RA: 40, S1: 32, S0: 24}


def test_a_jump_table_leads_into_no_other_function() -> None:
    """__i2c_smbus_xfer() follows one that has a table; what makes a frame again is another function."""
    other = (frame(64), sd(RA, 56), JR_V0, NOP)
    assert at_call(*other, *PROLOGUE, JR_RA, NOP, JAL_RESUME, NOP) == NOTHING
    assert at_call(*other, *PROLOGUE, JR_V0, NOP, JAL_RESUME, NOP) == SAVED


def test_ways_that_come_back_are_followed() -> None:
    # The call is in a loop whose test is behind it; the prologue jumps there.
    words = (*PROLOGUE, branch(4, 0x1000), NOP, JAL_RESUME, NOP, NOP, branch(-4), NOP, JR_RA, NOP)
    assert at_call(*words) == SAVED
    target = (TEXT + 4 * 6 & 0xFFF_FFFF) >> 2
    assert at_call(*PROLOGUE, 0x0800_0000 | target, NOP, JAL_RESUME, NOP) == SAVED


def test_a_jump_table_may_lead_to_what_nothing_else_does() -> None:
    words = (*PROLOGUE, JR_V0, NOP, move(S0, 4), JR_RA, NOP, JAL_RESUME, NOP)
    assert at_call(*words) == SAVED


def test_a_stack_pointer_that_moves_ends_the_way() -> None:
    dsubu_sp = 0x03A2_E82F  # dsubu sp, sp, v0: alloca()
    assert at_call(*PROLOGUE, dsubu_sp, JAL_RESUME, NOP) == NOTHING


def test_a_return_address_that_is_not_saved_is_no_frame() -> None:
    assert at_call(frame(48), sd(S0, 24), JAL_RESUME, NOP) == NOTHING
    assert at_call(frame(48), 0x0C63_D000, NOP, sd(RA, 40), JAL_RESUME, NOP) == NOTHING
    assert at_call(frame(16), sd(RA, 40), JAL_RESUME, NOP) == NOTHING  # in the caller's frame


def test_loongsons_pairs_are_stores_too() -> None:
    gssq = 0x3A << 26 | 29 << 21 | S1 << 16 | 2 << 6 | 1 << 5 | S0  # gssq s0, s1, 32(sp)
    assert at_call(frame(48), sd(RA, 40), gssq, JAL_RESUME, NOP) == (48, {RA: 40, S1: 32, S0: 40}, set())


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        pytest.param(0x0000_800C | S0 << 11, False, id="syscall, whose code has bits there"),
        pytest.param(0x6610_0001, True, id="daddiu s0, s0, 1"),
        pytest.param(0xDC50_0000, True, id="ld s0, 0(v0)"),
        pytest.param(0xFC50_0000, False, id="sd s0, 0(v0)"),
        pytest.param(0xF050_0000, True, id="scd s0, 0(v0)"),
        pytest.param(0x7C50_7F03, True, id="dext s0, v0, 28, 16"),
        pytest.param(0x7C42_8003, False, id="dext v0, v0, 0, 17: 16 is a size there"),
        pytest.param(0x4010_6000, True, id="mfc0 s0, c0_status"),
        pytest.param(0x4090_6000, False, id="mtc0 s0, c0_status"),
        pytest.param(0x7050_8002, True, id="mul s0, v0, s0"),
        pytest.param(0x7810_0000, True, id="what is not known, and names it"),
    ],
)
def test_what_an_instruction_writes(word: int, changes: bool) -> None:
    found = at_call(frame(48), sd(RA, 40), word, JAL_RESUME, NOP)
    assert found == (48, {RA: 40}, {S0} if changes else set())


# A task asleep: schedule() was called by a system call's function, which handle_sys() called.

STACK, PT_REGS = 0x9000_0000_0380_0000, 0x9000_0000_0380_0000 + 16384 - 32 - 304
TASK = KernelAddr(0x9000_0000_0370_0000)
MEMBERS = {
    "task_struct": {
        "on_cpu": (28, 4),
        **{f"thread.reg{n}": (0x100 + 8 * i, 8) for i, n in enumerate((*range(16, 24), 29, 30, 31))},
    }
}
GPRS = "zero at v0 v1 a0 a1 a2 a3 a4 a5 a6 a7 t0 t1 t2 t3 s0 s1 s2 s3 s4 s5 s6 s7 t8 t9 k0 k1 gp sp fp ra".split()
STALE = {name: 0xBAD0 + i for i, name in enumerate(GPRS)}
SWITCHED = {n: 0x5000 + n for n in (*range(16, 24), 29, 30, 31)}
SYS_FUTEX = (*PROLOGUE, JAL_RESUME, NOP, JR_RA, NOP)
SCHEDULE = (frame(32), sd(RA, 24), sd(S0, 16), JAL_RESUME, NOP, JR_RA, NOP)
HANDLE_SYS = (NOP, JALR_T2, NOP, NOP)
WORK_RESCHED = (NOP, JAL_RESUME, NOP, NOP)


def asleep(
    arch: Arch, entry: tuple[int, ...] = HANDLE_SYS, *, on_cpu: int = 0, sp: int = PT_REGS - 80, cause: int = 0x20
) -> dict[str, int] | None:
    """Return the user registers of a task that futex() put to sleep."""
    order = {"little": "<", "big": ">"}[arch.byte_order]
    at = {name: TEXT + 0x1000 * i for i, name in enumerate(("schedule", "futex", "entry"))}
    texts = {"schedule": SCHEDULE, "futex": SYS_FUTEX, "entry": entry}
    places = {at[name]: code(*words, order=order).ljust(0x1000, b"\0") for name, words in texts.items()}
    kernel = bytearray(80)
    struct.pack_into(f"{order}2Q", kernel, 16, 0x1111, at["futex"] + 24)  # schedule()'s frame: s0, ra
    struct.pack_into(f"{order}3Q", kernel, 32 + 24, 0x1616, 0x1717, at["entry"] + 12)  # sys_futex()'s: s0, s1, ra
    values = [*STALE.values(), 0x500_A4F3, 1, 2, 3, cause, 0x1_2000_555C]
    values[29] = 0xFF_EAA8_CC60
    stack = bytes(16384 - 32 - 304 - 80) + bytes(kernel) + struct.pack(f"{order}38Q", *values) + bytes(32)
    saved = {**SWITCHED, 29: sp, 31: at["schedule"] + 20}
    task = bytearray(0x200)
    struct.pack_into(f"{order}I", task, 28, on_cpu)
    for i, n in enumerate((*range(16, 24), 29, 30, 31)):
        struct.pack_into(f"{order}Q", task, 0x100 + 8 * i, saved[n])
    memory = Bytes({**places, STACK: stack, TASK: bytes(task)})
    found = arch.registers.user_regs(
        TASK, KernelAddr(STACK), arch.view(memory, KernelLayout([Table(MEMBERS, sizes={"pt_regs": 304})]))
    )
    return None if found is None else {name: found[name] for name in (*GPRS[16:24], "fp") if name in found}


SWITCHED_BY_NAME = {GPRS[n]: value for n, value in SWITCHED.items() if n not in (29, 31)}


@pytest.mark.parametrize("arch", [LITTLE, BIG], ids=["little", "big"])
def test_a_sleeping_thread_has_its_own_registers(arch: Arch) -> None:
    """s0 and s1 are in futex()'s frame, the others in thread_struct."""
    assert asleep(arch) == SWITCHED_BY_NAME | {"s0": 0x1616, "s1": 0x1717}


def test_a_preempted_thread_has_them_in_pt_regs() -> None:
    """Cause.ExcCode is 0: an interrupt saves all (SAVE_ALL)."""
    assert asleep(LITTLE, cause=0) == {name: STALE[name] for name in (*GPRS[16:24], "fp")}


def test_on_the_way_back_to_user_mode_pt_regs_has_them() -> None:
    """entry.S: SAVE_STATIC is done before work_resched and work_notifysig, which call by jal."""
    assert asleep(LITTLE, WORK_RESCHED) == {name: STALE[name] for name in (*GPRS[16:24], "fp")}


def test_a_forked_thread_that_never_ran_has_its_parents() -> None:
    """copy_thread(): thread.reg29 is pt_regs; sys_clone() does SAVE_STATIC."""
    assert asleep(LITTLE, sp=PT_REGS) == {name: STALE[name] for name in (*GPRS[16:24], "fp")}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"on_cpu": 1}, id="on a CPU: thread_struct is older"),
        pytest.param({"sp": PT_REGS - 72}, id="frames that end elsewhere"),
        pytest.param({"sp": PT_REGS + 8}, id="a stack pointer above the frames"),
        pytest.param({"sp": STACK - 8}, id="a stack pointer on another stack"),
        pytest.param({"entry": (NOP, NOP, NOP, NOP)}, id="no call at the end"),
    ],
)
def test_what_does_not_fit_is_not_known(changed: dict[str, object]) -> None:
    assert asleep(LITTLE, **changed) == {}  # type: ignore[arg-type]


def test_without_the_kernels_code_they_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCHEDULE", ())
    assert asleep(LITTLE) == {}


# User code: o32 saves words, a leaf keeps its return address, the outermost function has none.


def test_o32_saves_words() -> None:
    sw_ra, sw_s0, sd_s0 = 0xAFBF_001C, 0xAFB0_0018, sd(S0, 8)
    raw = code(0x27BD_FFE0, sw_ra, sw_s0, JAL_RESUME, NOP)  # addiu sp, sp, -32
    found = frame_at_call(raw, TEXT, 12, "little", 4)
    assert found is not None
    assert (found.size, found.saved) == (32, {RA: 28, S0: 24})
    assert frame_at_call(raw, TEXT, 12, "little", 8) is None  # words are no saved registers of 64 bits
    assert frame_at_call(code(0x27BD_FFE0, sw_ra, sd_s0, JAL_RESUME, NOP), TEXT, 12, "little", 4) == CodeFrame(
        32, {RA: 28}, frozenset()
    )


def test_a_leaf_keeps_its_return_address() -> None:
    leaf = code(move(2, 4), branch(-2), NOP, JR_RA, NOP)
    assert frame_at(leaf, TEXT, 12, "little", 8, exact=True) == CodeFrame(0, {}, frozenset())
    # Behind a call it is lost, if nothing saved it.
    called = code(JAL_RESUME, NOP, NOP, JR_RA, NOP)
    assert frame_at(called, TEXT, 8, "little", 8, exact=True) == CodeFrame(0, {}, frozenset({RA}))
    assert frame_at(code(JR_RA, NOP, NOP), TEXT, 8, "little", 8, exact=True) is None


def test_the_outermost_function_says_so() -> None:
    """glibc's __start: move ra, zero; the stack pointer is aligned then."""
    raw = code(move(RA, 0), 0x03AC_E824, JAL_RESUME, NOP, NOP)  # and sp, sp, t0
    found = frame_at(raw, TEXT, 8, "little", 8, exact=False)
    assert found is not None
    assert found.outermost
    assert frame_at(code(move(RA, S0), 0x03AC_E824, JAL_RESUME, NOP), TEXT, 8, "little", 8, exact=False) is None

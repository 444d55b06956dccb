"""s390x's unwind data: a canonical frame address that is above the caller's stack pointer."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.arch.cross import cross_numbers
from tests.arch.s390x.test_machine import CC
from vmcore2core.arch.s390x.machine import ARCH
from vmcore2core.arch.s390x.unwind import ends_with_call
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.elf.notes import Note
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cfi_rules import CfaRule, InRegister, Offset, Row, Rule, Undefined
from vmcore2core.unwind.frames import Backtrace, Found
from vmcore2core.unwind.unwinder import Unwinder

CODE, LEAF, MIDDLE, OUTER, BARE, STACK = 0x1_0000, 0x1_0100, 0x1_0200, 0x1_0300, 0x1_0400, 0x7FFF_0000
R11, R14, R15, F0, F2, PSWA = 11, 14, 15, 16, 17, 65


def spec() -> UnwindSpec:
    found = ARCH.unwind.spec(CoreMachine(22, 64, ()))
    assert isinstance(found, UnwindSpec)
    return found


@pytest.mark.parametrize(
    ("code", "call"),
    [
        # As binutils' objdump prints them.
        pytest.param("0de1", True, id="basr %r14,%r1"),
        pytest.param("07070def", True, id="basr %r14,%r15"),
        pytest.param("0de0", False, id="basr %r14,0: no branch"),
        pytest.param("0d10", False, id="basr %r1,0"),
        pytest.param("0d51", False, id="basr %r5,%r1"),
        pytest.param("a7e50010", True, id="bras %r14"),
        pytest.param("a7d50010", False, id="bras %r13: the literal pool"),
        pytest.param("c0e500000010", True, id="brasl %r14"),
        pytest.param("c0f400000010", False, id="jg"),
        pytest.param("c0e000000010", False, id="larl %r14"),
        pytest.param("4de01000", True, id="bas %r14,0(%r1)"),
        pytest.param("07fe", False, id="br %r14"),
        pytest.param("e500000010", False, id="brasl, cut off"),
        pytest.param("", False, id="nothing"),
        pytest.param("0d", False, id="half of an instruction"),
    ],
)
def test_calls_are_what_writes_r14(code: str, call: bool) -> None:
    assert ends_with_call(bytes.fromhex(code)) is call


def test_dwarf_numbers_are_the_abis() -> None:
    """The ELF ABI supplement, "DWARF Register Number Mapping"."""
    names = spec().registers
    assert names[:16] == tuple(f"r{i}" for i in range(16))
    assert names[16:32] == tuple("f0 f2 f4 f6 f1 f3 f5 f7 f8 f10 f12 f14 f9 f11 f13 f15".split())
    assert names[48:64] == tuple(f"acr{i}" for i in range(16))
    assert names[64:] == ("pswm", "pswa")
    assert {names[i] for i in spec().preserved} == {*(f"r{i}" for i in range(6, 14)), *(f"f{i}" for i in range(8, 16))}
    assert (spec().stack_pointer, spec().link_register, spec().return_address) == (15, 14, 65)
    assert ARCH.unwind.spec(CoreMachine(22, 32, ())) is None


class Space:
    """A process whose call frame information is a table: start of a function -> rules at every place in it."""

    order: ByteOrder = "big"

    def __init__(self, rows: dict[int, Row], words: dict[int, int]) -> None:
        self.rows, self.words = rows, words
        self.code: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes | None:
        for start, data in self.code.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return struct.pack(">Q", self.words[address]) if size == 8 and address in self.words else None

    def instructions(self, address: int, size: int) -> bytes | None:
        return self.read(address, size)

    def executable(self, address: int) -> bool:
        return CODE <= address < CODE + 0x1000

    def generated(self, address: int) -> bool:
        return False

    def same_mapping(self, first: int, second: int) -> bool:
        return abs(first - second) < 0x1000

    def image(self, address: int) -> Any:
        row = self.rows.get(address & ~0xFF)
        fde = SimpleNamespace(start=address & ~0xFF, cie=SimpleNamespace(signal_frame=bool(row and row.signal_frame)))
        return SimpleNamespace(
            fde=lambda _: fde if row else None,
            eh_frame=SimpleNamespace(row=lambda *_: row),
            cfi_problem=None,
            ends_stack=lambda _: False,
            is_go=False,
            cfi_origin=None,
        )


def row(cfa_offset: int, *, signal_frame: bool = False, **rules: Rule) -> Row:
    numbers = {"r11": R11, "r14": R14, "r15": R15}
    return Row(CfaRule(R15, cfa_offset), {numbers[k]: v for k, v in rules.items()}, R14, signal_frame)


def at(offset: int) -> Offset:
    return Offset(offset, is_value=False)


def backtrace(space: Space, **registers: int) -> Backtrace:
    return Unwinder(spec(), space).backtrace(registers)


OUTERMOST = row(160, r14=Undefined())


def test_a_leaf_function_has_its_callers_stack_pointer() -> None:
    """At its entry the CFA is r15 + 160, and r15 is the caller's."""
    rows = {LEAF: row(160), MIDDLE: row(320, r14=at(-48), r15=at(-40), r11=at(-72)), OUTER: OUTERMOST}
    cfa = STACK + 320
    space = Space(rows, {cfa - 48: OUTER + 6, cfa - 40: STACK + 160, cfa - 72: 0xB})
    found = backtrace(space, pswa=LEAF + 8, r15=STACK, r14=MIDDLE + 6, r11=5)
    assert [(frame.pc, frame.sp) for frame in found.frames] == [
        (LEAF + 8, STACK),
        (MIDDLE + 6, STACK),
        (OUTER + 6, STACK + 160),
    ]
    assert found.complete
    assert (found.frames[1].registers[R11], found.frames[2].registers[R11]) == (5, 0xB)


def test_a_stack_pointer_that_has_no_rule_is_160_below_the_cfa() -> None:
    rows = {MIDDLE: row(328, r14=at(-168)), OUTER: OUTERMOST}
    found = backtrace(Space(rows, {STACK + 160: OUTER + 6}), pswa=MIDDLE, r15=STACK)
    assert [(frame.pc, frame.sp) for frame in found.frames] == [(MIDDLE, STACK), (OUTER + 6, STACK + 168)]


def test_a_function_may_keep_registers_in_floating_point_registers() -> None:
    """gcc does so in leaf functions; NT_FPREGSET has fpc, padding, and f0 to f15 in this order."""
    rows = {LEAF: row(160, r11=InRegister(F0), r15=InRegister(F2)), OUTER: OUTERMOST}
    known = {"pswa": LEAF, "r15": STACK, "r14": OUTER + 6, "r11": 5}
    assert "the stack pointer is not known" in backtrace(Space(rows, {}), **known).end
    note = Note("CORE", 2, struct.pack(">I4x16Q", 0x88_0000, 11, 0, STACK + 8, *range(13)))
    floats = ARCH.unwind.registers([Note("LINUX", 0x307, bytes(4)), note])
    found = backtrace(Space(rows, {}), **known, **floats)
    assert (found.frames[1].sp, found.frames[1].registers[R11]) == (STACK + 8, 11)
    assert ARCH.unwind.registers([Note("CORE", 2, note.desc[:-1])]) == {}


def test_without_cfi_nothing_leads_to_the_caller() -> None:
    """r11 is no frame pointer that anything could follow, and r14 may be of any call before."""
    space = Space({OUTER: OUTERMOST}, {STACK: STACK + 160, STACK + 160 + 112: OUTER + 6})
    space.code[OUTER] = bytes.fromhex("c0e500000010")
    found = backtrace(space, pswa=BARE, r15=STACK, r11=STACK, r14=OUTER + 6)
    assert len(found.frames) == 1
    assert found.end == "no call frame information covers 0x10400"
    found = backtrace(space, pswa=0, r15=STACK, r14=OUTER + 6)
    assert [(f.pc, f.sp, f.found) for f in found.frames[1:]] == [(OUTER + 6, STACK, Found.STACK_POINTER)]


SIGREGS = struct.pack(">2Q16Q", 0x0705_0001_8000_0000, LEAF + 8, *range(14), OUTER + 6, STACK + 0x2000)
SIGREGS += struct.pack(">16II4x16Q", *range(0xA0, 0xB0), 0, *range(0xF0, 0x100))


@pytest.mark.parametrize(("svc", "place"), [(119, 176), (173, 336)], ids=["sigreturn", "rt_sigreturn"])
@pytest.mark.parametrize("with_cfi", [False, True])
def test_a_signal_handler_returns_to_what_the_kernel_saved(svc: int, place: int, with_cfi: bool) -> None:
    """The frame begins with 160 bytes for the handler, and is where r15 is when it returns."""
    rows = {MIDDLE: row(160, signal_frame=True)} if with_cfi else {}
    space = Space({**rows, LEAF: row(160), OUTER: OUTERMOST}, {})
    space.code[MIDDLE] = bytes([0x0A, svc])
    space.code[STACK + place] = SIGREGS
    space.code[OUTER] = bytes.fromhex("c0e500000010")
    found = backtrace(space, pswa=MIDDLE, r15=STACK, r14=MIDDLE)
    assert [(f.pc, f.sp, f.exact, f.trampoline) for f in found.frames] == [
        (MIDDLE, STACK, True, True),
        (LEAF + 8, STACK + 0x2000, True, False),
        (OUTER + 6, STACK + 0x2000, False, False),
    ]
    assert found.frames[1].found is Found.SIGNAL
    saved = found.frames[1].registers
    assert (saved[R11], saved[F0], saved[F2], saved[48], saved[PSWA]) == (11, 0xF0, 0xF2, 0xA0, LEAF + 8)


def test_the_context_of_a_signal_is_where_the_compiler_says(tmp_path: Path) -> None:
    """arch/s390/kernel/signal.c: struct sigframe has callee_used_stack[160], struct sigcontext, _sigregs; struct
    rt_sigframe callee_used_stack[160], __u16 svc_insn, struct siginfo, struct ucontext_extended."""
    expressions = ["offsetof(ucontext_t, uc_mcontext)", "sizeof(siginfo_t)", "sizeof(mcontext_t)"]
    uc_mcontext, siginfo, size = cross_numbers(CC, tmp_path, expressions, "signal.h", "ucontext.h")
    expressions = ["sizeof(struct sigcontext)", "offsetof(_sigregs, fpregs.fprs)", "offsetof(_sigregs, regs.acrs)"]
    sigcontext, *inside = cross_numbers(CC, tmp_path, expressions, "asm/sigcontext.h")
    plain, realtime = spec().trampolines
    assert (plain.mcontext, realtime.mcontext) == (160 + sigcontext, 168 + siginfo + uc_mcontext)
    assert [plain.registers.fields[name][1] for name in ("f0", "acr0")] == inside  # type: ignore[index]
    assert plain.registers.itemsize == size == len(SIGREGS)

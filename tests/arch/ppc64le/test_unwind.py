"""ppc64le's unwind data, and a back chain, which needs no call frame information."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.arch.cross import cross_numbers
from tests.arch.ppc64le.test_machine import CC
from vmcore2core.arch.ppc64le.machine import ARCH
from vmcore2core.arch.ppc64le.unwind import ends_with_call
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cfi_rules import CfaRule, Row
from vmcore2core.unwind.frames import Backtrace, Found
from vmcore2core.unwind.unwinder import Unwinder

CODE, STACK = 0x1000_0000, 0x3FFF_0000
BL = struct.pack("<I", 0x4800_0001)
SIGTRAMP = struct.pack("<3I", 0x3821_0080, 0x3800_00AC, 0x4400_0002)  # addi r1,r1,128; li r0,172; sc


def spec() -> UnwindSpec:
    found = ARCH.unwind.spec(CoreMachine(21, 64, ()))
    assert isinstance(found, UnwindSpec)
    return found


@pytest.mark.parametrize(
    ("word", "call"),
    [
        # Power ISA, book I, 2.4: opcode in the highest 6 bits, LK the lowest one.
        pytest.param(0x4BFF_F001, True, id="bl"),
        pytest.param(0x4BFF_F000, False, id="b"),
        pytest.param(0x429F_0005, True, id="bcl 20,31"),
        pytest.param(0x4182_0008, False, id="beq"),
        pytest.param(0x4E80_0421, True, id="bctrl"),
        pytest.param(0x4E80_0420, False, id="bctr"),
        pytest.param(0x4E80_0021, True, id="blrl"),
        pytest.param(0x4E80_0020, False, id="blr"),
        pytest.param(0x4E80_0461, True, id="bctarl"),
        pytest.param(0x4C00_012D, False, id="isync with the lowest bit"),
        pytest.param(0x6000_0000, False, id="nop"),
        pytest.param(0x3821_0081, False, id="addi"),
    ],
)
def test_calls_are_what_sets_the_link_register(word: int, call: bool) -> None:
    assert ends_with_call(struct.pack("<I", word)) is call
    assert not ends_with_call(struct.pack("<I", word)[:3])


def test_dwarf_numbers_are_the_abis() -> None:
    """ELFv2, 2.4: 0 to 31 r0 to r31, 32 to 63 f0 to f31, 65 lr, 66 ctr; 67 is the program counter in the vDSO."""
    names = spec().registers
    assert [names.index(name) for name in ("r0", "r1", "r31", "link", "ctr", "nip")] == [0, 1, 31, 65, 66, 67]
    assert {names[i] for i in spec().preserved} == {"r13", *(f"r{i}" for i in range(14, 32))}
    assert (spec().return_address, spec().stack_pointer, spec().link_register) == (67, 1, 65)


def test_the_signal_frame_is_where_the_c_headers_have_it(tmp_path: Path) -> None:
    """struct rt_sigframe begins with its ucontext, 128 bytes (__SIGNAL_FRAMESIZE) above the handler's caller."""
    context, nip, link = cross_numbers(
        CC,
        tmp_path,
        ["offsetof(ucontext_t, uc_mcontext.gp_regs)", "8 * PT_NIP", "8 * PT_LNK"],
        "signal.h",
        "ucontext.h",
        "asm/ptrace.h",
    )
    assert {(t.entry, t.mcontext) for t in spec().trampolines} == {(0, 128 + context), (4, context), (8, context)}
    for trampoline in spec().trampolines:
        assert trampoline.code == SIGTRAMP
        fields = trampoline.registers.fields
        assert fields is not None
        assert (fields[trampoline.names["nip"]][1], fields[trampoline.names["link"]][1]) == (nip, link)


class Space:
    """A process of code without call frame information, but where ``rows`` has some: start of a function -> rules."""

    order: ByteOrder = "little"

    def __init__(self, words: dict[int, int], rows: dict[int, Row] | None = None) -> None:
        self.words, self.rows = words, rows or {}
        self.code: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes | None:
        for start, data in self.code.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        words = [self.words.get(address + at) for at in range(0, size, 8)]
        if size % 8 or None in words:
            return BL if size == 4 and self.executable(address) else None
        return struct.pack(f"<{len(words)}Q", *words)

    def instructions(self, address: int, size: int) -> bytes | None:
        return self.read(address, size)

    def executable(self, address: int) -> bool:
        return CODE <= address < CODE + 0x1000

    def generated(self, address: int) -> bool:
        return False

    def same_mapping(self, first: int, second: int) -> bool:
        return abs(first - second) < 0x1_0000

    def image(self, address: int) -> Any:
        row = self.rows.get(address & ~0xFF)
        fde = SimpleNamespace(start=address & ~0xFF, cie=SimpleNamespace(signal_frame=False))
        return SimpleNamespace(
            fde=lambda _: fde if row else None,
            eh_frame=SimpleNamespace(row=lambda *_: row),
            cfi_problem=None,
            symbol=lambda _: None,
            ends_stack=lambda _: False,
            is_go=False,
            cfi_origin=None,
        )


LEAF = {CODE: Row(CfaRule(1, 0), {}, 65, False)}


def backtrace(space: Space, **registers: int) -> Backtrace:
    return Unwinder(spec(), space).backtrace({"nip": CODE + 8, "r1": STACK, "link": CODE + 0x108, **registers})


def test_the_back_chain_leads_to_the_outermost_frame() -> None:
    # At r1 the caller's r1; 16 above that, where the caller returns to.
    space = Space({STACK: STACK + 64, STACK + 64 + 16: CODE + 0x208, STACK + 64: 0}, LEAF)
    found = backtrace(space)
    assert [(f.pc, f.sp, f.found) for f in found.frames] == [
        (CODE + 8, STACK, Found.REGISTERS),
        (CODE + 0x108, STACK, Found.CFI),
        (CODE + 0x208, STACK + 64, Found.BACK_CHAIN),
    ]
    assert (found.complete, found.end) == (True, f"the back chain ends at {STACK + 64:#x}")


def test_the_innermost_function_may_not_have_made_its_frame() -> None:
    found = backtrace(Space({STACK: STACK + 64, STACK + 80: CODE + 0x208, STACK + 64: 0}))
    assert (len(found.frames), found.complete) == (1, False)
    assert "has made its frame" in found.end


@pytest.mark.parametrize(
    ("words", "why"),
    [
        pytest.param({}, "does not lead to a frame", id="not known"),
        pytest.param({STACK: STACK + 60, STACK + 76: CODE + 0x208}, "does not lead to a frame", id="misaligned"),
        pytest.param({STACK: STACK + 0x2_0000, STACK + 0x2_0010: CODE}, "does not lead to a frame", id="elsewhere"),
        pytest.param({STACK: STACK + 64}, "does not lead to a frame", id="no return address"),
        pytest.param({STACK: STACK + 64, STACK + 80: 0x2000_0000}, "does not follow a call", id="no code"),
        pytest.param({STACK: STACK, STACK + 16: CODE + 0x208}, "expected a higher one", id="itself"),
        pytest.param({STACK: STACK - 64, STACK - 48: CODE + 0x208}, "expected a higher one", id="downwards"),
        pytest.param({STACK: (1 << 64) - 8, 8: CODE + 0x208}, "does not lead to a frame", id="around"),
    ],
)
def test_a_broken_back_chain_ends_with_a_reason(words: dict[int, int], why: str) -> None:
    found = backtrace(Space(words, LEAF))
    assert (len(found.frames), found.complete) == (2, False)
    assert why in found.end


def test_a_return_address_must_follow_a_call() -> None:
    space = Space({STACK: STACK + 64, STACK + 80: CODE + 0x208}, LEAF)
    space.code[CODE + 0x204] = struct.pack("<I", 0x6000_0000)
    assert "does not follow a call" in backtrace(space).end


@pytest.mark.parametrize(("step", "above"), [(0, 128), (4, 0), (8, 0)])
def test_a_signal_frame_without_call_frame_information_has_the_interrupted_registers(step: int, above: int) -> None:
    registers = [0x1_0000 + i for i in range(44)]
    registers[1], registers[32], registers[36] = STACK + 0x800, CODE + 0x308, CODE + 0x408
    context = STACK + above + 232
    space = Space({context + 8 * i: value for i, value in enumerate(registers)})
    space.code[CODE + 0x500] = SIGTRAMP
    found = backtrace(space, nip=CODE + 0x500 + step)
    assert [f.found for f in found.frames] == [Found.REGISTERS, Found.SIGNAL]
    assert found.frames[0].trampoline
    assert (found.frames[1].pc, found.frames[1].sp) == (CODE + 0x308, STACK + 0x800)
    assert found.frames[1].registers[65] == CODE + 0x408
    assert found.frames[1].registers[31] == 0x1_001F

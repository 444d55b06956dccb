"""arm64's unwind data: signed return addresses, frame records, signal frames."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.arch.riscv64.test_unwind import CODE, LEAF, MIDDLE, OUTER, STACK, Space
from vmcore2core.arch.arm64.machine import ARCH
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.cfi_rules import CfaRule, Offset, Row, Rule, Undefined
from vmcore2core.unwind.frames import Backtrace, Found
from vmcore2core.unwind.unwinder import Unwinder

SP, FP, LR = 31, 29, 30
BLR_X1 = 0xD63F_0020


def spec() -> UnwindSpec:
    found = ARCH.unwind.spec(CoreMachine(183, 64, ()))
    assert isinstance(found, UnwindSpec)
    return found


def row(cfa_offset: int, rules: dict[int, Rule]) -> Row:
    return Row(CfaRule(SP, cfa_offset), rules, LR, signal_frame=False)


def backtrace(space: Space, **registers: int) -> Backtrace:
    return Unwinder(spec(), space).backtrace(registers)


OUTERMOST = row(0, {LR: Undefined()})


def test_dwarf_numbers_are_aadwarf64s() -> None:
    names = spec().registers
    assert names == (*(f"x{i}" for i in range(31)), "sp", "pc")
    # AAPCS64, 6.1.1: x19 to x28 are the caller's, and x29.
    assert spec().preserved == set(range(19, 30))
    assert (spec().stack_pointer, spec().frame_pointer, spec().link_register) == (31, 29, 30)
    assert ARCH.unwind.spec(CoreMachine(40, 32, ())) is None


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(0, id="none"),
        pytest.param(0x0055 << 48, id="48 bits of an address: 54 to 48"),
        pytest.param(0x0070 << 48, id="52 bits: 54 to 52"),
        pytest.param(0xAA55 << 48, id="no tagged addresses: the top byte too"),
        pytest.param(0x007F_FF80 << 32, id="39 bits"),
    ],
)
def test_a_signature_is_taken_off_a_return_address(signature: int) -> None:
    rows = {LEAF: row(0, {}), MIDDLE: row(32, {LR: Offset(-24, is_value=False)}), OUTER: OUTERMOST}
    space = Space(rows, {STACK + 8: OUTER + 4 | signature})
    found = backtrace(space, pc=LEAF + 8, sp=STACK, x30=MIDDLE + 8 | signature)
    assert [(frame.pc, frame.sp) for frame in found.frames] == [
        (LEAF + 8, STACK),
        (MIDDLE + 8, STACK),
        (OUTER + 4, STACK + 32),
    ]
    assert found.complete


def test_an_address_that_is_none_without_a_signature_stays_as_it_is() -> None:
    space = Space({LEAF: row(0, {})}, {})
    found = backtrace(space, pc=LEAF + 8, sp=STACK, x30=0x0055_0000_7777_0000)
    assert not found.complete
    assert all(frame.pc in (LEAF + 8, 0x0055_0000_7777_0000) for frame in found.frames)


@pytest.mark.parametrize("signature", [0, 0x0055 << 48])
def test_the_frame_record_is_at_the_frame_pointer(signature: int) -> None:
    """AAPCS64, 6.4.6: the caller's x29, then x30."""
    space = Space({OUTER: OUTERMOST}, {STACK + 32: 0, STACK + 40: OUTER + 4 | signature})
    space.code[OUTER] = struct.pack("<I", BLR_X1)
    found = backtrace(space, pc=CODE + 0x400, sp=STACK, x29=STACK + 32)
    assert [(f.pc, f.sp, f.found) for f in found.frames[1:]] == [(OUTER + 4, STACK + 48, Found.FRAME_POINTER)]


@pytest.mark.parametrize("entry", [0, 4])
def test_a_signal_handler_returns_to_what_the_kernel_saved(entry: int) -> None:
    """struct rt_sigframe: siginfo_t of 128 bytes, then ucontext, in which uc_mcontext is at 176."""
    space = Space({LEAF: row(0, {}), OUTER: OUTERMOST}, {})
    space.code[MIDDLE] = struct.pack("<2I", 0xD280_1168, 0xD400_0001)  # mov x8, #139; svc #0
    registers = [*range(0x100, 0x100 + 30), OUTER + 4, STACK + 0x2000, LEAF + 8, 0x6000_1000]
    space.code[STACK + 128 + 176] = struct.pack("<35Q", 0xFA17, *registers)
    space.code[OUTER] = struct.pack("<I", BLR_X1)
    found = backtrace(space, pc=MIDDLE + entry, sp=STACK, x30=MIDDLE)
    assert [(f.pc, f.sp, f.trampoline) for f in found.frames] == [
        (MIDDLE + entry, STACK, True),
        (LEAF + 8, STACK + 0x2000, False),
        (OUTER + 4, STACK + 0x2000, False),
    ]
    assert found.frames[1].found is Found.SIGNAL
    assert found.frames[1].registers[28] == 0x11C


@pytest.mark.parametrize("opcode", [0x2C, 0x2D])
def test_call_frame_information_that_tells_of_signatures_is_read(opcode: int) -> None:
    """DW_CFA_AARCH64_negate_ra_state(_with_pc), then def_cfa_offset 16, offset x30 -8: as paciasp's functions have."""
    cie = struct.pack("<II", 0x10, 0) + bytes.fromhex("01 7a5200 04 78 1e 01 1b 0c1f00")
    program = bytes([opcode, 0x0E, 16, 0x80 | 30, 1])
    fde = struct.pack("<IIiIB", 0x14 + 1, len(cie) + 4, LEAF - (STACK + len(cie) + 8), 0x20, 0) + program + bytes(3)
    space: Any = Space({}, {})
    space.code[STACK] = cie + fde
    frames = EhFrame(space.read, "little", 8)
    found = frames.fde(STACK + len(cie))
    assert found is not None
    assert frames.row(found, LEAF + 8) == row(16, {LR: Offset(-8, is_value=False)})


class High(Space):
    """The same, with the code at the upper end of 48 bits."""

    def executable(self, address: int) -> bool:
        return 0xFFFF_B000_0000 <= address < 0xFFFF_B000_1000


def test_a_signature_above_48_bits_leaves_all_of_the_address() -> None:
    space = High({0xFFFF_B000_0100: row(0, {}), 0xFFFF_B000_0200: OUTERMOST}, {})
    found = backtrace(space, pc=0xFFFF_B000_0108, sp=STACK, x30=0x0055_FFFF_B000_0204)
    assert [frame.pc for frame in found.frames] == [0xFFFF_B000_0108, 0xFFFF_B000_0204]
    assert found.complete

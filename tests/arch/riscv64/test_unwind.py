"""riscv64's unwind data, and a return address that is in a register and not on the stack."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.arch.cross import cross_numbers
from tests.arch.riscv64.test_machine import CC
from vmcore2core.arch.riscv64.machine import ARCH
from vmcore2core.arch.riscv64.unwind import ends_with_call
from vmcore2core.arch.spec import CoreMachine, UnwindSpec
from vmcore2core.arch.x86_64.machine import ARCH as X86
from vmcore2core.interfaces import ByteOrder
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.cfi_rules import CfaRule, Offset, Row, Rule, Undefined
from vmcore2core.unwind.frames import Backtrace, Found
from vmcore2core.unwind.unwinder import Unwinder

CODE, LEAF, MIDDLE, OUTER, BARE, STACK = 0x1_0000, 0x1_0100, 0x1_0200, 0x1_0300, 0x1_0400, 0x7FFF_0000
RA, SP, S0, PC = 1, 2, 8, 64


def spec(arch: Any = ARCH, e_machine: int = 243) -> UnwindSpec:
    found = arch.unwind.spec(CoreMachine(e_machine, 64, ()))
    assert isinstance(found, UnwindSpec)
    return found


@pytest.mark.parametrize(
    ("code", "call"),
    [
        # The ISA manual: jal is imm|rd|1101111, jalr imm|rs1|000|rd|1100111, c.jalr 1001|rs1|00000|10; ra is x1.
        pytest.param("ef00c000", True, id="jal ra, 12"),
        pytest.param("eff0dfff", True, id="jal ra, -4"),
        pytest.param("6f00c000", False, id="j 12"),
        pytest.param("efc2c000", False, id="jal t0: a millicode routine, no caller"),
        pytest.param("e7800700", True, id="jalr ra, a5"),
        pytest.param("67800700", False, id="jr a5"),
        pytest.param("e7900700", False, id="funct3 1: no jalr"),
        pytest.param("13008297", True, id="nop's half, c.jalr a4"),
        pytest.param("00008297", True, id="c.jalr a4"),
        pytest.param("00000290", False, id="c.ebreak"),
        pytest.param("00008297"[4:], True, id="c.jalr, and nothing is known before it"),
        pytest.param("00008280", False, id="c.jr ra: ret"),
        pytest.param("", False, id="nothing"),
        pytest.param("ef", False, id="half of an instruction"),
    ],
)
def test_calls_are_what_writes_ra(code: str, call: bool) -> None:
    assert ends_with_call(bytes.fromhex(code)) is call


def test_dwarf_numbers_are_the_psabis() -> None:
    """x0 to x31, then f0 to f31; ABI names by the psABI's table."""
    names = spec().registers
    assert [names[i] for i in (0, 1, 2, 3, 4, 5, 8, 9, 10, 17, 18, 27, 28, 31)] == (
        "zero ra sp gp tp t0 s0 s1 a0 a7 s2 s11 t3 t6".split()
    )
    assert (names.index("pc"), names[32:64]) == (64, ("",) * 32)
    assert {names[i] for i in spec().preserved} == {"gp", "tp", *(f"s{i}" for i in range(12))}
    assert (spec().stack_pointer, spec().frame_pointer, spec().link_register) == (2, 8, 1)


class Space:
    """A process whose call frame information is a table: start of a function -> rules at every place in it."""

    order: ByteOrder = "little"

    def __init__(self, rows: dict[int, Row], words: dict[int, int]) -> None:
        self.rows, self.words = rows, words
        self.code: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes | None:
        for start, data in self.code.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return struct.pack("<Q", self.words[address]) if size == 8 and address in self.words else None

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
            symbol=lambda _: None,
            cfi_origin=None,
        )


def row(cfa_offset: int, *, signal_frame: bool = False, **rules: Rule) -> Row:
    numbers = {"ra": RA, "s0": S0}
    return Row(CfaRule(SP, cfa_offset), {numbers[k]: v for k, v in rules.items()}, RA, signal_frame)


def backtrace(space: Space, **registers: int) -> Backtrace:
    return Unwinder(spec(), space).backtrace(registers)


OUTERMOST = row(0, ra=Undefined())


def test_a_leaf_function_returns_to_ra_and_moves_no_stack_pointer() -> None:
    rows = {LEAF: row(0), MIDDLE: row(32, ra=Offset(-8, is_value=False)), OUTER: OUTERMOST}
    space = Space(rows, {STACK + 24: OUTER + 4})
    found = backtrace(space, pc=LEAF + 8, sp=STACK, ra=MIDDLE + 8, s0=5)
    assert [(frame.pc, frame.sp) for frame in found.frames] == [
        (LEAF + 8, STACK),
        (MIDDLE + 8, STACK),
        (OUTER + 4, STACK + 32),
    ]
    assert found.complete
    assert found.frames[2].registers[S0] == 5


def test_a_function_that_was_called_into_no_longer_has_its_return_address_in_ra() -> None:
    """Its own call has overwritten it, with the address that it is at: without a rule, it is not known."""
    rows = {LEAF: row(0), MIDDLE: row(32, ra=Offset(-8, is_value=False)), OUTER: row(32)}
    found = backtrace(Space(rows, {STACK + 24: OUTER + 4}), pc=LEAF, sp=STACK, ra=MIDDLE + 8)
    assert [frame.pc for frame in found.frames] == [LEAF, MIDDLE + 8, OUTER + 4]
    assert "the return address of 0x10304 is not known" in found.end
    assert not found.complete


def test_only_the_innermost_frame_may_be_of_no_size() -> None:
    rows = {LEAF: row(0), MIDDLE: row(0, ra=Offset(-8, is_value=False)), OUTER: OUTERMOST}
    found = backtrace(Space(rows, {STACK - 8: OUTER}), pc=LEAF, sp=STACK, ra=MIDDLE + 8)
    assert len(found.frames) == 2
    assert "expected a higher one" in found.end


def test_a_leaf_that_returns_to_itself_ends() -> None:
    found = backtrace(Space({LEAF: row(0)}, {}), pc=LEAF + 4, sp=STACK, ra=LEAF + 4)
    assert (len(found.frames), found.complete) == (1, False)
    assert "comes back" in found.end


def test_a_call_of_nothing_came_from_ra() -> None:
    space = Space({OUTER: OUTERMOST}, {STACK: MIDDLE})
    space.code[OUTER] = bytes.fromhex("e7800700")
    found = backtrace(space, pc=0, sp=STACK, ra=OUTER + 4)
    assert [(f.pc, f.sp, f.found) for f in found.frames[1:]] == [(OUTER + 4, STACK, Found.STACK_POINTER)]
    # In code that nothing describes, ra may be of any call before.
    assert len(backtrace(space, pc=BARE, sp=STACK, ra=OUTER + 4).frames) == 1


def test_the_frame_record_is_below_the_frame_pointer() -> None:
    """psABI, "Frame Pointer Convention": ra at fp - 8, the caller's fp at fp - 16."""
    space = Space({OUTER: OUTERMOST}, {STACK + 24: OUTER + 4, STACK + 16: 0})
    space.code[OUTER] = bytes.fromhex("e7800700")
    found = backtrace(space, pc=BARE, sp=STACK, s0=STACK + 32)
    assert [(f.pc, f.sp, f.found) for f in found.frames[1:]] == [(OUTER + 4, STACK + 32, Found.FRAME_POINTER)]
    assert len(backtrace(space, pc=BARE, sp=STACK + 24, s0=STACK + 32).frames) == 1


@pytest.mark.parametrize("entry", [0, 4])
@pytest.mark.parametrize("with_cfi", [False, True])
def test_a_signal_handler_returns_to_what_the_kernel_saved(entry: int, with_cfi: bool) -> None:
    """struct rt_sigframe: siginfo_t of 128 bytes, struct ucontext with the registers at 176, pc first."""
    # The vDSO's CFI says only that it is a signal frame: no register has a rule.
    rows = {MIDDLE: row(0, signal_frame=True)} if with_cfi else {}
    space = Space({**rows, LEAF: row(0), OUTER: OUTERMOST}, {})
    space.code[MIDDLE] = struct.pack("<2I", 0x08B0_0893, 0x0000_0073)  # li a7, 139; ecall
    space.code[STACK + 304] = struct.pack("<32Q", LEAF + 8, OUTER + 4, STACK + 0x2000, *range(3, 32))
    space.code[OUTER] = bytes.fromhex("e7800700")
    found = backtrace(space, pc=MIDDLE + entry, sp=STACK, ra=MIDDLE)
    assert [(f.pc, f.sp, f.exact, f.trampoline) for f in found.frames] == [
        (MIDDLE + entry, STACK, True, True),
        (LEAF + 8, STACK + 0x2000, True, False),
        (OUTER + 4, STACK + 0x2000, False, False),
    ]
    assert found.frames[1].found is Found.SIGNAL
    assert found.frames[1].registers[31] == 31


def test_a_cie_that_names_only_the_cfas_register_means_no_offset() -> None:
    """As binutils write it for RISC-V; readelf: DW_CFA_def_cfa_register: r2 (sp), then an FDE of a leaf function."""
    cie = struct.pack("<II", 0x10, 0) + bytes.fromhex("03 7a5200 01 7c 01 01 1b 0d02 00")
    fde = struct.pack("<IIiIB3x", 0x10, len(cie) + 4, LEAF - (STACK + len(cie) + 8), 0x20, 0)
    space = Space({}, {})
    space.code[STACK] = cie + fde
    frames = EhFrame(space.read, "little", 8)
    found = frames.fde(STACK + len(cie))
    assert found is not None
    assert (found.start, found.end) == (LEAF, LEAF + 0x20)
    assert frames.row(found, LEAF + 8) == Row(CfaRule(SP, 0), {}, RA, signal_frame=False)


def test_the_context_of_a_signal_is_where_the_compiler_says(tmp_path: Path) -> None:
    numbers = ["offsetof(ucontext_t, uc_mcontext)", "sizeof(siginfo_t)", "sizeof(struct user_regs_struct)"]
    uc_mcontext, siginfo, size = cross_numbers(CC, tmp_path, numbers, "signal.h", "asm/ptrace.h")
    (trampoline,) = (one for one in spec().trampolines if one.entry == 0)
    assert (trampoline.mcontext, trampoline.pointer) == (siginfo + uc_mcontext, None)
    assert trampoline.registers.itemsize == size


def test_x86_has_its_return_address_on_the_stack_as_before() -> None:
    x86 = spec(X86, 62)
    assert (x86.link_register, x86.frame_record) == (None, 0)
    found = Unwinder(x86, Space({LEAF: Row(CfaRule(7, 0), {}, 16, signal_frame=False)}, {})).backtrace(
        {"rip": LEAF, "rsp": STACK}
    )
    assert len(found.frames) == 1

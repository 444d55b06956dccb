"""Frames that A64 instructions tell, against the call frame information of a real library."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.arch.arm64.test_unwind import OUTERMOST, backtrace
from tests.arch.riscv64.test_unwind import LEAF, MIDDLE, OUTER, STACK, Space
from tests.arch.shared import share_told_by_code
from tests.conftest import unpack
from tests.e2e.guests import FIXTURES
from tests.unwind.test_by_code import in_memory
from vmcore2core.arch.arm64.code import CONVENTION, FP, LR, SP, frames_by_code
from vmcore2core.arch.spec import CodeFrame
from vmcore2core.arch.ways import SLOTS_MAX
from vmcore2core.formats import arm64 as fmt
from vmcore2core.unwind.frames import Found

PLACE = 0x1000
RET, RETAA, BR_X16, BLR_X1 = 0xD65F03C0, 0xD65F0BFF, 0xD61F0200, 0xD63F0020
PACIASP, AUTIASP = 0xD503233F, 0xD50323BF
PUSH, POP = 0xA9BE7BFD, 0xA8C27BFD  # stp x29, x30, [sp, #-32]!; ldp x29, x30, [sp], #32
MOV_FP, MOV_SP = 0x910003FD, 0x910003BF  # mov x29, sp; mov sp, x29
STORE_19, LOAD_19 = 0xF9000BF3, 0xF9400BF3  # str x19, [sp, #16]; ldr x19, [sp, #16]
PAIR_19, SUB_32, ADD_32 = 0xA94153F3, 0xD10083FF, 0x910083FF  # ldp x19, x20, [sp, #16]; sub, add sp, sp, #32
SUB_X9 = 0xCB2963FF  # sub sp, sp, x9
ZERO_FP, BRK, NOP = 0xD280001D, 0xD4200020, 0xD503201F
STORE_19_BELOW, LOAD_19_BELOW = 0xF9000FF3, 0xF9400FF3  # str, ldr x19, [sp, #24]


def told(*words: int, at: int = 0, start: int | None = None, exact: bool = False) -> list[CodeFrame]:
    code = struct.pack(f"<{len(words)}I", *words)
    return list(frames_by_code(in_memory(code), PLACE + 4 * at, start, exact))


@pytest.mark.parametrize(
    ("words", "size", "base"),
    [
        ((POP, RET), 32, SP),
        ((PAIR_19, POP, AUTIASP, RET), 32, SP),
        ((POP, RETAA), 32, SP),
        ((POP, BR_X16), 32, SP),  # a tail call
        ((POP, 0x14000001, RET), 32, SP),  # b to the next
        ((0x54000040, BRK, POP, RET), 32, SP),  # b.eq over brk
        ((0xB4000041, BRK, POP, RET), 32, SP),  # cbz x1
        ((0x36080041, BRK, POP, RET), 32, SP),  # tbz w1, #1
        ((BLR_X1, ADD_32, POP, RET), 64, SP),
        ((MOV_SP, POP, RET), 32, FP),
        ((SUB_X9, MOV_SP, POP, RET), 32, FP),
        ((SUB_X9, POP, RET), None, None),  # as far as is not known
        ((RET,), None, None),  # the call has changed x30
        ((PUSH, POP, RET), None, None),  # another function, behind a call that does not return
        ((PACIASP, POP, RET), None, None),
        ((0xD61F0020, POP, RET), None, None),  # br x1: a table of a switch
        ((POP, 0xAA0003FE, RET), None, None),  # mov x30, x0
        ((0xD4200000,), None, None),
        ((0x14000000,), None, None),  # it loops for ever
        ((0xA8C27BFD, 0xD65F0020), None, None),  # ret x1
    ],
)
def test_the_way_to_a_return_tells_the_frame(words: tuple[int, ...], size: int | None, base: int | None) -> None:
    made = told(*words)
    assert [(one.size, one.base) for one in made] == ([] if size is None else [(size, base)])
    for one in made:
        assert one.saved[LR] == one.saved[FP] + 8


def test_in_the_innermost_function_the_return_address_may_be_in_its_register() -> None:
    (leaf,) = told(ADD_32, RET, exact=True)
    assert leaf.size == 32
    assert leaf.saved == {}
    assert leaf.changed == frozenset()


def test_registers_saved_on_the_way_are_the_callers() -> None:
    """From the first instruction, from between, and from behind what saves them."""
    words = (PACIASP, PUSH, STORE_19, MOV_FP, 0xAA0003F3, LOAD_19, POP, AUTIASP, RET)  # mov x19, x0
    for at in range(len(words)):
        (made,) = told(*words, at=at, exact=True)
        before, after = at < 2, at > 6
        assert made.size == (0 if before or after else 32), at
        slots = {} if before or after else {FP: 0, LR: 8}
        if 2 < at < 6:
            slots[19] = 16
        assert made.saved == slots, at
        assert made.changed == frozenset(), at


def test_a_register_that_the_way_changes_is_not_the_callers() -> None:
    (made,) = told(0xAA0003F3, POP, RET)  # mov x19, x0
    assert made.changed == {19}
    (made,) = told(0x1E6028B3, POP, RET)  # fadd d19, d5, d0
    assert made.changed == frozenset()
    (made,) = told(0x9E660013, POP, RET)  # fmov x19, d0
    assert made.changed == {19}


def test_from_the_functions_first_instruction_the_frame_is_what_it_made() -> None:
    """Behind a call that does not return, nothing undoes it."""
    words = (PACIASP, PUSH, STORE_19, MOV_FP, BLR_X1, PACIASP, PUSH, RET)
    assert told(*words, at=5) == []
    (made,) = told(*words, at=5, start=PLACE)
    assert (made.size, made.saved, made.base) == (32, {FP: 0, LR: 8, 19: 16}, SP)
    (made,) = told(PACIASP, PUSH, MOV_FP, SUB_X9, BLR_X1, BRK, at=5, start=PLACE)
    assert (made.size, made.saved, made.base) == (32, {FP: 0, LR: 8}, FP)
    # One that was not saved when the call was made is lost.
    assert told(SUB_32, BLR_X1, BRK, at=2, start=PLACE) == []


def test_what_was_saved_on_one_of_two_ways_is_not_known() -> None:
    """cbz x1 over what saves x19 and changes it."""
    words = (PUSH, 0xB4000061, STORE_19, 0xAA0003F3, BLR_X1, BRK)
    (made,) = told(*words, at=5, start=PLACE)
    assert made.size == 32
    assert made.saved == {FP: 0, LR: 8}
    assert made.changed == {19}


def test_what_clears_the_frame_pointer_has_no_caller() -> None:
    """As _start does: mov x29, #0; mov x30, #0; blr x1; brk."""
    made = told(ZERO_FP, ZERO_FP + 1, BLR_X1, BRK, at=3)
    assert [one.outermost for one in made] == [True]


@pytest.fixture(scope="module")
def libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(FIXTURES / "sysroot-arm64/lib/libc.so.6.zst", tmp_path_factory.mktemp("lib") / "libc.so.6")


def test_calls_of_a_real_library_have_the_frames_of_its_call_frame_information(libc: Path) -> None:
    """Debian's libc: its frames are those that the compiler wrote down, or are not told."""
    assert share_told_by_code(libc, "sp", SP, calls_of(libc)[::100], frames_by_code) > 0.8


def calls_of(path: Path) -> list[int]:
    """Return where each call comes back to, in the first mapping that is executable."""
    content = path.read_bytes()
    (phoff,), (count,) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<H", content, 56)
    headers = [struct.unpack_from("<IIQQQQ", content, phoff + 56 * number) for number in range(count)]
    offset, address, size = next((h[2], h[3], h[5]) for h in headers if h[0] == 1 and h[1] & 1)
    words = struct.unpack_from(f"<{size // 4}I", content, offset)
    is_call = [any(word & mask == value for value, mask in fmt.CALLS) for word in words]
    return [address + 4 * number + 4 for number, call in enumerate(is_call) if call]


def test_the_tracked_registers_are_those_that_calls_preserve() -> None:
    assert CONVENTION.tracked == tuple(range(19, 31))
    assert (SP, FP, LR) == (31, 29, 30)


def test_more_stores_than_a_function_has_tell_nothing() -> None:
    stores = [0xF9000000 | number + 4 << 10 | SP << 5 | 19 for number in range(SLOTS_MAX + 1)]
    assert len(told(*stores[:SLOTS_MAX], POP, RET)) == 1
    assert told(*stores, POP, RET) == []
    assert told(*stores, POP, RET, at=len(stores), start=PLACE, exact=True) != []
    assert told(*stores, BLR_X1, BRK, at=len(stores) + 1, start=PLACE) == []


@pytest.mark.parametrize("signature", [0, 0x0055 << 48])
def test_a_leaf_function_returns_to_its_link_register(signature: int) -> None:
    """In the innermost frame, and where a signal interrupted it; neither has call frame information."""
    space = Space({OUTER: OUTERMOST}, {})
    space.code[LEAF] = struct.pack("<3I", SUB_32, ADD_32, RET)
    space.code[MIDDLE] = struct.pack("<2I", 0xD280_1168, 0xD400_0001)  # mov x8, #139; svc #0
    space.code[OUTER] = struct.pack("<I", BLR_X1)
    registers = [*range(0x100, 0x100 + 30), OUTER + 4 | signature, STACK + 0x2000, LEAF + 4, 0]
    space.code[STACK + 128 + 176] = struct.pack("<35Q", 0, *registers)
    found = backtrace(space, pc=LEAF + 4, sp=STACK, x30=OUTER + 4 | signature)
    assert [(f.pc, f.sp, f.found) for f in found.frames[1:]] == [(OUTER + 4, STACK + 32, Found.CODE)]
    found = backtrace(space, pc=MIDDLE, sp=STACK)
    assert [(f.pc, f.sp, f.found) for f in found.frames[1:]] == [
        (LEAF + 4, STACK + 0x2000, Found.SIGNAL),
        (OUTER + 4, STACK + 0x2020, Found.CODE),
    ]
    assert found.frames[2].registers[19] == 0x100 + 19


def test_what_only_the_shorter_way_saved_is_not_known() -> None:
    """cbz x1 to what saves x19 and changes it, else three nops and a jump behind that."""
    nops = (NOP, NOP, NOP, 0x14000003)
    (made,) = told(PUSH, 0xB40000A1, *nops, STORE_19, 0xAA0003F3, BLR_X1, BRK, at=9, start=PLACE)
    assert made.saved == {FP: 0, LR: 8}
    assert made.changed == {19}


def test_what_lies_below_the_stack_pointer_is_gone() -> None:
    """x19 is stored in a frame that is then undone, and loaded from there in another."""
    (made,) = told(SUB_32, STORE_19_BELOW, ADD_32, SUB_32, LOAD_19_BELOW, ADD_32, RET, exact=True)
    assert made.changed == {19}


@pytest.mark.parametrize("begins", [PUSH, PACIASP])
def test_the_walk_ends_where_another_function_begins(begins: int) -> None:
    code, asked = struct.pack("<3I", begins, ADD_32, RET), set[int]()
    read = in_memory(code)

    def noted(address: int, size: int) -> bytes | None:
        asked.add(address)
        return read(address, size)

    assert list(frames_by_code(noted, PLACE, None, exact=False)) == []
    assert PLACE + 4 not in asked


class Named(Space):
    """The same, with a symbol for the function at LEAF."""

    name = b"f"

    def image(self, address: int) -> Any:
        found = super().image(address)
        found.symbol = lambda _: SimpleNamespace(value=LEAF, name=self.name)
        return found


@pytest.mark.parametrize(("name", "ways"), [(b"f", [Found.CODE]), (b"f.cold", [])])
def test_a_part_that_is_jumped_to_is_no_beginning(name: bytes, ways: list[Found]) -> None:
    space = Named({OUTER: OUTERMOST}, {STACK: 0, STACK + 8: OUTER + 4})
    space.name = name
    space.code[LEAF] = struct.pack("<3I", PUSH, BLR_X1, BRK)
    space.code[MIDDLE] = struct.pack("<3I", SUB_32, ADD_32, RET)
    space.code[OUTER] = struct.pack("<I", BLR_X1)
    found = backtrace(space, pc=MIDDLE + 8, sp=STACK, x30=LEAF + 8)
    assert [frame.found for frame in found.frames[2:]] == ways

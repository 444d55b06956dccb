"""DWARF expressions, by the examples and definitions of DWARF 5, section 2.5."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcore2core.errors import CorruptStructure
from vmcore2core.unwind.expression import evaluate

MEMORY = {0x1000: struct.pack("<Q", 0x1122334455667788), 0x2000: struct.pack("<Q", 0x1000)}


def read(address: int, size: int) -> bytes | None:
    found = MEMORY.get(address)
    return found[:size] if found is not None else None


def value(code: bytes, first: int | None = None, registers: dict[int, int] | None = None, word: int = 8) -> int | None:
    return evaluate(code, 0x5000, registers or {}, read, "little", word, first)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("08 ff", 0xFF),  # const1u
        ("09 ff", -1),  # const1s
        ("0a 34 12", 0x1234),
        ("0b fe ff", -2),
        ("0c 78 56 34 12", 0x12345678),
        ("0d ff ff ff ff", -1),
        ("0e 01 00 00 00 00 00 00 80", 0x8000000000000001),
        ("03 01 00 00 00 00 00 00 00", 1),  # addr
        ("10 e5 8e 26", 624485),  # constu
        ("11 c0 bb 78", -123456),  # consts
        ("3f", 15),  # lit15
        ("32 33 1e", 6),  # lit2 lit3 mul
        ("32 33 1c", -1),  # minus
        ("37 32 1b", 3),  # 7 div 2
        ("09 f9 32 1b", -3),  # -7 div 2: C's division
        ("37 32 1d", 1),  # mod
        ("09 fb 19", 5),  # abs
        ("35 1f", -5),  # neg
        ("30 20", -1),  # not
        ("3c 36 1a", 4),  # and
        ("3c 36 21", 14),  # or
        ("3c 36 27", 10),  # xor
        ("31 23 80 01", 129),  # plus_uconst
        ("31 34 24", 16),  # shl
        ("09 f0 32 26", -4),  # shra
        ("09 f0 08 3c 25", 15),  # shr by 60
        ("31 09 ff 2b", 1),  # 1 gt -1: signed
        ("31 09 ff 2d", 0),
        ("31 31 29", 1),
        ("31 31 2e", 0),
        ("31 32 2c", 1),
        ("31 32 2a", 0),
        ("31 32 16 1c", 1),  # swap: 2 - 1
        ("31 32 14 1c 1c", 0),  # over: 1 - (2 - 1)
        ("31 32 33 15 02", 1),  # pick 2
        ("31 32 33 17 1c", -1),  # rot: 3 1 2 -> 1 - 2
        ("31 32 13", 1),  # drop
        ("31 12 22", 2),  # dup plus
        ("0a 00 20 06", 0x1000),  # deref
        ("0a 00 10 94 02", 0x7788),  # deref_size
        ("31 2f 01 00 32", 1),  # skip over lit2
        ("31 31 28 01 00 32", 1),  # bra taken
        ("31 30 28 01 00 32", 2),  # bra not taken
        ("96 31", 1),  # nop
    ],
)
def test_an_operation_gives_what_dwarf_says(code: str, expected: int) -> None:
    assert value(bytes.fromhex(code)) == expected % (1 << 64)


def test_registers_and_the_first_value_are_used() -> None:
    assert value(bytes.fromhex("77 88 01"), registers={7: 0x100}) == 0x188  # breg7 136
    assert value(bytes.fromhex("92 07 78"), registers={7: 0x100}) == 0xF8  # bregx 7, -8
    assert value(bytes.fromhex("38 1c"), first=0x100) == 0xF8


def test_the_rule_of_a_plt_entry_tells_its_halves_apart() -> None:
    # What ld writes: rsp + 8 + ((rip & 15) >= 11) << 3
    code = bytes.fromhex("77 08 80 00 3f 1a 3b 2a 33 24 22")
    assert value(code, registers={7: 0x1000, 16: 0x401020}) == 0x1008
    assert value(code, registers={7: 0x1000, 16: 0x40102B}) == 0x1010


def test_what_is_not_known_makes_the_value_not_known() -> None:
    assert value(bytes.fromhex("77 00")) is None
    assert value(bytes.fromhex("0a 00 30 06")) is None


def test_addresses_of_32_bits_wrap_there() -> None:
    assert value(bytes.fromhex("09 ff"), word=4) == 0xFFFFFFFF
    assert value(bytes.fromhex("09 ff 31 22"), word=4) == 0


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("", "empty stack"),
        ("22", "empty stack"),
        ("31 30 1b", "divides by zero"),
        ("31 30 1d", "divides by zero"),
        ("2f fd ff", "does not end"),
        ("2f fc ff", "outside"),
        ("2f 01 00", "outside"),
        ("31 15 05", "picks value 5"),
        ("98 00 00", "is not known"),
        ("08", "do not fit"),
        ("10 80 80 80 80 80 80 80 80 80 80 01", "longer than 10"),
        ("31 " + "12 " * 70, "are on the stack"),
    ],
)
def test_a_broken_expression_is_one_sentence(code: str, what: str) -> None:
    with pytest.raises(CorruptStructure, match=what):
        value(bytes.fromhex(code))


@given(st.binary(max_size=200), st.sampled_from([4, 8]))
def test_any_bytes_give_a_number_nothing_or_one_error(code: bytes, word: int) -> None:
    try:
        found = value(code, first=0x1000, registers=dict.fromkeys(range(17), 0x2000), word=word)
    except CorruptStructure:
        return
    assert found is None or 0 <= found < 1 << 8 * word

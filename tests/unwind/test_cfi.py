"""Call frame information: libc's, against pyelftools' tables, and hand-made entries.

Tests formats/dwarf_cfi.py, unwind/cfi_program.py, unwind/cfi_rules.py, unwind/eh_index.py.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from vmcore2core.errors import CorruptStructure
from vmcore2core.unwind.cfi import EhFrame
from vmcore2core.unwind.cfi_rules import CfaRule, Expression, InRegister, Offset, Row, SameValue, Undefined

SAMPLE = 11  # every eleventh function of libc: all would take half a minute


def libc() -> Path:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("/libc.so.6"):
            return Path(line.split()[-1])
    pytest.skip("this Python has no libc.so.6")


def as_elftools(row: Row) -> dict[Any, Any]:
    """Return a row in pyelftools' words."""
    found: dict[Any, Any] = {}
    if isinstance(row.cfa, CfaRule):
        found["cfa"] = (row.cfa.register, row.cfa.offset, None)
    else:
        found["cfa"] = (None, None, list(row.cfa.code))
    for number, rule in row.rules.items():
        if isinstance(rule, Undefined):
            found[number] = ("UNDEFINED", None)
        elif isinstance(rule, SameValue):
            found[number] = ("SAME_VALUE", None)
        elif isinstance(rule, InRegister):
            found[number] = ("REGISTER", rule.number)
        elif isinstance(rule, Offset):
            found[number] = ("VAL_OFFSET" if rule.is_value else "OFFSET", rule.offset)
        else:
            found[number] = ("VAL_EXPRESSION" if rule.is_value else "EXPRESSION", list(rule.code))
    return found


def elftools_row(line: dict[Any, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, rule in line.items():
        if key == "cfa":
            found["cfa"] = (rule.reg, rule.offset, list(rule.expr) if rule.expr is not None else None)
        elif key != "pc":
            found[key] = (rule.type, list(rule.arg) if isinstance(rule.arg, list) else rule.arg)
    return found


def test_the_rules_of_libcs_functions_are_those_of_pyelftools() -> None:
    elf = ELFFile(libc().open("rb"))
    section = elf.get_section_by_name(".eh_frame")
    assert section is not None
    data, base = section.data(), section["sh_addr"]
    cfi = elf.get_dwarf_info().EH_CFI_entries()
    ours = reader(data, base)
    fdes = [entry for entry in cfi if isinstance(entry, FDE)]
    assert len(fdes) > 1000
    rows = 0
    for theirs in [*fdes[:50], *fdes[50::SAMPLE]]:
        fde = ours.fde(base + theirs.offset)
        assert fde is not None
        start = theirs.header["initial_location"]
        assert (fde.start, fde.end) == (start, start + theirs.header["address_range"])
        table = theirs.get_decoded().table
        for line, following in zip(table, [*table[1:], {"pc": fde.end}], strict=True):
            if line["pc"] == following["pc"]:
                continue
            for pc in {line["pc"], following["pc"] - 1}:
                assert as_elftools(ours.row(fde, pc)) == elftools_row(line), hex(pc)
            rows += 1
    assert rows > 1000


ADDRESS = 0x7000


def entries(cie_program: bytes, fde_program: bytes, augmentation: bytes = b"zR\0", more: bytes = b"\x00") -> bytes:
    """Return a CIE at ``ADDRESS`` and an FDE of [0x1000, 0x1100) behind it; addresses are absolute."""
    cie = struct.pack("<IB", 0, 1) + augmentation + b"\x01\x78\x10"  # code 1, data -8, column 16
    if augmentation.startswith(b"z"):
        cie += bytes([len(more)]) + more
    cie += cie_program
    fde = struct.pack("<QQ", 0x1000, 0x100) + (b"\x00" if augmentation.startswith(b"z") else b"") + fde_program
    first = struct.pack("<I", len(cie)) + cie
    return first + struct.pack("<II", len(fde) + 4, len(first) + 4) + fde


def reader(data: bytes, base: int = ADDRESS) -> EhFrame:
    def fetch(at: int, size: int) -> bytes | None:
        piece = data[at - base : at - base + size] if at >= base else b""
        return piece if len(piece) == size else None

    return EhFrame(fetch, "little", 8)


def row_of(fde_program: bytes, pc: int, cie_program: bytes = b"\x0c\x07\x08\x90\x01", **kind: bytes) -> Row:
    data = entries(cie_program, fde_program, **kind)
    frame = reader(data)
    fde = frame.fde(ADDRESS + 4 + struct.unpack("<I", data[:4])[0])
    assert fde is not None
    return frame.row(fde, pc)


def test_rules_hold_from_their_location_on() -> None:
    program = b"\x41\x0e\x10\x86\x02\x43\x0d\x06"  # push rbp; mov rsp, rbp
    assert row_of(program, 0x1000).cfa == CfaRule(7, 8)
    assert row_of(program, 0x1001).cfa == CfaRule(7, 16)
    assert row_of(program, 0x1003).rules == {16: Offset(-8), 6: Offset(-16)}
    assert row_of(program, 0x1004).cfa == CfaRule(6, 16)


@pytest.mark.parametrize(
    ("instruction", "number", "rule"),
    [
        ("0503 02", 3, Offset(-16)),  # offset_extended
        ("1103 7e", 3, Offset(16)),  # offset_extended_sf
        ("0703", 3, Undefined()),
        ("0803", 3, SameValue()),
        ("0903 0c", 3, InRegister(12)),
        ("1403 02", 3, Offset(-16, is_value=True)),  # val_offset
        ("1503 7e", 3, Offset(16, is_value=True)),  # val_offset_sf
        ("2f03 02", 3, Offset(16)),  # GNU_negative_offset_extended
        ("2e10", 16, Offset(-8)),  # GNU_args_size: changes no rule
        ("d0", 16, Offset(-8)),  # restore: as in the CIE
        ("0710 0610", 16, Offset(-8)),  # undefined, then restore_extended
    ],
)
def test_a_register_rule_is_what_dwarf_says(instruction: str, number: int, rule: object) -> None:
    assert row_of(bytes.fromhex(instruction), 0x1000).rules[number] == rule


def test_a_restored_register_without_a_rule_in_the_cie_has_none() -> None:
    assert 3 not in row_of(bytes.fromhex("8302 c3"), 0x1000).rules


def test_expressions_keep_their_bytes() -> None:
    row = row_of(bytes.fromhex("0f 02 77 08 10 03 02 77 10 16 06 01 33"), 0x1000)
    assert isinstance(row.cfa, Expression)
    assert row.cfa.code == b"\x77\x08"
    rules = row.rules
    assert isinstance(rules[3], Expression)
    assert (rules[3].code, rules[3].is_value) == (b"\x77\x10", False)
    assert isinstance(rules[6], Expression)
    assert (rules[6].code, rules[6].is_value) == (b"\x33", True)


def test_states_are_remembered_with_the_frame_address() -> None:
    program = bytes.fromhex("41 0e20 0a 41 0e08 c6 41 0b")
    assert [row_of(program, 0x1000 + i).cfa for i in range(4)] == [
        CfaRule(7, 8),
        CfaRule(7, 32),
        CfaRule(7, 8),
        CfaRule(7, 32),
    ]


def test_advances_of_all_sizes_move_the_location() -> None:
    program = b"\x02\x10\x0e\x10" + b"\x03\x20\x00\x0e\x20" + b"\x04\x30\x00\x00\x00\x0e\x30"
    program += b"\x01" + struct.pack("<Q", 0x1080) + b"\x0e\x40"
    offsets = {pc: row_of(program, pc).cfa for pc in (0x100F, 0x1010, 0x102F, 0x1030, 0x105F, 0x1060, 0x107F, 0x1080)}
    assert [rule.offset for rule in offsets.values() if isinstance(rule, CfaRule)] == [8, 16, 16, 32, 32, 48, 48, 64]


def test_a_signal_frame_is_told_by_its_augmentation() -> None:
    assert row_of(b"", 0x1000, augmentation=b"zRS\0").signal_frame
    assert not row_of(b"", 0x1000).signal_frame


def test_personality_and_lsda_are_passed_over() -> None:
    row = row_of(b"", 0x1000, augmentation=b"zPLR\0", more=b"\x03\x01\x02\x03\x04\x0c\x00")
    assert row.cfa == CfaRule(7, 8)


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("0b", "none is remembered"),
        ("0a" * 70, "states are remembered"),
        ("3f", "is not known"),
        ("0f 01 30 0e 10", "no register and offset"),
        ("05 80 02 01", "register 256"),
        ("0f 40", "do not fit"),
        ("0e", "do not fit"),
        ("0e 80 80 80 80 80 80 80 80 80 80 80", "longer than 10"),
    ],
)
def test_a_broken_program_is_one_sentence(program: str, what: str) -> None:
    with pytest.raises(CorruptStructure, match=what):
        row_of(bytes.fromhex(program), 0x1000)


def test_a_program_without_a_frame_address_is_refused() -> None:
    with pytest.raises(CorruptStructure, match="no rule for the canonical frame address"):
        row_of(b"", 0x1000, cie_program=b"")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (struct.pack("<II", 4, 0), "expected an FDE"),
        (struct.pack("<II", 3, 0), "expected 4 to"),
        (struct.pack("<IQI", 0xFFFFFFFF, 1 << 40, 0), "expected 4 to"),
        (struct.pack("<III", 8, 4, 0), "expected a CIE"),
    ],
)
def test_an_entry_that_is_none_is_one_sentence(data: bytes, what: str) -> None:
    with pytest.raises(CorruptStructure, match=what):
        reader(data + bytes(64)).fde(ADDRESS)


def test_an_entry_whose_bytes_are_not_known_is_none() -> None:
    data = entries(b"\x0c\x07\x08", b"")
    at = ADDRESS + 4 + struct.unpack("<I", data[:4])[0]
    assert reader(data).fde(at) is not None
    assert reader(data[:-1]).fde(at) is None
    assert reader(b"").fde(ADDRESS) is None


@given(st.binary(max_size=100), st.binary(max_size=60), st.integers(0, 1 << 64))
def test_any_bytes_give_a_row_nothing_or_one_error(program: bytes, head: bytes, pc: int) -> None:
    for data, at in ((entries(program[:20], program), None), (head + program, ADDRESS)):
        frame = reader(data)
        try:
            fde = frame.fde(at if at is not None else ADDRESS + 4 + struct.unpack("<I", data[:4])[0])
            if fde is not None:
                frame.row(fde, pc)
        except CorruptStructure:
            continue

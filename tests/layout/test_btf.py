"""BTF put together by hand, in both byte orders, and broken BTF; GCC's own is in test_dwarf.py.

The numbers are those of include/uapi/linux/btf.h (Linux 7.2).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcore2core.errors import LayoutInvalid
from vmcore2core.layout.btf import BtfSource, find_btf_candidates, validate_btf

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, FLOAT, ENUM64 = 1, 2, 3, 4, 5, 6, 8, 10, 16, 19
KFLAG = 1 << 31


class Builder:
    """Types get their IDs from 1 on in the order in which they are added."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        needle = b"\0" + text.encode() + b"\0"
        if needle not in self.strings:
            self.strings += needle[1:]
        return self.strings.index(needle) + 1

    def add(
        self, kind: int, name: str, size_or_type: int, records: Sequence[Sequence[int]] = (), vlen: int = -1
    ) -> int:
        flags = kind & KFLAG
        count = len(records) if vlen < 0 else vlen
        words = [self.name(name), flags | (kind & 0x1F) << 24 | count, size_or_type]
        self.types += struct.pack(f"{self.order}3I", *words)
        for record in records:
            self.types += struct.pack(f"{self.order}{len(record)}I", *(value & 0xFFFF_FFFF for value in record))
        self.count += 1
        return self.count

    def integer(self, name: str, size: int) -> int:
        return self.add(INT, name, size, [[8 * size]], vlen=0)

    def struct(self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT) -> int:
        """Add a struct; members are (name, type ID, offset in bits)."""
        return self.add(kind, name, size, [(self.name(n), t, o) for n, t, o in members])

    def blob(self) -> bytes:
        header = struct.pack(
            f"{self.order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


def sample(order: str = "<") -> Builder:
    b = Builder(order)
    ulong, u8 = b.integer("unsigned long", 8), b.integer("char", 1)
    pointer = b.add(PTR, "", b.add(CONST, "", u8))
    comm = b.add(ARRAY, "", 0, [(u8, ulong, 16)], vlen=0)
    inner = b.struct("", 8, ("a", ulong, 0), ("b", u8, 0), kind=UNION)
    thread = b.struct("thread_struct", 24, ("sp", ulong, 0), ("fsbase", b.add(TYPEDEF, "u64", ulong), 128))
    bits = b.struct("bits", 4, ("low", u8, 3 << 24 | 0), ("high", u8, 5 << 24 | 11), kind=STRUCT | KFLAG)
    b.struct(
        "task_struct",
        80,
        ("stack", pointer, 0),
        ("comm", comm, 64),
        ("", inner, 192),
        ("thread", thread, 256),
        ("f", bits, 448),
    )
    b.add(ENUM, "", 4, [(b.name("MINUS"), -2), (b.name("SEVEN"), 7)])
    b.add(ENUM64, "", 8, [(b.name("BIG"), 1, 2)])
    return b


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_say_the_same(order: str) -> None:
    source = BtfSource(sample(order).blob(), "BTF", pointer_size=8)
    told = {}
    for path in ("stack", "comm", "a", "b", "thread", "thread.sp", "thread.fsbase", "f.low", "f.high"):
        member = source.member("task_struct", path)
        assert member is not None
        told[path] = member.offset, member.size, member.bit_offset, member.bit_size
    assert told == {
        "stack": (0, 8, None, None),
        "comm": (8, 16, None, None),
        "a": (24, 8, None, None),
        "b": (24, 1, None, None),
        "thread": (32, 24, None, None),
        "thread.sp": (32, 8, None, None),
        "thread.fsbase": (48, 8, None, None),
        "f.low": (56, 1, 0, 3),
        "f.high": (57, 1, 3, 5),
    }
    assert (source.size("task_struct"), source.size("u64"), source.size("none")) == (80, None, None)
    assert [source.constant(name) for name in ("MINUS", "SEVEN", "BIG", "NONE")] == [-2, 7, 2 << 32 | 1, None]
    assert validate_btf(sample(order).blob()) is None


def test_a_pointer_has_the_size_of_the_machines() -> None:
    member = BtfSource(sample().blob(), "BTF", pointer_size=4).member("task_struct", "stack")
    assert member is not None
    assert (member.size, member.type_name) == (4, "char *")


def test_structures_that_hold_each_other_do_not_multiply() -> None:
    """40 anonymous members that are each the structure itself, 32 levels deep, would take for ever."""
    b = Builder()
    b.struct("a", 8, *(("", 2, 64 * i) for i in range(40)))
    b.struct("", 8, *(("", i % 2 + 1, 64 * i) for i in range(40)))
    assert BtfSource(b.blob(), "BTF", pointer_size=8).member("a", "missing") is None


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_what_looks_like_a_type_within_another_is_none(order: str) -> None:
    """Values of enumerators and sizes of bit fields stand in the byte in which a type has its kind."""
    b = Builder(order)
    number = b.integer("int", 4)
    for kind in range(1, 20):
        b.add(ENUM, f"enum{kind}", 4, [(b.name(f"E{kind}"), kind << 24 | 2), (b.name(f"F{kind}"), kind << 24)])
        b.struct(f"bits{kind}", 4, ("low", number, kind << 24), ("high", number, kind << 24 | 7), kind=STRUCT | KFLAG)
    last = b.struct("last", 4, ("only", number, 0))
    source = BtfSource(b.blob(), "BTF", pointer_size=8)
    assert len(source.btf.starts) == last
    assert source.size("last") == 4
    for kind in range(1, 20):
        assert source.constant(f"E{kind}") == kind << 24 | 2
        high = source.member(f"bits{kind}", "high")
        assert high is not None
        assert (high.bit_offset, high.bit_size) == (7, kind)
    assert validate_btf(b.blob()) is None


def test_a_typedef_of_itself_ends() -> None:
    b = Builder()
    b.add(TYPEDEF, "t", 1)
    b.struct("a", 8, ("m", 1, 0))
    source = BtfSource(b.blob(), "BTF", pointer_size=8)
    assert source.size("t") is None
    member = source.member("a", "m")
    assert member is not None
    assert member.size is None


def test_an_array_of_itself_ends() -> None:
    b = Builder()
    b.add(ARRAY, "", 0, [(1, 1, 7)], vlen=0)
    b.struct("a", 8, ("m", 1, 0))
    member = BtfSource(b.blob(), "BTF", pointer_size=8).member("a", "m")
    assert member is not None
    assert member.size is None


@pytest.mark.parametrize("size", range(len(sample().blob())))
def test_a_blob_that_is_cut_off_is_not_valid(size: int) -> None:
    assert validate_btf(sample().blob()[:size]) is not None


def broken(change: str) -> bytes:
    data, b = bytearray(sample().blob()), sample()
    if change == "name of a type":
        struct.pack_into("<I", data, 24, len(b.strings))
    elif change == "type of a pointer":
        struct.pack_into("<I", data, 24 + 16 * 2 + 12 + 8, b.count + 1)  # after two integers and the const
    elif change == "kind":
        data[24 + 7] = 20
    elif change == "no NUL at the end":
        data[-1] = 1
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("name of a type", "a BTF type's name is beyond the string section"),
        ("type of a pointer", "a BTF type refers to one that does not exist"),
        ("kind", "BTF type 1 at 0x0 is of kind 20, expected 1 to 19"),
        ("no NUL at the end", "the BTF string section does not begin and end with NUL"),
    ],
)
def test_what_is_wrong_is_said(change: str, sentence: str) -> None:
    assert validate_btf(broken(change)) == sentence


def test_a_member_of_a_type_that_does_not_exist_is_said() -> None:
    b = sample()
    b.struct("a", 8, ("m", b.count + 2, 0))
    assert validate_btf(b.blob()) == "a BTF member's name or type is out of range"


@settings(max_examples=300, deadline=None)
@given(
    order=st.sampled_from("<>"),
    pokes=st.lists(st.tuples(st.integers(0, len(sample().blob()) - 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_blob_raises_nothing_but_the_documented_error(order: str, pokes: list[tuple[int, int]]) -> None:
    data = bytearray(sample(order).blob())
    for at, value in pokes:
        data[at] = value
    sentence = validate_btf(bytes(data))
    assert sentence is None or "\n" not in sentence
    try:
        source = BtfSource(bytes(data), "BTF", pointer_size=8)
        for path in ("stack", "comm", "a", "thread.fsbase", "f.high"):
            source.member("task_struct", path)
        source.size("thread_struct")
        source.constant("SEVEN")
    except LayoutInvalid:
        pass


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_search_finds_what_is_large_enough_and_looks_right(order: str) -> None:
    b = sample(order)
    b.strings += b"x" * (64 << 10) + b"\0"
    blob = b.blob()
    decoy = struct.pack(f"{order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, 6, 6, 1 << 20)  # the types' length is no multiple of 4
    block = bytes(100) + decoy + bytes(28) + sample(order).blob().ljust(400, b"\0") + blob
    at = len(block) - len(blob)
    assert (at, len(blob)) in find_btf_candidates(block)
    assert 100 not in dict(find_btf_candidates(block))
    assert len(find_btf_candidates(block)) == 1
    assert find_btf_candidates(block[: at + 10]) == []

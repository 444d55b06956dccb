"""kallsyms tables, as scripts/kallsyms.c writes them and as no kernel does.

Tests layout/kallsyms_names.py.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.builders.kallsyms import FakeMemory, Form, Symbol, Tables, build, compress, length_bytes
from vmcore2core.errors import LayoutInvalid, MemoryFault, NotMapped
from vmcore2core.interfaces import ByteOrder
from vmcore2core.layout.kallsyms import KallsymsSource
from vmcore2core.layout.kallsyms_names import SymbolNames
from vmcore2core.layout.vmcoreinfo import parse_vmcoreinfo

TEXT = 0xFFFF_FFFF_8100_0000
FORMS: tuple[Form, ...] = ("place-relative", "base-relative", "absolute per-CPU")
LONG = "_RNvMs0_" + "NtNtCs5l0EXMQXRMU_6kernel" * 18 + "_E"  # 460 characters, as Rust's mangling makes them

SYMBOLS: tuple[Symbol, ...] = (
    (TEXT, "T", "_stext"),
    (TEXT + 0x40, "t", "cleanup"),
    (TEXT + 0x40, "T", "do_one_initcall"),
    (TEXT + 0x90, "t", "do_one_initcall.cold"),
    (TEXT + 0x1230, "t", "cleanup"),
    (TEXT + 0x2000, "t", LONG),
    (TEXT + 0x2100, "T", "schedule"),
    (TEXT + 0x2200, "t", "__schedule"),
    (TEXT + 0x2300, "T", "schedule_timeout"),
    (TEXT + 0xA0_A640, "D", "init_task"),
    (TEXT + 0xA0_B000, "D", "init_uts_ns"),
    (TEXT + 0xA0_C000, "R", "__start_BTF"),
)
WITNESSES = {"_stext": TEXT, "init_uts_ns": TEXT + 0xA0_B000}


def order_name(order: str) -> ByteOrder:
    return "little" if order == "<" else "big"


def opened(tables: Tables, order: str = "<", witnesses: dict[str, int] | None = None) -> KallsymsSource:
    lines = [b"SYMBOL(%s)=%x\n" % (k.encode(), v) for k, v in (WITNESSES if witnesses is None else witnesses).items()]
    info = parse_vmcoreinfo(tables.vmcoreinfo() + b"".join(lines))
    source = KallsymsSource.from_vmcoreinfo(tables.memory, info, order_name(order))
    assert source is not None
    return source


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("form", FORMS)
def test_every_symbol_has_its_address(form: Form, order: str) -> None:
    source = opened(build(SYMBOLS, form, order=order), order)
    first: dict[str, int] = {}
    for address, _, name in SYMBOLS:
        first.setdefault(name, address)
    assert {name: source.symbol(name) for name in first} == first
    assert source.num_syms == len(SYMBOLS)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("place-relative", "place-relative"),
        ("base-relative", "base-relative"),
        ("absolute per-CPU", "base-relative, absolute per-CPU"),
    ],
)
def test_the_form_is_found_out(form: Form, expected: str, order: str) -> None:
    assert opened(build(SYMBOLS, form, order=order), order).form == expected


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("form", ["place-relative", "base-relative"])
def test_a_32_bit_kernel_has_a_base_of_32_bits_and_addresses_that_wrap_there(form: Form, order: str) -> None:
    """Nothing but zeros would follow the base if 64 bits of it were read: here something does."""
    symbols: tuple[Symbol, ...] = (
        (0xC100_0000, "T", "_stext"),
        (0xC180_0000, "D", "init_uts_ns"),
        (0xFFFF_FFF0, "d", "last"),
    )
    tables = build(symbols, form, order=order, at=0xC1A0_0004, word=4)
    body = tables.memory.pieces[0xC1A0_0004]
    body.extend(b"\xff\xee\xdd\xcc")
    lines = b"SYMBOL(_stext)=c1000000\nSYMBOL(init_uts_ns)=c1800000\n"
    source = KallsymsSource.from_vmcoreinfo(
        tables.memory, parse_vmcoreinfo(tables.vmcoreinfo() + lines), order_name(order), 4
    )
    assert source is not None
    assert [source.symbol(name) for _, _, name in symbols] == [address for address, _, _ in symbols]


def test_the_builder_compresses_as_the_kernels_script_does() -> None:
    """optimize_result(): 255 is the most frequent pair, and a token may be made of tokens."""
    coded, tokens = compress((b"Tababab", b"tabab"))
    assert tokens[255] == b"ab"
    assert tokens[254] == b"abab"
    assert tokens[ord("T")] == b"T"
    assert tokens[ord("x")] == b""
    assert [b"".join(tokens[code] for code in name) for name in coded] == [b"Tababab", b"tabab"]
    assert sum(map(len, coded)) < len(b"Tababab" + b"tabab")


def test_of_several_symbols_of_one_name_the_first_is_given() -> None:
    assert opened(build(SYMBOLS)).symbol("cleanup") == TEXT + 0x40


def test_a_witness_may_be_any_of_several_symbols_of_its_name() -> None:
    symbols = [*SYMBOLS[:4], (TEXT + 0x1000, "t", "prb"), (TEXT + 0x1100, "t", "prb"), *SYMBOLS[5:]]
    assert opened(build(symbols), witnesses={"prb": TEXT + 0x1100}).symbol("schedule") == TEXT + 0x2100


@pytest.mark.parametrize(
    "name", ["", "T", "Tschedule", "chedule", "schedul", "schedule\n", "cold", "nothing", "\n", "é"]
)
def test_a_part_of_a_name_is_not_the_symbol(name: str) -> None:
    assert opened(build(SYMBOLS)).symbol(name) is None


def test_a_name_may_be_one_token() -> None:
    names = ("ab", "ab", "ab", "ab", "cab", "abab")
    coded, _ = compress(tuple(b"t" + name.encode() for name in names))
    assert len(coded[0]) == 1
    source = opened(build((*SYMBOLS, *((TEXT + 0x3000 + at, "t", name) for at, name in enumerate(names)))))
    assert source.all_symbols("ab") == tuple(TEXT + 0x3000 + at for at in range(4))
    assert (source.symbol("cab"), source.symbol("abab")) == (TEXT + 0x3004, TEXT + 0x3005)
    assert source.symbol("b") is None


def test_symbol_type_is_not_part_of_the_name() -> None:
    symbols = [(TEXT, "T", "_stext"), (TEXT + 8, "t", "T"), (TEXT + 16, "T", "t"), (TEXT + 24, "A", "TT")]
    source = opened(build(symbols))
    assert [source.symbol(name) for name in ("T", "t", "TT")] == [TEXT + 8, TEXT + 16, TEXT + 24]


@pytest.mark.parametrize("length", [1, 126, 127, 128, 129, 254, 255, 256, 257, 511, 2047])
def test_names_of_any_length_are_skipped_and_read(length: int) -> None:
    """The two forms of a length meet at 128 codes; here no pair occurs twice, so that codes are characters."""
    name = (bytes(range(33, 127)) * 40)[:length].decode()
    coded, _ = compress((f"t{name}".encode(),), nr_tokens=0)
    assert len(coded[0]) == length + 1
    tables = uncompressed([(TEXT, "T", "_stext"), (TEXT + 8, "t", name), (TEXT + 16, "T", "after")])
    source = opened(tables)
    assert source.symbol("after") == TEXT + 16
    assert source.symbol(name) == TEXT + 8


def uncompressed(symbols: list[Symbol]) -> Tables:
    """Build tables in which every code is its own character."""
    tables = build(symbols, at=TEXT + 0x200_0000)
    names = b""
    for _, letter, name in symbols:
        text = f"{letter}{name}".encode()
        names += length_bytes(len(text)) + text
    tokens = [bytes([code]) if 33 <= code < 127 else b"" for code in range(256)]
    index = [sum(len(token) + 1 for token in tokens[:code]) for code in range(256)]
    for name, data in (
        ("names", names),
        ("token_table", b"".join(token + b"\0" for token in tokens)),
        ("token_index", struct.pack("<256H", *index)),
    ):
        at = max(tables.memory.pieces) + 0x10_0000
        tables.memory.pieces[at] = bytearray(data + bytes(16))
        tables.addresses[name] = at
    return tables


def test_length_bytes_are_those_of_the_kernels_script() -> None:
    """write_src(): 0x7f fits one byte; 0x80 is 0x80 0x01; kallsyms_expand_symbol() takes seven bits of each."""
    assert [length_bytes(n) for n in (1, 0x7F, 0x80, 0xFF, 0x100, 0x3FFF)] == [
        b"\x01",
        b"\x7f",
        b"\x80\x01",
        b"\xff\x01",
        b"\x80\x02",
        b"\xff\x7f",
    ]


def test_percpu_symbols_are_absolute_and_others_are_not() -> None:
    symbols = [(0, "A", "__per_cpu_start"), (0x2A000, "A", "cpu_tss_rw"), *SYMBOLS]
    source = opened(build(symbols, "absolute per-CPU"))
    assert source.symbol("cpu_tss_rw") == 0x2A000
    assert source.symbol("__per_cpu_start") == 0
    assert source.symbol("_stext") == TEXT
    assert source.symbol("init_task") == TEXT + 0xA0_A640


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_base_relative_offsets_have_no_sign(order: str) -> None:
    """Since Linux 6.?, arm64 and riscv kernels reach beyond 2 GiB from their base: (u32)kallsyms_offsets[idx]."""
    low = 1 << 32  # so that what is far is still an address
    symbols = [
        *((address - low, kind, name) for address, kind, name in SYMBOLS),
        (TEXT + 0xC000_0000 - low, "D", "far"),
    ]
    witnesses = {name: address - low for name, address in WITNESSES.items()}
    source = opened(build(symbols, at=TEXT - low + 0x200_0000, order=order), order, witnesses)
    assert source.symbol("far") == TEXT + 0xC000_0000 - low


def test_symbols_below_and_above_a_place_relative_table_are_found() -> None:
    source = opened(build(SYMBOLS, "place-relative", at=TEXT + 0x20_0000))
    assert source.symbol("_stext") == TEXT
    assert source.symbol("init_task") == TEXT + 0xA0_A640


def test_the_number_of_symbols_may_stand_right_before_the_names() -> None:
    """As Linux 7.2 lays them out: without padding between."""
    tables = build(SYMBOLS, "place-relative", aligned=False)
    assert tables.addresses["names"] == tables.addresses["num_syms"] + 4
    assert tables.addresses["names"] % 8 == 0
    assert opened(tables).symbol("init_task") == TEXT + 0xA0_A640


def thousands(count: int = 2100) -> list[Symbol]:
    """Symbols for several markers, one of them with a length of two bytes."""
    symbols = [(TEXT + 16 * i, "tTdDrRbB"[i % 8], f"sys_{i:x}_{i * 7919 % 4093:x}") for i in range(count)]
    symbols[0] = (TEXT, "T", "_stext")
    symbols[700] = (symbols[700][0], "T", "long_" + "".join(f"{i * 7919 % 10007:x}" for i in range(120)))
    return symbols


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("marker", ["4", "4, then kallsyms_seqs_of_names", "8"])
def test_thousands_of_symbols_are_told_apart(
    marker: str, aligned: bool, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if aligned or marker == "4":  # as kernels have them
        monkeypatch.delattr(SymbolNames, "_walk")
    for form, count in zip(FORMS, (2048, 2049, 2100), strict=True):  # whole blocks, the smallest rest, odd markers
        symbols = thousands(count)
        tables = build(symbols, form, marker=int(marker[0]), seqs="seqs" in marker, aligned=aligned, order=order)
        source = opened(tables, order)
        assert all(source.symbol(name) == address for address, _, name in [*symbols[::97], symbols[700], symbols[-1]])
        assert source.symbol(symbols[700][2][:-1]) is None


@pytest.mark.parametrize("damage", [b"\x01", b"\xff\xff\xff\xff"])
@pytest.mark.parametrize("place", [0, 4, 28])
def test_names_are_walked_one_by_one_where_the_markers_do_not_fit(
    place: int, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = []
    plain = SymbolNames._walk

    def counted(self: SymbolNames, count: int) -> NDArray[np.uint32]:
        walked.append(count)
        return plain(self, count)

    monkeypatch.setattr(SymbolNames, "_walk", counted)
    symbols = thousands()
    tables = build(symbols)
    assert opened(tables).symbol(symbols[-1][2]) == symbols[-1][0]
    assert walked == []
    tables.write("markers", place, damage)
    source = opened(tables)
    assert all(source.symbol(name) == address for address, _, name in symbols[::97])
    assert walked == [2100]


def test_tables_that_end_where_memory_ends_are_read() -> None:
    """The page after .rodata may not be in the dump."""
    for size in (1, 8, 4096):
        tables = build(SYMBOLS * size if size == 1 else SYMBOLS)
        (start, data), *_ = tables.memory.pieces.items()
        pieces = {}
        bounds = [*sorted(tables.addresses.values()), start + len(data)]
        for low, high in pairwise(bounds):
            pieces[low] = data[low - start : high - start]
        tables.memory.pieces = pieces
        assert opened(tables).symbol("init_task") == TEXT + 0xA0_A640


def test_vmcoreinfo_without_the_tables_gives_no_source() -> None:
    tables = build(SYMBOLS)
    for key in ("names", "num_syms", "token_table", "token_index", "offsets"):
        lines = [line for line in tables.vmcoreinfo().splitlines(True) if f"kallsyms_{key})".encode() not in line]
        info = parse_vmcoreinfo(b"".join(lines) + b"SYMBOL(_stext)=%x\n" % TEXT)
        assert KallsymsSource.from_vmcoreinfo(tables.memory, info, "little") is None


@pytest.mark.parametrize("form", FORMS)
def test_a_table_that_disagrees_with_vmcoreinfo_is_refused(form: Form) -> None:
    with pytest.raises(LayoutInvalid, match=r"does not agree with VMCOREINFO .*init_uts_ns=0xffffffff81a0b008"):
        opened(build(SYMBOLS, form), witnesses={"_stext": TEXT, "init_uts_ns": TEXT + 0xA0_B008})


def test_a_table_that_no_witness_is_in_is_refused() -> None:
    with pytest.raises(LayoutInvalid, match="does not agree"):
        opened(build(SYMBOLS), witnesses={"swapper_pg_dir": TEXT})


def test_without_any_witness_a_table_is_refused() -> None:
    with pytest.raises(LayoutInvalid):
        opened(build(SYMBOLS), witnesses={})


# ---------------------------------------------------------------------------------------------------------------------


def refused(tables: Tables, order: str = "<") -> str:
    """Return the error of a source that cannot be used; it must come soon."""
    begin = time.process_time()
    with pytest.raises((LayoutInvalid, MemoryFault)) as caught:
        opened(tables, order).symbol("init_task")
    assert time.process_time() - begin < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("num_syms", [0, (1 << 24) + 1, 1 << 31, 0xFFFF_FFFF])
def test_an_impossible_number_of_symbols_is_refused(num_syms: int) -> None:
    tables = build(SYMBOLS)
    tables.write("num_syms", 0, struct.pack("<I", num_syms))
    message = refused(tables)
    assert f"{tables.addresses['num_syms']:#x}" in message
    assert str(num_syms) in message
    assert "expected 1 to 16777216" in message


@pytest.mark.parametrize("num_syms", [1 << 24, 100_000])
def test_more_symbols_than_there_are_end_at_the_end_of_memory(num_syms: int) -> None:
    tables = build(SYMBOLS)
    tables.write("num_syms", 0, struct.pack("<I", num_syms))
    refused(tables)


@pytest.mark.no_cover
@pytest.mark.parametrize("num_syms", [1 << 24])
def test_the_most_symbols_in_endless_memory_take_a_bounded_time(num_syms: int) -> None:
    """A dump in which all memory behind the table reads as one page over and over."""
    tables = build(SYMBOLS)
    tables.write("num_syms", 0, struct.pack("<I", num_syms))

    class Endless(FakeMemory):
        def read(self, address: int, size: int) -> bytes:
            self.bytes_read += size
            try:
                return super().read(address, size)
            except NotMapped:
                return b"\x01" * size

    tables.memory = Endless(tables.memory.pieces)
    begin = time.process_time()
    with pytest.raises((LayoutInvalid, MemoryFault)):
        opened(tables)
    assert tables.memory.bytes_read < 1 << 28
    assert time.process_time() - begin < 60


@pytest.mark.parametrize(
    "index",
    [
        pytest.param([0xFFFF] * 256, id="beyond the table"),
        pytest.param([0] * 256, id="all the same"),
        pytest.param([1, *range(2, 257)], id="does not begin at 0"),
        pytest.param(list(range(255, -1, -1)), id="descending"),
        pytest.param([2 * i for i in range(255)] + [60000], id="last one far beyond"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_a_token_index_that_does_not_fit_the_token_table_is_refused(index: list[int], order: str) -> None:
    tables = build(SYMBOLS, order=order)
    tables.write("token_index", 0, struct.pack(order + "256H", *index))
    refused(tables, order)


def test_a_token_that_is_not_ended_by_a_nul_is_refused() -> None:
    tables = build(SYMBOLS)
    tables.write("token_table", 0, b"x")
    assert f"{tables.addresses['token_index']:#x}" in refused(tables)


def test_a_token_table_without_an_end_is_refused() -> None:
    tables = build(SYMBOLS)
    last = sum(len(token) + 1 for token in compress(tuple(f"{t}{n}".encode() for _, t, n in SYMBOLS))[1][:255])
    at = 0xFFFF_FFFF_9000_0000
    (start, data), *_ = tables.memory.pieces.items()
    table = data[tables.addresses["token_table"] - start :][:last] + b"x" * (1 << 18)
    tables.memory.pieces[at] = table
    tables.addresses["token_table"] = at
    assert f"kallsyms_token_table at {at:#x} does not end" in refused(tables)


@pytest.mark.parametrize("table", ["names", "num_syms", "token_table", "token_index", "offsets", "relative_base"])
@pytest.mark.parametrize("address", [0, 0xDEAD_0000_0000_0000, (1 << 64) - 4, 1 << 64], ids=hex)
def test_a_table_where_no_memory_is_faults(table: str, address: int) -> None:
    tables = build(SYMBOLS)
    tables.addresses[table] = address
    refused(tables)


@pytest.mark.parametrize("length", [0, 0x7F, 0x80, 0xFF])
def test_names_that_run_on_beyond_their_table_are_refused(length: int) -> None:
    tables = build(SYMBOLS)
    tables.write("names", 0, bytes([length]) * 4096)
    refused(tables)


def test_a_length_whose_second_byte_is_not_in_memory_faults() -> None:
    tables = build([(TEXT, "T", "_stext")])
    at = 0xFFFF_FFFF_9000_0000
    tables.memory.pieces[at] = bytearray(b"\x81")
    tables.addresses["names"] = at
    refused(tables)


def test_a_name_of_no_codes_hides_none_of_the_others() -> None:
    """scripts/kallsyms.c never writes one; an empty name between others must not shift those after it."""
    tables = uncompressed([(TEXT, "T", "_stext"), (TEXT + 8, "t", "a"), (TEXT + 16, "T", "after")])
    names = b"\x07T_stext" + b"\x00" + b"\x06Tafter"
    at = 0xFFFF_FFFF_9000_0000
    tables.memory.pieces[at] = bytearray(names + bytes(16))
    tables.addresses["names"] = at
    try:
        source = opened(tables)
    except LayoutInvalid:
        return
    assert source.symbol("after") == TEXT + 16


@pytest.mark.parametrize("damage", ["names", "token_table", "token_index", "offsets", "num_syms"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_tables_raise_nothing_but_the_documented_errors(damage: str, data: st.DataObject) -> None:
    order = data.draw(st.sampled_from("<>"))
    tables = build(SYMBOLS, data.draw(st.sampled_from(FORMS)), order=order)
    at = data.draw(st.integers(0, 3 if damage == "num_syms" else 40))
    tables.write(damage, at, data.draw(st.binary(min_size=1, max_size=16)))
    try:
        source = opened(tables, order)
        for name in ("init_task", "schedule", "nothing"):
            found = source.symbol(name)
            assert found is None or 0 <= found < 1 << 64
    except (LayoutInvalid, MemoryFault):
        pass


@pytest.mark.parametrize("wrong", ["<", ">"])
def test_the_other_byte_order_is_refused(wrong: str) -> None:
    right = ">" if wrong == "<" else "<"
    refused(build(SYMBOLS, order=right), wrong)


def without(*names: str) -> Callable[[Symbol], bool]:
    return lambda symbol: symbol[2] not in names


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_address_has_the_symbol_before_it(form: Form, order: str) -> None:
    source = opened(build(SYMBOLS, form, order=order), order)
    for address, name, start, end in (
        (TEXT, b"_stext", TEXT, TEXT + 0x40),
        (TEXT + 0x3F, b"_stext", TEXT, TEXT + 0x40),
        (TEXT + 0x40, b"cleanup", TEXT + 0x40, TEXT + 0x90),  # of two at one address, the first
        (TEXT + 0x2080, LONG.encode(), TEXT + 0x2000, TEXT + 0x2100),
        (TEXT + 0xA0_C007, b"__start_BTF", TEXT + 0xA0_C000, TEXT + 0xA0_C000),
    ):
        found = source.symbol_at(address)
        assert found is not None
        assert (found.name, found.start, found.size) == (name, start, end - start)
    assert source.symbol_at(TEXT - 1) is None

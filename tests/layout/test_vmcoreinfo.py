"""VMCOREINFO text as kernel/vmcore_info.c writes it, whole, cut off, and mixed with what it is not."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import Member
from vmcore2core.layout.vmcoreinfo import (
    VmcoreInfo,
    VmcoreInfoSource,
    looks_like_vmcoreinfo,
    merged,
    parse_vmcoreinfo,
)

VMCOREINFO_BYTES = 4096  # include/linux/vmcore_info.h: PAGE_SIZE

# What a 7.2.13 kernel's note says, one line of each form.
TEXT = b"""\
OSRELEASE=7.2.13
BUILD-ID=98b991402ea8283d180b94137934f7227cc343ce
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffffa3ac9080
OFFSET(uts_namespace.name)=0
NUMBER(VMALLOC_START)=0xff4f630580000000
LENGTH(mem_section)=131072
SIZE(list_head)=16
OFFSET(task_struct.__state)=24
NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376
NUMBER(phys_base)=-517996544
NUMBER(pgtable_l5_enabled)=1
KERNELOFFSET=22200000
CRASHTIME=1750000000
"""


def append_str(text: bytes, line: bytes) -> bytes:
    """As vmcoreinfo_append_str() does: what does not fit into the buffer is cut off."""
    return text + line[: VMCOREINFO_BYTES - len(text)]


def test_every_form_of_value_reads_as_the_kernel_wrote_it() -> None:
    info = parse_vmcoreinfo(TEXT)
    assert info.osrelease == "7.2.13"
    assert info.build_id == "98b991402ea8283d180b94137934f7227cc343ce"
    assert info.page_size == 4096
    assert info.kernel_offset == 0x2220_0000
    assert info.symbol("init_uts_ns") == 0xFFFF_FFFF_A3AC_9080
    assert info.offset("uts_namespace", "name") == 0
    assert info.offset("task_struct", "__state") == 24
    assert info.size("list_head") == 16
    assert info.length("mem_section") == 131072
    assert info.number("VMALLOC_START") == 0xFF4F_6305_8000_0000
    assert info.number("PAGE_SLAB_MAPCOUNT_VALUE") == -184549376
    assert info.number("phys_base") == -517996544
    assert info.string("CRASHTIME") == "1750000000"
    assert (info.truncated_line, info.ignored) == (None, 0)
    assert len(info.values) == 14


def test_keys_of_another_kind_are_not_each_others() -> None:
    info = parse_vmcoreinfo(TEXT)
    assert info.size("mem_section") is None
    assert info.length("list_head") is None
    assert info.number("init_uts_ns") is None
    assert info.symbol("phys_base") is None
    assert info.offset("uts_namespace", "nam") is None
    assert info.string("OSRELEAS") is None


def test_decimal_digits_of_a_symbol_are_hexadecimal() -> None:
    info = parse_vmcoreinfo(b"SYMBOL(_stext)=8000000000001000\nKERNELOFFSET=10\nSIZE(page)=64\n")
    assert info.symbol("_stext") == 0x8000_0000_0000_1000
    assert info.kernel_offset == 0x10
    assert info.size("page") == 64


@pytest.mark.parametrize(
    "line",
    [b"OFFSET(task_struct.mm)=2336\n", b"SYMBOL(init_task)=ffffffff8260a640\n", b"NUMBER(phys_base)=-16777216\n"],
)
def test_a_line_cut_off_at_the_end_of_the_buffer_is_never_a_value(line: bytes) -> None:
    key = line.split(b"=")[0].decode()
    for left in range(1, len(line)):
        filler = b"X=" + b"0" * (VMCOREINFO_BYTES - left - 3) + b"\n"
        text = append_str(filler, line)
        assert len(text) == VMCOREINFO_BYTES
        info = parse_vmcoreinfo(text)
        assert key not in info.values, f"{left} bytes fit"
        assert info.values.keys() == {"X"}
        assert info.truncated_line == line[:left].decode()
    whole = append_str(b"X=" + b"0" * (VMCOREINFO_BYTES - len(line) - 3) + b"\n", line)
    assert len(whole) == VMCOREINFO_BYTES
    assert key in parse_vmcoreinfo(whole).values
    assert parse_vmcoreinfo(whole).truncated_line is None


def test_a_text_cut_off_anywhere_tells_no_value_that_the_whole_does_not() -> None:
    whole = parse_vmcoreinfo(TEXT).values
    for size in range(len(TEXT)):
        assert parse_vmcoreinfo(TEXT[:size]).values.items() <= whole.items()


def test_of_a_repeated_key_the_first_counts() -> None:
    """As makedumpfile reads it: the search ends with the first line that has the key."""
    info = parse_vmcoreinfo(b"SIZE(page)=64\nSIZE(page)=56\nSIZE(page)=\n")
    assert info.size("page") == 64


def test_nul_padding_after_the_text_is_not_part_of_it() -> None:
    """The note's descriptor is as large as the buffer, which is zeroed."""
    assert parse_vmcoreinfo(TEXT.ljust(VMCOREINFO_BYTES, b"\0")).values == parse_vmcoreinfo(TEXT).values
    assert parse_vmcoreinfo(TEXT + b"\0" * 3).truncated_line is None
    assert parse_vmcoreinfo(b"\0" * 100).values == {}
    assert parse_vmcoreinfo(b"").values == {}


def test_nul_padding_does_not_end_a_line() -> None:
    info = parse_vmcoreinfo(b"SIZE(page)=64\nSIZE(file)=16\0\0\0\0")
    assert info.values == {"SIZE(page)": "64"}
    assert info.truncated_line == "SIZE(file)=16"


@pytest.mark.parametrize(
    "junk",
    [
        b"no equals sign",
        b"=5",
        b"OFFSET(task_struct.mm)",
        b"OFFSET(task_struct.mm=5",
        b"OFFSET()=5",
        b"OFFSET(a b)=5",
        b"OFFSET(a)(b)=5",
        b"SIZE(file)=\xff\xfe",
        b"SIZE(f\0ile)=5",
        b"SIZE(file)=5\r",
        b"\x7fELF=1",
    ],
)
def test_junk_lines_are_counted_and_hide_nothing(junk: bytes) -> None:
    info = parse_vmcoreinfo(b"SIZE(page)=64\n" + junk + b"\nSIZE(list_head)=16\n")
    assert info.values == {"SIZE(page)": "64", "SIZE(list_head)": "16"}
    assert info.ignored == 1


def test_empty_lines_are_not_junk() -> None:
    assert parse_vmcoreinfo(b"\n\nSIZE(page)=64\n\n").ignored == 0


@pytest.mark.parametrize("value", [b"", b"x", b"-8", b"0x10", b"1.5", b"16 bytes", b"99g", b"--1", b"1_6"])
def test_an_offset_that_is_no_decimal_number_is_not_known(value: bytes) -> None:
    info = parse_vmcoreinfo(
        b"OFFSET(a.b)=" + value + b"\nSIZE(a)=" + value + b"\nLENGTH(a)=" + value + b"\nPAGESIZE=" + value + b"\n"
    )
    assert (info.offset("a", "b"), info.size("a"), info.length("a"), info.page_size) == (None,) * 4


@pytest.mark.parametrize("value", [b"", b"xyz", b"1.5", b"0x", b"12 34"])
def test_a_number_or_symbol_that_is_none_is_not_known(value: bytes) -> None:
    info = parse_vmcoreinfo(b"NUMBER(a)=" + value + b"\nSYMBOL(a)=" + value + b"\nKERNELOFFSET=" + value + b"\n")
    assert (info.number("a"), info.symbol("a"), info.kernel_offset) == (None, None, None)


def test_values_cannot_be_changed_afterwards() -> None:
    values = {"SIZE(page)": "64"}
    info = VmcoreInfo(values)
    values["SIZE(page)"] = "1"
    assert info.size("page") == 64
    assert isinstance(info.values, MappingProxyType)


LINES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(TEXT.splitlines()),
        st.tuples(
            st.sampled_from([b"OFFSET(a.b)", b"SIZE(a)", b"NUMBER(a)", b"SYMBOL(a)", b"LENGTH(a)", b"PAGESIZE"]),
            st.binary(max_size=12),
        ).map(b"=".join),
    ),
    max_size=12,
)


@given(LINES, st.integers(0, 200))
def test_parsing_never_raises_and_counts_every_line(lines: list[bytes], cut: int) -> None:
    text = b"\n".join(lines)
    for data in (text, text[:cut], text + b"\n", text.ljust(256, b"\0")):
        info = parse_vmcoreinfo(data)
        assert len(info.values) + info.ignored <= data.count(b"\n")
        for key, value in info.values.items():
            assert f"{key}={value}\n".encode() in data
        for number in (info.offset("a", "b"), info.size("a"), info.length("a"), info.page_size):
            assert number is None or number >= 0
        for number in (info.number("a"), info.symbol("a"), info.kernel_offset):
            assert number is None or isinstance(number, int)
        looks_like_vmcoreinfo(data)


@pytest.mark.parametrize("digits", [4300, 4301, 100_000])
def test_a_value_of_very_many_digits_is_not_a_number_that_takes_long(digits: int) -> None:
    """int() of a decimal text takes quadratic time; Python itself refuses more than 4300 digits."""
    info = parse_vmcoreinfo(b"SIZE(a)=" + b"9" * digits + b"\nNUMBER(a)=" + b"9" * digits + b"\n")
    for number in (info.size("a"), info.number("a")):
        assert number is None or number >= 0


GOOD = b"OSRELEASE=6.12.1-test\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff8260a640\n"


def test_text_found_in_memory_is_believed_only_whole() -> None:
    found = looks_like_vmcoreinfo(GOOD)
    assert found is not None
    assert found.osrelease == "6.12.1-test"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"X" + GOOD, id="does not begin with OSRELEASE"),
        pytest.param(b"OSRELEASE=", id="nothing but the first key"),
        pytest.param(GOOD.replace(b"6.12.1-test", b"%s"), id="the format string of the code that writes it"),
        pytest.param(GOOD.replace(b"PAGESIZE=4096\n", b""), id="no page size"),
        pytest.param(GOOD.replace(b"4096", b"4095"), id="page size is no power of two"),
        pytest.param(GOOD.replace(b"4096", b"0"), id="page size 0"),
        pytest.param(GOOD.replace(b"4096", b"%ld"), id="page size is no number"),
        pytest.param(GOOD.replace(b"init_uts_ns", b"init_uts"), id="no init_uts_ns"),
        pytest.param(GOOD + b"\x80\x81 overwritten\n", id="a line overwritten"),
    ],
)
def test_text_in_memory_that_is_not_vmcoreinfo_is_passed_over(text: bytes) -> None:
    assert looks_like_vmcoreinfo(text) is None


RUNNING = parse_vmcoreinfo(
    b"OSRELEASE=6.12.1\nBUILD-ID=aa11\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffff9a000000\nKERNELOFFSET=19000000\n"
    b"NUMBER(phys_base)=-134217728\nSYMBOL(vmemmap)=ffd0a91840000000\nSIZE(page)=64\n"
)


def supplied(text: bytes) -> VmcoreInfo:
    return parse_vmcoreinfo(b"OSRELEASE=6.12.1\nBUILD-ID=aa11\nPAGESIZE=4096\n" + text)


@pytest.mark.parametrize(
    ("kernel_offset", "address"),
    [
        pytest.param(b"KERNELOFFSET=0\n", b"ffffffff8260a640", id="not moved"),
        pytest.param(b"", b"ffffffff8260a640", id="as the vmlinux has it"),
        pytest.param(b"KERNELOFFSET=19000000\n", b"ffffffff9b60a640", id="same boot"),
        pytest.param(b"KERNELOFFSET=2a000000\n", b"ffffffffac60a640", id="moved further"),
    ],
)
def test_supplied_symbols_come_to_this_boots_kaslr_offset(kernel_offset: bytes, address: bytes) -> None:
    text = supplied(kernel_offset + b"SYMBOL(init_task)=" + address + b"\nOFFSET(task_struct.mm)=912\n")
    info = merged(RUNNING, text)
    assert info.symbol("init_task") == 0xFFFF_FFFF_9B60_A640
    assert info.offset("task_struct", "mm") == 912
    assert info.kernel_offset == 0x1900_0000
    assert info.symbol("_stext") == 0xFFFF_FFFF_9A00_0000


@pytest.mark.parametrize("stext", [0xC100_0000, 0xC200_0000, 0xD520_0000])
def test_without_an_offset_supplied_symbols_are_moved_as_the_kernels_first_is(stext: int) -> None:
    """As on i386, whose VMCOREINFO has no KERNELOFFSET."""
    dump = parse_vmcoreinfo(b"OSRELEASE=6.12.1\nPAGESIZE=4096\nSYMBOL(_stext)=%x\n" % stext)
    info = merged(dump, supplied(b"SYMBOL(_stext)=c2000000\nSYMBOL(init_task)=c260a640\n"))
    assert info.symbol("init_task") == stext + 0x60_A640
    assert info.symbol("_stext") == stext


def test_supplied_keys_go_before_the_dumps_and_the_dumps_fill_the_rest() -> None:
    info = merged(RUNNING, supplied(b"SIZE(page)=56\nSIZE(file)=232\n"))
    assert (info.size("page"), info.size("file")) == (56, 232)
    assert info.number("phys_base") == -134217728


def test_neither_text_is_changed_by_merging() -> None:
    other = supplied(b"SYMBOL(init_task)=ffffffff8260a640\n")
    merged(RUNNING, other)
    assert other.symbol("init_task") == 0xFFFF_FFFF_8260_A640
    assert RUNNING.symbol("init_task") is None


def test_a_symbol_that_is_no_number_is_not_moved() -> None:
    assert merged(RUNNING, supplied(b"SYMBOL(init_task)=junk\n")).symbol("init_task") is None


@pytest.mark.parametrize("key", ["OSRELEASE", "BUILD-ID", "PAGESIZE"])
def test_a_text_of_another_kernel_is_refused_with_both_values(key: str) -> None:
    text = VmcoreInfo({**supplied(b"").values, key: "other"})
    with pytest.raises(LayoutInvalid, match=f"another kernel: its {key} is other, the dump's is {RUNNING.values[key]}"):
        merged(RUNNING, text)


def test_a_text_that_does_not_say_its_kernel_is_taken() -> None:
    assert merged(RUNNING, parse_vmcoreinfo(b"SIZE(file)=232\n")).size("file") == 232


def test_what_differs_at_each_boot_stays_the_dumps() -> None:
    """phys_base is where this boot's image lies, and vmemmap is random by itself (arch/x86/mm/kaslr.c)."""
    text = supplied(b"KERNELOFFSET=0\nNUMBER(phys_base)=0\nSYMBOL(vmemmap)=ffea000000000000\n")
    info = merged(RUNNING, text)
    assert info.number("phys_base") == -134217728
    assert info.symbol("vmemmap") == 0xFFD0_A918_4000_0000


def test_as_a_layout_source_it_answers_by_the_very_key() -> None:
    source = VmcoreInfoSource(
        parse_vmcoreinfo(TEXT + b"OFFSET(mm_struct.saved_auxv)=512\nSIZE(mm_struct.saved_auxv)=416\n")
    )
    assert source.member("task_struct", "__state") == Member(24, "VMCOREINFO")
    assert source.member("mm_struct", "saved_auxv") == Member(512, "VMCOREINFO", 416)
    assert source.member("task_struct", "state") is None
    assert source.size("list_head") == 16
    assert source.symbol("init_uts_ns") == 0xFFFF_FFFF_A3AC_9080
    assert source.constant("phys_base") == -517996544
    assert source.constant("mem_section") == 131072
    assert source.constant("list_head") is None


def test_a_number_goes_before_a_length_of_the_same_name() -> None:
    source = VmcoreInfoSource(parse_vmcoreinfo(b"LENGTH(x)=1\nNUMBER(x)=0\nLENGTH(y)=2\n"), "a name")
    assert source.constant("x") == 0
    assert source.constant("y") == 2
    assert source.name == "a name"

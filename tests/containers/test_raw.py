"""Files without a header: only the user's map says where memory is.

Tests containers/joined.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.elfdump import Load, build_elf_vmcore, page
from tests.builders.kdump import build_kdump
from tests.containers.contract import check_contract, read
from vmcore2core.addresses import AddressRange
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.containers.joined import JoinedFile
from vmcore2core.containers.raw import banks, parse_map
from vmcore2core.errors import DumpError, UnknownFormat, UsageError

PRESENT, MISSING, TRUNCATED = PageState.PRESENT, PageState.MISSING, PageState.TRUNCATED


def dump(tmp_path: Path, raw: bytes, memory_map: str | None) -> DumpContainer:
    path = tmp_path / "memory"
    path.write_bytes(raw)
    return open_container([path], memory_map)


def test_raw_is_memory_from_address_0_on(tmp_path: Path) -> None:
    with dump(tmp_path, b"".join(page(n) for n in range(5)), "raw") as container:
        assert (container.DOC.name, container.warnings, container.notes) == ("raw", [], ())
        assert (container.e_machine, container.byte_order, container.vmcoreinfo) == (None, None, None)
        assert container.memory_ranges() == (AddressRange(0, 5 * 4096),)
        check_contract(container, {n: page(n) for n in range(5)})


def test_without_a_map_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="memory without any header, say what is where with --map"):
        dump(tmp_path, b"\xff\0" + page(0), None).close()
    with pytest.raises(UnknownFormat, match="begins with 4096 zero bytes"):
        dump(tmp_path, bytes(1 << 16), None).close()


MAPS = [
    "0x1000:0x2000@0,0x100000000:4K@0x3000",
    "4096:8192@0, 4G : 4K @0x3000".replace(" :", ":").replace(": ", ":").replace(" @", "@"),
    "4G:4K@0x3000,0x1000:8K@0x0",
    "0x1000:0x1000,0x2000:0x1000,4194304K:4096@12K",
    "0X1000:0X2000@0X0,0x100000000:4K@0x3000,",
]


@pytest.mark.parametrize("text", MAPS)
def test_ranges_are_where_the_map_says(tmp_path: Path, text: str) -> None:
    raw = page(1) + page(2) + page(99) + page(1 << 20)
    with dump(tmp_path, raw, text) as container:
        assert container.memory_ranges() == (AddressRange(0x1000, 0x3000), AddressRange(1 << 32, (1 << 32) + 0x1000))
        check_contract(container, {1: page(1), 2: page(2), 1 << 20: page(1 << 20)})


def test_map_in_a_file_has_comments_and_lines(tmp_path: Path) -> None:
    text = tmp_path / "map"
    text.write_text("# from /proc/iomem\n0x1000:0x1000@0x1000  # low\n\n4G:4K@0,\n")
    with dump(tmp_path, page(1 << 20) + page(1), str(text)) as container:
        check_contract(container, {1: page(1), 1 << 20: page(1 << 20)})


def test_ranges_without_an_offset_lie_one_behind_the_other() -> None:
    """LiME's raw format: each range of System RAM behind the one before it, in the order of /proc/iomem."""
    assert parse_map("0x1000:0x9e000,1M:0x3fe00000,4G:64K", []) == [
        (0x1000, 0, 0x9E000),
        (0x100000, 0x9E000, 0x3FE00000),
        (0x100000000, 0x3FE9E000, 0x10000),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0:1", None),
        ("", "--map: .* is a directory, not a file"),
        (":", "':' is not START:SIZE@OFFSET, such as"),
        ("0:4096@", "is not START:SIZE@OFFSET"),
        ("0:4096@-1", "is not START:SIZE@OFFSET"),
        ("0:4096@1:2", "does not name one of the files"),
        ("1000:0x10zz@0", "is not START:SIZE@OFFSET"),
        ("1e3:4096@0", "is not START:SIZE@OFFSET"),
        ("0:" + "9" * 5000, "is not START:SIZE@OFFSET"),
        ("0:0@0", "'0:0@0' has no size, or ends above 2"),
        ("0xffffffffffffffff:4K@0", r"ends above 2\^56"),
        ("0:4K@0xffffffffffffffff", r"ends above 2\^56"),
        ("0:8K@0,0x1000:4K@0", r"the ranges at 0x0 \(0x2000 bytes\) and 0x1000 overlap"),
        ("0:4K@0,0:4K@0x1000", "overlap"),
        ("/nowhere/map", "--map: /nowhere/map cannot be read: No such file"),
        ("nowhere\0", "--map: .* cannot be read"),
    ],
)
def test_an_impossible_map_is_named(tmp_path: Path, text: str, words: str | None) -> None:
    if words is None:
        dump(tmp_path, page(0), text).close()
        return
    with pytest.raises(UsageError, match=words):
        dump(tmp_path, page(0), text)


def test_a_map_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="is not START:SIZE@OFFSET"):
        dump(tmp_path, page(0), str(path))
    path.write_bytes(b"# nothing\n")
    with pytest.raises(UsageError, match="has no ranges"):
        dump(tmp_path, page(0), str(path))
    path.write_bytes(b"0:1\n" * (1 << 19))
    with pytest.raises(UsageError, match="has more than 1048576 bytes"):
        dump(tmp_path, page(0), str(path))


@pytest.mark.parametrize("raw", [build_elf_vmcore([Load(0x1000, page(1))]), build_kdump({1: page(1)})])
def test_a_map_for_a_file_with_a_header_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(UsageError, match="tells itself where memory lies: --map is for files without a header"):
        dump(tmp_path, raw, "raw")


def test_a_range_behind_the_end_of_the_file_is_truncated(tmp_path: Path) -> None:
    with dump(tmp_path, page(0) + page(1)[:-1], "0:0x3000@0") as container:
        assert read(container, 0, 1, 2, 3)[0] == [PRESENT, TRUNCATED, TRUNCATED, MISSING]
        assert container.warnings == [
            "the file is cut off: it ends at 0x1fff, and 2 of the 3 pages that --map's ranges describe lie behind that"
        ]


def test_ranges_that_are_not_whole_pages_have_the_pages_within(tmp_path: Path) -> None:
    raw = b"x" * 0x800 + page(1) + page(2) + b"y" * 0x800
    with dump(tmp_path, raw, "0x800:0x3000@0") as container:
        check_contract(container, {1: page(1), 2: page(2)})
        assert read(container, 0, 3)[0] == [MISSING, MISSING]


def test_empty_file_and_two_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="the file is empty"):
        dump(tmp_path, b"", "raw")
    path = tmp_path / "memory"
    with pytest.raises(UsageError, match="--map raw: that is one file, and 2 were given; expected FILE@START for each"):
        open_container([path, path], "raw")


def banked(tmp_path: Path) -> tuple[Path, Path]:
    """Two banks of memory: page frames 2 and 3, the last of which is cut off, and 0x100 and 0x101."""
    low, high = tmp_path / "ddr0.bin", tmp_path / "ddr1.bin"
    low.write_bytes(page(2) + page(3)[:-16])
    high.write_bytes(page(0x100) + page(0x101))
    return low, high


@pytest.mark.parametrize("one_word", [False, True])
def test_banks_are_where_their_names_say(tmp_path: Path, one_word: bool) -> None:
    """As crash has it: ``crash vmlinux ddr0.bin@0x2000,ddr1.bin@0x100000``."""
    low, high = banked(tmp_path)
    words = [f"{high}@0x100000", f"{low}@8K"]
    paths, memory_map = banks([Path(",".join(words))] if one_word else [Path(word) for word in words], None)
    assert paths == [high, low]
    with open_container(paths, memory_map) as container:
        check_contract(container, {2: page(2), 0x100: page(0x100), 0x101: page(0x101)})
        assert read(container, 3)[0] == [MISSING]
        assert container.paths == (high, low)


@pytest.mark.parametrize("name", ["ddr1.bin", "{folder}/ddr1.bin"])
def test_a_map_names_the_file_of_a_range(tmp_path: Path, name: str) -> None:
    low, high = banked(tmp_path)
    text = f"0x2000:4K@ddr0.bin:0,0x101000:4K@{name.format(folder=tmp_path)}:4K,0x0:0x1000@ddr1.bin:0"
    with open_container([low, high], text) as container:
        check_contract(container, {2: page(2), 0x101: page(0x101), 0: page(0x100)})
        assert JoinedFile(container.files).strong_identity() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0:4K@0", "does not name one of the files"),
        ("0:4K", "does not say which file, expected START:SIZE@FILE:OFFSET"),
        ("0:4K@ddr2.bin:0", "does not name one of the files, expected one of "),
        ("ddr2.bin@0", "does not name one of the files"),
        ("0:8K@ddr0.bin:0", r"ends behind the end of .*ddr0.bin \(0x1ff0 bytes\)"),
    ],
)
def test_a_map_of_several_files_that_does_not_fit_them_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_container(banked(tmp_path), text)


def test_a_file_with_such_a_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "vmcore@0x1000"
    path.touch()
    assert banks([path], None) == ([path], None)
    assert banks([tmp_path / "gone"], None) == ([tmp_path / "gone"], None)
    with pytest.raises(UsageError, match="some files have an address, and others do not"):
        banks([path, tmp_path / "ddr0.bin@0"], None)


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"QFI\xfb", b"MDMP", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0"])
def test_a_map_for_a_file_of_another_kind_is_refused(tmp_path: Path, magic: bytes) -> None:
    with pytest.raises(UsageError, match=r"memory is|memory (is|begins) .*; --map is for files without a header"):
        dump(tmp_path, magic + bytes(5000), "raw")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="0123456789abxXKMGT:@,# \n-rw", max_size=40), st.integers(0, 1 << 40))
def test_any_text_is_a_map_or_a_sentence(text: str, size: int) -> None:
    try:
        for start, offset, length in parse_map(text, [(Path("memory"), 0, size)]):
            assert start >= 0
            assert offset >= 0
            assert length > 0 or text == "raw"
    except UsageError as error:
        assert "--map" in str(error)  # noqa: PT017 - some texts are maps

"""Parts of a dump that makedumpfile --split wrote, in any order."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.builders.elfdump import note, page
from tests.builders.flat import build_flattened
from tests.builders.kdump import Abi, build_kdump
from tests.containers.contract import check_contract, read
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer, PageState
from vmcore2core.errors import DumpError, FormatError, UsageError

TEXT = b"OSRELEASE=6.1.0\n"
PAGES = {1: page(1), 2: bytes(4096), 7: page(7), 9: bytes(4096), 64: page(64), 600: page(600), 39999: page(39999)}
RAM_ONLY = (3, 4, 601)
CUTS = (0, 8, 600, 40000)
RANGES = list(itertools.pairwise(CUTS))
NOTES = note(b"VMCOREINFO", 0, TEXT)
START_PFN_64 = 4096 + 80
END_PFN_64 = 4096 + 88


def write_parts(folder: Path, ranges: list[tuple[int, int]] = RANGES, **how: Any) -> list[Path]:
    paths = []
    for number, pfns in enumerate(ranges, 1):
        paths.append(folder / f"part{number}")
        paths[-1].write_bytes(build_kdump(PAGES, excluded=RAM_ONLY, notes=NOTES, split=pfns, **how))
    return paths


def check(container: DumpContainer) -> None:
    with container:
        assert container.warnings == []
        assert container.vmcoreinfo == TEXT
        check_contract(container, PAGES)
        assert read(container, *RAM_ONLY, 0, 5, 40000)[0] == [PageState.EXCLUDED] * 3 + [PageState.MISSING] * 3


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parts_in_any_order_are_one_dump(tmp_path: Path, order: tuple[int, ...]) -> None:
    paths = write_parts(tmp_path)
    container = open_container([paths[i] for i in order])
    assert container.paths == tuple(paths)
    check(container)


@pytest.mark.parametrize("codec", ["raw", "lzo", "snappy", "zstd"])
def test_every_codec_reads(tmp_path: Path, codec: str) -> None:
    check(open_container(write_parts(tmp_path, codec=codec)))


@pytest.mark.parametrize("abi", ["64", "32-packed", "32-padded"])
@pytest.mark.parametrize("version", [5, 6])
def test_header_versions_with_narrow_and_wide_page_frames_read(tmp_path: Path, abi: Abi, version: int) -> None:
    machine = "x86_64" if abi == "64" else "i686"
    check(open_container(write_parts(tmp_path, abi=abi, version=version, machine=machine)))


def test_empty_parts_and_a_single_part_of_everything_read(tmp_path: Path) -> None:
    check(open_container(write_parts(tmp_path, [(0, 40000), (40000, 40000), (40000, 40000)])[::-1]))
    check(open_container(write_parts(tmp_path, [(0, 40000)])))


def test_flattened_parts_read(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    for path in paths:
        path.write_bytes(build_flattened([(0, path.read_bytes())]))
    check(open_container(paths))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_part_is_named_and_its_pages_are_truncated(tmp_path: Path, lost: int) -> None:
    paths = write_parts(tmp_path)
    del paths[lost]
    start, end = RANGES[lost]
    with open_container(paths[::-1]) as container:
        (warning,) = container.warnings
        assert warning == (
            f"this dump was split, and the part with page frames {start:#x} to {end:#x} was not given: name all parts, "
            f"in any order"
        )
        states, rows = read(container, *PAGES, *RAM_ONLY)
        for pfn, state, row in zip(PAGES, states, rows, strict=False):
            expected = PageState.TRUNCATED if start <= pfn < end else PageState.PRESENT
            assert state == expected, pfn
            assert row == (b"" if start <= pfn < end else PAGES[pfn])
        assert states[len(PAGES) :] == [PageState.EXCLUDED] * 3


def test_one_part_alone_names_both_others(tmp_path: Path) -> None:
    with open_container(write_parts(tmp_path)[1:2]) as container:
        assert [w[w.index("frames ") : w.index(" was not")] for w in container.warnings] == [
            "frames 0x0 to 0x8",
            "frames 0x258 to 0x9c40",
        ]


def test_a_part_that_is_cut_off_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    with open_container(paths) as container:
        (warning,) = container.warnings
        assert warning.startswith(f"{paths[1]}: the file is cut off")
        assert "1 of its 2 pages" in warning
        assert read(container, 1, 9, 64, 600)[0] == [1, 1, PageState.TRUNCATED, 1]


def test_the_same_part_twice_is_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    with pytest.raises(UsageError, match=r"has page frames 0x8 to 0x258, and .*part2 has 0x8 to 0x258 of them too"):
        open_container([paths[1], paths[0], paths[1]])


@pytest.mark.parametrize(
    "other", [{"timestamp": 77}, {"machine": "aarch64"}, {"dump_level": 1}, {"phys_base": 4096}, {"max_mapnr": 40001}]
)
def test_parts_of_different_dumps_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    (tmp_path / "other").mkdir()
    mixed = [*write_parts(tmp_path)[:2], write_parts(tmp_path / "other", **other)[2]]
    with pytest.raises(UsageError, match=r"part3 and .*part1 are parts of different dumps"):
        open_container(mixed)


def test_parts_with_other_bitmaps_are_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    for offset in (2 * 4096 + 100, 4 * 4096 + 100):
        raw = bytearray(build_kdump(PAGES, excluded=RAM_ONLY, notes=NOTES, split=RANGES[2]))
        raw[offset] ^= 1
        paths[2].write_bytes(raw)
        with pytest.raises(UsageError, match="parts of different dumps"):
            open_container(paths)


def test_a_whole_dump_beside_a_part_is_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[1].write_bytes(build_kdump(PAGES))
    with pytest.raises(UsageError, match=r"part2 is not a part of a split dump, .* is one file, and 3 were given"):
        open_container(paths)


def test_a_file_that_is_no_part_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[2].write_bytes(b"text")
    with pytest.raises(FormatError, match=r"part3: .* at file offset 0x"):
        open_container(paths)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (START_PFN_64, 601, "start_pfn 0x259 and end_pfn 0x258 .* file offset 0x1050, expected a range"),
        (END_PFN_64, 40001, "start_pfn 0x8 and end_pfn 0x9c41 .*up to 0x9c40"),
        (END_PFN_64, 1 << 63, "end_pfn 0x8000000000000000 "),
    ],
)
def test_an_impossible_range_is_named(tmp_path: Path, at: int, value: int, words: str) -> None:
    paths = write_parts(tmp_path)
    raw = bytearray(paths[1].read_bytes())
    struct.pack_into("<Q", raw, at, value)
    paths[1].write_bytes(raw)
    for given in (paths, paths[1:2]):
        with pytest.raises(FormatError, match=words):
            open_container(given)


def test_files_are_closed_after_an_error(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(UsageError):
            open_container([*paths, paths[0]])
        open_container(paths).close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_flipped_bits_and_truncations_give_errors_of_ours_or_states(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    good = paths[1].read_bytes()
    rng = random.Random(9)
    offsets = [*range(8, 12), *range(340, 464), *range(4096, 4096 + 110)] * 4 + [*range(2 * 4096, len(good))]
    seen: set[PageState | type] = set()
    sentences: list[str] = []
    for case in range(600):
        raw = bytearray(good)
        if case % 3:
            for _ in range(rng.choice((1, 1, 3))):
                raw[rng.choice(offsets)] ^= 1 << rng.randrange(8)
        else:
            del raw[rng.choice(offsets) :]
        paths[1].write_bytes(raw)
        try:
            with open_container(paths) as container:
                seen.update(read(container, *PAGES, *RAM_ONLY, 0, 1 << 40, (1 << 64) - 1)[0])
                container.memory_ranges()
        except (DumpError, UsageError) as error:
            seen.add(type(error))
            sentences.append(str(error))
    assert {PageState.PRESENT, PageState.TRUNCATED, FormatError, UsageError} <= seen
    assert not any("\n" in sentence for sentence in sentences)

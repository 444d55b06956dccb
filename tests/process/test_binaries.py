"""Where files are looked for, and which are taken."""

from __future__ import annotations

from pathlib import Path

from vmcore2core.addresses import UserAddr
from vmcore2core.containers.remote import located
from vmcore2core.elf.headers import ElfHeaders, Segment
from vmcore2core.process.binaries import DEBUG_TREE, _trees_below, binaries, is_mapped_so
from vmcore2core.process.model import Vma

PAGE = 4096
R, W, X = 4, 2, 1


def test_the_folder_beside_the_dump_goes_before_the_one_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "sysroot").mkdir()
    (tmp_path / "given").mkdir()
    (tmp_path / "more").mkdir()
    found = binaries(tmp_path / "vmcore", [tmp_path / "given", tmp_path / "more"])
    folders = [tmp_path / name for name in ("sysroot", "given", "more")]
    assert [sysroot.folder for sysroot in found.sysroots] == folders
    assert found.debug_trees == (DEBUG_TREE,)
    # Debug packages of this machine are looked at where somebody gave files at all.
    assert binaries(tmp_path / "vmcore").debug_trees == ()


def test_a_folder_that_others_can_write_to_is_not_looked_at_unasked(tmp_path: Path) -> None:
    (tmp_path / "sysroot").mkdir()
    (tmp_path / "sysroot").chmod(0o777)
    assert binaries(tmp_path / "vmcore").sysroots == ()
    assert len(binaries(tmp_path / "vmcore", [tmp_path / "sysroot"]).sysroots) == 1


def test_there_is_nothing_beside_a_url() -> None:
    assert binaries(located("https://server.example/vmcore")).sysroots == ()


def test_trees_below_a_folder_are_found_within_reason(tmp_path: Path) -> None:
    for name in ("usr/lib/debug/.build-id", "more/.build-id", "a/b/c/d/e/f/.build-id"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("/usr/lib")
    found = set(_trees_below(tmp_path))
    assert found == {tmp_path / "usr/lib/debug/.build-id", tmp_path / "more/.build-id"}


def test_mappings_of_a_file_are_where_its_segments_are() -> None:
    text = Segment(1, R | X, 0x1000, 0x1000, 0x2800, 0x2800)
    data = Segment(1, R | W, 0x3800, 0x4800, 0x600, 0x900)
    headers = ElfHeaders((Segment(1, R, 0, 0, 0x800, 0x800), text, data), 0, 0, 0)

    def vma(start: int, pages: int, flags: int, pgoff: int) -> Vma:
        return Vma(UserAddr(start), UserAddr(start + pages * PAGE), flags, pgoff=pgoff)

    base = 0x7F0000000000
    good = [vma(base, 1, R, 0), vma(base + 0x1000, 3, R | X, 1), vma(base + 0x4000, 1, R | W, 3)]
    assert is_mapped_so(headers, good, PAGE)
    assert not is_mapped_so(headers, [*good[:2], vma(base + 0x5000, 1, R | W, 3)], PAGE)  # elsewhere
    assert not is_mapped_so(headers, [good[0], vma(base + 0x1000, 3, R, 1)], PAGE)  # no code
    assert not is_mapped_so(headers, [*good, vma(base + 0x9000, 1, R, 9)], PAGE)  # behind its end
    assert not is_mapped_so(headers, [], PAGE)

"""Callers as call frame information in a copy of a file that has none there; readelf shows what lldb reads."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, unpacked_sysroot
from tests.handover.test_partial import PAGE, dump_frames, fdes, made, pages_of, readelf, symbols
from vmcore2core.handover.debugger_cfi import copied, described, undescribed

CALLERS = {0x2000: {"rsp": 0x2010, "rip": 0x1234, "rbp": 5, "rbx": 6}}
"""Of a frame with the stack pointer 0x2000."""


@pytest.fixture(scope="module")
def libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_sysroot(tmp_path_factory.mktemp("sysroot")) / "lib/libc.so.6"


@pytest.fixture(scope="module")
def torn(libc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libc without any call frame information."""
    lost = {*pages_of(libc, ".eh_frame"), *pages_of(libc, ".eh_frame_hdr")}
    return made(libc, tmp_path_factory.mktemp("torn") / "libc.so.6", lost)


def function(libc: Path, name: str) -> tuple[int, int]:
    """Return address and size of a function."""
    (found,) = {(int(row[0], 16), int(row[1])) for row in symbols(libc) if row[3] == name}
    return found


def test_rules_begin_where_the_function_does_and_end_behind_the_return_address(
    libc: Path, torn: Path, tmp_path: Path
) -> None:
    start, size = function(libc, "poll")
    pcs = (start + 0x20, start + 0x30)
    assert pcs[-1] < start + size
    copy = copied(torn, tmp_path, dict.fromkeys(pcs, CALLERS))
    assert copy == tmp_path / "libc.so.6"
    assert fdes(copy, ".eh_frame") == {f"{start:016x}..{pcs[-1] + 2:016x}"}
    shown = dump_frames("-wf", copy)
    chosen = "DW_OP_over; DW_OP_const8u: 8192; DW_OP_eq; DW_OP_const8u: 8208; DW_OP_mul; DW_OP_plus"
    assert shown.count("DW_CFA_def_cfa_expression (DW_OP_breg7 (rsp): 0; DW_OP_lit0; DW_OP_over;") == len(pcs)
    assert shown.count(chosen) == len(pcs)
    assert "DW_CFA_val_expression: r6 (rbp) (DW_OP_lit0; DW_OP_over;" in shown
    assert shown.count("DW_CFA_undefined: r12 (r12)") == len(pcs)
    assert f"DW_CFA_advance_loc4: 31 to {pcs[0] - 1:016x}" in shown
    assert f"DW_CFA_advance_loc4: 2 to {pcs[0] + 1:016x}" in shown


def test_each_place_without_a_symbol_has_an_entry_of_its_own(libc: Path, torn: Path, tmp_path: Path) -> None:
    rows = [row for row in symbols(libc) if row[2] in ("FUNC", "GNU_IFUNC")]
    ends = sorted((int(row[0], 16), int(row[0], 16) + int(row[1])) for row in rows)
    gap = next(end for (_, end), (start, _) in itertools.pairwise(ends) if start - end > 0x300)
    copy = copied(torn, tmp_path, {gap + 0x100: CALLERS, gap + 0x200: CALLERS})
    assert fdes(copy, ".eh_frame") == {f"{pc - 2:016x}..{pc + 2:016x}" for pc in (gap + 0x100, gap + 0x200)}


def test_known_call_frames_stay_and_need_no_rules(libc: Path, tmp_path: Path) -> None:
    partial = made(libc, tmp_path / "libc.so.6", {pages_of(libc, ".eh_frame")[10]})
    before = fdes(partial, ".eh_frame")
    start, _ = function(libc, "poll")
    folder = tmp_path / "folder"
    folder.mkdir()
    copy = copied(partial, folder, {start + 0x20: CALLERS})
    assert fdes(copy, ".eh_frame") == before
    assert fdes(copy, ".debug_frame") == before
    # Nothing else changes, and holes stay holes.
    old, new = partial.read_bytes(), copy.read_bytes()
    assert sum(a != b for a, b in zip(old, new, strict=False)) <= 16
    assert described(b"") == []


def test_what_a_complete_file_does_not_describe_is_what_readelf_does_not_show(libc: Path) -> None:
    arm64 = FIXTURES / "sysroot-arm64/bin/lab-dynamic"
    for program, step in ((FIXTURES / "sysroot/bin/lab-dynamic", 1), (arm64, 1), (libc, 499)):
        ranges = [tuple(int(end, 16) for end in pair.split("..")) for pair in fdes(program, ".eh_frame")]
        low, high = min(start for start, _ in ranges), max(end for _, end in ranges)
        pcs = set(range(low - 0x40, high + 0x40, step))
        expected = {pc for pc in pcs if not any(start <= pc - 1 < end for start, end in ranges)}
        assert 0 < len(expected) < len(pcs)
        assert undescribed(program, pcs) == expected


def test_of_what_is_no_such_file_nothing_is_said(tmp_path: Path) -> None:
    for name in ("README.md", "sysroot-i386/bin/lab-dynamic", "sysroot/bin/lab-static"):  # the last has no table
        assert undescribed(FIXTURES / name, {0x2000}) == set()
    assert undescribed(tmp_path / "nothing", {0x2000}) == set()


def test_lldb_gets_no_rules_for_another_machine(tmp_path: Path) -> None:
    """They are of x86-64's registers."""
    program = unpacked_sysroot(tmp_path / "root", "sysroot-arm64") / "lib/libc.so.6"
    torn = made(program, tmp_path / "libc.so.6", {*pages_of(program, ".eh_frame")})
    assert readelf("-S", torn).count(" .eh_frame ") > 1
    assert copied(torn, tmp_path / "root", {0x1000: CALLERS}) == torn


def test_holes_stay_holes(torn: Path, tmp_path: Path) -> None:
    sparse, folder = tmp_path / "libc.so.6", tmp_path / "folder"
    folder.mkdir()
    content = torn.read_bytes()
    with sparse.open("wb") as file:
        for at in range(0, len(content), PAGE):
            if any(content[at : at + PAGE]):
                file.seek(at)
                file.write(content[at : at + PAGE])
    assert sparse.read_bytes() == content
    copy = copied(sparse, folder, {0x30000: CALLERS})
    assert copy.stat().st_blocks <= sparse.stat().st_blocks + 16


@pytest.mark.parametrize("name", ["sysroot/bin/lab-dynamic", "sysroot-i386/bin/lab-dynamic", "README.md"])
def test_a_file_without_a_place_for_rules_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    assert copied(FIXTURES / name, tmp_path, {0x2000: CALLERS}) == FIXTURES / name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pc", [0, 1, (1 << 64) - 1])
def test_a_program_counter_outside_the_file_is_passed_over(torn: Path, tmp_path: Path, pc: int) -> None:
    assert fdes(copied(torn, tmp_path, {pc: CALLERS}), ".eh_frame") == set()


def test_without_callers_there_is_no_copy(torn: Path, tmp_path: Path) -> None:
    assert copied(torn, tmp_path, {}) == torn


@pytest.mark.parametrize("seed", range(20))
def test_a_hostile_file_is_taken_as_it_is_or_copied(torn: Path, tmp_path: Path, seed: int) -> None:
    noise = random.Random(seed)
    content = bytearray(torn.read_bytes())
    shoff = int.from_bytes(content[40:48], "little")
    for _ in range(60):
        at = noise.choice((noise.randrange(64), noise.randrange(shoff, len(content))))
        content[at] = noise.randrange(256)
    (tmp_path / "libc.so.6").write_bytes(content)
    (tmp_path / "folder").mkdir()
    assert copied(tmp_path / "libc.so.6", tmp_path / "folder", {0x30000: CALLERS}).name == "libc.so.6"

"""Several processes copy the pages of one core: the bytes are the same, or the copy is discarded."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corefile.snapshots import PAGE, Pages, snapshot, vma
from vmcore2core.addresses import U8Array, U64Array
from vmcore2core.corefile import copying, writer
from vmcore2core.corefile.copying import PIECE_SIZE, PIECES_MAX, Copied, copy_with, pieces
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Output, PagesChanged, write_core

Ranges = Sequence[tuple[int, int]]
BASE = 0x10_0000
WORK: list[Ranges] = [[(number, number + 1)] for number in range(40)]


@given(st.lists(st.tuples(st.integers(1, 3 * PIECE_SIZE), st.integers(1, 1 << 40)), max_size=12))
def test_pieces_are_the_ranges_and_few(gaps_and_sizes: list[tuple[int, int]]) -> None:
    ranges, at = [], 0
    for gap, size in gaps_and_sizes:
        ranges.append((at + gap, at + gap + size))
        at += gap + size
    cut = list(pieces(ranges))
    assert len(cut) <= PIECES_MAX + 1
    joined: list[tuple[int, int]] = []
    for start, end in (part for piece in cut for part in piece):
        assert start < end
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    assert joined == ranges


def test_each_piece_is_copied_once(tmp_path: Path) -> None:
    log, told = tmp_path / "log", list[int]()

    def copy(ranges: Ranges) -> Copied:
        with log.open("a") as file:  # the copiers are other processes
            file.write(f"{os.getpid()} {ranges[0][0]}\n")
        return Copied(3, 1)

    assert copy_with(2, WORK, copy, told.append) == Copied(120, 40)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(number) for _, number in lines) == list(range(40))
    assert str(os.getpid()) not in {pid for pid, _ in lines}
    assert told == list(range(1, 41))


def fails(_ranges: Ranges) -> Copied:
    raise PagesChanged


def dies(ranges: Ranges) -> Copied:
    if ranges == WORK[7]:
        os.kill(os.getpid(), signal.SIGKILL)
    return Copied(1, 0)


@pytest.mark.parametrize("copy", [fails, dies])
def test_what_one_cannot_do_nobody_has_done(copy: object) -> None:
    assert copy_with(2, WORK, copy, lambda _done: None) is None  # type: ignore[arg-type]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # none is left


class Reading(Pages):
    """Pages that say who read them."""

    def __init__(self, pages: dict[int, bytes], log: Path) -> None:
        super().__init__(pages)
        self.log = log

    def batches(self, ranges: Ranges) -> Iterator[tuple[U64Array, U8Array]]:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        yield from super().batches(ranges)


def written(tmp_path: Path, processes: int, valid: bool = True) -> tuple[bytes, set[str], writer.WriteReport]:
    """Return a core, who read its pages, and the report."""
    content = {BASE + number * PAGE: f"page {number}".encode() for number in range(0, 64, 3)}
    log, core = tmp_path / f"log{processes}", tmp_path / f"core{processes}"
    process = snapshot(vma(BASE, BASE + 40 * PAGE), vma(BASE + 40 * PAGE, BASE + 64 * PAGE))
    pages = Reading(content, log)
    report = write_core(process, pages, Output(core, CoreOptions(copiers=processes), still_valid=lambda: valid))
    return core.read_bytes(), set(log.read_text().split()), report


def test_a_core_is_the_same_whoever_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "TOGETHER_MIN", 0)
    monkeypatch.setattr(copying, "PIECE_SIZE", 4 * PAGE)
    alone, together = written(tmp_path, 1), written(tmp_path, 2)
    assert alone[0] == together[0]
    assert alone[2] == together[2]
    assert alone[1] == {str(os.getpid())}
    assert str(os.getpid()) not in together[1]  # the guard: this one decompresses nothing


def test_what_changed_meanwhile_is_found_by_the_one_that_can_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "TOGETHER_MIN", 0)
    with pytest.raises(PagesChanged):
        written(tmp_path, 2, valid=False)
    assert str(os.getpid()) in (tmp_path / "log2").read_text().split()
    assert not (tmp_path / "core2").exists()

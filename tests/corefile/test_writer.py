"""Every given page is at its place in the core, and nothing else is in it.

Tests corefile/options.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corefile.snapshots import PAGE, Pages, absent, loads, snapshot, snapshot_32, vma, write
from vmcore2core.corefile.writer import Output, PagesChanged, write_core
from vmcore2core.errors import OutputError
from vmcore2core.process.model import AbsentReason, AbsentRun, ProcessSnapshot, Vma

BASE = 0x10_0000


@dataclass(frozen=True)
class Case:
    """A process, its pages, and which page numbers from BASE are known (with their bytes) or not in the core."""

    vmas: tuple[Vma, ...]
    pages: dict[int, bytes]
    known: dict[int, bytes]
    unknown: frozenset[int]
    wide: bool

    @property
    def process(self) -> ProcessSnapshot:
        return (snapshot if self.wide else snapshot_32)(*self.vmas)


PAGE_KINDS = st.sampled_from(["untouched", "zero", "bytes", "bytes", "last byte", "excluded", "swapped"])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    at, vmas = BASE, []
    pages: dict[int, bytes] = {}
    known: dict[int, bytes] = {}
    unknown: set[int] = set()
    for number in range(draw(st.integers(0, 5))):
        at += PAGE * draw(st.integers(0, 3))
        kinds = draw(st.lists(PAGE_KINDS, min_size=1, max_size=12))
        is_file, dumped = draw(st.booleans()), draw(st.integers(0, 5)) > 0
        start = at
        runs: list[AbsentRun] = []
        for i, kind in enumerate(kinds):
            content = b""
            if kind == "bytes":
                content = f"page {at:x}".encode()
            elif kind == "last byte":
                content = bytes(PAGE - 1) + bytes([1 + i])
            if kind in ("excluded", "swapped"):
                reason = AbsentReason.EXCLUDED if kind == "excluded" else AbsentReason.SWAPPED
                if runs and runs[-1].end == at and runs[-1].reason is reason:
                    runs[-1] = absent(runs[-1].start, at + PAGE, reason)
                else:
                    runs.append(absent(at, at + PAGE, reason))
                # A stream may well have something there: it must not come in.
                pages[at] = b"must not be in the core"
                unknown.add(at)
            elif not dumped:
                pages[at] = b"must not be in the core"
                unknown.add(at)
            else:
                if kind != "untouched":
                    pages[at] = content
                known[at] = content.ljust(PAGE, b"\0")
            at += PAGE
        path = b"/f%d" % number if is_file else None
        vmas.append(vma(start, at, path=path, pgoff=0 if is_file else None, dumped=dumped, absent=tuple(runs)))
    return Case(tuple(vmas), pages, known, frozenset(unknown), draw(st.booleans()))


def read_back(core: Path) -> tuple[dict[int, bytes], set[int]]:
    """Return the pages that the core has, and those that stand in it without contents, by pyelftools."""
    pages: dict[int, bytes] = {}
    without: set[int] = set()
    with core.open("rb") as f:
        elf = ELFFile(f)
        for segment in elf.iter_segments("PT_LOAD"):
            data = segment.data()
            assert len(data) == segment["p_filesz"]
            for at in range(0, segment["p_memsz"], PAGE):
                address = segment["p_vaddr"] + at
                assert address not in pages
                assert address not in without
                if at < len(data):
                    pages[address] = data[at : at + PAGE]
                else:
                    without.add(address)
    return pages, without


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(1, 7))
def test_a_core_read_back_has_the_given_pages_and_zeros_elsewhere(case: Case, batch: int) -> None:
    with TemporaryDirectory() as folder:
        core = Path(folder) / "core"
        report = write_core(case.process, Pages(case.pages, batch), Output(core), verify=False)
        pages, without = read_back(core)
        assert pages == case.known
        assert without <= case.unknown
        anonymous = {
            at
            for v in case.vmas
            if v.path is None and v.dumped
            for run in v.absent
            for at in range(run.start, run.end, PAGE)
        }
        assert not without & anonymous
        assert report.file_size == core.stat().st_size
        given_pages = {at: data for at, data in case.pages.items() if at in case.known}
        assert report.present_pages == len(given_pages)
        assert report.zero_pages == sum(1 for data in given_pages.values() if not data.strip(b"\0"))
        assert report.segments == len(loads(core))


@settings(max_examples=15, deadline=None)
@given(cases())
def test_every_such_core_passes_its_own_verification(case: Case) -> None:
    with TemporaryDirectory() as folder:
        write(case.process, Path(folder) / "core", case.pages)


def test_pages_with_a_gap_between_them_are_not_written_as_one(tmp_path: Path) -> None:
    core = tmp_path / "core"
    pages = {BASE + i * PAGE: bytes([i + 1]) * PAGE for i in (0, 1, 3, 4, 7)}
    write_core(snapshot(vma(BASE, BASE + 8 * PAGE)), Pages(pages, batch=100), Output(core))
    found, _ = read_back(core)
    assert found == {BASE + i * PAGE: pages.get(BASE + i * PAGE, bytes(PAGE)) for i in range(8)}


def test_a_page_that_is_almost_zero_is_written(tmp_path: Path) -> None:
    core = tmp_path / "core"
    for content in (b"\1", bytes(PAGE - 1) + b"\x80", bytes(2047) + b"\2"):
        report = write(snapshot(vma(BASE, BASE + PAGE)), core, {BASE: content}, force=True)
        assert report.zero_pages == 0
        assert read_back(core)[0] == {BASE: content.ljust(PAGE, b"\0")}


def test_only_wanted_memory_is_asked_for(tmp_path: Path) -> None:
    run = absent(BASE + PAGE, BASE + 2 * PAGE)
    stream = Pages()
    process = snapshot(vma(BASE, BASE + 3 * PAGE, absent=(run,)), vma(BASE + 8 * PAGE, BASE + 9 * PAGE, dumped=False))
    write_core(process, stream, Output(tmp_path / "core"))
    assert stream.asked == [(BASE, BASE + PAGE), (BASE + 2 * PAGE, BASE + 3 * PAGE)]


def test_an_empty_batch_changes_nothing(tmp_path: Path) -> None:
    class Empty:
        def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield np.zeros(0, np.uint64), np.zeros((0, PAGE), np.uint8)

    core = tmp_path / "core"
    report = write_core(snapshot(vma(BASE, BASE + PAGE)), Empty(), Output(core, progress=lambda *_: None))
    assert report.present_pages == 0
    assert read_back(core)[0] == {BASE: bytes(PAGE)}


def test_a_file_system_without_such_large_files_says_so_before_a_page_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    stream = Pages()
    monkeypatch.setattr("vmcore2core.corefile.sink.os.ftruncate", refuse)
    with pytest.raises(OutputError, match="File too large"):
        write_core(snapshot(vma(BASE, BASE + PAGE)), stream, Output(tmp_path / "core"))
    assert stream.asked == []
    assert not list(tmp_path.iterdir())


def test_a_plan_that_no_longer_holds_leaves_no_core(tmp_path: Path) -> None:
    with pytest.raises(PagesChanged):
        write(snapshot(vma(BASE, BASE + PAGE)), tmp_path / "core", still_valid=lambda: False)
    assert not list(tmp_path.iterdir())


def test_progress_rises_to_the_size_of_the_file(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    count = 3 * (16 << 20) // PAGE + 5
    pages = {BASE + i * PAGE: b"x" for i in range(count)}
    process = snapshot(vma(BASE, BASE + count * PAGE), vma(1 << 40, (1 << 40) + PAGE))
    stream = Pages(pages, batch=1024)
    report = write_core(
        process, stream, Output(tmp_path / "core", progress=lambda done, total: told.append((done, total)))
    )
    assert len(told) >= 3
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (report.file_size, report.file_size)
    assert {total for _, total in told} == {report.file_size}

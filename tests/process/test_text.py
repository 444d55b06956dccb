"""Text of files that nobody has whole goes into the cores of a directory, as far as it is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.guests import bundled, unpacked_sysroot
from tests.e2e.test_sysroot import PAGE, without_pages
from vmcore2core.choose import Choice, choose
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.kernel.mm import VM_EXEC
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.model import AbsentReason, Vma
from vmcore2core.process.sysroot import Sysroot
from vmcore2core.session import Session

GUEST, PROGRAM = "debian-6.1-amd64", "lab-dynamic"
USUAL = DumpFilter(0x33)
"""What a process has unless it says something else: core(5)."""
LOST = range(60, 80)
"""Pages of libc's text that are not in the dump."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_sysroot(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session([bundled(GUEST, tmp_path_factory.mktemp("whole"))]) as session:
        yield session


@pytest.fixture(scope="module")
def poor(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A dump that lacks some pages of libc's text."""
    folder = tmp_path_factory.mktemp("poor")
    libc = (root / "lib/libc.so.6").read_bytes()
    unwanted = {libc[page * PAGE : (page + 1) * PAGE] for page in LOST}
    assert without_pages(bundled(GUEST, folder), folder / "poor", unwanted) >= len(unwanted)
    with Session([folder / "poor"]) as session:
        yield session


def leader(session: Session) -> StructView:
    return choose(session.processes, Choice(comm=(PROGRAM,)))[0][0].leader


def text(session: Session, *, torn_text: bool = True) -> tuple[dict[bytes, Vma], tuple[str, ...]]:
    """Return the mappings of code of files by their path, and what is said."""
    captured = session.processes.capture(leader(session), dump_filter=USUAL, torn_text=torn_text)
    assert not captured.snapshot.warnings
    vmas = {vma.path: vma for vma in captured.snapshot.vmas if vma.path and vma.vm_flags & VM_EXEC}
    return vmas, captured.snapshot.notices


def test_text_that_no_file_has_is_written(poor: Session) -> None:
    vmas, notices = text(poor)
    assert [path for path, vma in vmas.items() if vma.dumped] == [b"/lib/libc.so.6"]
    libc = vmas[b"/lib/libc.so.6"]
    first = libc.start - (libc.pgoff or 0) * PAGE
    assert [(run.start, run.end, run.reason) for run in libc.absent] == [
        (first + LOST.start * PAGE, first + LOST.stop * PAGE, AbsentReason.BEYOND_FILTER)
    ]
    said = "text is written, too, of files of which neither memory nor a sysroot has all of it: /lib/libc.so.6"
    assert said in notices
    segments = poor.segments(leader(poor), CoreOptions(indexed=True, companions=True))
    there = [(segment.start, segment.filesz) for segment in segments if libc.start <= segment.start < libc.end]
    assert there == [
        (libc.start, first + LOST.start * PAGE - libc.start),
        (first + LOST.stop * PAGE, libc.end - first - LOST.stop * PAGE),
    ]


def test_nobody_gets_it_who_did_not_ask(poor: Session) -> None:
    vmas, notices = text(poor, torn_text=False)
    assert not any(vma.dumped for vma in vmas.values())
    assert not any("text is written" in sentence for sentence in notices)


def test_text_that_a_file_beside_the_core_has_is_left_to_that(whole: Session) -> None:
    vmas, notices = text(whole)
    assert not any(vma.dumped for vma in vmas.values())
    assert not any("text is written" in sentence for sentence in notices)


def test_text_that_a_sysroot_has_is_left_to_that(
    poor: Session, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poor.processes, "sysroots", (Sysroot(root),))
    assert not any(vma.dumped for vma in text(poor)[0].values())
    other = tmp_path / "lib/libc.so.6"
    other.parent.mkdir()
    other.write_bytes((root / "bin/lab-static").read_bytes())  # of another build ID
    monkeypatch.setattr(poor.processes, "sysroots", (Sysroot(tmp_path),))
    assert [path for path, vma in text(poor)[0].items() if vma.dumped] == [b"/lib/libc.so.6"]


def test_the_default_of_directories_alone_asks_for_it() -> None:
    usual = CoreOptions(indexed=True, companions=True)
    assert usual.torn_text
    others = [
        replace(usual, indexed=False),
        replace(usual, companions=False),
        replace(usual, dump_filter=USUAL),
    ]
    assert not any(manner.torn_text for manner in others)

"""Text of files that nobody has whole goes into the cores of a directory, as far as the process has it mapped in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, bundled, unpacked_sysroot
from tests.e2e.test_sysroot import PAGE, without_pages
from vmcore2core.addresses import UserAddr
from vmcore2core.choose import Choice, choose
from vmcore2core.commands.progress import progress_bars
from vmcore2core.corefile.inspect import CoreFile, also, missing, problems
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.plan import segments_of
from vmcore2core.corefile.writer import Output, write_core
from vmcore2core.kernel.mm import VM_EXEC
from vmcore2core.kernel.struct import StructView
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.model import AbsentReason, Vma
from vmcore2core.process.sysroot import Sysroot
from vmcore2core.process.text import text_left_out
from vmcore2core.run.options import RunOptions
from vmcore2core.run.run import Run
from vmcore2core.run.space import core_size
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


def written(vma: Vma) -> set[int]:
    """Return the pages of a mapping that a core has."""
    absent = {page for run in vma.absent for page in range(run.start, run.end, PAGE)}
    return set(range(vma.start, vma.end, PAGE)) - absent if vma.dumped else set()


def mapped_in(session: Session, vma: Vma) -> set[int]:
    """Return the pages of a mapping that the page tables map, each asked for on its own."""
    memory = session.processes.capture(leader(session), with_absent=False).memory
    region = next(region for region in memory.regions if region.start == vma.start)
    pages = map(UserAddr, range(vma.start, vma.end, PAGE))
    return {page for page in pages if memory.mapped.count([region._replace(start=page, end=UserAddr(page + PAGE))])}


def test_mapped_in_text_of_a_file_that_nobody_has_whole_is_written(poor: Session) -> None:
    vmas, notices = text(poor)
    assert [path for path, vma in vmas.items() if vma.dumped] == [b"/lib/libc.so.6"]
    libc = vmas[b"/lib/libc.so.6"]
    first = libc.start - (libc.pgoff or 0) * PAGE
    lost = {first + page * PAGE for page in LOST}
    there = mapped_in(poor, libc) - lost
    assert len(there) < (libc.end - libc.start) // PAGE - len(lost)  # the page cache has more
    assert written(libc) == there
    assert {run.reason for run in libc.absent} == {AbsentReason.BEYOND_FILTER}
    said = "text that is mapped in is written, too, of files of which neither memory nor a sysroot has all of it: "
    assert said + "/lib/libc.so.6" in notices
    captured = poor.processes.capture(leader(poor), dump_filter=USUAL, torn_text=True)
    assert there == {
        page
        for segment in segments_of(captured.snapshot)
        if libc.start <= segment.start < libc.end
        for page in range(segment.start, segment.start + segment.filesz, PAGE)
    }


def test_it_is_what_the_guest_itself_counted(whole: Session) -> None:
    """smaps: Rss is what the page tables map."""
    smaps = (FIXTURES / GUEST / "truth" / f"{PROGRAM}.smaps").read_text()
    rss = {
        match["start"]: int(match["rss"]) * 1024 // PAGE
        for match in re.finditer(r"^(?P<start>\w+)-\w+ r-xp .*/lib/libc.*\n(?:.*\n)*?Rss: +(?P<rss>\d+)", smaps, re.M)
    }
    libc = text(whole)[0][b"/lib/libc.so.6"]
    assert rss == {f"{libc.start:x}": len(mapped_in(whole, libc))}


def test_a_core_with_such_text_is_complete(poor: Session, tmp_path: Path) -> None:
    captured = poor.processes.capture(leader(poor), dump_filter=USUAL, torn_text=True)
    write_core(captured.snapshot, captured.memory, Output(tmp_path / "core"))
    with CoreFile(tmp_path / "core") as core:
        assert list(problems(core)) == []
        assert list(missing(core)) == []
        left = sum(run.end - run.start for vma in captured.snapshot.vmas for run in vma.absent)
        assert f"{left:#x} bytes of text are not in it, as coredump_filter does not ask for them" in list(also(core))


@pytest.mark.parametrize("companions", [True, False])
def test_a_dry_run_counts_it(poor: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, companions: bool) -> None:
    """Of each core it tells what the run writes, with the same options, to the pages of zeros and the head."""
    monkeypatch.setattr(
        Session,
        "capture",
        lambda self, leader, options: self.processes.capture(leader, dump_filter=USUAL, torn_text=options.torn_text),
    )
    options = RunOptions(CoreOptions(companions=companions), output=tmp_path / "cores")
    chosen, _ = choose(poor.processes, Choice())
    planned = {core.pid: core.on_disk for core in Run(poor, options, print).plan(chosen)}
    run = Run(poor, options, print)
    run.run(chosen, progress_bars)
    assert {result.job.pid for result in run.results} == set(planned)
    most, least = planned, {result.job.pid: Path(result.job.target).stat().st_blocks * 512 for result in run.results}
    assert all(0 <= most[pid] - least[pid] < 192 << 10 for pid in planned), (most, least)
    (pid,) = (one.pid for one in chosen if one.comm == PROGRAM.encode())
    torn = len(mapped_in(poor, text(poor)[0][b"/lib/libc.so.6"])) * PAGE
    assert torn > 256 << 10
    without = core_size(poor.processes.capture(leader(poor), dump_filter=USUAL)).on_disk
    assert (planned[pid] - without > 256 << 10) == companions


def test_what_threads_run_is_in_it(poor: Session) -> None:
    captured = poor.processes.capture(leader(poor), dump_filter=USUAL, torn_text=True)
    libc = text(poor)[0][b"/lib/libc.so.6"]
    counters = [answer.regs["rip"] for _, answer in captured.answers if not isinstance(answer, str)]
    inside = {pc - pc % PAGE for pc in counters if libc.start <= pc < libc.end}
    assert inside
    assert inside <= written(libc)


def test_the_elf_header_is_written_even_if_only_the_page_cache_has_it(poor: Session) -> None:
    """As where a program's only mapping has its headers and its text."""
    vma = text(poor)[0][b"/lib/libc.so.6"]
    memory = poor.processes.capture(leader(poor), with_absent=False).memory
    region = next(region for region in memory.regions if region.start == vma.start)
    gone = UserAddr(min(set(range(vma.start, vma.end, PAGE)) - mapped_in(poor, vma)))
    rest = region._replace(start=gone, pgoff=region.pgoff + (gone - vma.start) // PAGE)
    runs = [
        [run.start for run in text_left_out(vma._replace(start=gone, pgoff=pgoff), rest, memory)] for pgoff in (0, 1)
    ]
    assert runs[0][0] > gone == runs[1][0]


def test_nobody_gets_it_who_did_not_ask(poor: Session) -> None:
    vmas, notices = text(poor, torn_text=False)
    assert not any(vma.dumped for vma in vmas.values())
    assert not any("text that is mapped in" in sentence for sentence in notices)


def test_text_that_a_file_beside_the_core_has_is_left_to_that(whole: Session) -> None:
    vmas, notices = text(whole)
    assert not any(vma.dumped for vma in vmas.values())
    assert not any("text that is mapped in" in sentence for sentence in notices)


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

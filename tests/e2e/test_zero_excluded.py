"""ELF dumps from which zero pages were left out: only somebody who made the file knows that they were zero."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.builders.stacks_only import bundled_stacks_only
from tests.e2e.cores import Core, compare_pages
from tests.e2e.guests import bundled, convert, tasks_json
from tests.handover.test_recovered import leaders
from vmcore2core.containers import open_container
from vmcore2core.containers.base import PageState
from vmcore2core.report import excluded_sentence
from vmcore2core.session import Session

GUEST, PROGRAM, PAGE = "debian-6.1-amd64", "lab-static", 4096


def a_heap_page(dump: Path) -> int:
    """Return the page frame of a page of the program's heap."""
    with Session([dump]) as session:
        captured = session.processes.capture(leaders(session, PROGRAM)[0])
        heap = next(vma.start for vma in captured.snapshot.vmas if vma.name == "[heap]")
        region = next(region for region in captured.memory.regions if region.start == heap)
        return int(next(captured.memory.known(region)).paddrs()[0]) // PAGE


def without_zero_pages(dump: Path, target: Path, another: int) -> None:
    """Write a dump as makedumpfile -E -d 1 does: runs of zero pages are memory beyond p_filesz.

    ``another`` is a page frame that is as if it had been zero: the processes have no such page.
    """
    with open_container([dump]) as container:
        pfns = np.arange(container.memory_ranges()[-1].end // PAGE, dtype=np.uint64)
        states = container.page_states(pfns)
        pfns = pfns[(states == PageState.PRESENT) | (states == PageState.ZERO)]
        pages = np.zeros((len(pfns), PAGE), np.uint8)
        container.read_pages(pfns, pages)
        notes = b"".join(note(n.name.encode(), n.n_type, n.desc) for n in container.notes)
    zero = np.array([not row.any() for row in pages]) | (pfns == another)
    cuts = np.flatnonzero((np.diff(pfns) != 1) | (zero[1:] != zero[:-1])) + 1
    runs = list(itertools.pairwise([0, *cuts.tolist(), len(pfns)]))
    loads = [Load(int(pfns[a]) * PAGE, b"" if zero[a] else pages[a:b].tobytes(), memsz=(b - a) * PAGE) for a, b in runs]
    target.write_bytes(build_elf_vmcore(loads, notes, xnum=len(loads) > 0xFFF0))


def test_zero_pages_of_an_elf_dump_are_zeros_if_somebody_says_so(tmp_path: Path) -> None:
    dump = bundled(GUEST, tmp_path)
    without_zero_pages(dump, tmp_path / "elf", a_heap_page(dump))
    assert convert(dump, "--comm", PROGRAM, "-o", tmp_path / "whole").returncode == 0
    poor = convert(tmp_path / "elf", "--comm", PROGRAM, "-o", tmp_path / "poor")
    assert poor.returncode == 3
    assert "makedumpfile -d 16 keeps all memory of processes; if only zero pages were left out, --zero" in poor.stderr
    told = convert(tmp_path / "elf", "--comm", PROGRAM, "-o", tmp_path / "told", "--zero-excluded")
    assert told.returncode == 0, told.stderr
    assert told.stderr.endswith("pages that were left out of the dump read as zeros, as asked (--zero-excluded)\n")
    ours, whole = (Core(next((tmp_path / name).iterdir())) for name in ("told", "whole"))
    diff = compare_pages(ours, whole)
    assert (diff.wrong, diff.absent, len(diff.zeroed)) == ([], [], 1)
    # vmcore-tasks takes it, too.
    pid = next((tmp_path / "told").iterdir()).name.rpartition(".")[2]
    counts: list[Counter[str]] = []
    for more in ((), ("--zero-excluded",)):
        counts.append(Counter())
        for mapping in tasks_json("maps", tmp_path / "elf", "--pid", pid, *more):
            counts[-1].update(mapping["pages"])
    assert counts[0]["excluded"] == counts[1]["zero"] - counts[0]["zero"] == 1
    assert counts[1]["excluded"] == 0


def test_a_format_that_tells_zero_pages_from_others_needs_no_such_word(tmp_path: Path) -> None:
    refused = convert(bundled(GUEST, tmp_path), "--pid", "1", "-o", tmp_path / "x", "--zero-excluded")
    assert (refused.returncode, refused.stderr) == (
        2,
        "vmcore2core: --zero-excluded is for ELF dumps: kdump-compressed tells which pages were zero\n",
    )


@pytest.mark.parametrize(
    ("level", "kind", "advice"),
    [
        (31, "kdump-compressed", "-d 17 would have kept all memory of processes; its extension userstack"),
        (8, "kdump-compressed", "-d 0 would have kept"),
        (2, "kdump-compressed", "-d 0 would have kept all memory of processes"),
        (None, "ELF", "-d 16 keeps"),
        (None, "kdump-compressed", "-d 17 keeps"),
    ],
)
def test_the_level_that_would_have_kept_the_pages(level: int | None, kind: str, advice: str) -> None:
    assert advice in excluded_sentence(level, kind)


@pytest.mark.parametrize("level", [0, 1, 16, 17])
def test_a_level_that_keeps_processes_is_never_what_is_advised(level: int) -> None:
    sentence = excluded_sentence(level, "kdump-compressed")
    assert f"-d {level}, which keeps all memory of processes; whether makedumpfile --eppic or" in sentence
    assert sentence.count("-d ") == 1


def test_a_dump_without_processes_says_so_in_two_lines_a_process_and_one(tmp_path: Path) -> None:
    dump = bundled_stacks_only(GUEST, tmp_path / "d", stacks=False)
    planned = convert(dump, "--comm", "lab-static", "--dry-run")
    assert planned.stderr.startswith("vmcore2core: the dump was written with makedumpfile -d 31, which leaves out")
    result = convert(dump, "--comm", "lab-static", "--comm", "lab-dynamic", "-o", tmp_path / "cores")
    assert result.returncode == 3
    lines = result.stderr.splitlines()
    assert len(lines) == 5, result.stderr
    assert sum("pages are missing: " in line for line in lines) == 2
    assert sum("6 threads' registers, " in line for line in lines) == 2
    assert lines[2].startswith("vmcore2core: the dump was written with makedumpfile -d 31, which leaves out")

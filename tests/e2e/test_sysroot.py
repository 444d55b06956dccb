"""A dump that lacks a program's pages, completed from the program itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from tests.builders.elfdump import Load, build_elf_vmcore, note
from tests.e2e.cores import Core, compare_pages
from tests.e2e.guests import bundled, convert, unpacked_sysroot
from vmcore2core.containers import open_container
from vmcore2core.containers.base import PageState

GUEST, PROGRAM = "debian-7.2-amd64", "lab-static"
PAGE = 4096


def without_pages(dump: Path, target: Path, unwanted: set[bytes]) -> int:
    """Write a dump as ELF without the page frames that have one of these contents; returns how many these are."""
    with open_container([dump]) as container:
        pfns = np.arange(container.memory_ranges()[-1].end // PAGE, dtype=np.uint64)
        pfns = pfns[container.page_states(pfns) == PageState.PRESENT]
        pages = np.zeros((len(pfns), PAGE), np.uint8)
        container.read_pages(pfns, pages)
        notes = b"".join(note(n.name.encode(), n.n_type, n.desc) for n in container.notes)
    keep = np.array([row.tobytes() not in unwanted for row in pages])
    pfns, pages, dropped = pfns[keep], pages[keep], int((~keep).sum())
    cuts = [0, *(np.flatnonzero(np.diff(pfns) != 1) + 1).tolist(), len(pfns)]
    loads = [Load(int(pfns[a]) * PAGE, pages[a:b].tobytes()) for a, b in itertools.pairwise(cuts)]
    target.write_bytes(build_elf_vmcore(loads, notes))
    return dropped


def test_missing_pages_of_a_program_come_from_the_program(tmp_path: Path) -> None:
    dump, sysroot = bundled(GUEST, tmp_path), unpacked_sysroot(tmp_path / "sysroot")
    program = (sysroot / "bin" / PROGRAM).read_bytes()
    # From the second page on: the first one has the build ID, which must be in memory.
    unwanted = {program[at : at + PAGE] for at in range(PAGE * 8, PAGE * 100, PAGE)}
    assert without_pages(dump, tmp_path / "poor", unwanted) >= len(unwanted)
    options = ["--comm", PROGRAM, "--filter", "0x1ff", "-o"]
    assert convert(dump, *options, tmp_path / "whole").returncode == 0
    poor = convert(tmp_path / "poor", *options, tmp_path / "without")
    assert poor.returncode == 3
    assert "pages are missing" in poor.stderr
    result = convert(tmp_path / "poor", *options, tmp_path / "with", "--sysroot", sysroot, "-v")
    assert result.returncode == 0, result.stderr
    assert f"come from {sysroot / 'bin' / PROGRAM}, whose build ID" in result.stderr
    ours, whole = (Core(next((tmp_path / name).iterdir())) for name in ("with", "whole"))
    diff = compare_pages(ours, whole)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert ours.loads_without_offsets == whole.loads_without_offsets
    # One that has no such file, and one that has another, go before it and after it.
    for name in ("empty", "other/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "other/bin" / PROGRAM).write_bytes((sysroot / "bin/lab-dynamic").read_bytes())
    folders = ("--sysroot", tmp_path / "other", "--sysroot", sysroot, "--sysroot", tmp_path / "empty")
    several = convert(tmp_path / "poor", *options, tmp_path / "several", *folders, "-v")
    assert several.returncode == 0, several.stderr
    assert f"come from {sysroot / 'bin' / PROGRAM}, whose build ID" in several.stderr
    diff = compare_pages(Core(next((tmp_path / "several").iterdir())), whole)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    refused = convert(dump, "--pid", "1", "-o", tmp_path / "x", "--sysroot", tmp_path / "nowhere")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"vmcore2core: --sysroot {tmp_path / 'nowhere'} is not a directory\n",
    )

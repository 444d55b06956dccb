"""From a directory whose libc lacks pages, gdb and lldb show every thread's stack complete, with names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.debuggers import in_order
from tests.e2e.guests import bundled, convert, unpacked_sysroot
from tests.e2e.test_sysroot import PAGE, without_pages
from tests.handover.test_partial import dump_frames, pages_of, sections, symbols
from tests.handover.test_scripts import GUEST, expected, gdb_stacks, lldb_stacks

PROGRAM, CALLED = "lab-dynamic", ("poll", "pause", "clone")


def described_in(libc: Path, function: str) -> int:
    """Return the page of a file that has a function's call frame information."""
    (address,) = {int(row[0], 16) for row in symbols(libc) if row[3] == function}
    shown = re.findall(r"^([0-9a-f]+) .* FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)", dump_frames("-wfN", libc), re.M)
    (at,) = (int(at, 16) for at, start, end in shown if int(start, 16) <= address < int(end, 16))
    return (sections(libc)[".eh_frame"][1] + at) // PAGE


@pytest.fixture(scope="module", params=["of no thread", "of threads"])
def torn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a directory of cores, of a dump that lacks read-only data and call frame information of libc; and libc."""
    folder = tmp_path_factory.mktemp("torn")
    libc = unpacked_sysroot(folder / "root") / "lib/libc.so.6"
    content, eh_frame = libc.read_bytes(), pages_of(libc, ".eh_frame")
    lost = {eh_frame[-2]} if request.param == "of no thread" else {described_in(libc, name) for name in CALLED}
    unwanted = {content[page * PAGE : (page + 1) * PAGE] for page in (pages_of(libc, ".rodata")[5], *lost)}
    assert without_pages(bundled(GUEST, folder), folder / "poor", unwanted) == len(unwanted)
    assert convert(folder / "poor", "--comm", PROGRAM, "--companions", "-o", f"{folder}/cores/").returncode in (0, 3)
    return folder / "cores", folder / "root"


@pytest.mark.parametrize("debugger", ["gdb", "lldb"])
def test_every_stack_is_complete(torn: tuple[Path, Path], debugger: str) -> None:
    cores, _ = torn
    script = next(cores.glob(f"core.{PROGRAM}.*.{debugger}")).name
    stacks, output = (gdb_stacks if debugger == "gdb" else lldb_stacks)(cores, script)
    assert "/lib/libc.so.6 (build ID" in output
    assert "; in part)" in output
    assert "guesses" not in output
    for tid, wanted in expected(PROGRAM).items():
        assert in_order(wanted, stacks[tid]), output


def test_lldb_shows_the_same_frames_as_with_the_files(torn: tuple[Path, Path]) -> None:
    cores, root = torn
    script = next(cores.glob(f"core.{PROGRAM}.*.lldb")).name
    alone, with_files = (
        re.findall(r"frame #(\d+): (0x\w+)", lldb_stacks(cores, script, sysroot)[1]) for sysroot in ("", root)
    )
    assert len(alone) > 30
    assert alone == with_files

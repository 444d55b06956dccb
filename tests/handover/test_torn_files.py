"""From a directory whose libc lacks pages, gdb and lldb show every thread's stack complete, with names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.debuggers import in_order
from tests.e2e.guests import bundled, convert, unpacked_sysroot
from tests.e2e.test_sysroot import PAGE, without_pages
from tests.handover.test_partial import pages_of
from tests.handover.test_scripts import GUEST, expected, gdb_stacks, lldb_stacks

PROGRAM = "lab-dynamic"


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a dump that lacks a page of libc's read-only data, and one of its call frame information."""
    folder = tmp_path_factory.mktemp("torn")
    libc = unpacked_sysroot(folder / "root") / "lib/libc.so.6"
    content = libc.read_bytes()
    # The last pages describe functions that no thread runs.
    lost = pages_of(libc, ".rodata")[5], pages_of(libc, ".eh_frame")[-2]
    unwanted = {content[page * PAGE : (page + 1) * PAGE] for page in lost}
    assert without_pages(bundled(GUEST, folder), folder / "poor", unwanted) == len(unwanted)
    assert convert(folder / "poor", "--comm", PROGRAM, "--companions", "-o", f"{folder}/cores/").returncode in (0, 3)
    return folder / "cores"


@pytest.mark.parametrize("debugger", ["gdb", "lldb"])
def test_every_stack_is_complete(cores: Path, debugger: str) -> None:
    script = next(cores.glob(f"core.{PROGRAM}.*.{debugger}")).name
    stacks, output = (gdb_stacks if debugger == "gdb" else lldb_stacks)(cores, script)
    assert "/lib/libc.so.6 (build ID" in output
    assert "; in part)" in output
    for tid, wanted in expected(PROGRAM).items():
        assert in_order(wanted, stacks[tid]), output

"""On machines with a link register, gdb shows the callers that vmcore2core found without call frame information."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.debuggers import gdb_command
from tests.e2e.guests import FIXTURES, bundled, convert, rows, tasks
from tests.e2e.test_sysroot import PAGE, without_pages
from tests.handover.test_partial import pages_of
from tests.handover.test_scripts import run
from vmcore2core.arch import all_archs
from vmcore2core.arch.spec import CoreMachine

PROGRAM = "lab-static"


def walked(frames: list[dict[str, Any]]) -> list[int]:
    """Return the addresses that gdb shows of a stack: of callers up to main, and of no signal trampoline."""
    names = [frame["function"] for frame in frames]
    callers = frames[1 : names.index("main") + 1 if "main" in names else None]
    return [int(frame["address"], 16) for frame in callers if not frame["signal_trampoline"]]


@pytest.mark.parametrize(
    ("machine", "known_to_gdb_as"), [("aarch64", "aarch64"), ("riscv64", "riscv:rv64"), ("ppc64le", "powerpc:common64")]
)
def test_gdb_knows_the_registers_of_callers_by_their_names(machine: str, known_to_gdb_as: str, tmp_path: Path) -> None:
    arch = next(arch for arch in all_archs() if arch.name == machine)
    spec = arch.unwind.spec(CoreMachine(arch.e_machine, 64, ()))
    assert spec is not None
    assert spec.link_register is not None
    numbers = spec.preserved | {spec.return_address, spec.stack_pointer, spec.link_register}
    names = {spec.gdb_names.get(spec.registers[number], spec.registers[number]) for number in numbers}
    ask = "python print(*(one.name for one in gdb.selected_inferior().architecture().registers()))"
    words = *gdb_command("gdb-multiarch"), "-ex", f"set architecture {known_to_gdb_as}", "-ex", ask
    assert names <= set(run(tmp_path, *words).split())


@pytest.mark.parametrize("port", ["arm64", "riscv64", "ppc64el"])
def test_gdb_shows_the_callers_that_bt_shows(port: str, tmp_path: Path) -> None:
    """The program's pages of call frame information are gone, except what shares a page with its code."""
    program = FIXTURES / f"sysroot-{port}/bin/{PROGRAM}"
    content = program.read_bytes()
    unwanted = {content[page * PAGE : (page + 1) * PAGE] for page in pages_of(program, ".eh_frame")[1:]}
    assert without_pages(bundled(f"debian-7.2-{port}", tmp_path), tmp_path / "poor", unwanted) == len(unwanted)
    none = ("--debug-directory", "/nonexistent")
    made = convert(tmp_path / "poor", "--comm", PROGRAM, "--companions", *none, "-o", f"{tmp_path}/cores/")
    assert made.returncode == 3
    (script,) = (tmp_path / "cores").glob("*.gdb")
    stacks = rows(tasks("bt", tmp_path / "poor", "--comm", PROGRAM, *none, "--json").stdout)
    by_code = [frame for stack in stacks for frame in stack["frames"] if frame["found_by"] == "instructions"]
    assert len(by_code) > len(stacks) > 5
    words = *gdb_command("gdb-multiarch"), "-x", script.name, "-ex", "thread apply all bt"
    output = run(tmp_path / "cores", *words)
    assert f"no call frame information for /bin/{PROGRAM}: frames come from the instructions" in output
    parts = re.split(r"^Thread \d+ \(.*LWP (\d+)\)*:?.*$", output, flags=re.MULTILINE)
    # Behind the outermost frame, gdb shows the address 0.
    shown = {
        int(tid): [int(address, 16) for address in re.findall(r"^#[1-9]\d* +(0x\w+)", part, re.MULTILINE)]
        for tid, part in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert {tid: [a for a in found if a] for tid, found in shown.items()} == {
        stack["tid"]: walked(stack["frames"]) for stack in stacks
    }, output

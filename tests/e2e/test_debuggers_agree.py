"""gdb and lldb print the same for a core of ours and for the kernel's own core of the same process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.e2e.debuggers import gdb, lldb
from tests.e2e.guests import PROGRAMS, Guest

pytestmark = pytest.mark.no_cover

# A blocked system call has no result yet. In the kernel's core it has one, as a signal ended it.
RESULT = re.compile(r"^(rax|eflags) .*$|^ +(sc_ret|_?result|resultvar|err) = .*$", re.MULTILINE)
RESULT_REGISTERS = {"rax", "eax", "ax", "ah", "al", "rflags"}


def both(guest: Guest, program: str, folder: Path) -> tuple[Path, Path]:
    """Return our core and the kernel's."""
    return guest.core(program), unpack(guest.folder / "truth" / f"{program}.core.zst", folder / "kernels")


def by_thread(output: str) -> dict[int, str]:
    """Return what ``thread apply all`` printed of each thread."""
    parts = re.split(r"^Thread \d+ \(.*LWP (\d+)\)*:?.*$", output, flags=re.MULTILINE)
    return {int(tid): RESULT.sub("", text).strip() for tid, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("command", ["bt full", "info all-registers"])
def test_gdb_of_each_thread(guest: Guest, program: str, command: str, tmp_path: Path) -> None:
    if "5.10" in guest.folder.name and command == "info all-registers":
        return  # the kernel's core has no fs_base there (fixtures/README.md); test_fixtures has the rest
    spinning = guest.threads(program)["t-spin"]
    ours, kernels = (
        by_thread(
            gdb(core, f"thread apply all {command}", program=guest.sysroot / "bin" / program, sysroot=guest.sysroot)
        )
        for core in both(guest, program, tmp_path)
    )
    assert ours.keys() == kernels.keys() == set(guest.threads(program).values())
    for tid in ours.keys() - {spinning}:
        assert ours[tid] == kernels[tid]
        assert len(ours[tid].splitlines()) >= 4
    if command == "info all-registers":
        for name in ("rbx", "rbp", "rsp", "r12", "r13", "r14", "r15"):
            line = re.compile(rf"^{name} .*$", re.M)
            assert line.findall(ours[spinning]) == line.findall(kernels[spinning]) != []


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("command", ["info auxv", "info proc mappings", "info proc cmdline", "info sharedlibrary"])
def test_gdb_of_the_process(guest: Guest, program: str, command: str, tmp_path: Path) -> None:
    binary = guest.sysroot / "bin" / program
    ours, kernels = (
        gdb(core, "echo BEGIN\\n", command, program=binary, sysroot=guest.sysroot).split("BEGIN\n")[1]
        for core in both(guest, program, tmp_path)
    )
    assert ours == kernels
    assert ours.strip()


@pytest.mark.parametrize("program", PROGRAMS)
def test_lldb_of_each_register(guest: Guest, program: str, tmp_path: Path) -> None:
    if "5.10" in guest.folder.name:
        return
    binary = guest.sysroot / "bin" / program
    found = []
    for core in both(guest, program, tmp_path):
        shown = lldb(core, "thread list", program=binary, sysroot=guest.sysroot)
        numbers = {int(tid): n for n, tid in re.findall(r"thread #(\d+): tid = (\d+)", shown)}
        assert numbers.keys() == set(guest.threads(program).values())
        commands = [line for n in numbers.values() for line in (f"thread select {n}", "register read --all")]
        shown = lldb(core, *commands, program=binary, sysroot=guest.sysroot)
        texts = shown.split("General Purpose Registers:")[1:]  # other lines come whenever lldb likes
        found.append(
            {tid: dict(re.findall(r"^ +(\w+) = (.*)$", text, re.M)) for tid, text in zip(numbers, texts, strict=True)}
        )
    ours, kernels = found
    for tid in ours.keys() - {guest.threads(program)["t-spin"]}:
        assert ours[tid].keys() >= {"rip", "r15", "xmm15"}
        different = {name for name in ours[tid] if ours[tid][name] != kernels[tid].get(name)}
        assert different <= RESULT_REGISTERS

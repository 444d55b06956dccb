"""Processes that are stopped, traced, in vfork or without their leader, and memory of every kind that a filter knows.

One bundled guest runs lab-states (fixtures/lab/programs/states.c); the kernel's own cores of the same processes are the
oracle, written with the filter that each process had set.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, NT_PRPSINFO, Core, compare_pages
from tests.e2e.debuggers import gdb, gdb_backtraces
from tests.e2e.guests import Guest, convert, tasks_json

STATES = (
    "lab-filter",
    "lab-huge",
    "lab-leader",
    "lab-ports",
    "lab-stopped",
    "lab-swap",
    "lab-traced",
    "lab-vfork",
    "lab-zswap",
)
PAGE = 4096
AT_SYSINFO_EHDR = 33
SYSCALL_RETURN = {"rax", "orig_rax", "eflags"}
# As ps(1) writes the states, and as NT_PRPSINFO has them.
LETTERS = {"lab-stopped": "T", "lab-traced": "t", "lab-vfork": "D", "lab-leader": "Z"}


def regions(guest: Guest, program: str) -> dict[str, tuple[int, int]]:
    lines = (line.split() for line in guest.truth(f"{program}.regions").splitlines())
    return {name: (int(start, 16), int(length, 16)) for name, start, length in lines}


def without_vvar(kernels: Core) -> list[tuple[int, int, int, int]]:
    """PT_LOADs of a kernel's core; what it writes zeros for right before the vDSO ([vvar]) has no contents."""
    auxv = struct.unpack(f"<{len(kernels.note(NT_AUXV) or b'') // 8}Q", kernels.note(NT_AUXV) or b"")
    end = dict(zip(auxv[::2], auxv[1::2], strict=True))[AT_SYSINFO_EHDR]
    loads = []
    for vaddr, filesz, memsz, flags in reversed(kernels.loads_without_offsets):
        is_vvar = (vaddr + memsz, flags) == (end, 4)
        assert not is_vvar or kernels.read(vaddr, filesz) == bytes(filesz)
        loads.append((vaddr, 0 if is_vvar else filesz, memsz, flags))
        end = vaddr if is_vvar else end
    return loads[::-1]


@pytest.mark.parametrize("program", STATES)
def test_core_equals_the_kernels_own(states: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(states.core(program)), states.truth_core(program, tmp_path)
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert ours.loads_without_offsets == without_vvar(kernels)
    assert ours.note(NT_AUXV) == kernels.note(NT_AUXV)
    assert ours.note(NT_FILE) == kernels.note(NT_FILE)
    assert ours.registers.keys() == kernels.registers.keys()
    assert ours.regsets == kernels.regsets
    for tid, truth in kernels.registers.items():
        mine = {name: value for name, value in ours.registers[tid].items() if name not in SYSCALL_RETURN}
        assert mine == {name: value for name, value in truth.items() if name not in SYSCALL_RETURN}


def test_a_leader_that_has_exited_is_in_no_core_and_the_core_is_complete(states: Guest) -> None:
    core = Core(states.core("lab-leader"))
    (thread,) = core.registers
    assert thread == states.threads("lab-leader")["t-last"] != states.pids["lab-leader"]


@pytest.mark.parametrize(("program", "letter"), LETTERS.items())
def test_the_state_is_told(states: Guest, program: str, letter: str) -> None:
    (task,) = tasks_json("ps", states.dump, "--pid", str(states.pids[program]))
    assert task["state"] == letter
    info = Core(states.core(program)).note(NT_PRPSINFO)
    assert info is not None
    assert chr(info[1]) == {"t": ".", "D": "D", "T": "T", "Z": "Z"}[letter]  # fill_psinfo(): "RSDTZW"


def test_huge_pages_are_whole_and_an_untouched_one_is_a_hole(states: Guest) -> None:
    core, where = Core(states.core("lab-huge")), regions(states, "lab-huge")
    for name, touched in (("huge_private", 2 << 20), ("huge_shared", 2 << 20)):
        start, length = where[name]
        for at in range(0, length, PAGE):
            page = core.read(start + at, PAGE)
            number = at.to_bytes(8, "little")
            assert page == (number + bytes([at // PAGE & 0xFF | 1]) * (PAGE - 8) if at < touched else bytes(PAGE))


def test_swapped_pages_are_where_the_lab_put_them(states: Guest, tmp_path: Path) -> None:
    """In zram before zswap was switched on, then in zswap; what the layout was asked for tells."""
    for program, in_zswap in (("lab-swap", False), ("lab-zswap", True)):
        said = convert(states.dump, "--pid", str(states.pids[program]), "-o", tmp_path / program, "-v").stderr
        assert "OFFSET(size_class.pages_per_zspage)" in said
        assert ("OFFSET(zswap_pool.tfm_name)" in said) == in_zswap


def test_the_filter_of_the_user_goes_before_the_processs_own(states: Guest, tmp_path: Path) -> None:
    where, pid = regions(states, "lab-filter"), str(states.pids["lab-filter"])
    where["anon_private"] = where.pop("anon_untouched")  # lies right below: they are one VMA

    def written(*args: str) -> set[str]:
        core = tmp_path / "core"
        assert convert(states.dump, "--pid", pid, "-o", core, "--force", *args).returncode == 0
        sizes = {vaddr: filesz for vaddr, _, filesz, _, _ in Core(core).loads}
        return {
            f"{name}{'' if sizes[start] >= length else '+'}" for name, (start, length) in where.items() if sizes[start]
        }

    anonymous = {"anon_private", "file_written"}
    shared_anonymous = {"anon_shared", "memfd"}
    assert written() == anonymous | shared_anonymous | {"elf_header+"}
    assert written("--filter", "0x33") == written()
    assert written("--filter", "0x1ff") == where.keys()
    assert written("--filter", "1") == anonymous
    assert written("--filter", "0x2") == shared_anonymous
    assert written("--filter", "4") == {"file_private", "file_written", "elf_header"}
    assert written("--filter", "010") == {"file_shared"}
    assert written("--filter", "0") == set()


@pytest.mark.parametrize("mask", ["0x200", "-1", "all", "", "0x", "09"])
def test_a_filter_that_is_none_is_a_usage_error(states: Guest, mask: str, tmp_path: Path) -> None:
    result = convert(states.dump, "--pid", "1", "-o", tmp_path / "core", f"--filter={mask}")
    assert result.returncode == 2
    assert "expected a number from 0 to 0x1ff" in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "core").exists()


@pytest.mark.parametrize(
    ("program", "function"),
    [("lab-vfork", "in_vfork"), ("lab-leader", "last_thread"), ("lab-traced", "traced"), ("lab-stopped", "stopped")],
)
def test_gdb_shows_where_the_process_is(states: Guest, program: str, function: str) -> None:
    binary = states.sysroot / "bin" / "lab-states"
    (trace,) = gdb_backtraces(
        gdb(states.core(program), "thread apply all bt", program=binary, sysroot=states.sysroot)
    ).values()
    assert function in trace


def test_what_the_filter_was_is_said_in_the_core(states: Guest) -> None:
    own = next(desc for name, _, desc in Core(states.core("lab-huge")).notes if name == "vmcore2core")
    assert "mappings are written as the process's coredump_filter 0x73 says" in json.loads(own)["notices"]

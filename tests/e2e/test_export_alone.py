"""Kernels whose VMCOREINFO has the task and VMA export, and that have no BTF, no kallsyms and no debug information.

They are the two machines that the export was made for. What the export does not tell is inferred, or said not to be
known; nothing is another than the guest or its kernel's own core said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cores import Core
from tests.e2e.guests import FIXTURES, PROGRAMS, Guest, bundled, convert_all, rows, tasks, unpacked_sysroot
from tests.e2e.machines import (
    ERESTARTNOHAND,
    MACHINES,
    Machine,
    Registers,
    check_memory,
    check_stacks_in_gdb,
    gdb_multiarch,
    registers,
)
from tests.e2e.test_bundled_machines import RESTARTS, calls, clock
from vmcore2core.formats.mips64 import GREGS


@dataclass(frozen=True)
class Seed:
    """One of the two.

    Attributes:
        machine: what is particular to its cores.
        given: options that the dump is read with.
        status: exit status of ``--all``.
        left_out: programs whose spinning thread has no registers.
        unknown: registers of a waiting thread that nothing tells.
    """

    machine: Machine
    given: tuple[str, ...] = ()
    status: int = 0
    left_out: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()


def interrupted_mips64(_truth: Registers, _argument: int, _error: int) -> tuple[Registers, Registers]:
    """handle_signal() changes $v0 and $a3 alone, and the kernel writes no $k0."""
    return {}, {"v0": -1, "a3": -1, "k0": -1}


# The kernel has one CPU and no on_cpu, and QEMU's raw memory no registers of it. No key tells the switch frame of a
# thread, and by it what a system call leaves to the kernel's functions.
MIPS64 = Seed(
    Machine([*GREGS], "<", "epc", interrupted_mips64),
    ("--map", "raw"),
    3,
    PROGRAMS,
    frozenset({*(f"s{number}" for number in range(8)), "fp"}),
)
SEEDS = {"seed-7.2-riscv64": Seed(MACHINES["debian-7.2-riscv64"]), "seed-7.2-mips64el": MIPS64}


@pytest.fixture(scope="module", params=sorted(SEEDS))
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    name = request.param
    sysroot = unpacked_sysroot(tmp_path_factory.mktemp("sysroot"), f"sysroot-{name.rsplit('-', 1)[1]}")
    dump = bundled(name, tmp_path_factory.mktemp("dump"))
    cores = tmp_path_factory.mktemp("cores")
    yield Guest(FIXTURES / name, dump, cores, sysroot, convert_all(dump, *SEEDS[name].given, "-o", cores, "-v"))
    dump.unlink()


def seed(guest: Guest) -> Seed:
    return SEEDS[guest.folder.name]


def asked(guest: Guest, command: str, *args: str) -> str:
    """Return what a command of vmcore-tasks prints."""
    result = tasks(command, guest.dump, *seed(guest).given, *args)
    assert result.returncode in (0, seed(guest).status)
    return result.stdout


def test_nothing_else_tells_the_layout(guest: Guest) -> None:
    sources = [line.rsplit(": ", 1)[1] for line in guest.result.stderr.splitlines() if line[13:].startswith("OFFSET(")]
    assert set(sources) == {"VMCOREINFO", "inferred"}
    assert sources.count("VMCOREINFO") > 30


def test_all_processes_come_out(guest: Guest) -> None:
    assert guest.result.returncode == seed(guest).status
    names = {path.name for path in guest.cores.glob("core.*[0-9]")}
    assert names == {f"core.{name}.{pid}" for name, pid in guest.pids.items() if name not in ("kthread", "zombie")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_core_equals_the_kernels_own(guest: Guest, program: str, tmp_path: Path) -> None:
    """But for the vDSO's page with the time of day."""
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    check_memory(ours, kernels, clock(guest, program))
    assert ours.extents.keys() == kernels.extents.keys()


@pytest.mark.parametrize("program", PROGRAMS)
def test_registers_are_the_kernels(guest: Guest, program: str, tmp_path: Path) -> None:
    """But for what the signal changed; those of the spinning thread are in the note of its CPU."""
    machine, ours, waiting = seed(guest).machine, Core(guest.core(program)), calls(guest, program)
    mine, theirs = registers(machine, ours), registers(machine, guest.truth_core(program, tmp_path))
    spinning = guest.threads(program)["t-spin"]
    assert theirs.keys() - mine.keys() == ({spinning} if program in seed(guest).left_out else set())
    for tid, own in mine.items():
        expected = dict(theirs[tid])
        if tid == spinning:
            expected[machine.program_counter] = own[machine.program_counter]
        else:
            comm, argument = waiting[tid]
            expected |= machine.interrupted(expected, argument, RESTARTS.get(comm, ERESTARTNOHAND))[1]
        for name in seed(guest).unknown:
            assert own.pop(name) == 0
        differ = {name: (own[name], expected[name]) for name in own if expected[name] not in (own[name], -1)}
        assert not differ, f"thread {tid}: {differ}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_known_registers_are_in_their_slots(guest: Guest, program: str) -> None:
    threads, found = guest.threads(program), registers(seed(guest).machine, Core(guest.core(program)))
    for comm, wanted in guest.expected["registers"][program].items():
        if threads[comm] in found:
            known = {name: value for name, value in wanted.items() if name not in seed(guest).unknown}
            assert {name: f"{found[threads[comm]][name]:#x}" for name in known} == known


@pytest.mark.parametrize("program", PROGRAMS)
def test_floating_point_registers_are_not_made_up(guest: Guest, program: str) -> None:
    """No key tells where thread_struct has those of NT_FPREGSET."""
    assert all((name, n_type) != ("CORE", 2) for name, n_type, _ in Core(guest.core(program)).notes)


@pytest.mark.parametrize("program", PROGRAMS)
def test_gdb_shows_every_threads_stack_and_the_globals(guest: Guest, program: str) -> None:
    left_out = {"t-spin"} if program in seed(guest).left_out else set()
    check_stacks_in_gdb(guest, program, left_out)


@pytest.mark.parametrize("program", PROGRAMS)
def test_bt_goes_through_the_signal_frame(guest: Guest, program: str) -> None:
    shown = rows(asked(guest, "bt", "--pid", str(guest.pids[program]), "--json", "--sysroot", str(guest.sysroot)))
    (signal,) = (thread for thread in shown if thread["comm"] == "t-signal")
    functions = [frame["function"] for frame in signal["frames"]]
    assert signal["complete"]
    assert functions.index("on_signal") < functions.index("signal_thread")


@pytest.mark.parametrize("program", PROGRAMS)
def test_maps_are_those_of_the_guest(guest: Guest, program: str) -> None:
    """But for device and inode, which no key tells, and names of what is not a file."""
    shown = [line.split() for line in asked(guest, "maps", "--pid", str(guest.pids[program])).splitlines()]
    told = [line.split() for line in guest.truth(f"{program}.maps").splitlines()]
    assert [line[:3] for line in shown] == [line[:3] for line in told]
    assert [line[5:] for line in shown if line[5:6] and line[5].startswith("/")] == [
        line[5:] for line in told if line[5:6] and line[5].startswith("/")
    ]


def test_ps_lists_what_the_guest_listed(guest: Guest) -> None:
    listed = {int(line.split("\t")[0]) for line in guest.truth("ps.txt").splitlines()}
    shown = {int(line.split()[0]) for line in asked(guest, "ps").splitlines()[1:]}
    assert listed - shown == set()


def test_regs_are_the_cores(guest: Guest) -> None:
    program = PROGRAMS[0]
    core = registers(seed(guest).machine, Core(guest.core(program)))
    shown = rows(asked(guest, "regs", "--pid", str(guest.pids[program]), "--json"))
    threads = {thread["tid"]: thread["registers"] for thread in shown if thread["registers"]}
    assert threads.keys() == core.keys()
    for tid, known in threads.items():
        assert known.keys() == core[tid].keys() - seed(guest).unknown
        assert {name: int(value, 16) for name, value in known.items()}.items() <= core[tid].items()


def test_dmesg_has_the_kernels_messages(guest: Guest) -> None:
    shown = asked(guest, "dmesg")
    assert "Linux version 7.2" in shown
    assert "Run /init as init process" in shown


def test_the_small_core_of_dump_shows_the_same_stacks(guest: Guest, tmp_path: Path) -> None:
    program, mini = PROGRAMS[0], tmp_path / "mini"
    asked(guest, "dump", "--pid", str(guest.pids[program]), "-o", str(mini))
    assert mini.stat().st_size < 256 << 10
    binary = guest.sysroot / "bin" / program
    assert gdb_multiarch(binary, mini) == gdb_multiarch(binary, guest.core(program))

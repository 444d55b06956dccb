"""The bundled guests of other machines: cores against the kernel's own, and gdb on them.

None of the dumps has a VMCOREINFO note: the text is found in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cores import Core
from tests.e2e.debuggers import in_order, lldb, lldb_backtraces, need
from tests.e2e.guests import FIXTURES, PROGRAMS, Guest, bundled, convert_all, rows, tasks, unpacked_sysroot
from tests.e2e.machines import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    ERESTARTSYS,
    MACHINES,
    check_memory,
    check_registers,
    check_stacks_in_gdb,
    check_without_on_cpu,
    on_a_cpu,
    registers,
    thread_notes,
)

RESTARTS = {"t-nested": ERESTART_RESTARTBLOCK, "t-cond": ERESTARTSYS}
GUESTS = sorted(name for name in MACHINES if (FIXTURES / name).is_dir())


def given(folder: Path) -> tuple[str | Path, ...]:
    """What a dump is read with: the layout, where the kernel has no BTF."""
    layout = FIXTURES / folder.name / "layout.txt"
    return ("--vmcoreinfo", layout) if layout.exists() else ()


@pytest.fixture(scope="module", params=GUESTS)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Each of the bundled dumps, converted; its memory is on disk no longer than needed."""
    name = request.param
    architecture = name.rsplit("-", 1)[1]
    sysroot = unpacked_sysroot(tmp_path_factory.mktemp("sysroot"), f"sysroot-{architecture}")
    cores = tmp_path_factory.mktemp("cores")
    dump = bundled(name, tmp_path_factory.mktemp("dump"))
    more = given(FIXTURES / name)
    yield Guest(FIXTURES / name, dump, cores, sysroot, convert_all(dump, *more, "-o", cores, "-v"))
    dump.unlink()


def clock(guest: Guest, program: str) -> set[int]:
    """The page that has the time of day, which goes on."""
    lines = [line.split() for line in guest.truth(f"{program}.maps").splitlines()]
    return {int(words[0].split("-")[0], 16) for words in lines if words[-1] == "[vvar]"}


def test_there_are_bundled_dumps() -> None:
    assert len(GUESTS) == len(MACHINES)


def test_all_processes_come_out(guest: Guest) -> None:
    assert guest.result.returncode == 0
    assert "VMCOREINFO text at physical 0x" in guest.result.stderr
    names = {path.name for path in guest.cores.glob("core.*[0-9]")}
    assert names == {f"core.{name}.{pid}" for name, pid in guest.pids.items() if name not in ("kthread", "zombie")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_core_equals_the_kernels_own(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    check_memory(ours, kernels, clock(guest, program))
    assert ours.extents == kernels.extents
    flags = 48 if ours.is_64 else 36
    assert (ours.data[:24], ours.data[flags : flags + 4]) == (kernels.data[:24], kernels.data[flags : flags + 4])


def calls(guest: Guest, program: str) -> dict[int, tuple[str, int]]:
    """The name of each thread that waits in a system call, and the call's first argument, as the guest had them."""
    lines = (line.split("\t") for line in guest.truth(f"{program}.tasks").splitlines())
    told = {int(tid): (comm, call.split()) for tid, comm, _, call in lines}
    return {tid: (comm, int(words[1], 16)) for tid, (comm, words) in told.items() if words != ["running"]}


@pytest.mark.parametrize("program", PROGRAMS)
def test_registers_are_the_kernels_but_for_what_the_signal_changed(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels, found = Core(guest.core(program)), guest.truth_core(program, tmp_path), calls(guest, program)
    waiting = {tid: (argument, RESTARTS.get(comm, ERESTARTNOHAND)) for tid, (comm, argument) in found.items()}
    assert ours.prstatus.keys() == waiting.keys() | {guest.threads(program)["t-spin"]}
    # The spinning thread went on, and something else interrupted it.
    went_on = {MACHINES[guest.folder.name].program_counter, "trap"}
    check_registers(guest.folder.name, ours, kernels, waiting, guest.pids[program], went_on)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_further_notes_are_the_kernels(guest: Guest, program: str, tmp_path: Path) -> None:
    """But NT_ARM_SYSTEM_CALL, which the kernel forgets when a signal ends the call."""
    machine, ours, waiting = MACHINES[guest.folder.name], Core(guest.core(program)), calls(guest, program)
    running, found = on_a_cpu(ours), thread_notes(ours)
    for tid, truth in thread_notes(guest.truth_core(program, tmp_path)).items():
        lost = machine.lost_notes if tid in running else frozenset()
        going = frozenset({0x404}) if tid in waiting else machine.going_notes
        assert not lost & {n_type for _, n_type, _ in found[tid]}
        notes, truth = ([note for note in each if note[1] not in lost | going] for each in (found[tid], truth))
        assert notes == truth, f"thread {tid}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_known_registers_are_in_their_slots(guest: Guest, program: str) -> None:
    threads, found = guest.threads(program), registers(MACHINES[guest.folder.name], Core(guest.core(program)))
    for comm, wanted in guest.expected["registers"][program].items():
        assert {name: f"{found[threads[comm]][name]:#x}" for name in wanted} == wanted


def test_a_layout_without_on_cpu_makes_no_registers_up(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes tell whose thread it was where a general register does, and s390x's whose memory, too.

    riscv64's CPUs were in the kernel and in firmware.
    """
    layout = next((Path(file) for file in given(guest.folder)[1:]), None)
    cores = {guest.core(program): guest.threads(program)["t-spin"] for program in PROGRAMS}
    left_out = check_without_on_cpu(monkeypatch, guest.dump, layout, cores)
    certain = guest.folder.name in ("debian-7.2-riscv64", "debian-7.2-s390x", "debian-7.2-ppc64el")
    assert left_out == (set() if certain else set(cores.values()))


@pytest.mark.parametrize("program", PROGRAMS)
def test_gdb_shows_every_threads_stack_and_the_globals(guest: Guest, program: str) -> None:
    check_stacks_in_gdb(guest, program)


@pytest.mark.parametrize("program", PROGRAMS)
def test_lldb_shows_every_threads_stack(guest: Guest, program: str) -> None:
    """lldb finds its way through no machine's signal frame; 14 crashes on any core of riscv64, the kernel's too."""
    if guest.folder.name == "debian-7.2-riscv64":
        need("lldb-19")
    binary = guest.sysroot / "bin" / program
    shown = lldb_backtraces(lldb(guest.core(program), "thread list", "bt all", program=binary, sysroot=guest.sysroot))
    threads = guest.threads(program)
    assert shown.keys() == set(threads.values())
    for comm, wanted in guest.expected[program].items():
        wanted = wanted[: wanted.index("on_signal") + 1] if "on_signal" in wanted else wanted
        assert in_order(wanted, shown[threads[comm]]), (comm, shown[threads[comm]])


@pytest.mark.parametrize("program", PROGRAMS)
def test_maps_are_those_of_the_guest(guest: Guest, program: str) -> None:
    shown = tasks("maps", guest.dump, *given(guest.folder), "--pid", str(guest.pids[program])).stdout.splitlines()
    assert [line.split() for line in shown] == [line.split() for line in guest.truth(f"{program}.maps").splitlines()]


def test_ps_lists_what_the_guest_listed(guest: Guest) -> None:
    listed = {line.split("\t")[0] for line in guest.truth("ps.txt").splitlines()}
    shown = {line.split()[0] for line in tasks("ps", guest.dump, *given(guest.folder)).stdout.splitlines()}
    assert {str(guest.pids[name]) for name in PROGRAMS} <= listed & shown


@pytest.mark.parametrize("guest", [name for name in GUESTS if MACHINES[name].unwound], indirect=True)
@pytest.mark.parametrize("program", PROGRAMS)
def test_bt_names_every_function(guest: Guest, program: str) -> None:
    """Without any binary. The programs for riscv64 have .debug_frame instead of .eh_frame, and no frame pointers."""
    result = tasks("bt", guest.dump, "--pid", str(guest.pids[program]), "--json")
    shown = {thread["comm"]: thread for thread in rows(result.stdout)}
    assert shown.keys() == guest.expected[program].keys()
    assert (result.returncode, result.stderr) == (0, "")
    for comm, wanted in guest.expected[program].items():
        symbols = [frame["function"] for frame in shown[comm]["frames"]]
        assert shown[comm]["complete"]
        assert in_order(wanted, symbols), (comm, symbols)


def test_info_numbers_cpus_as_the_kernel_does(guest: Guest) -> None:
    """The victims' spinning threads keep to CPU 1, which on riscv64 is hart 0 here; that of 32 bits keeps to CPU 0."""
    cpus = json.loads(tasks("info", guest.dump, *given(guest.folder), "--json").stdout)["cpus"]
    assert {cpu["cpu"] for cpu in cpus} == {0, 1}
    spinning = [cpu["cpu"] for cpu in cpus if cpu["comm"] == "t-spin" and cpu["process_comm"] in PROGRAMS]
    assert spinning == ([] if guest.folder.name == "debian-6.1-armhf" else [1])  # there it was just not running

"""The bundled guests of other machines: cores against the kernel's own, and what gdb makes of them.

None of the dumps has a VMCOREINFO note: the text is found in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cores import Core
from tests.e2e.debuggers import in_order, lldb, lldb_backtraces, need
from tests.e2e.guests import FIXTURES, PROGRAMS, Guest, bundled, convert_all, rows, tasks, unpacked_sysroot
from tests.e2e.machines import check_memory, check_stacks_in_gdb, check_without_on_cpu, thread_notes

# include/linux/errno.h: how a call ends that a signal interrupts: pause(), ppoll() without a set; poll(); futex().
ERESTARTNOHAND, ERESTART_RESTARTBLOCK, ERESTARTSYS, ENOSYS = 514, 516, 512, 38
RESTARTS = {"t-nested": ERESTART_RESTARTBLOCK, "t-cond": ERESTARTSYS}
FLOATS_IN_CPU = 1 << 13 | 1 << 23 | 1 << 25  # ppc64's MSR: FP, VSX, VEC
THUMB = 1 << 5  # in arm's cpsr: system calls have two bytes
SO = 1 << 28  # in ppc64's CR0: the system call failed

Registers = dict[str, int]


def _minus(error: int) -> int:
    return (1 << 64) - error


def interrupted_arm64(truth: Registers, argument: int, _error: int) -> tuple[Registers, Registers]:
    """do_signal() has the call start again, before get_signal() writes the core: x0 is orig_x0, pc at the svc."""
    return {"x0": argument}, {"pc": truth["pc"] + 4}


def interrupted_arm(truth: Registers, argument: int, _error: int) -> tuple[Registers, Registers]:
    """do_signal() has the call start again, before get_signal() writes the core."""
    return {"r0": argument}, {"pc": truth["pc"] + (2 if truth["cpsr"] & THUMB else 4)}


def interrupted_riscv64(truth: Registers, argument: int, _error: int) -> tuple[Registers, Registers]:
    """arch_do_signal_or_restart() likewise: a0 is orig_a0; do_trap_ecall_u() had put -ENOSYS there."""
    return {"a0": argument}, {"pc": truth["pc"] + 4, "a0": _minus(ENOSYS)}


def interrupted_s390x(_truth: Registers, _argument: int, error: int) -> tuple[Registers, Registers]:
    """arch_do_signal_or_restart() looks at the result after get_signal(); __do_syscall() had put -ENOSYS there."""
    return {"r2": _minus(error)}, {"r2": _minus(ENOSYS)}


def interrupted_ppc64le(truth: Registers, argument: int, error: int) -> tuple[Registers, Registers]:
    """syscall_exit_prepare(): after sc, r3 is the error and CR0.SO is set; after scv 0, r3 is its negative.

    Until the call returns, r3 is its first argument, as orig_gpr3 is.
    """
    ours = {"r3": truth["orig_gpr3"]}
    failed = {"orig_gpr3": argument, "result": _minus(error)}
    if truth["trap"] == 0x3000:
        return failed | {"r3": _minus(error)}, ours
    return failed | {"trap": 0xC00, "r3": error, "ccr": truth["ccr"] | SO}, ours | {"ccr": truth["ccr"] & ~SO}


@dataclass(frozen=True)
class Machine:
    """What is particular to a machine's cores.

    Attributes:
        names: pr_reg in order; its numbers' byte order.
        program_counter: its name.
        interrupted: from the registers of a thread that waits in the kernel's core, its call's first argument and the
            error that the signal made: what the kernel's core must have there, and what ours must have instead.
        left: registers that have whatever the last exception left there.
        lost: registers that a CPU's note in the dump does not have: zero.
        lost_notes: types of notes that a CPU's notes do not have.
        going_notes: types of a spinning thread's notes that went on with it.
        unwound: whether its stacks unwind without any binary.
    """

    names: list[str]
    order: str
    program_counter: str
    interrupted: Callable[[Registers, int, int], tuple[Registers, Registers]]
    left: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    lost_notes: frozenset[int] = frozenset()
    going_notes: frozenset[int] = frozenset()
    unwound: bool = True


def _names(text: str, prefix: str = "", count: int = 0) -> list[str]:
    return [*(f"{prefix}{i}" for i in range(count)), *text.split()]


MACHINES = {
    "debian-7.2-arm64": Machine(
        *(_names("sp pc pstate", "x", 31), "<", "pc", interrupted_arm64),
        lost_notes=frozenset({0x401, 0x404, 0x40B, 0x40C}),
        going_notes=frozenset({0x405}),  # QEMU writes all of SVE's registers, the kernel those that are in use
    ),
    "debian-7.2-riscv64": Machine(
        _names("pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"),
        *("<", "pc", interrupted_riscv64),
        lost_notes=frozenset({2}),
    ),
    "debian-7.2-s390x": Machine(
        ["pswm", "pswa", *_names("", "r", 16), *_names("orig_r2", "acr", 16)],
        *(">", "pswa", interrupted_s390x),
        lost_notes=frozenset({0x306}),
        # The last branch, and a transaction's block (that of an interruption code): of what came afterwards.
        going_notes=frozenset({0x306, 0x308}),
    ),
    "debian-7.2-ppc64el": Machine(
        _names("nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result z0 z1 z2 z3", "r", 32),
        *("<", "nip", interrupted_ppc64le),
        left=frozenset({"result"}),
        lost=frozenset({"orig_gpr3", "trap", "dar", "dsisr", "result"}),
        lost_notes=frozenset({0x103, 0x104, 0x105, 0x107}),
    ),
    "debian-6.1-armhf": Machine(
        _names("fp ip sp lr pc cpsr orig_r0", "r", 11),
        *("<", "pc", interrupted_arm),
        lost=frozenset({"orig_r0"}),
        unwound=False,
    ),
}
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


def registers(machine: Machine, core: Core) -> dict[int, dict[str, int]]:
    """General registers by thread ID; those of s390x that are 32 bits wide (acr0 to acr15) are in the middle."""
    word, at = ("Q", 112) if core.is_64 else ("I", 72)
    form = machine.order + ("18Q16IQ" if "acr0" in machine.names else f"{len(machine.names)}{word}")
    return {
        tid: dict(zip(machine.names, struct.unpack_from(form, desc, at), strict=True))
        for tid, desc in core.prstatus.items()
    }


def on_a_cpu(core: Core) -> set[int]:
    """The threads that a CPU was running, in user mode or in the kernel, as the core itself says."""
    own = next(desc for name, _, desc in core.notes if name == "vmcore2core")
    said = json.loads(own)["registers"]
    return {int(tid) for tid, source in said.items() if "on CPU" in source or "note of CPU" in source}


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
    machine, ours, waiting = MACHINES[guest.folder.name], Core(guest.core(program)), calls(guest, program)
    mine, theirs = registers(machine, ours), registers(machine, guest.truth_core(program, tmp_path))
    running = on_a_cpu(ours)
    assert mine.keys() == theirs.keys() == waiting.keys() | {guest.threads(program)["t-spin"]}
    assert running <= mine.keys() - waiting.keys()
    for tid, truth in theirs.items():
        skip, expected, own = set(machine.left), dict(truth), dict(mine[tid])
        if tid in waiting:
            comm, argument = waiting[tid]
            told, instead = machine.interrupted(truth, argument, RESTARTS.get(comm, ERESTARTNOHAND))
            assert {name: hex(truth[name]) for name in told} == {name: hex(value) for name, value in told.items()}
            expected |= instead
        else:  # it went on, and something else interrupted it
            skip |= {machine.program_counter, "trap"}
        if tid in running:
            assert {own[name] for name in machine.lost} <= {0}
            skip |= machine.lost
        if "msr" in own and (tid == guest.pids[program] or tid not in waiting):
            # Whether the leader, which wrote the core, and the thread on a CPU had loaded them.
            own["msr"], expected["msr"] = own["msr"] & ~FLOATS_IN_CPU, expected["msr"] & ~FLOATS_IN_CPU
        differ = {name: (hex(own[name]), hex(expected[name])) for name in own if own[name] != expected[name]}
        assert differ.keys() <= skip, f"thread {tid}: {differ}"


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

"""The bundled guests of other machines: cores against the kernel's own, and what gdb makes of them.

None of the dumps has a VMCOREINFO note: the text is found in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.debuggers import in_order, lldb, lldb_backtraces
from tests.e2e.guests import FIXTURES, PROGRAMS, Guest, bundled, convert_all, tasks, unpacked_sysroot
from tests.e2e.machines import check_stacks_in_gdb, thread_notes

ENOSYS = (1 << 64) - 38
FLOATS_IN_CPU = 1 << 13 | 1 << 23 | 1 << 25  # ppc64's MSR: FP, VSX, VEC
SO = 1 << 28  # in ppc64's CR0: the system call failed


@dataclass(frozen=True)
class Machine:
    """What is particular to a machine's cores.

    Attributes:
        names: pr_reg in order; its numbers' byte order.
        program_counter: its name.
        result: the register of a system call's result; what it is in a thread that waits, None where it is not told.
        again: how far the kernel's core has the program counter set back, as the signal has the call start again.
        changed: what else the signal changes; what a CPU's note in the dump does not have.
        notes: types of what a spinning thread's further notes are compared by.
        unwound: whether its stacks unwind without any binary.
    """

    names: list[str]
    order: str
    program_counter: str
    result: str
    waiting: int | None
    again: int
    changed: frozenset[str]
    lost: frozenset[str]
    spinning_notes: frozenset[int]
    unwound: bool = True


def _names(text: str, prefix: str = "", count: int = 0) -> list[str]:
    return [*(f"{prefix}{i}" for i in range(count)), *text.split()]


NOTHING: frozenset[str] = frozenset()
MACHINES = {
    "debian-7.2-arm64": Machine(
        _names("sp pc pstate", "x", 31), "<", "pc", "x0", None, 4, NOTHING, NOTHING, frozenset({2})
    ),
    "debian-7.2-riscv64": Machine(
        _names("pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"),
        *("<", "pc", "a0", ENOSYS, 4, NOTHING, NOTHING, frozenset()),
    ),
    "debian-7.2-s390x": Machine(
        ["pswm", "pswa", *_names("", "r", 16), *_names("orig_r2", "acr", 16)],
        *(">", "pswa", "r2", ENOSYS, 0, NOTHING, NOTHING, frozenset({2, 0x309, 0x30A})),
    ),
    "debian-7.2-ppc64el": Machine(
        _names("nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result z0 z1 z2 z3", "r", 32),
        "<",
        "nip",
        "r3",
        None,
        0,
        frozenset({"result"}),
        frozenset({"orig_gpr3", "trap", "dar", "dsisr", "result"}),
        frozenset({2, 0x100, 0x102}),
    ),
    "debian-6.1-armhf": Machine(
        _names("fp ip sp lr pc cpsr orig_r0", "r", 11),
        *("<", "pc", "r0", None, 4, NOTHING, frozenset({"orig_r0"}), frozenset({2, 0x400})),
        unwound=False,
    ),
}
THUMB = 1 << 5  # in cpsr: system calls have two bytes
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
    diff = compare_pages(ours, kernels)
    wrong = [page for page in diff.wrong if page not in clock(guest, program)]
    assert (wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 1000
    assert ours.extents == kernels.extents
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    flags = 48 if ours.is_64 else 36
    assert (ours.data[:24], ours.data[flags : flags + 4]) == (kernels.data[:24], kernels.data[flags : flags + 4])


@pytest.mark.parametrize("program", PROGRAMS)
def test_registers_are_the_kernels_but_for_what_the_signal_changed(guest: Guest, program: str, tmp_path: Path) -> None:
    machine, ours = MACHINES[guest.folder.name], Core(guest.core(program))
    mine, theirs = registers(machine, ours), registers(machine, guest.truth_core(program, tmp_path))
    assert mine.keys() == theirs.keys() == set(guest.threads(program).values())
    spinning, running = guest.threads(program)["t-spin"], on_a_cpu(ours)
    assert running <= {spinning}
    for tid, truth in theirs.items():
        skip = set(machine.changed)
        expected = dict(truth)
        if tid == spinning:  # it went on, and something else interrupted it
            skip |= {machine.program_counter, "trap", *(machine.lost if tid in running else ())}
        else:
            expected[machine.program_counter] += 2 if truth.get("cpsr", 0) & THUMB else machine.again
            if machine.waiting is None:
                skip |= {machine.result}
            else:
                expected[machine.result] = machine.waiting
        own, other = ({k: v for k, v in regs.items() if k not in skip} for regs in (mine[tid], expected))
        for regs in (own, other):
            if "msr" in regs:
                regs["msr"] &= ~FLOATS_IN_CPU  # whether the leader, which wrote the core, had loaded them
                regs["ccr"] &= ~(0 if tid == spinning else SO)
        assert {k: hex(v) for k, v in own.items()} == {k: hex(v) for k, v in other.items()}, f"thread {tid}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_further_notes_are_the_kernels(guest: Guest, program: str, tmp_path: Path) -> None:
    """But NT_ARM_SYSTEM_CALL, which the kernel forgets when a signal ends the call."""
    machine, ours = MACHINES[guest.folder.name], Core(guest.core(program))
    running = on_a_cpu(ours)
    found = thread_notes(ours)
    for tid, truth in thread_notes(guest.truth_core(program, tmp_path)).items():
        notes = [note for note in found[tid] if note[1] != 0x404]
        if tid == guest.threads(program)["t-spin"] and "acr0" in machine.names:
            # The last branch, and a transaction's block (that of an interruption code): of what came afterwards.
            notes, truth = ([note for note in each if note[1] not in (0x306, 0x308)] for each in (notes, truth))
        if tid in running:
            notes = [note for note in notes if note[1] in machine.spinning_notes]
            truth = [note for note in truth if note[1] in machine.spinning_notes]
        assert notes == [note for note in truth if note[1] != 0x404], f"thread {tid}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_known_registers_are_in_their_slots(guest: Guest, program: str) -> None:
    threads, found = guest.threads(program), registers(MACHINES[guest.folder.name], Core(guest.core(program)))
    for comm, wanted in guest.expected["registers"][program].items():
        assert {name: f"{found[threads[comm]][name]:#x}" for name in wanted} == wanted


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
def test_bt_names_every_function_or_says_why_not(guest: Guest, program: str) -> None:
    """Without any binary. The programs for riscv64 have no .eh_frame of their own code, and no frame pointers."""
    result = tasks("bt", guest.dump, "--pid", str(guest.pids[program]), "--json")
    shown = {thread["comm"]: thread for thread in json.loads(result.stdout)}
    assert shown.keys() == guest.expected[program].keys()
    described = guest.folder.name != "debian-7.2-riscv64"
    assert (result.returncode, result.stderr) == (0 if described else 3, "")
    for comm, wanted in guest.expected[program].items():
        symbols = [frame["symbol"] for frame in shown[comm]["frames"]]
        assert shown[comm]["complete"] == described
        if described:
            assert in_order(wanted, symbols), (comm, symbols)
        else:
            assert wanted[0] in symbols
            assert shown[comm]["end"].startswith("no call frame information covers 0x")

"""What is particular to the cores of each machine, and checks that several guests' tests share."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.debuggers import gdb_backtraces, gdb_command, in_order
from tests.e2e.guests import Guest, convert, spoil_kallsyms, tasks
from vmcore2core.interfaces import Member
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.session import OpenOptions, Session

# include/linux/errno.h: how a call ends that a signal interrupts: pause(), ppoll() without a set; poll(); futex().
ERESTARTNOHAND, ERESTART_RESTARTBLOCK, ERESTARTSYS, ENOSYS = 514, 516, 512, 38
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


def check_registers(
    guest: str, ours: Core, kernels: Core, waiting: Mapping[int, tuple[int, int]], leader: int, went_on: Set[str]
) -> None:
    """Check that general registers are those of the kernel's core, but for what the signal that made it changed.

    Args:
        guest: key of ``MACHINES``.
        ours: our core.
        kernels: the kernel's own.
        waiting: threads in a system call -> the call's first argument, and the error that the signal made.
        leader: the thread that wrote the kernel's core.
        went_on: registers of the other threads that changed between the two cores.
    """
    machine, running = MACHINES[guest], on_a_cpu(ours)
    mine, theirs = registers(machine, ours), registers(machine, kernels)
    assert running <= mine.keys() - waiting.keys()
    assert mine.keys() == theirs.keys()
    for tid, truth in theirs.items():
        skip, expected, own = set(machine.left), dict(truth), dict(mine[tid])
        if tid in waiting:
            changed, instead = machine.interrupted(truth, *waiting[tid])
            assert {name: hex(truth[name]) for name in changed} == {name: hex(value) for name, value in changed.items()}
            expected |= instead
        else:
            skip |= went_on
        if tid in running:
            assert {own[name] for name in machine.lost} <= {0}
            skip |= machine.lost
        if "msr" in own and (tid == leader or tid not in waiting):
            # Whether the leader, which wrote the core, and the thread on a CPU had loaded them.
            own["msr"], expected["msr"] = own["msr"] & ~FLOATS_IN_CPU, expected["msr"] & ~FLOATS_IN_CPU
        differ = {name: (hex(own[name]), hex(expected[name])) for name in own if own[name] != expected[name]}
        assert differ.keys() <= skip, f"thread {tid}: {differ}"


LEVELS = ["level_c", "level_b", "level_a"]


def thread_notes(core: Core) -> dict[int, list[tuple[str, int, bytes]]]:
    """Return the notes behind each thread's NT_PRSTATUS that are the thread's own."""
    found: dict[int, list[tuple[str, int, bytes]]] = {}
    tid = 0
    for note in core.notes:
        if note[:2] == ("CORE", 1):
            (tid,) = struct.unpack_from(core.order + "i", note[2], 32 if core.is_64 else 24)
            found[tid] = []
        elif note[:2] == ("CORE", 2) or note[0] == "LINUX":
            found[tid].append(note)
    return found


def check_layout_from_file(dump: Path, core: Path, folder: Path) -> None:
    """Check that a copy of the dump without BTF and kallsyms gives the same core with a layout that was written."""
    (folder / "layout").write_text(tasks("layout", dump).stdout)
    before = Core(core)
    data = bytearray(dump.read_bytes())
    magic = struct.pack(before.order + "HBBI", 0xEB9F, 1, 0, 24)
    for pattern, instead in ((magic, bytes(8)), (b"SYMBOL(kallsyms_", b"LENGTH(kallsyms_")):
        places = [match.start() for match in re.finditer(re.escape(pattern), data)]
        assert places
        for at in places:
            data[at : at + len(instead)] = instead
    spoil_kallsyms(data, "little" if before.order == "<" else "big")
    (folder / "bare").mkdir()
    bare = folder / "bare" / dump.name
    bare.write_bytes(data)
    pid = core.name.rsplit(".", 1)[1]
    result = convert(bare, "--vmcoreinfo", folder / "layout", "--pid", pid, "-o", folder / "core", "-v")
    assert result.returncode == 0
    assert "BTF in the dump" not in result.stderr
    ours = Core(folder / "core")
    assert ours.prstatus == before.prstatus
    assert thread_notes(ours) == thread_notes(before)
    assert ours.data[48:52] == before.data[48:52]  # e_flags
    diff = compare_pages(ours, before)
    assert (diff.same, diff.wrong, diff.zeroed) == (len(before.pages()), [], [])


def check_memory(ours: Core, kernels: Core, clock: Set[int]) -> None:
    """Check that a core has the pages of the kernel's own but the time of day, and its NT_AUXV and NT_FILE."""
    diff = compare_pages(ours, kernels)
    wrong = [page for page in diff.wrong if page not in clock]
    assert (wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 1000
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))


def check_stacks_in_gdb(guest: Guest, program: str, left_out: Set[str] = frozenset()) -> None:
    """Check that gdb shows every thread's stack but those of the threads left out, and the globals."""
    command = gdb_command("gdb-multiarch", sysroot=guest.sysroot)
    for shown in ("thread apply all bt", "p/x victim_magic", "p/x library_magic"):
        command += ["-ex", shown]
    command += [str(guest.sysroot / "bin" / program), str(guest.core(program))]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    traces = gdb_backtraces(output)
    threads = {comm: tid for comm, tid in guest.threads(program).items() if comm not in left_out}
    assert traces.keys() == set(threads.values())
    for comm, tid in threads.items():
        assert in_order(guest.expected[program][comm], traces[tid]), (comm, traces[tid])
    assert "<signal handler called>" in traces[threads["t-signal"]]
    for value in guest.expected["globals"].values():
        assert f"= {value}\n" in output


def gdb_multiarch(program: Path, core: Path) -> dict[int, list[str]]:
    """Return the function names that gdb shows of each thread, with no files but the program."""
    arguments = [*gdb_command("gdb-multiarch"), "-ex", "thread apply all bt", str(program), str(core)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    return gdb_backtraces(result.stdout)


def stacks_of_victim_static(pid: int, *end: str, waits: str = "__futex_abstimed_wait_cancelable64") -> object:
    """Return what a debugger must show of victim-static's threads: the corpus' victim.c.

    Args:
        pid: its PID; the threads have the numbers from two more on.
        end: outermost functions of a thread.
        waits: libc's function that waits for a futex.
    """
    signal = ["pause", "handler", "<signal handler called>", "__pthread_kill_implementation.constprop.0", "raise"]
    return {
        pid: ["clock_nanosleep", "nanosleep", *LEVELS, "main"],
        pid + 2: ["pause", "regs_blocked", *end],
        pid + 3: [*signal, "sig_thread", *end],
        pid + 4: [waits, "pthread_cond_wait", "cond_thread", *end],
        pid + 5: ["clock_nanosleep", "nanosleep", *LEVELS, "bt_thread", *end],
        pid + 6: ["regs_spin", *end],
    }


ON_CPU = {
    ("task_struct", "on_cpu"),
    *((s, n) for s in ("task_struct", "thread_info") for n in ("cpu", "thread_info.cpu")),
}


def check_without_on_cpu(
    monkeypatch: pytest.MonkeyPatch, dump: Path, layout: Path | None, cores: dict[Path, int]
) -> set[int]:
    """Check that a layout like VMCOREINFO's export, which tells of no task whether it was on a CPU, makes none up.

    Args:
        cores: those of the whole layout, and the thread of each that spins.

    Returns:
        The threads whose registers are left out.
    """
    find_member = KernelLayout.find_member

    def known(self: KernelLayout, struct: str, member: str) -> Member | None:
        return None if (struct, member) in ON_CPU else find_member(self, struct, member)

    monkeypatch.setattr(KernelLayout, "find_member", known)
    left_out: set[int] = set()
    with Session([dump], OpenOptions(vmcoreinfo=layout)) as session:
        for path, spinning in cores.items():
            core, leader = Core(path), session.processes.find(int(path.name.rsplit(".", 1)[1]))
            snapshot = session.processes.capture(leader, with_absent=False).snapshot
            lost, found = {t.tid for t in snapshot.threads_left_out}, {t.tid: t.gregs for t in snapshot.threads}
            assert lost <= {spinning}
            assert lost | found.keys() == core.prstatus.keys()
            start = 112 if core.is_64 else 72
            for tid, gregs in found.items():
                assert gregs == core.prstatus[tid][start : start + len(gregs)], f"thread {tid}"
            left_out |= lost
    return left_out

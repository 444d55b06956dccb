"""The corpus's guests of other machines: cores against the kernel's own, and stacks in debuggers and ``bt``.

Debian 7.2 on each machine ran the corpus's victim.c twice. test_bundled_machines.py has the bundled guests.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import unpack
from tests.e2e.cores import Core
from tests.e2e.debuggers import lldb, lldb_backtraces
from tests.e2e.guests import convert, rows, tasks
from tests.e2e.machines import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    ERESTARTSYS,
    LEVELS,
    MACHINES,
    check_layout_from_file,
    check_memory,
    check_registers,
    gdb_multiarch,
    registers,
    stacks_of_victim_static,
    thread_notes,
)
from tests.unwind.test_corpus import check

pytestmark = pytest.mark.corpus

PROGRAMS = {"victim-dyn": 5, "victim-static": 6}
"""Each with how many threads; the last one of victim-static spins on a CPU."""
SYSTEM_CALL, SVE = 0x404, 0x405  # NT_ARM_SYSTEM_CALL, NT_ARM_SVE


@dataclass(frozen=True)
class Expected:
    """What is particular to a dump.

    Attributes:
        pids: of victim-dyn, victim-static, sleep, and victim-static's spinning thread.
        elf: EI_CLASS, EI_DATA, e_machine, e_flags.
        call: registers that have what /proc/PID/task/TID/syscall tells, in its order: the number, six arguments, stack
            pointer, program counter; "-" for what no register has.
        notes: types of a waiting thread's notes behind NT_PRSTATUS, in the kernel's order.
        outermost: a thread's outermost functions in gdb.
        call_note: type of the note of the system call, and which of its bits are the call's number.
        spinning: what the core's own note says of the spinning thread.
        waits: libc's function that waits for a futex.
        hidden: keys of VMCOREINFO without which the same core comes out.
        says: what -v says without them.
    """

    pids: tuple[int, int, int, int]
    elf: tuple[int, int, int, int]
    call: str
    notes: list[tuple[str, int]]
    outermost: list[str]
    call_note: tuple[int, int] | None = None
    spinning: dict[str, Any] = field(default_factory=dict)
    waits: str = "__futex_abstimed_wait_cancelable64"
    hidden: tuple[bytes, ...] = ()
    says: str = ""


def _notes(*kinds: int) -> list[tuple[str, int]]:
    return [("CORE", 2), *(("LINUX", kind) for kind in kinds)]


DUMPS = {
    "debian-7.2-arm64": Expected(
        pids=(115, 107, 122, 113),
        elf=(2, 1, 183, 0),
        call="x8 x0 x1 x2 x3 x4 x5 sp pc",
        # NT_ARM_TLS, HW_BREAK, HW_WATCH, SYSTEM_CALL, SVE, SSVE, ZA, PAC_MASK, PAC_ENABLED_KEYS, PACA_KEYS, PACG_KEYS,
        # TAGGED_ADDR_CTRL.
        notes=_notes(0x401, 0x402, 0x403, 0x404, 0x405, 0x40B, 0x40C, 0x406, 0x40A, 0x407, 0x408, 0x409),
        outermost=["start_thread", "thread_start"],
        call_note=(SYSTEM_CALL, 0xFFFF_FFFF),
        spinning={"registers_left_out": "its thread pointer"},
    ),
    "debian-7.2-riscv64": Expected(
        pids=(112, 104, 119, 110),
        elf=(2, 1, 243, 5),  # EF_RISCV_RVC, EF_RISCV_FLOAT_ABI_DOUBLE
        call="a7 - a1 a2 a3 a4 a5 sp pc",
        notes=_notes(),
        outermost=["start_thread", "__thread_start"],
        waits="__futex_abstimed_wait_common",
        hidden=(b"NUMBER(VA_BITS)=", b"NUMBER(va_kernel_pa_offset)=", b"NUMBER(satp)="),  # the page table has them
        says="NUMBER(va_kernel_pa_offset)=0xfffffffeffe00000, NUMBER(VA_BITS)=48",
    ),
    "debian-7.2-s390x": Expected(
        pids=(119, 111, 126, 117),
        elf=(2, 2, 22, 0),
        call="- orig_r2 r3 r4 r5 r6 r7 r15 pswa",
        # NT_S390_SYSTEM_CALL, LAST_BREAK, VXRS_LOW, VXRS_HIGH.
        notes=_notes(0x307, 0x306, 0x309, 0x30A),
        outermost=["start_thread", "thread_start"],
        call_note=(0x307, 0xFFFF),
        spinning={
            "registers": "crash note of CPU 1",
            "unknown_registers": None,
            "registers_left_out": "the address of its last branch was in the processor",
        },
    ),
    "debian-7.2-ppc64el": Expected(
        pids=(120, 112, 127, 118),
        elf=(2, 1, 21, 0),
        call="r0 orig_gpr3 r4 r5 r6 r7 r8 r1 nip",
        # NT_PPC_VMX, VSX, PPR, DSCR, TAR, PMU.
        notes=_notes(0x100, 0x102, 0x104, 0x105, 0x103, 0x107),
        outermost=["start_thread", "clone"],
        spinning={
            "registers": "crash note of CPU 1",
            "unknown_registers": ["orig_gpr3", "trap", "dar", "dsisr", "result"],
            "registers_left_out": "PPR, DSCR, TAR",
        },
        hidden=(b"NUMBER(RADIX_MMU)=",),  # older kernels do not write it; their variables tell
    ),
}


@dataclass(frozen=True)
class Victims:
    """One dump of the corpus, converted."""

    folder: Path
    dump: Path
    cores: Path
    truth_cores: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def expected(self) -> Expected:
        return DUMPS[self.name]

    @property
    def spinning(self) -> int:
        return self.expected.pids[3]

    def pid(self, program: str) -> int:
        return self.expected.pids[list(PROGRAMS).index(program)]

    def core(self, program: str) -> Path:
        return self.cores / f"core.{program}.{self.pid(program)}"

    def binary(self, program: str) -> Path:
        return self.folder / "bin" / program

    def truth_core(self, program: str) -> Core:
        name = self.core(program).name
        plain = self.truth_cores / name
        return Core(plain if plain.exists() else unpack(self.folder / "truth" / f"{name}.zst", plain))

    def calls(self, program: str) -> dict[int, tuple[str, list[int]]]:
        """/proc/PID/task/TID/syscall of the threads in one: the thread's name, and the nine numbers."""
        lines = (self.folder / "truth" / f"{program}.pid.tasks").read_text().splitlines()
        fields = (line.split() for line in lines if not line.endswith("running"))
        return {
            int(where.rsplit("/", 1)[1]): (comm, [int(call[0]), *(int(value, 16) for value in call[1:])])
            for where, comm, *call in fields
        }


@pytest.fixture(scope="module", params=DUMPS)
def victims(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Victims]:
    """Each of the dumps, and ``--all`` of it; its memory is on disk no longer than needed."""
    folder, cores = corpus / request.param, tmp_path_factory.mktemp("cores") / request.param
    dump = unpack(folder / "vmcore.elf.zst", tmp_path_factory.mktemp("dump") / "vmcore.elf")
    result = convert(dump, "--all", "-o", cores, "-v")
    assert result.returncode == 0
    # QEMU writes the note of arm64 only.
    assert ("VMCOREINFO text at physical 0x" in result.stderr) == (request.param != "debian-7.2-arm64")
    yield Victims(folder, dump, cores, tmp_path_factory.mktemp("truth"))
    dump.unlink()


def only(*names: str) -> pytest.MarkDecorator:
    """Run a test on some of the dumps."""
    return pytest.mark.parametrize("victims", [f"debian-7.2-{name}" for name in names], indirect=True)


def only_cores(*cores: tuple[str, str]) -> pytest.MarkDecorator:
    """Run a test on some of the cores: each with its machine and its program."""
    rows = [(f"debian-7.2-{name}", program) for name, program in cores]
    return pytest.mark.parametrize(("victims", "program"), rows, indirect=["victims"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_core_equals_the_kernels_own(victims: Victims, program: str) -> None:
    ours, kernels = Core(victims.core(program)), victims.truth_core(program)
    check_memory(ours, kernels, frozenset())
    assert len(ours.pages().keys() & kernels.pages().keys()) > 44_000
    assert ours.pages().keys() <= kernels.pages().keys()
    assert ours.extents == kernels.extents
    assert ours.data[:16] == kernels.data[:16]
    for core in (ours, kernels):
        e_machine, e_flags = (
            struct.unpack_from(core.order + form, core.data, at)[0] for form, at in (("H", 18), ("I", 48))
        )
        assert (core.data[4], core.data[5], e_machine, e_flags) == victims.expected.elf


@pytest.mark.parametrize("program", PROGRAMS)
def test_registers_are_the_kernels_but_for_what_the_signal_changed(victims: Victims, program: str) -> None:
    ours, kernels = Core(victims.core(program)), victims.truth_core(program)
    errors = {"v-regs": ERESTARTNOHAND, "v-sig": ERESTARTNOHAND, "v-cond": ERESTARTSYS}  # the others sleep
    waiting = {
        tid: (call[1], errors.get(comm, ERESTART_RESTARTBLOCK)) for tid, (comm, call) in victims.calls(program).items()
    }
    assert len(ours.prstatus) == PROGRAMS[program]
    assert ours.prstatus.keys() - waiting.keys() == ({victims.spinning} if program == "victim-static" else set())
    check_registers(victims.name, ours, kernels, waiting, victims.pid(program), frozenset())


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_further_note_is_the_kernels(victims: Victims, program: str) -> None:
    machine, notes = MACHINES[victims.name], victims.expected.notes
    mine, theirs = thread_notes(Core(victims.core(program))), thread_notes(victims.truth_core(program))
    assert (len(mine), mine.keys()) == (PROGRAMS[program], theirs.keys())
    for tid, truth in theirs.items():
        spins = tid == victims.spinning
        lost = machine.lost_notes if spins else frozenset()
        assert [note[:2] for note in mine[tid]] == [note for note in notes if note[1] not in lost]
        if not spins or machine.going_notes == frozenset():
            assert [note[:2] for note in truth] == notes
        # QEMU writes all of SVE's registers; the kernel forgets the system call when a signal ends it.
        differs = machine.going_notes if spins else frozenset({SYSTEM_CALL})
        left, right = ([note for note in each if note[1] not in lost | differs] for each in (mine[tid], truth))
        assert left == right, f"thread {tid}"


@only("arm64")
def test_arm64s_notes_that_are_not_the_kernels(victims: Victims) -> None:
    mine = thread_notes(Core(victims.core("victim-static")))
    for tid, truth in thread_notes(victims.truth_core("victim-static")).items():
        found, wanted = ({kind: desc for _, kind, desc in notes} for notes in (mine[tid], truth))
        if tid == victims.spinning:
            assert len(found[SVE]) > len(wanted[SVE])
        else:
            assert wanted[SYSTEM_CALL] == b"\xff" * 4


@only("arm64", "s390x", "ppc64el")
def test_the_core_says_what_is_not_known_of_the_spinning_thread(victims: Victims) -> None:
    (own,) = (json.loads(desc) for name, _, desc in Core(victims.core("victim-static")).notes if name == "vmcore2core")
    spinning = str(victims.spinning)
    for key, wanted in victims.expected.spinning.items():
        found = own[key].get(spinning)
        assert wanted in found if isinstance(wanted, str) else found == wanted, key
    assert own["registers_left_out"].keys() == {spinning}
    assert own["unknown_registers"].keys() <= {spinning}


@pytest.mark.parametrize("program", PROGRAMS)
def test_registers_are_those_that_the_guest_said(victims: Victims, program: str) -> None:
    core, names = Core(victims.core(program)), victims.expected.call.split()
    found, notes = registers(MACHINES[victims.name], core), thread_notes(core)
    for tid, (_, call) in victims.calls(program).items():
        wanted = {name: value for name, value in zip(names, call, strict=True) if name != "-"}
        assert {name: found[tid][name] for name in wanted} == wanted, f"thread {tid}"
        if victims.expected.call_note is not None:
            kind, mask = victims.expected.call_note
            (desc,) = (desc for _, n_type, desc in notes[tid] if n_type == kind)
            assert int.from_bytes(desc, "little" if core.order == "<" else "big") & mask == call[0]


def test_every_process_with_an_mm_comes_out(victims: Victims) -> None:
    names = {path.name for path in victims.cores.glob("core.*[0-9]")}
    _, _, sleep, _ = victims.expected.pids
    assert names == {"core.init.1", f"core.sleep.{sleep}", *(victims.core(program).name for program in PROGRAMS)}
    assert "sleep 777" in (victims.folder / "truth" / "ps.txt").read_text()


@only("s390x")
@pytest.mark.parametrize("program", PROGRAMS)
def test_maps_are_those_of_the_guest(victims: Victims, program: str) -> None:
    shown = tasks("maps", victims.dump, "--pid", str(victims.pid(program))).stdout.splitlines()
    said = (victims.folder / "truth" / f"{program}.pid.maps").read_text().splitlines()
    assert [line.split() for line in shown] == [line.split() for line in said]
    assert len(shown) > 20 + PROGRAMS[program]


@only("riscv64", "ppc64el")
def test_keys_that_vmcoreinfo_lacks_are_found_in_memory(victims: Victims, tmp_path: Path) -> None:
    data = bytearray(victims.dump.read_bytes())
    for key in victims.expected.hidden:
        places = [match.start() for match in re.finditer(re.escape(key), data)]
        assert places
        for at in places:
            data[at : at + 6] = b"LENGTH"
    (tmp_path / "cut").mkdir()
    bare = tmp_path / "cut" / victims.dump.name
    bare.write_bytes(data)
    result = convert(bare, "--pid", str(victims.pid("victim-dyn")), "-o", tmp_path / "core", "-v")
    assert result.returncode == 0
    assert victims.expected.says in result.stderr
    assert (tmp_path / "core").read_bytes() == victims.core("victim-dyn").read_bytes()


def test_a_layout_in_a_file_stands_in_for_btf_and_kallsyms(victims: Victims, tmp_path: Path) -> None:
    check_layout_from_file(victims.dump, victims.core("victim-static"), tmp_path)


@only_cores(
    *(("arm64", program) for program in PROGRAMS),
    *(("s390x", program) for program in PROGRAMS),
    ("riscv64", "victim-dyn"),
)
def test_bt_names_every_function_without_any_binary(victims: Victims, program: str) -> None:
    check(victims.dump, victims.folder, program.removeprefix("victim-"), spins=program == "victim-static")


@only("riscv64")
def test_bt_of_code_that_debug_frame_alone_describes_is_complete(victims: Victims) -> None:
    """victim-static has no .eh_frame for its own code, and no frame pointers."""
    pid = victims.pid("victim-static")
    result = tasks("bt", victims.dump, "--pid", str(pid), "--json")
    assert result.returncode == 0
    (main,) = (thread for thread in rows(result.stdout) if thread["tid"] == pid)
    shown = [frame["function"] for frame in main["frames"]]
    assert shown[:6] == ["clock_nanosleep", "nanosleep", *LEVELS, "main"]
    assert main["complete"]


@only("ppc64el")
@pytest.mark.parametrize("program", PROGRAMS)
def test_bt_names_every_function_that_has_a_symbol_in_memory(victims: Victims, program: str) -> None:
    """libc's symbols for its own functions are not in memory."""
    known = {*LEVELS, "main", "bt_thread", "handler", "sig_thread", "regs_blocked", "cond_thread", "regs_spin"}
    known |= {"nanosleep", "pause", "raise", "pthread_cond_wait", "clone", "__libc_start_main"}
    result = tasks("bt", victims.dump, "--pid", str(victims.pid(program)), "--json")
    assert result.returncode == 0, result.stderr
    found = {thread["comm"]: thread for thread in rows(result.stdout)}
    assert len(found) == PROGRAMS[program]
    assert all(thread["complete"] for thread in found.values())
    shown = {
        comm: [frame["function"] for frame in thread["frames"] if frame["function"] in known]
        for comm, thread in found.items()
    }
    assert shown.pop("v-spin", ["regs_spin", "clone"]) == ["regs_spin", "clone"]
    assert shown.pop(program)[:5] == ["nanosleep", *LEVELS, "main"]
    assert shown == {
        "v-regs": ["pause", "regs_blocked", "clone"],
        "v-sig": ["pause", "handler", "raise", "sig_thread", "clone"],
        "v-cond": ["pthread_cond_wait", "cond_thread", "clone"],
        "v-bt": ["nanosleep", *LEVELS, "bt_thread", "clone"],
    }
    frames = found["v-sig"]["frames"]
    trampoline = [frame["signal_trampoline"] for frame in frames].index(True)
    assert frames[trampoline - 1]["function"] == "handler"
    assert frames[trampoline + 1]["found_by"] == "signal frame, CFI"


def test_gdb_shows_the_stack_of_every_thread(victims: Victims) -> None:
    shown = gdb_multiarch(victims.binary("victim-static"), victims.core("victim-static"))
    expected = victims.expected
    assert shown == stacks_of_victim_static(victims.pid("victim-static"), *expected.outermost, waits=expected.waits)


@only_cores(("s390x", "victim-static"), ("ppc64el", "victim-static"), ("ppc64el", "victim-dyn"))
def test_gdb_shows_the_same_as_of_the_kernels_core(victims: Victims, program: str) -> None:
    binary, truth = victims.binary(program), victims.truth_core(program)
    shown = gdb_multiarch(binary, victims.core(program))
    assert shown == gdb_multiarch(binary, truth.path)
    assert len(shown) == PROGRAMS[program]


@only("s390x", "ppc64el")
def test_lldb_shows_the_stack_of_every_thread(victims: Victims) -> None:
    """It does not find its way through a signal frame."""
    pid, program = victims.pid("victim-static"), victims.binary("victim-static")
    shown = lldb_backtraces(lldb(victims.core("victim-static"), "thread list", "bt all", program=program))
    assert shown.keys() == {pid, *range(pid + 2, pid + 7)}
    assert shown[pid][2:6] == [*LEVELS, "main"]
    assert shown[pid + 5][2:6] == [*LEVELS, "bt_thread"]
    assert shown[pid + 3][1] == "handler"
    assert [name.removeprefix("__") for name in shown[pid + 6]] == ["regs_spin", *victims.expected.outermost]

"""ppc64le: cores of real processes against the cores that the kernel itself wrote of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.debuggers import lldb, lldb_backtraces
from tests.e2e.guests import convert, rows, tasks
from tests.e2e.machines import LEVELS, check_layout_from_file, gdb_multiarch, stacks_of_victim_static, thread_notes

pytestmark = pytest.mark.corpus

GUEST = "debian-7.2-ppc64el"
VICTIMS = (("victim-dyn", 120, 5), ("victim-static", 112, 6))
SPINNING = 118  # of victim-static
GREGS = [*(f"r{i}" for i in range(32)), *"nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result".split()]
GREGS += [f"zero{i}" for i in range(4)]
# NT_FPREGSET, NT_PPC_VMX, NT_PPC_VSX, NT_PPC_PPR, NT_PPC_DSCR, NT_PPC_TAR, NT_PPC_PMU, in the kernel's order.
NOTES = [("CORE", 2), *(("LINUX", kind) for kind in (0x100, 0x102, 0x104, 0x105, 0x103, 0x107))]
FLOATS_IN_CPU = 1 << 13 | 1 << 23 | 1 << 25  # MSR: FP, VSX, VEC
THREAD = ["start_thread", "clone"]


@pytest.fixture(scope="module")
def dump(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(corpus / GUEST / "vmcore.elf.zst", tmp_path_factory.mktemp("dump") / "vmcore.elf")


@pytest.fixture(scope="module")
def cores(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``--all`` of the dump: the directory."""
    target = tmp_path_factory.mktemp("cores") / GUEST
    result = convert(dump, "--all", "-o", target, "-v")
    assert result.returncode == 0
    assert "VMCOREINFO text at physical 0x" in result.stderr  # QEMU wrote no note
    return target


def registers(core: Core) -> dict[int, dict[str, int]]:
    """General registers by thread ID."""
    return {
        tid: dict(zip(GREGS, struct.unpack_from("<48Q", desc, 112), strict=True)) for tid, desc in core.prstatus.items()
    }


@pytest.mark.parametrize(("program", "pid", "threads"), VICTIMS)
def test_core_equals_the_kernels_own(
    corpus: Path, cores: Path, tmp_path: Path, program: str, pid: int, threads: int
) -> None:
    ours = Core(cores / f"core.{program}.{pid}")
    kernels = Core(unpack(corpus / GUEST / "truth" / f"core.{program}.{pid}.zst", tmp_path / "truth"))
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 45_000
    assert ours.pages().keys() <= kernels.pages().keys()
    assert ours.extents == kernels.extents
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    # e_ident's class and byte order, e_machine and e_flags.
    for core in (ours, kernels):
        assert (core.data[4], core.data[5]) == (2, 1)
        assert (struct.unpack_from("<H", core.data, 18), struct.unpack_from("<I", core.data, 48)) == ((21,), (0,))
    mine, theirs = registers(ours), registers(kernels)
    assert mine.keys() == theirs.keys()
    assert len(mine) == threads
    for tid, truth in theirs.items():
        # The signal: what the system call returned, in r3, and whether the leader, which wrote the core, had loaded
        # its floating-point registers.
        skip = {"r3", "result"}
        if tid == SPINNING:  # the CPU's note has no more than registers
            skip = {"trap", "dar", "dsisr"}
        own, other = ({k: hex(v) for k, v in regs.items() if k not in skip} for regs in (mine[tid], truth))
        for regs in (own, other):
            regs["msr"] = hex(int(regs["msr"], 16) & ~FLOATS_IN_CPU)
        assert own == other, f"thread {tid}"


@pytest.mark.parametrize(("program", "pid", "threads"), VICTIMS)
def test_every_further_note_equals_the_kernels(
    corpus: Path, cores: Path, tmp_path: Path, program: str, pid: int, threads: int
) -> None:
    mine = thread_notes(Core(cores / f"core.{program}.{pid}"))
    theirs = thread_notes(Core(unpack(corpus / GUEST / "truth" / f"core.{program}.{pid}.zst", tmp_path / "truth")))
    assert (len(mine), mine.keys()) == (threads, theirs.keys())
    for tid, truth in theirs.items():
        assert [note[:2] for note in truth] == NOTES
        # The spinning thread has its own from QEMU's notes, big-endian there, which do not have the last ones.
        assert mine[tid] == (truth[:3] if tid == SPINNING else truth)


def test_the_core_says_what_is_not_known_of_the_spinning_thread(cores: Path) -> None:
    core = Core(cores / "core.victim-static.112")
    (said,) = (json.loads(desc) for name, _, desc in core.notes if name == "vmcore2core")
    assert said["registers"][str(SPINNING)] == "crash note of CPU 1"
    assert said["unknown_registers"] == {str(SPINNING): ["orig_gpr3", "trap", "dar", "dsisr", "result"]}
    assert said["registers_left_out"].keys() == {str(SPINNING)}
    assert "PPR, DSCR, TAR" in said["registers_left_out"][str(SPINNING)]


def test_registers_are_those_that_the_guest_said(corpus: Path, cores: Path) -> None:
    """/proc/PID/task/TID/syscall: number, six arguments, stack pointer, program counter."""
    for program, pid, _ in VICTIMS:
        found = registers(Core(cores / f"core.{program}.{pid}"))
        for line in (corpus / GUEST / "truth" / f"{program}.pid.tasks").read_text().splitlines():
            where, comm, *call = line.split()
            regs = found[int(where.rsplit("/", 1)[1])]
            if comm != "v-spin":  # "running"
                names = ("r0", "orig_gpr3", "r4", "r5", "r6", "r7", "r8", "r1", "nip")
                assert [regs[name] for name in names] == [int(call[0]), *(int(value, 16) for value in call[1:])]


def test_every_process_with_an_mm_comes_out(corpus: Path, cores: Path) -> None:
    names = sorted(path.name for path in cores.glob("core.*[0-9]"))
    assert names == ["core.init.1", "core.sleep.127", "core.victim-dyn.120", "core.victim-static.112"]
    assert "sleep 777" in (corpus / GUEST / "truth" / "ps.txt").read_text()


def test_a_text_without_the_mmu_is_made_up_for_by_the_kernels_variables(
    dump: Path, cores: Path, tmp_path: Path
) -> None:
    """As older kernels write it."""
    (tmp_path / "old").mkdir()
    old = tmp_path / "old" / dump.name
    old.write_bytes(dump.read_bytes().replace(b"NUMBER(RADIX_MMU)=", b"LENGTH(RADIX_MM?)="))
    result = convert(old, "--pid", "120", "-o", tmp_path / "core")
    assert result.returncode == 0
    assert (tmp_path / "core").read_bytes() == (cores / "core.victim-dyn.120").read_bytes()


def test_a_layout_in_a_file_stands_in_for_btf_and_kallsyms(dump: Path, cores: Path, tmp_path: Path) -> None:
    check_layout_from_file(dump, cores / "core.victim-static.112", tmp_path)


def test_bt_names_every_function_without_any_binary(dump: Path) -> None:
    """libc's symbols for its own functions are not in memory."""
    known = {*LEVELS, "main", "bt_thread", "handler", "sig_thread", "regs_blocked", "cond_thread", "regs_spin"}
    known |= {"nanosleep", "pause", "raise", "pthread_cond_wait", "clone", "__libc_start_main"}
    for _, pid, threads in VICTIMS:
        result = tasks("bt", dump, "--pid", str(pid), "--json")
        assert result.returncode == 0, result.stderr
        found = {thread["comm"]: thread for thread in rows(result.stdout)}
        assert len(found) == threads
        assert all(thread["complete"] for thread in found.values())
        shown = {
            comm: [frame["function"] for frame in thread["frames"] if frame["function"] in known]
            for comm, thread in found.items()
        }
        spinning = shown.pop("v-spin", ["regs_spin", "clone"])
        assert spinning == ["regs_spin", "clone"]
        leader = [name for name in shown if name.startswith("victim")]
        assert shown.pop(leader[0])[:5] == ["nanosleep", *LEVELS, "main"]
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


def test_gdb_shows_the_stack_of_every_thread(corpus: Path, cores: Path) -> None:
    shown = gdb_multiarch(corpus / GUEST / "bin" / "victim-static", cores / "core.victim-static.112")
    assert shown == stacks_of_victim_static(112, *THREAD)


def test_gdb_shows_the_same_as_of_the_kernels_core(corpus: Path, cores: Path, tmp_path: Path) -> None:
    for program, pid, threads in VICTIMS:
        truth = unpack(corpus / GUEST / "truth" / f"core.{program}.{pid}.zst", tmp_path / program)
        binary = corpus / GUEST / "bin" / program
        shown = gdb_multiarch(binary, cores / f"core.{program}.{pid}")
        assert shown == gdb_multiarch(binary, truth)
        assert len(shown) == threads


def test_lldb_shows_the_stack_of_every_thread(corpus: Path, cores: Path) -> None:
    output = lldb(
        cores / "core.victim-static.112", "thread list", "bt all", program=corpus / GUEST / "bin" / "victim-static"
    )
    shown = lldb_backtraces(output)
    assert shown.keys() == {112, 114, 115, 116, 117, 118}
    assert shown[117][2:6] == [*LEVELS, "bt_thread"]
    assert shown[112][2:6] == [*LEVELS, "main"]
    assert shown[118][0] == "regs_spin"

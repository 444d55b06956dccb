"""s390x: cores of real processes, big-endian, against the cores that the kernel itself wrote of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.debuggers import lldb, lldb_backtraces
from tests.e2e.guests import convert, tasks
from tests.e2e.machines import LEVELS, check_layout_from_file, gdb_multiarch, stacks_of_victim_static, thread_notes
from tests.unwind.test_corpus import check

pytestmark = pytest.mark.corpus

GUEST = "debian-7.2-s390x"
VICTIMS = (("victim-dyn", 119, 5), ("victim-static", 111, 6))
SPINNING = 117  # of victim-static
GREGS = ["pswm", "pswa", *(f"r{i}" for i in range(16)), *(f"acr{i}" for i in range(16)), "orig_r2"]
# NT_FPREGSET, NT_S390_SYSTEM_CALL, NT_S390_LAST_BREAK, NT_S390_VXRS_LOW, NT_S390_VXRS_HIGH, in the kernel's order.
NOTES = [("CORE", 2), *(("LINUX", kind) for kind in (0x307, 0x306, 0x309, 0x30A))]
ENOSYS = (1 << 64) - 38
THREAD = ["start_thread", "thread_start"]


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


def truth_core(corpus: Path, program: str, pid: int, folder: Path) -> Core:
    return Core(unpack(corpus / GUEST / "truth" / f"core.{program}.{pid}.zst", folder / f"truth.{program}"))


def registers(core: Core) -> dict[int, dict[str, int]]:
    """General registers by thread ID."""
    return {
        tid: dict(zip(GREGS, struct.unpack_from(">18Q16IQ", desc, 112), strict=True))
        for tid, desc in core.prstatus.items()
    }


@pytest.mark.parametrize(("program", "pid", "threads"), VICTIMS)
def test_core_equals_the_kernels_own(
    corpus: Path, cores: Path, tmp_path: Path, program: str, pid: int, threads: int
) -> None:
    ours, kernels = Core(cores / f"core.{program}.{pid}"), truth_core(corpus, program, pid, tmp_path)
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 44_000
    assert ours.pages().keys() <= kernels.pages().keys()
    assert ours.extents == kernels.extents
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    # e_ident's class and byte order, e_machine and e_flags.
    for core in (ours, kernels):
        assert (core.data[4], core.data[5]) == (2, 2)
        assert (struct.unpack_from(">H", core.data, 18), struct.unpack_from(">I", core.data, 48)) == ((22,), (0,))
    mine, theirs = registers(ours), registers(kernels)
    assert (len(mine), mine.keys()) == (threads, theirs.keys())
    for tid, truth in theirs.items():
        expected = dict(truth)
        if tid != SPINNING:  # -ERESTART* there, of the signal that ended the process
            assert 512 <= (1 << 64) - truth["r2"] <= 516
            expected["r2"] = ENOSYS
        assert {k: hex(v) for k, v in mine[tid].items()} == {k: hex(v) for k, v in expected.items()}, f"thread {tid}"


@pytest.mark.parametrize(("program", "pid", "threads"), VICTIMS)
def test_every_further_note_equals_the_kernels(
    corpus: Path, cores: Path, tmp_path: Path, program: str, pid: int, threads: int
) -> None:
    mine, theirs = (
        thread_notes(Core(cores / f"core.{program}.{pid}")),
        thread_notes(truth_core(corpus, program, pid, tmp_path)),
    )
    assert (len(mine), mine.keys()) == (threads, theirs.keys())
    for tid, truth in theirs.items():
        if tid == SPINNING:  # what QEMU's notes do not have; the kernel's own has what interrupted it afterwards
            truth = [note for note in truth if note[1] not in (0x306, 0x308)]
            assert [note[:2] for note in truth] == [NOTES[0], NOTES[1], *NOTES[3:]]
        else:
            assert [note[:2] for note in truth] == NOTES
        assert mine[tid] == truth


def test_the_core_says_what_is_not_known_of_the_spinning_thread(cores: Path) -> None:
    core = Core(cores / "core.victim-static.111")
    (said,) = (json.loads(desc) for name, _, desc in core.notes if name == "vmcore2core")
    assert said["registers"][str(SPINNING)] == "crash note of CPU 1"
    assert said["unknown_registers"] == {}
    assert said["registers_left_out"] == {str(SPINNING): "the address of its last branch was in the processor"}


def test_registers_are_those_that_the_guest_said(corpus: Path, cores: Path) -> None:
    """/proc/PID/task/TID/syscall: number, six arguments, stack pointer, program counter."""
    for program, pid, _ in VICTIMS:
        core = Core(cores / f"core.{program}.{pid}")
        found, notes = registers(core), thread_notes(core)
        for line in (corpus / GUEST / "truth" / f"{program}.pid.tasks").read_text().splitlines():
            where, comm, *call = line.split()
            tid = int(where.rsplit("/", 1)[1])
            if comm != "v-spin":  # "running"
                names = ("orig_r2", "r3", "r4", "r5", "r6", "r7", "r15", "pswa")
                assert [found[tid][name] for name in names] == [int(value, 16) for value in call[1:]]
                (system_call,) = (desc for _, kind, desc in notes[tid] if kind == 0x307)
                assert int.from_bytes(system_call, "big") & 0xFFFF == int(call[0])


def test_every_process_with_an_mm_comes_out(corpus: Path, cores: Path) -> None:
    names = sorted(path.name for path in cores.glob("core.*[0-9]"))
    assert names == ["core.init.1", "core.sleep.126", "core.victim-dyn.119", "core.victim-static.111"]
    assert "sleep 777" in (corpus / GUEST / "truth" / "ps.txt").read_text()


@pytest.mark.parametrize(("program", "pid", "threads"), VICTIMS)
def test_maps_are_those_of_the_guest(corpus: Path, dump: Path, program: str, pid: int, threads: int) -> None:
    shown = tasks("maps", dump, "--pid", str(pid)).stdout.splitlines()
    said = (corpus / GUEST / "truth" / f"{program}.pid.maps").read_text().splitlines()
    assert [line.split() for line in shown] == [line.split() for line in said]
    assert len(shown) > 20 + threads


def test_a_layout_in_a_file_stands_in_for_btf_and_kallsyms(dump: Path, cores: Path, tmp_path: Path) -> None:
    check_layout_from_file(dump, cores / "core.victim-static.111", tmp_path, ">")


@pytest.mark.parametrize("kind", ["dyn", "static"])
def test_bt_names_every_function_without_any_binary(corpus: Path, dump: Path, kind: str) -> None:
    check(dump, corpus / GUEST, kind, spins=kind == "static")


def test_gdb_shows_the_stack_of_every_thread(corpus: Path, cores: Path) -> None:
    shown = gdb_multiarch(corpus / GUEST / "bin" / "victim-static", cores / "core.victim-static.111")
    assert shown == stacks_of_victim_static(111, *THREAD)


def test_gdb_shows_the_same_as_of_the_kernels_core(corpus: Path, cores: Path, tmp_path: Path) -> None:
    program, truth = corpus / GUEST / "bin" / "victim-static", truth_core(corpus, "victim-static", 111, tmp_path)
    assert gdb_multiarch(program, cores / "core.victim-static.111") == gdb_multiarch(program, truth.path)


def test_lldb_shows_the_stack_of_every_thread(corpus: Path, cores: Path) -> None:
    """It does not find its way through a signal frame."""
    core = cores / "core.victim-static.111"
    shown = lldb_backtraces(lldb(core, "thread list", "bt all", program=corpus / GUEST / "bin" / "victim-static"))
    assert shown.keys() == {111, 113, 114, 115, 116, 117}
    assert shown[111][2:6] == [*LEVELS, "main"]
    assert shown[116][2:6] == [*LEVELS, "bt_thread"]
    assert shown[114][1] == "handler"
    assert shown[117] == ["regs_spin", *THREAD]

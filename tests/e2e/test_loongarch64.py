"""loongarch64: cores of real processes against the cores that the kernel itself wrote of them.

Debian's kernel has no BTF there: layout.txt is what ``vmcore-tasks layout --vmlinux`` says, and what that leaves out
of symbols and enumerators.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.guests import FIXTURES, convert_all, rows, tasks
from tests.e2e.machines import check_without_on_cpu

GUEST = FIXTURES / "debian-7.2-loong64"
VICTIMS = (("lab-static", 97), ("lab-dynamic", 103))
SPINNING = 102  # of lab-static, on CPU 1; lab-dynamic's was preempted
# struct user_pt_regs: regs[32], orig_a0, csr_era, csr_badv, reserved[10].
A0, ORIG_A0, ERA = 4, 32, 33
ENOSYS, ERESTARTNOHAND, ERESTARTSYS = ((1 << 64) - n for n in (38, 514, 512))
GUARD_PAGES = 5  # of the threads' stacks, MADV_GUARD_INSTALL: the kernel's core has them as holes
SIMD = bytes((3 + 7 * i) & 0xFF for i in range(128))  # registers.S


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(GUEST / "vmcore.zst", tmp_path_factory.mktemp("dump") / "vmcore")


@pytest.fixture(scope="module")
def cores(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``--all`` of the dump: the directory."""
    target = tmp_path_factory.mktemp("cores")
    result = convert_all(dump, "--vmcoreinfo", GUEST / "layout.txt", "-o", target)
    assert result.returncode == 3
    assert result.stderr == (
        "vmcore2core: 97 (lab-static): the program counter of thread 102 (t-spin) is not known: "
        "crash note of CPU 1 lacks it\n"
    )
    assert sorted(path.name for path in target.glob("core.*[0-9]")) == [
        "core.init.1",
        "core.lab-dynamic.103",
        "core.lab-static.97",
    ]
    return target


def notes(core: Core) -> dict[int, list[tuple[str, int, bytes]]]:
    """Return the notes by thread, NT_PRSTATUS and what follows up to the next one."""
    found: dict[int, list[tuple[str, int, bytes]]] = {}
    for name, n_type, desc in core.notes:
        if (name, n_type) == ("CORE", 1):
            (tid,) = struct.unpack_from("<i", desc, 32)
            found[tid] = []
        if (name, n_type) == ("CORE", 2) or (name == "LINUX" and 0xA00 <= n_type <= 0xA06):
            found[tid].append((name, n_type, desc))
    return found


def registers(core: Core) -> dict[int, list[int]]:
    return {tid: list(struct.unpack_from("<45Q", desc, 112)) for tid, desc in core.prstatus.items()}


def test_a_layout_without_on_cpu_makes_no_registers_up(
    dump: Path, cores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spinning = {cores / f"core.{name}.{pid}": pid + 5 for name, pid in VICTIMS}
    assert check_without_on_cpu(monkeypatch, dump, GUEST / "layout.txt", spinning) == set()


@pytest.mark.parametrize(("program", "pid"), VICTIMS)
def test_core_equals_the_kernels_own(cores: Path, tmp_path: Path, program: str, pid: int) -> None:
    ours = Core(cores / f"core.{program}.{pid}")
    kernels = Core(unpack(GUEST / "cores" / f"{program}.core.zst", tmp_path / "truth"))
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 5_900
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    for core in (ours, kernels):  # e_machine and e_flags
        assert (struct.unpack_from("<H", core.data, 18), struct.unpack_from("<I", core.data, 48)) == ((258,), (0,))
    covered = sum(size for size, _ in ours.extents.values())
    assert covered + GUARD_PAGES * 16384 == sum(size for size, _ in kernels.extents.values())
    mine, theirs = registers(ours), registers(kernels)
    assert mine.keys() == theirs.keys()
    for tid, truth in theirs.items():
        expected = list(truth)
        if tid == SPINNING:  # QEMU's notes have neither
            expected[ORIG_A0] = expected[ERA] = 0
        elif expected[A0] in (ERESTARTNOHAND, ERESTARTSYS):  # the signal that ended the process
            expected[A0] = ENOSYS
        assert [hex(value) for value in mine[tid]] == [hex(value) for value in expected], f"thread {tid}"
        # All but NT_LOONGARCH_CPUCFG, which the kernel asks the processor for.
        assert notes(ours)[tid] == [note for note in notes(kernels)[tid] if note[1] != 0xA00], f"thread {tid}"


def test_vector_registers_are_those_that_the_program_loaded(cores: Path) -> None:
    (tid,) = (
        tid for tid, regs in registers(Core(cores / "core.lab-static.97")).items() if regs[8] == 0x4444444444444444
    )
    found = {n_type: desc for _, n_type, desc in notes(Core(cores / "core.lab-static.97"))[tid]}
    assert found[2][:16] == SIMD[:16]  # $fa0, $fa1
    assert found[2][256 + 3] == 1  # $fcc3
    assert found[0xA02][2 * 16 : 3 * 16] == SIMD[64:80]  # $vr2
    assert found[0xA03][14 * 32 : 15 * 32] == SIMD[96:]  # $xr14


@pytest.mark.parametrize(("program", "pid"), VICTIMS)
def test_registers_are_those_that_the_guest_said(cores: Path, program: str, pid: int) -> None:
    """/proc/PID/task/TID/syscall: number, six arguments, stack pointer, program counter."""
    found = registers(Core(cores / f"core.{program}.{pid}"))
    lines = (GUEST / "cores" / f"{program}.tasks").read_text().splitlines()
    assert len(lines) == 6
    for line in lines:
        tid, comm, _, call = line.split("\t")
        if comm != "t-spin":
            number, *values = (int(word, 0) for word in call.split())
            regs = found[int(tid)]
            assert [regs[11], regs[ORIG_A0], *regs[5:10], regs[3], regs[ERA]] == [number, *values]


def test_bt_names_every_function_without_any_binary(dump: Path) -> None:
    result = tasks("bt", dump, "--vmcoreinfo", GUEST / "layout.txt", "--pid", "97", "--json")
    shown = {
        thread["comm"]: ([frame["function"] for frame in thread["frames"]], thread["complete"])
        for thread in rows(result.stdout)
    }
    for comm, names in {
        "t-regs": ["block_with_registers", "regs_thread", "start_thread"],
        "t-signal": ["on_signal", "__vdso_rt_sigreturn", "raise", "signal_thread", "start_thread"],
        "t-cond": ["pthread_cond_wait", "condition_thread", "start_thread"],
        "t-nested": ["level_c", "victim_relay", "level_b", "level_a", "nested_thread", "start_thread"],
    }.items():
        symbols, complete = shown[comm]
        rest = iter(symbols)
        assert all(name in rest for name in names), symbols
        assert complete
    assert shown["t-spin"] == ([], False)

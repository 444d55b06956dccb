"""arm64: cores of real processes against the cores that the kernel itself wrote of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.guests import convert
from tests.e2e.machines import check_layout_from_file, gdb_multiarch, stacks_of_victim_static, thread_notes
from tests.unwind.test_corpus import check

pytestmark = pytest.mark.corpus

GUEST = "debian-7.2-arm64"
VICTIMS = (("victim-dyn", 115, 5), ("victim-static", 107, 6))
SPINNING = 113  # of victim-static
GREGS = (*(f"x{i}" for i in range(31)), "sp", "pc", "pstate")
# NT_ARM_TLS, HW_BREAK, HW_WATCH, SYSTEM_CALL, SVE, SSVE, ZA, PAC_MASK, PAC_ENABLED_KEYS, PACA_KEYS, PACG_KEYS,
# TAGGED_ADDR_CTRL, in the kernel's order.
LINUX = [0x401, 0x402, 0x403, 0x404, 0x405, 0x40B, 0x40C, 0x406, 0x40A, 0x407, 0x408, 0x409]
TLS, SYSTEM_CALL, SVE, SSVE, ZA = 0x401, 0x404, 0x405, 0x40B, 0x40C


@pytest.fixture(scope="module")
def dump(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(corpus / GUEST / "vmcore.elf.zst", tmp_path_factory.mktemp("dump") / "vmcore.elf")


@pytest.fixture(scope="module")
def cores(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``--all`` of the dump: the directory."""
    target = tmp_path_factory.mktemp("cores") / GUEST
    result = convert(dump, "--all", "-o", target)
    assert (result.returncode, result.stderr) == (0, "")
    return target


def registers(core: Core) -> dict[int, dict[str, int]]:
    """General registers by thread ID."""
    return {
        tid: dict(zip(GREGS, struct.unpack_from("<34Q", desc, 112), strict=True)) for tid, desc in core.prstatus.items()
    }


def regsets(core: Core) -> dict[int, dict[int, bytes]]:
    """Each thread's own notes by type, in their order."""
    return {tid: {kind: desc for _, kind, desc in notes} for tid, notes in thread_notes(core).items()}


def syscalls(corpus: Path, program: str) -> dict[int, list[int]]:
    """/proc/PID/task/TID/syscall of the threads in one: number, six arguments, stack pointer, program counter."""
    lines = (corpus / GUEST / "truth" / f"{program}.pid.tasks").read_text().splitlines()
    calls = {int(where.rsplit("/", 1)[1]): call for where, _, *call in map(str.split, lines)}
    return {tid: [int(call[0]), *(int(v, 16) for v in call[1:])] for tid, call in calls.items() if len(call) == 9}


@pytest.mark.parametrize(("program", "pid", "threads"), VICTIMS)
def test_core_equals_the_kernels_own(
    corpus: Path, cores: Path, tmp_path: Path, program: str, pid: int, threads: int
) -> None:
    ours = Core(cores / f"core.{program}.{pid}")
    kernels = Core(unpack(corpus / GUEST / "truth" / f"core.{program}.{pid}.zst", tmp_path / "truth"))
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 44_000
    assert ours.pages().keys() <= kernels.pages().keys()
    # Where a mapping goes on behind its file's end, the kernel writes zeros for pages that there are not.
    sizes = [
        {vaddr: (memsz, flags) for vaddr, _, memsz, flags in core.loads_without_offsets} for core in (ours, kernels)
    ]
    assert sizes[0] == sizes[1]
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    assert (ours.data[:16], struct.unpack_from("<H", ours.data, 18)) == (kernels.data[:16], (183,))
    mine, theirs = registers(ours), registers(kernels)
    assert mine.keys() == theirs.keys()
    assert len(mine) == threads
    calls = syscalls(corpus, program)
    for tid, truth in theirs.items():
        # The signal that ended the process had the system call start again: pc at the svc.
        expected = truth if tid == SPINNING else {**truth, "pc": truth["pc"] + 4}
        assert {k: hex(v) for k, v in mine[tid].items()} == {k: hex(v) for k, v in expected.items()}, f"thread {tid}"
    for tid, wanted in regsets(kernels).items():
        found = regsets(ours)[tid]
        if tid == SPINNING:
            # The thread pointer was in the processor; QEMU's note has all of each vector.
            assert list(found) == [2, *(kind for kind in LINUX if kind not in (TLS, SYSTEM_CALL, SSVE, ZA))]
            assert len(found.pop(SVE)) > len(wanted[SVE])
        else:
            assert list(found) == list(wanted) == [2, *LINUX]
            # The kernel forgets the system call when a signal ends it.
            assert struct.unpack("<i", wanted[SYSTEM_CALL]) == (-1,)
            assert struct.unpack("<i", found.pop(SYSTEM_CALL)) == (calls[tid][0],)
        for kind, desc in found.items():
            assert desc == wanted[kind], f"thread {tid}, note {kind:#x}"


def test_registers_are_those_that_the_guest_said(corpus: Path, cores: Path) -> None:
    for program, pid, _ in VICTIMS:
        found = registers(Core(cores / f"core.{program}.{pid}"))
        for tid, call in syscalls(corpus, program).items():
            names = ("x8", "x0", "x1", "x2", "x3", "x4", "x5", "sp", "pc")
            assert [found[tid][name] for name in names] == call


def test_every_process_with_an_mm_comes_out(cores: Path) -> None:
    names = sorted(path.name for path in cores.glob("core.*[0-9]"))
    assert names == ["core.init.1", "core.sleep.122", "core.victim-dyn.115", "core.victim-static.107"]


def test_a_layout_in_a_file_stands_in_for_btf_and_kallsyms(dump: Path, cores: Path, tmp_path: Path) -> None:
    check_layout_from_file(dump, cores / "core.victim-static.107", tmp_path)


@pytest.mark.parametrize("kind", ["dyn", "static"])
def test_bt_names_every_function_without_any_binary(corpus: Path, dump: Path, kind: str) -> None:
    check(dump, corpus / GUEST, kind, spins=kind == "static")


def test_the_json_of_a_thread_that_was_on_a_cpu_says_what_is_lost(dump: Path, tmp_path: Path) -> None:
    assert convert(dump, "--pid", "107", "-o", tmp_path / "core").returncode == 0
    own = next(desc for name, _, desc in Core(tmp_path / "core").notes if name == "vmcore2core")
    left_out = json.loads(own)["registers_left_out"]
    assert left_out.keys() == {str(SPINNING)}
    assert left_out[str(SPINNING)].startswith("its thread pointer")


def test_gdb_shows_the_stack_of_every_thread(corpus: Path, cores: Path) -> None:
    shown = gdb_multiarch(corpus / GUEST / "bin" / "victim-static", cores / "core.victim-static.107")
    assert shown == stacks_of_victim_static(107, "start_thread", "thread_start")

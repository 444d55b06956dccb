"""riscv64: cores of real processes against the cores that the kernel itself wrote of them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.conftest import unpack
from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.guests import convert, rows, tasks
from tests.e2e.machines import check_layout_from_file, gdb_multiarch, stacks_of_victim_static
from tests.unwind.test_corpus import check

pytestmark = pytest.mark.corpus

GUEST = "debian-7.2-riscv64"
VICTIMS = (("victim-dyn", 112, 5), ("victim-static", 104, 6))
SPINNING = 110  # of victim-static
GREGS = ("pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6").split()
ENOSYS = (1 << 64) - 38


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
        tid: dict(zip(GREGS, struct.unpack_from("<32Q", desc, 112), strict=True)) for tid, desc in core.prstatus.items()
    }


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
    assert ours.extents == kernels.extents
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    # e_machine and e_flags: EF_RISCV_RVC, EF_RISCV_FLOAT_ABI_DOUBLE.
    for core in (ours, kernels):
        assert (struct.unpack_from("<H", core.data, 18), struct.unpack_from("<I", core.data, 48)) == ((243,), (5,))
    mine, theirs = registers(ours), registers(kernels)
    assert mine.keys() == theirs.keys()
    assert len(mine) == threads
    for tid, truth in theirs.items():
        expected = dict(truth)
        if tid == SPINNING:  # the dump has no floating-point registers of a CPU
            assert ours.regsets[tid] == []
        else:
            assert ours.regsets[tid] == kernels.regsets[tid]
            assert [note[:2] for note in ours.regsets[tid]] == [("CORE", 2)]
            # The signal that ended the process had the system call start again: pc at the ecall, a0 the argument.
            expected |= {"pc": truth["pc"] + 4, "a0": ENOSYS}
        assert {k: hex(v) for k, v in mine[tid].items()} == {k: hex(v) for k, v in expected.items()}, f"thread {tid}"


def test_registers_are_those_that_the_guest_said(corpus: Path, cores: Path) -> None:
    """/proc/PID/task/TID/syscall: number, six arguments, stack pointer, program counter."""
    for program, pid, _ in VICTIMS:
        found = registers(Core(cores / f"core.{program}.{pid}"))
        for line in (corpus / GUEST / "truth" / f"{program}.pid.tasks").read_text().splitlines():
            where, comm, *call = line.split()
            regs = found[int(where.rsplit("/", 1)[1])]
            if comm != "v-spin":  # "running"
                names = ("a7", "a1", "a2", "a3", "a4", "a5", "sp", "pc")
                values = [int(call[0]), *(int(value, 16) for value in (*call[2:7], call[7], call[8]))]
                assert [regs[name] for name in names] == values


def test_every_process_with_an_mm_comes_out(corpus: Path, cores: Path) -> None:
    names = sorted(path.name for path in cores.glob("core.*[0-9]"))
    assert names == ["core.init.1", "core.sleep.119", "core.victim-dyn.112", "core.victim-static.104"]
    assert "sleep 777" in (corpus / GUEST / "truth" / "ps.txt").read_text()


def test_a_text_without_the_image_s_place_is_made_up_for_by_what_memory_has(
    dump: Path, cores: Path, tmp_path: Path
) -> None:
    """The page table itself tells the mode and the image: va_kernel_pa_offset, VA_BITS and satp are gone."""
    data = bytearray(dump.read_bytes())
    for key in (b"NUMBER(VA_BITS)=", b"NUMBER(va_kernel_pa_offset)=", b"NUMBER(satp)="):
        places = [match.start() for match in re.finditer(re.escape(key), data)]
        assert places
        for at in places:
            data[at : at + 6] = b"LENGTH"
    (tmp_path / "cut").mkdir()
    bare = tmp_path / "cut" / dump.name
    bare.write_bytes(data)
    result = convert(bare, "--pid", "112", "-o", tmp_path / "core", "-v")
    assert result.returncode == 0
    assert "NUMBER(va_kernel_pa_offset)=0xfffffffeffe00000, NUMBER(VA_BITS)=48" in result.stderr
    assert (tmp_path / "core").read_bytes() == (cores / "core.victim-dyn.112").read_bytes()


def test_a_layout_in_a_file_stands_in_for_btf_and_kallsyms(dump: Path, cores: Path, tmp_path: Path) -> None:
    check_layout_from_file(dump, cores / "core.victim-static.104", tmp_path)


def test_bt_names_every_function_without_any_binary(corpus: Path, dump: Path) -> None:
    check(dump, corpus / GUEST, "dyn", spins=False)


def test_bt_of_code_that_debug_frame_alone_describes_is_complete(dump: Path) -> None:
    """victim-static has no .eh_frame for its own code, and no frame pointers."""
    result = tasks("bt", dump, "--pid", "104", "--json")
    assert result.returncode == 0
    (main,) = (thread for thread in rows(result.stdout) if thread["tid"] == 104)
    shown = [frame["function"] for frame in main["frames"]]
    assert shown[:6] == ["clock_nanosleep", "nanosleep", "level_c", "level_b", "level_a", "main"]
    assert main["complete"]


def test_gdb_shows_the_stack_of_every_thread(corpus: Path, cores: Path) -> None:
    shown = gdb_multiarch(corpus / GUEST / "bin" / "victim-static", cores / "core.victim-static.104")
    assert shown == stacks_of_victim_static(104, "start_thread", "__thread_start", waits="__futex_abstimed_wait_common")

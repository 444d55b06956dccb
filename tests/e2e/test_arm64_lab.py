"""The bundled arm64 guest: a 32-bit process, swapped pages and memory tags, against the kernel's own cores."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, NT_PRPSINFO, Core, compare_pages
from tests.e2e.debuggers import gdb_command
from tests.e2e.guests import FIXTURES, Guest, bundled, convert, tasks
from tests.e2e.machines import check_stacks_in_gdb, thread_notes

COMPAT = "lab-compat"
STATES = ("lab-swap", "lab-mte", "lab-zswap")
EM_ARM = 40
NT_ARM_VFP = ("LINUX", 0x400)
NT_ARM_SYSTEM_CALL = 0x404
REGS = [*(f"r{i}" for i in range(13)), "sp", "lr", "pc", "cpsr", "orig_r0"]
CPSR_T = 1 << 5
PT_AARCH64_MEMTAG_MTE = 0x7000_0002
TAGS = 4096 // 16 // 2  # bytes of a page's tags


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The dump, and the cores of the programs that this is about."""
    name, cores = "debian-7.2-arm64", tmp_path_factory.mktemp("cores")
    dump = bundled(name, tmp_path_factory.mktemp("dump"))
    chosen = [word for program in (COMPAT, *STATES) for word in ("--comm", program)]
    yield Guest(FIXTURES / name, dump, cores, FIXTURES / "sysroot-arm64", convert(dump, *chosen, "-o", cores, "--json"))
    dump.unlink()


def registers(core: Core) -> dict[int, dict[str, int]]:
    """struct compat_elf_prstatus: 18 words at 72."""
    return {tid: dict(zip(REGS, struct.unpack_from("<18I", d, 72), strict=True)) for tid, d in core.prstatus.items()}


def tags_of(core: Core) -> dict[int, bytes]:
    """Return the tags of each page: two in a byte."""
    (phoff,), (count,) = struct.unpack_from("<Q", core.data, 32), struct.unpack_from("<H", core.data, 56)
    found: dict[int, bytes] = {}
    for i in range(count):
        p_type, flags, at, start, _, filesz, memsz, align = struct.unpack_from("<IIQQQQQQ", core.data, phoff + 56 * i)
        if p_type == PT_AARCH64_MEMTAG_MTE:
            assert (flags, align, filesz) == (0, 0, memsz // 32)
            found |= {start + 32 * o: core.data[at + o : at + o + TAGS] for o in range(0, filesz, TAGS)}
    return found


def test_all_are_complete(guest: Guest) -> None:
    assert (guest.result.returncode, guest.result.stderr) == (0, "")


@pytest.mark.parametrize("program", [COMPAT, *STATES])
def test_core_equals_the_kernels_own(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 100
    assert ours.extents == kernels.extents
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))
    assert ours.data[:24] == kernels.data[:24]


def test_pages_that_nothing_touched_yet_are_the_kernels(guest: Guest) -> None:
    """[vectors] and [sigpage] are the kernel's own; [vdso] is another one than a 64-bit process has."""
    core = Core(guest.core(COMPAT))
    starts = {line.split()[-1]: int(line.split("-")[0], 16) for line in guest.truth(f"{COMPAT}.maps").splitlines()}
    assert starts["[vectors]"] == 0xFFFF_0000
    # __kuser_helper_version, in the last word of the page.
    assert core.read(0xFFFF_0FFC, 4) == struct.pack("<I", 5)
    # mov r7, #__NR_sigreturn; svc: arch/arm64/kernel/sigreturn32.S.
    assert core.read(starts["[sigpage]"], 4) == struct.pack("<I", 0xE3A0_7077)
    assert (core.read(starts["[vdso]"], 20) or b"")[18:] == struct.pack("<H", EM_ARM)


def test_a_32_bit_process_becomes_a_core_of_32_bit_arm(guest: Guest, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(COMPAT)), guest.truth_core(COMPAT, tmp_path)
    assert (ours.is_64, struct.unpack_from("<H", ours.data, 18)) == (False, (EM_ARM,))
    assert ours.data[36:40] == kernels.data[36:40]  # e_flags
    info, truth = ours.note(NT_PRPSINFO), kernels.note(NT_PRPSINFO)
    assert info is not None
    assert truth is not None
    # But for the state, and PF_SIGNALED and PF_DUMPCORE, all is as it was: struct compat_elf_prpsinfo.
    assert (len(info), info[8:]) == (124, truth[8:])


def test_registers_are_the_kernels_but_for_what_the_signal_changed(guest: Guest, tmp_path: Path) -> None:
    """A system call starts again: pc at the svc, which has two bytes in Thumb code."""
    mine, theirs = registers(Core(guest.core(COMPAT))), registers(guest.truth_core(COMPAT, tmp_path))
    spinning = guest.threads(COMPAT)["t-spin"]
    assert mine.keys() == theirs.keys() == set(guest.threads(COMPAT).values())
    for tid, truth in theirs.items():
        expected = {**truth, "pc": truth["pc"] + (2 if truth["cpsr"] & CPSR_T else 4)}
        if tid == spinning:  # it went on; what its last system call's first argument was, no note of a CPU has
            expected |= {"pc": mine[tid]["pc"], "orig_r0": 0}
        assert {k: hex(v) for k, v in mine[tid].items()} == {k: hex(v) for k, v in expected.items()}, f"thread {tid}"


def test_known_registers_are_in_their_slots(guest: Guest) -> None:
    threads, found = guest.threads(COMPAT), registers(Core(guest.core(COMPAT)))
    for comm, wanted in guest.expected["registers"][COMPAT].items():
        assert {name: f"{found[threads[comm]][name]:#x}" for name in wanted} == wanted


def test_vfp_registers_are_the_kernels_for_threads_on_and_off_the_cpu(guest: Guest, tmp_path: Path) -> None:
    ours = Core(guest.core(COMPAT))
    mine, theirs = thread_notes(ours), thread_notes(guest.truth_core(COMPAT, tmp_path))
    assert mine == theirs
    assert all([note[:2] for note in notes] == [NT_ARM_VFP] for notes in mine.values())
    # registers-armhf.S: q0, q1, q7 and q15 have 16 bytes each of 3, 10, 17, ...
    values = bytes((3 + 7 * i) & 0xFF for i in range(64))
    ((_, _, desc),) = mine[guest.threads(COMPAT)["t-regs"]]
    assert desc[:32] + desc[112:128] + desc[240:256] == values


def test_gdb_shows_every_threads_stack_and_the_globals(guest: Guest) -> None:
    check_stacks_in_gdb(guest, COMPAT)


def test_maps_are_those_of_the_guest(guest: Guest) -> None:
    shown = tasks("maps", guest.dump, "--pid", str(guest.pids[COMPAT])).stdout.splitlines()
    assert [line.split() for line in shown] == [line.split() for line in guest.truth(f"{COMPAT}.maps").splitlines()]


@pytest.mark.parametrize("program", STATES)
def test_registers_and_notes_of_processes_with_swapped_pages(guest: Guest, program: str, tmp_path: Path) -> None:
    """They wait in pause(); what the signal changes is pc and NT_ARM_SYSTEM_CALL."""
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    for tid, truth in kernels.prstatus.items():
        pc = struct.unpack_from("<Q", truth, 112 + 8 * 32)[0] + 4
        expected = truth[112 : 112 + 8 * 32] + struct.pack("<Q", pc) + truth[112 + 8 * 33 :]
        assert ours.prstatus[tid][112:-8] == expected[:-8]
    mine, theirs = (
        {tid: [note for note in notes if note[1] != NT_ARM_SYSTEM_CALL] for tid, notes in each.items()}
        for each in (thread_notes(ours), thread_notes(kernels))
    )
    assert mine == theirs


@pytest.mark.parametrize("program", ["lab-swap", "lab-zswap"])
def test_where_swapped_pages_were_is_told(guest: Guest, program: str, tmp_path: Path) -> None:
    """In zram before zswap was switched on, then in zswap: what the layout was asked for tells."""
    said = convert(guest.dump, "--pid", str(guest.pids[program]), "-o", tmp_path / program, "-v").stderr
    assert "OFFSET(size_class.pages_per_zspage)" in said
    assert ("OFFSET(zswap_pool.tfm_name)" in said) == (program == "lab-zswap")


def test_tags_of_swapped_pages_are_the_kernels_and_others_are_said_to_be_lost(guest: Guest, tmp_path: Path) -> None:
    """Of the pages in memory, 8 have tags, and 4 have tag 0 everywhere; states.c.

    This QEMU keeps those of two granules for a page, whatever is written.
    """
    ours, kernels = tags_of(Core(guest.core("lab-mte"))), tags_of(guest.truth_core("lab-mte", tmp_path))
    where = {name: int(start, 16) for name, start, _ in map(str.split, guest.truth("lab-mte.regions").splitlines())}
    assert ours.keys() == {where["mte_swapped"] + 4096 * i for i in range(16)}
    assert ours.items() <= kernels.items()
    assert all(any(tags) for tags in ours.values())
    assert sum(any(tags) for page, tags in kernels.items() if page not in ours) == 8
    (said,) = (core for core in json.loads(guest.result.stdout)["cores"] if core["comm"] == "lab-mte")
    assert said["complete"]
    assert [notice for notice in said["notices"] if "memory tags (MTE) of 12 pages" in notice]


def test_gdb_reads_the_tags_of_swapped_pages_and_of_no_others(guest: Guest, tmp_path: Path) -> None:
    guest.truth_core("lab-mte", tmp_path)
    starts = {name: start for name, start, _ in map(str.split, guest.truth("lab-mte.regions").splitlines())}

    def tag(core: Path, name: str) -> str:
        command = gdb_command("gdb-multiarch")
        command += ["-ex", f"memory-tag print-allocation-tag (char *){starts[name]}", "-c", str(core)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return next(
            line for line in (result.stdout + result.stderr).splitlines() if "$1 =" in line or "tagging" in line
        )

    assert tag(guest.core("lab-mte"), "mte_swapped") == tag(tmp_path / "lab-mte.truth", "mte_swapped") == "$1 = 0xe"
    assert "not in a region mapped with a memory tagging flag" in tag(guest.core("lab-mte"), "mte")

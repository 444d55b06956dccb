"""The bundled dump of an i386 kernel with PAE: cores against the kernel's own, and gdb on them.

The kernel has no BTF: ``layout.txt`` has the layout out of its debug package.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, NT_PRPSINFO, NT_X86_XSAVE_LAYOUT, Core, compare_pages
from tests.e2e.debuggers import gdb, gdb_backtraces, in_order
from tests.e2e.guests import (
    FIXTURES,
    PROGRAMS,
    Guest,
    bundled,
    convert,
    convert_all,
    tasks,
    tasks_json,
    unpacked_sysroot,
)
from tests.e2e.machines import check_without_on_cpu

NAME = "debian-6.1-i386-pae"
LAYOUT = FIXTURES / NAME / "layout.txt"
GIVEN = ("--vmcoreinfo", LAYOUT)
# In a system call eax is -ENOSYS until it returns; a thread that was on a CPU has no orig_eax in QEMU's note.
SYSCALL_RETURN = {"eax", "orig_eax", "eflags"}


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    folder = tmp_path_factory.mktemp("i386")
    dump, cores = bundled(NAME, folder), folder / "cores"
    cores.mkdir()
    sysroot = unpacked_sysroot(folder / "sysroot", "sysroot-i386")
    return Guest(FIXTURES / NAME, dump, cores, sysroot, convert_all(dump, *GIVEN, "-o", cores))


def test_all_processes_come_out_complete(guest: Guest) -> None:
    assert (guest.result.returncode, guest.result.stderr) == (0, "")
    wanted = {f"core.{name}.{guest.pids[name]}" for name in ("init", *PROGRAMS)}
    assert {path.name for path in guest.cores.glob("core.*[0-9]")} == wanted


@pytest.mark.parametrize("program", PROGRAMS)
def test_core_equals_the_kernels_own(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 1000
    assert ours.data[:20] == kernels.data[:20]  # e_ident, e_type, e_machine
    assert ours.extents == kernels.extents
    assert ours.note(NT_AUXV) == kernels.note(NT_AUXV)
    assert ours.note(NT_FILE) == kernels.note(NT_FILE)
    assert ours.registers.keys() == kernels.registers.keys()
    spinning = guest.threads(program)["t-spin"]
    for tid, truth in kernels.registers.items():
        skip = SYSCALL_RETURN | ({"eip"} if tid == spinning else set())
        mine = {k: hex(v) for k, v in ours.registers[tid].items() if k not in skip}
        assert mine == {k: hex(v) for k, v in truth.items() if k not in skip}, f"thread {tid}"


def test_a_layout_without_on_cpu_makes_no_registers_up(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's note has whose memory it used, not whose thread it ran."""
    cores = {guest.core(program): guest.threads(program)["t-spin"] for program in PROGRAMS}
    left_out = check_without_on_cpu(monkeypatch, guest.dump, LAYOUT, cores)
    assert left_out == {guest.threads("lab-dynamic")["t-spin"]}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_other_fields_of_the_notes_are_the_kernels(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    for tid, truth in kernels.prstatus.items():
        # elf_prstatus: pr_sighold at 20; pr_pid, pr_ppid, pr_pgrp, pr_sid at 24
        assert struct.unpack_from("<I4i", ours.prstatus[tid], 20) == struct.unpack_from("<I4i", truth, 20)
    # elf_prpsinfo: pr_nice at 3; from pr_uid at 8 on to the end
    info, wanted = ours.note(NT_PRPSINFO), kernels.note(NT_PRPSINFO)
    assert info is not None
    assert wanted is not None
    assert (info[3], info[8:]) == (wanted[3], wanted[8:])


@pytest.mark.parametrize("program", PROGRAMS)
def test_register_notes_are_the_kernels_byte_for_byte(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    told = json.loads(next(desc for name, _, desc in ours.notes if name == "vmcore2core"))["registers_left_out"]
    spinning = guest.threads(program)["t-spin"]
    for tid, truth in kernels.regsets.items():
        if str(tid) in told:
            assert tid == spinning
            assert ours.regsets[tid] == []
        else:
            assert ours.regsets[tid] == truth
            assert [note[1] for note in truth] == [2, 0x46E62B7F, 0x202, 0x200]
    assert not [note for core in (ours, kernels) for note in core.notes if note[1] == NT_X86_XSAVE_LAYOUT]


@pytest.mark.parametrize("program", PROGRAMS)
def test_known_registers_are_in_their_slots(guest: Guest, program: str) -> None:
    threads, registers = guest.threads(program), Core(guest.core(program)).registers
    for comm, wanted in guest.expected["registers"][program].items():
        assert {name: f"{registers[threads[comm]][name]:#x}" for name in wanted} == wanted


@pytest.mark.parametrize("program", PROGRAMS)
def test_gdb_shows_every_threads_stack_and_the_globals(guest: Guest, program: str) -> None:
    commands = ("thread apply all bt", "p/x victim_magic", "p/x library_magic", "info sharedlibrary")
    output = gdb(guest.core(program), *commands, program=guest.sysroot / "bin" / program, sysroot=guest.sysroot)
    traces, threads = gdb_backtraces(output), guest.threads(program)
    assert traces.keys() == set(threads.values())
    for comm, wanted in guest.expected[program].items():
        assert in_order(wanted, traces[threads[comm]]), (comm, traces[threads[comm]])
    assert "<signal handler called>" in traces[threads["t-signal"]]
    for value in guest.expected["globals"].values():
        assert f"= {value}\n" in output
    if program == "lab-dynamic":
        assert all(library in output for library in ("libvictim.so", "libc.so.6", "ld-linux.so.2"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_gdb_shows_the_vectors_that_the_program_loaded(guest: Guest, program: str) -> None:
    tid = guest.threads(program)["t-regs"]
    wanted = guest.expected["vectors"]["t-regs"]
    names = sorted(wanted)
    find = f"python [t.switch() for t in gdb.selected_inferior().threads() if t.ptid[1] == {tid}]"
    shown = gdb(guest.core(program), find, *(f"p/x ${n}.v{len(wanted[n]) // 2}_int8" for n in names), "p $st0")
    values = re.findall(r"= \{((?:0x[0-9a-f]+(?: <repeats \d+ times>)?(?:, )?)+)\}", shown)
    assert [bytes(int(v, 16) for v in value.split(", ")).hex() for value in values] == [wanted[n] for n in names]
    assert "3.14159265358979323" in shown


@pytest.mark.parametrize("program", PROGRAMS)
def test_maps_and_stacks_are_those_of_the_guest(guest: Guest, program: str) -> None:
    pid = str(guest.pids[program])
    shown = tasks("maps", guest.dump, *GIVEN, "--pid", pid)
    assert (shown.stdout.splitlines(), shown.stderr) == (guest.truth(f"{program}.maps").splitlines(), "")
    threads = guest.threads(program)
    stacks = {stack["tid"]: stack for stack in tasks_json("bt", guest.dump, *GIVEN, "--pid", pid)}
    assert stacks.keys() == set(threads.values())
    for comm, wanted in guest.expected[program].items():
        names = [frame["function"] for frame in stacks[threads[comm]]["frames"]]
        assert in_order(wanted, [name for name in names if name]), (comm, names)


def elf32(guest: Guest, target: Path) -> Path:
    """Write the dump as /proc/vmcore of a 32-bit kernel: ELFCLASS32, the same notes, memory in PT_LOADs."""
    from vmcore2core.containers import open_container

    container = open_container([guest.dump])
    notes = b""
    for note in container.notes:
        name = note.name.encode() + b"\0"
        notes += struct.pack("<3I", len(name), len(note.desc), note.n_type)
        notes += name.ljust(-(-len(name) // 4) * 4, b"\0") + note.desc.ljust(-(-len(note.desc) // 4) * 4, b"\0")
    ranges = [r for r in container.memory_ranges() if r.size]
    import numpy as np

    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 4, 3, 1, 0, 52, 0, 0, 52, 32, 1 + len(ranges), 0, 0, 0)
    at = 52 + 32 * (1 + len(ranges))
    table = struct.pack("<8I", 4, at, 0, 0, len(notes), 0, 0, 0)
    at = -(-(at + len(notes)) // 4096) * 4096
    with target.open("wb") as out:
        for r in ranges:
            table += struct.pack("<8I", 1, at, 0, r.start, r.size, r.size, 7, 0)
            pfns = np.arange(r.start >> 12, r.end >> 12, dtype=np.uint64)
            pages = np.zeros((len(pfns), 4096), np.uint8)
            container.read_pages(pfns, pages)
            out.seek(at)
            out.write(pages.tobytes())
            at += r.size
        out.seek(0)
        out.write(head + table + notes)
    container.close()
    return target


def test_a_dump_of_elfclass32_gives_the_same_core(guest: Guest, tmp_path: Path) -> None:
    dump = elf32(guest, tmp_path / "vmcore")
    result = convert(dump, *GIVEN, "--pid", str(guest.pids["lab-static"]), "-o", tmp_path / "core")
    assert (result.returncode, result.stderr) == (0, "")
    diff = compare_pages(Core(tmp_path / "core"), Core(guest.core("lab-static")))
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert Core(tmp_path / "core").registers == Core(guest.core("lab-static")).registers


def test_without_a_layout_the_error_says_what_is_missing(guest: Guest, tmp_path: Path) -> None:
    result = convert(guest.dump, "--pid", str(guest.pids["lab-static"]), "-o", tmp_path / "core")
    assert result.returncode == 1
    assert "OFFSET(task_struct.mm)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_layout_of_another_boot_is_moved_to_this_ones_kaslr(guest: Guest, tmp_path: Path) -> None:
    """As if it were made of a dump in which the kernel was 16 MiB further up."""
    moved = re.sub(
        r"^(SYMBOL\(\w+\))=([0-9a-f]+)$",
        lambda line: f"{line[1]}={int(line[2], 16) + (16 << 20):x}",
        LAYOUT.read_text(),
        flags=re.MULTILINE,
    )
    (tmp_path / "layout.txt").write_text(moved)
    pid = str(guest.pids["lab-dynamic"])
    result = convert(guest.dump, "--vmcoreinfo", tmp_path / "layout.txt", "--pid", pid, "-o", tmp_path / "core")
    assert (result.returncode, result.stderr) == (0, "")
    assert Core(tmp_path / "core").regsets == Core(guest.core("lab-dynamic")).regsets

"""The bundled dumps: cores against the kernel's own, and gdb and lldb on them.

Tests process/status_fields.py.
"""

from __future__ import annotations

import json
import re
import signal
import struct
from pathlib import Path

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, NT_PRPSINFO, NT_X86_XSAVE_LAYOUT, Core, compare_pages
from tests.e2e.debuggers import gdb, gdb_backtraces, in_order, lldb, lldb_backtraces
from tests.e2e.guests import GUESTS, PROGRAMS, Guest, convert

SYSCALL_RETURN = {"rax", "orig_rax", "eflags"}


def test_there_are_bundled_dumps() -> None:
    assert GUESTS == ["debian-5.10-amd64", "debian-6.1-amd64", "debian-7.2-amd64"]


def test_all_processes_come_out_complete(guest: Guest) -> None:
    assert (guest.result.returncode, guest.result.stderr) == (0, "")
    names = {path.name for path in guest.cores.glob("core.*[0-9]")}
    wanted = {f"core.{name}.{pid}" for name, pid in guest.pids.items() if name not in ("kthread", "zombie")}
    if "lab-traced" in guest.pids:  # each of these has a process that keeps it so
        wanted |= {f"core.lab-tracer.{guest.pids['lab-traced'] - 1}", f"core.lab-vforked.{guest.pids['lab-vfork'] + 1}"}
    assert names == wanted


@pytest.mark.parametrize("program", PROGRAMS)
def test_core_equals_the_kernels_own(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    diff = compare_pages(ours, kernels)
    assert (diff.wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 1000
    assert ours.extents == kernels.extents
    assert ours.note(NT_AUXV) == kernels.note(NT_AUXV)
    assert ours.note(NT_FILE) == kernels.note(NT_FILE)
    assert ours.registers.keys() == kernels.registers.keys()
    spinning = guest.threads(program).get("t-spin")
    for tid, truth in kernels.registers.items():
        skip = SYSCALL_RETURN | ({"rip", "rcx", "rsp"} if tid == spinning else set())
        if truth["fs_base"] == 0 and tid != guest.pids[program]:
            # Before Linux 5.16, threads but the dumping one passed exit_mm_release() first, whose deactivate_mm()
            # clears fs. The thread control block's first word is its own address (x86-64 psABI, variant II).
            base = ours.registers[tid]["fs_base"]
            assert kernels.read(base, 8) == base.to_bytes(8, "little")
            skip |= {"fs_base"}
        mine = {k: hex(v) for k, v in ours.registers[tid].items() if k not in skip}
        assert mine == {k: hex(v) for k, v in truth.items() if k not in skip}, f"thread {tid}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_other_fields_of_the_notes_are_the_kernels(guest: Guest, program: str, tmp_path: Path) -> None:
    """Besides what the signal that killed the process changed, and times, which went on."""
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    for tid, truth in kernels.prstatus.items():
        mine = ours.prstatus[tid]
        # elf_prstatus: pr_sighold at 24; pr_pid, pr_ppid, pr_pgrp, pr_sid at 32; four timevals at 48
        assert struct.unpack_from("<Q4i", mine, 24) == struct.unpack_from("<Q4i", truth, 24)
        (u1, v1, s1, w1), (u2, v2, s2, w2) = (struct.unpack_from("<4q", desc, 48) for desc in (mine, truth))
        assert u1 * 10**6 + v1 <= u2 * 10**6 + v2
        assert s1 * 10**6 + w1 <= s2 * 10**6 + w2
    blocked = struct.unpack_from("<Q", ours.prstatus[guest.threads(program)["t-signal"]], 24)[0]
    assert blocked == 1 << (signal.SIGUSR1 - 1)
    spinning = ours.prstatus[guest.threads(program)["t-spin"]]
    assert struct.unpack_from("<2q", spinning, 48) > (0, 0)
    # elf_prpsinfo: pr_nice at 3; from pr_uid at 16 on to the end
    info, wanted = ours.note(NT_PRPSINFO), kernels.note(NT_PRPSINFO)
    assert info is not None
    assert wanted is not None
    assert (info[3], info[16:]) == (wanted[3], wanted[16:])


@pytest.mark.parametrize("program", PROGRAMS)
def test_vector_registers_are_the_kernels_byte_for_byte(guest: Guest, program: str, tmp_path: Path) -> None:
    ours, kernels = Core(guest.core(program)), guest.truth_core(program, tmp_path)
    told = json.loads(next(desc for name, _, desc in ours.notes if name == "vmcore2core"))["registers_left_out"]
    spinning = guest.threads(program)["t-spin"]
    for tid, truth in kernels.regsets.items():
        if str(tid) in told:
            assert tid == spinning
            assert told[str(tid)].startswith("its floating-point registers were in the processor")
            assert ours.regsets[tid] == []
        else:
            assert ours.regsets[tid] == truth
            assert [note[:2] for note in truth] == [("CORE", 2), ("LINUX", 0x202)]
    layouts = [[note for note in core.notes if note[1] == NT_X86_XSAVE_LAYOUT] for core in (ours, kernels)]
    assert layouts[0] == layouts[1]
    assert len(layouts[0]) == (guest.folder.name == "debian-7.2-amd64")


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
def test_known_registers_are_in_their_slots(guest: Guest, program: str) -> None:
    threads, registers = guest.threads(program), Core(guest.core(program)).registers
    for comm, wanted in guest.expected["registers"][program].items():
        assert {name: f"{registers[threads[comm]][name]:#x}" for name in wanted} == wanted


@pytest.mark.parametrize("program", PROGRAMS)
def test_gdb_shows_every_threads_stack_and_the_globals(guest: Guest, program: str) -> None:
    output = gdb(
        guest.core(program),
        "thread apply all bt",
        "p/x victim_magic",
        "p/x library_magic",
        "info sharedlibrary",
        program=guest.sysroot / "bin" / program,
        sysroot=guest.sysroot,
    )
    traces, threads = gdb_backtraces(output), guest.threads(program)
    assert traces.keys() == set(threads.values())
    for comm, wanted in guest.expected[program].items():
        assert in_order(wanted, traces[threads[comm]]), (comm, traces[threads[comm]])
    assert "<signal handler called>" in traces[threads["t-signal"]]
    for value in guest.expected["globals"].values():
        assert f"= {value}\n" in output
    if program == "lab-dynamic":
        for library in ("libvictim.so", "libc.so.6", "ld-linux-x86-64.so.2"):
            assert f"{guest.sysroot}/lib" in output
            assert library in output


@pytest.mark.parametrize("program", PROGRAMS)
def test_lldb_shows_every_threads_stack_and_the_globals(guest: Guest, program: str) -> None:
    output = lldb(
        guest.core(program),
        "thread list",
        "bt all",
        "p/x victim_magic",
        program=guest.sysroot / "bin" / program,
        sysroot=guest.sysroot,
    )
    traces, threads = lldb_backtraces(output), guest.threads(program)
    assert traces.keys() == set(threads.values())
    for comm, wanted in guest.expected[program].items():
        assert in_order(wanted, traces[threads[comm]]), (comm, traces[threads[comm]])
    assert guest.expected["globals"]["victim_magic"] in output


def test_gdb_without_the_binaries_still_lists_the_threads(guest: Guest) -> None:
    output = gdb(guest.core("lab-dynamic"), "info threads", "info auxv", "x/s $rsp")
    assert output.count("LWP") >= 6
    assert "AT_SYSINFO_EHDR" in output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zombie", "is a zombie: its memory was already released"),
        ("kthread", "is a kernel thread: it has no user memory"),
    ],
)
def test_a_task_without_memory_is_one_sentence(guest: Guest, tmp_path: Path, name: str, words: str) -> None:
    result = convert(guest.dump, "--pid", str(guest.pids[name]), "-o", tmp_path / "core")
    assert result.returncode == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_says_what_was_written_and_who_told_the_layout(guest: Guest, tmp_path: Path) -> None:
    pid = guest.pids["lab-static"]
    result = convert(guest.dump, "--pid", str(pid), "-o", tmp_path / "core", "--json")
    summary = json.loads(result.stdout)
    assert [core["pid"] for core in summary["cores"]] == [pid]
    assert summary["cores"][0]["complete"] is True
    assert summary["cores"][0]["pages"]["missing"] == 0
    assert {thread["comm"] for thread in summary["cores"][0]["threads"]} == set(guest.threads("lab-static"))
    assert summary["layout"]["answers"]["OFFSET(task_struct.mm)"] == "BTF in the dump"
    spinning = next(t for t in summary["cores"][0]["threads"] if t["comm"] == "t-spin")
    on_a_cpu = spinning["registers"].startswith("crash note of CPU")
    other = json.loads(
        convert(guest.dump, "--pid", str(guest.pids["lab-dynamic"]), "-o", tmp_path / "c2", "--json").stdout
    )
    sources = [t["registers"] for t in other["cores"][0]["threads"] if t["comm"] == "t-spin"]
    # Two threads spin for one free CPU: when the machine stopped, at least one of them was running.
    assert on_a_cpu or sources[0].startswith("crash note of CPU")

"""``vmcore-tasks`` on the bundled dumps: it shows what the guest's own /proc showed.

Tests commands/tasks/app.py, commands/tasks/bt.py, commands/tasks/maps.py, commands/tasks/regs.py,
commands/tasks/shown.py, commands/tasks/threads.py, tasks/maps.py, tasks/stacks.py.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.debuggers import in_order
from tests.e2e.guests import PROGRAMS, Guest, bundled, convert, rows, tasks, tasks_json

KALLSYMS_KEY = b"SYMBOL(kallsyms_"
BTF_HEADER = bytes.fromhex("9feb01001800000000000000")  # magic, version, flags, hdr_len, type_off


@pytest.mark.parametrize("program", PROGRAMS)
def test_maps_is_proc_maps(guest: Guest, program: str) -> None:
    result = tasks("maps", guest.dump, "--pid", str(guest.pids[program]))
    assert result.stdout.splitlines() == guest.truth(f"{program}.maps").splitlines()
    assert (result.returncode, result.stderr) == (0, "")


def test_ps_lists_what_proc_lists(guest: Guest) -> None:
    shown = {row["pid"]: row for row in tasks_json("ps", guest.dump)}
    fields = [line.split("\t") for line in guest.truth("ps.txt").splitlines()]
    truth = {int(pid): (int(ppid), state, comm) for pid, ppid, state, comm in fields}
    # Kernel workers come and go in the moment between dump and truth.
    gone = shown.keys() ^ truth.keys()
    assert all((shown[pid]["comm"] if pid in shown else truth[pid][2]).startswith("kworker/") for pid in gone)
    assert len(gone) < 4
    for pid in shown.keys() & truth.keys():
        ppid, state, comm = truth[pid]
        row = shown[pid]
        assert row["ppid"] == ppid
        assert comm.startswith(row["comm"])
        assert row["kernel_thread"] is (pid == 2 or ppid == 2)
        if pid in guest.pids.values() and pid != 1:
            assert (row["state"], row["comm"]) == (state, comm)


@pytest.mark.parametrize("program", PROGRAMS)
def test_ps_has_sizes_command_line_and_number_of_threads(guest: Guest, program: str) -> None:
    status = dict(line.split(":\t", 1) for line in guest.truth(f"{program}.status").splitlines())
    (row,) = tasks_json("ps", guest.dump, "--pid", str(guest.pids[program]))
    assert row["vsz_kib"] == int(status["VmSize"].split()[0])
    # Until Linux 6.17, VmRSS lacks what threads or CPUs have yet to add; smaps counts the pages themselves.
    assert row["rss_kib"] == sum(map(int, re.findall(r"^Rss:\s+(\d+) kB", guest.truth(f"{program}.smaps"), re.M)))
    assert row["threads"] == int(status["Threads"])
    assert row["command"] == guest.truth(f"{program}.cmdline").rstrip("\0").replace("\0", " ")


def test_ps_filters_by_pid_comm_and_state(guest: Guest) -> None:
    listed = [line.split("\t") for line in guest.truth("ps.txt").splitlines()]
    zombies = [comm for _, _, state, comm in listed if state == "Z"]
    assert "lab-zombie" in zombies
    assert [row["comm"] for row in tasks_json("ps", guest.dump, "--state", "Z")] == zombies
    matching = sorted(comm for *_, comm in listed if comm.startswith("lab-"))
    assert sorted(row["comm"] for row in tasks_json("ps", guest.dump, "--comm", "lab-*")) == matching
    assert {"lab-zombie", *PROGRAMS} <= {*matching}
    tid = guest.threads("lab-static")["t-cond"]
    assert tasks_json("ps", guest.dump, "--pid", "1", "--pid", "2")[1]["comm"] == "kthreadd"
    nothing = tasks("ps", guest.dump, "--comm", "t-cond", "--json")
    assert (nothing.returncode, rows(nothing.stdout)) == (1, [])
    assert tid in {row["tid"] for row in tasks_json("threads", guest.dump, "--pid", str(guest.pids["lab-static"]))}


def test_the_tree_has_children_below_their_parents(guest: Guest) -> None:
    lines = tasks("ps", guest.dump, "--tree").stdout.splitlines()
    depth = {line.split()[0]: re.search(r"[\[/]", line).start() for line in lines[1:] if re.search(r"[\[/]", line)}  # type: ignore[union-attr]
    assert depth[str(guest.pids["lab-static"])] > depth["1"]
    assert depth[str(guest.pids["zombie"])] > depth["1"]
    assert depth["3"] > depth["2"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_are_those_of_proc_with_their_registers(guest: Guest, program: str) -> None:
    found = {row["tid"]: row for row in tasks_json("threads", guest.dump, "--pid", str(guest.pids[program]))}
    fields = [line.split("\t") for line in guest.truth(f"{program}.tasks").splitlines()]
    assert found.keys() == {int(tid) for tid, *_ in fields}
    for tid, comm, state, call in fields:
        row = found[int(tid)]
        assert (row["comm"], row["state"]) == (comm, state)
        if call != "running":  # number, six arguments, stack pointer, program counter
            words = [int(word, 0) for word in call.split()]
            names = ("orig_rax", "rdi", "rsi", "rdx", "r10", "r8", "r9", "rsp", "rip")
            assert [int(row["registers"][name], 16) for name in names] == words
            assert row["source"] == "kernel stack"
    for comm, wanted in guest.expected["registers"][program].items():
        row = next(row for row in found.values() if row["comm"] == comm)
        assert {name: row["registers"][name] for name in wanted} == wanted


@pytest.mark.parametrize("program", PROGRAMS)
def test_bt_shows_every_threads_functions_without_binaries(guest: Guest, program: str) -> None:
    stacks = {stack["comm"]: stack for stack in tasks_json("bt", guest.dump, "--pid", str(guest.pids[program]))}
    assert stacks.keys() == guest.threads(program).keys()
    for comm, wanted in guest.expected[program].items():
        frames = stacks[comm]["frames"]
        assert in_order(wanted, [frame["function"] or "" for frame in frames]), comm
        assert frames[0]["found_by"] == "registers"
    assert "signal frame" in {frame["found_by"].split(",")[0] for frame in stacks["t-signal"]["frames"]}


def test_info_says_what_the_kernel_is(guest: Guest) -> None:
    shown = tasks("info", guest.dump).stdout
    release = guest.truth("version.txt").split()[2]
    assert f"release: {release}" in shown
    # QEMU's notes have the CPU's number plus 1 where a crashed kernel's have the PID.
    spinning = [guest.threads(program)["t-spin"] for program in PROGRAMS]
    assert "  cpu 0, pid 0, comm swapper/0, user mode no\n" in shown
    assert any(
        f"  cpu 1, pid {tid}, comm t-spin, process {guest.pids[program]}, process comm {program}, user mode yes\n"
        in shown
        for program, tid in zip(PROGRAMS, spinning, strict=True)
    )
    assert "Run /init as init process" in shown


def test_a_dump_whose_layout_comes_from_a_file_gives_the_same_core(tmp_path: Path) -> None:
    """The layout from BTF is written to a file; then a copy of the dump that has neither kallsyms nor BTF needs it."""
    whole = bundled("debian-7.2-amd64", tmp_path)
    layout = tmp_path / "layout.txt"
    layout.write_text(tasks("layout", whole, "--from", "BTF").stdout)
    (tmp_path / "bare").mkdir()
    bare = tmp_path / "bare" / whole.name
    data = whole.read_bytes()
    assert KALLSYMS_KEY in data
    assert BTF_HEADER in data
    bare.write_bytes(data.replace(KALLSYMS_KEY, b"SYMBOL(somewhere").replace(BTF_HEADER, bytes(len(BTF_HEADER))))

    refused = convert(bare, "--pid", "1", "-o", tmp_path / "none")
    assert refused.returncode == 1
    assert "--vmcoreinfo" in refused.stderr
    assert "--vmlinux" in refused.stderr
    assert convert(whole, "--comm", "lab-*", "-o", tmp_path / "one").returncode == 0
    result = convert(bare, "--comm", "lab-*", "--vmcoreinfo", layout, "-o", tmp_path / "two", "-v")
    assert result.returncode == 3
    incomplete = [line for line in result.stderr.splitlines() if "pages are missing" in line]
    assert len(incomplete) == 2
    assert all("swap)" in line for line in incomplete)  # the file has nothing of zram's and zswap's structures
    names = sorted(path.name for path in (tmp_path / "one").glob("core.*[0-9]"))
    assert len(names) == 13
    for name in names:
        if "swap" in name:
            continue
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_layout_of_another_kernel_is_refused(tmp_path: Path) -> None:
    layout = tmp_path / "layout.txt"
    layout.write_text(tasks("layout", bundled("debian-6.1-amd64", tmp_path)).stdout)
    result = convert(bundled("debian-5.10-amd64", tmp_path), "--vmcoreinfo", layout, "--pid", "1", "-o", tmp_path / "x")
    assert result.returncode == 1
    assert "is of another kernel" in result.stderr


def test_a_scan_of_a_dump_whose_lists_are_whole_finds_the_same(tmp_path: Path) -> None:
    dump = bundled("debian-6.1-amd64", tmp_path)
    listed, scanned = (tasks_json("ps", dump, *more) for more in ((), ("--scan",)))
    assert listed == scanned
    assert {row["found_by"] for row in scanned} == {"task list"}
    result = convert(dump, "--pid", "86", "--scan", "--json", "-o", tmp_path / "core")
    assert result.returncode == 0
    assert json.loads(result.stdout)["cores"][0]["found_by"] == "task list"


@pytest.mark.parametrize("command", ["convert", "bt", "files", "ps", "ps -L", "waits"])
def test_each_command_says_alike_what_it_did_not_find(tmp_path: Path, command: str) -> None:
    dump = bundled("debian-6.1-amd64", tmp_path)
    if command == "waits":
        dump = bundled("waits-6.12", tmp_path)  # whose kernel tells of open files
    name, *options = command.split()
    run = partial(convert, dump, "-o", tmp_path) if name == "convert" else partial(tasks, name, dump, *options)
    memory = " with user memory" if name in ("convert", "bt") else ""
    result = run("--comm", "lab-stati")
    whole_name = "a pattern is of the whole name: '*lab-stati*' fits a part of it"
    said = f"no process{memory} matches: --comm lab-stati fits none; {whole_name}\n"
    assert (result.returncode, result.stderr.partition(": ")[2]) == (1, said)
    result = run("--pid", "1", "--pid", "4999")
    assert (result.returncode, result.stderr.partition(": ")[2]) == (1, "no task has PID 4999 in this dump\n")
    assert "init" in result.stdout


def test_a_thread_that_is_in_no_such_state_is_said(tmp_path: Path) -> None:
    result = tasks("bt", bundled("debian-6.1-amd64", tmp_path), "--tid", "1", "--state", "Z")
    assert (result.returncode, result.stderr.partition(": ")[2]) == (
        1,
        "no process with user memory matches: --state Z fits none\n",
    )

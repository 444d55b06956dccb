"""What the tests of the corpus' guests on other machines have in common."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Set
from pathlib import Path
from typing import Literal

import pytest

from tests.e2e.cores import NT_AUXV, NT_FILE, Core, compare_pages
from tests.e2e.debuggers import gdb_backtraces, gdb_command, in_order
from tests.e2e.guests import Guest, convert, spoil_kallsyms, tasks
from vmcore2core.interfaces import Member
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.session import OpenOptions, Session

LEVELS = ["level_c", "level_b", "level_a"]


def thread_notes(core: Core) -> dict[int, list[tuple[str, int, bytes]]]:
    """Return the notes behind each thread's NT_PRSTATUS that are the thread's own."""
    found: dict[int, list[tuple[str, int, bytes]]] = {}
    tid = 0
    for note in core.notes:
        if note[:2] == ("CORE", 1):
            (tid,) = struct.unpack_from(core.order + "i", note[2], 32 if core.is_64 else 24)
            found[tid] = []
        elif note[:2] == ("CORE", 2) or note[0] == "LINUX":
            found[tid].append(note)
    return found


def check_layout_from_file(dump: Path, core: Path, folder: Path, order: Literal["<", ">"] = "<") -> None:
    """Check that a copy of the dump without BTF and kallsyms gives the same core with a layout that was written."""
    (folder / "layout").write_text(tasks("layout", dump).stdout)
    data = bytearray(dump.read_bytes())
    magic = struct.pack(order + "HBBI", 0xEB9F, 1, 0, 24)
    for pattern, instead in ((magic, bytes(8)), (b"SYMBOL(kallsyms_", b"LENGTH(kallsyms_")):
        places = [match.start() for match in re.finditer(re.escape(pattern), data)]
        assert places
        for at in places:
            data[at : at + len(instead)] = instead
    spoil_kallsyms(data, "little" if order == "<" else "big")
    (folder / "bare").mkdir()
    bare = folder / "bare" / dump.name
    bare.write_bytes(data)
    pid = core.name.rsplit(".", 1)[1]
    result = convert(bare, "--vmcoreinfo", folder / "layout", "--pid", pid, "-o", folder / "core", "-v")
    assert result.returncode == 0
    assert "BTF in the dump" not in result.stderr
    ours, before = Core(folder / "core"), Core(core)
    assert ours.prstatus == before.prstatus
    assert thread_notes(ours) == thread_notes(before)
    assert ours.data[48:52] == before.data[48:52]  # e_flags
    diff = compare_pages(ours, before)
    assert (diff.same, diff.wrong, diff.zeroed) == (len(before.pages()), [], [])


def check_memory(ours: Core, kernels: Core, clock: Set[int]) -> None:
    """Check that a core has the pages of the kernel's own but the time of day, and its NT_AUXV and NT_FILE."""
    diff = compare_pages(ours, kernels)
    wrong = [page for page in diff.wrong if page not in clock]
    assert (wrong, diff.zeroed, diff.absent) == ([], [], [])
    assert diff.same > 1000
    assert (ours.note(NT_AUXV), ours.note(NT_FILE)) == (kernels.note(NT_AUXV), kernels.note(NT_FILE))


def check_stacks_in_gdb(guest: Guest, program: str, left_out: Set[str] = frozenset()) -> None:
    """Check that gdb shows every thread's stack but those of the threads left out, and the globals."""
    command = gdb_command("gdb-multiarch", sysroot=guest.sysroot)
    for shown in ("thread apply all bt", "p/x victim_magic", "p/x library_magic"):
        command += ["-ex", shown]
    command += [str(guest.sysroot / "bin" / program), str(guest.core(program))]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    traces = gdb_backtraces(output)
    threads = {comm: tid for comm, tid in guest.threads(program).items() if comm not in left_out}
    assert traces.keys() == set(threads.values())
    for comm, tid in threads.items():
        assert in_order(guest.expected[program][comm], traces[tid]), (comm, traces[tid])
    assert "<signal handler called>" in traces[threads["t-signal"]]
    for value in guest.expected["globals"].values():
        assert f"= {value}\n" in output


def gdb_multiarch(program: Path, core: Path) -> dict[int, list[str]]:
    """Return the function names that gdb shows of each thread, with no files but the program."""
    arguments = [*gdb_command("gdb-multiarch"), "-ex", "thread apply all bt", str(program), str(core)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    return gdb_backtraces(result.stdout)


def stacks_of_victim_static(pid: int, *end: str, waits: str = "__futex_abstimed_wait_cancelable64") -> object:
    """Return what a debugger must show of victim-static's threads: the corpus' victim.c.

    Args:
        pid: its PID; the threads have the numbers from two more on.
        end: outermost functions of a thread.
        waits: libc's function that waits for a futex.
    """
    signal = ["pause", "handler", "<signal handler called>", "__pthread_kill_implementation.constprop.0", "raise"]
    return {
        pid: ["clock_nanosleep", "nanosleep", *LEVELS, "main"],
        pid + 2: ["pause", "regs_blocked", *end],
        pid + 3: [*signal, "sig_thread", *end],
        pid + 4: [waits, "pthread_cond_wait", "cond_thread", *end],
        pid + 5: ["clock_nanosleep", "nanosleep", *LEVELS, "bt_thread", *end],
        pid + 6: ["regs_spin", *end],
    }


ON_CPU = {
    ("task_struct", "on_cpu"),
    *((s, n) for s in ("task_struct", "thread_info") for n in ("cpu", "thread_info.cpu")),
}


def check_without_on_cpu(
    monkeypatch: pytest.MonkeyPatch, dump: Path, layout: Path | None, cores: dict[Path, int]
) -> set[int]:
    """Check that a layout like VMCOREINFO's export, which tells of no task whether it was on a CPU, makes none up.

    Args:
        cores: those of the whole layout, and the thread of each that spins.

    Returns:
        The threads whose registers are left out.
    """
    find_member = KernelLayout.find_member

    def known(self: KernelLayout, struct: str, member: str) -> Member | None:
        return None if (struct, member) in ON_CPU else find_member(self, struct, member)

    monkeypatch.setattr(KernelLayout, "find_member", known)
    left_out: set[int] = set()
    with Session([dump], OpenOptions(vmcoreinfo=layout)) as session:
        for path, spinning in cores.items():
            core, leader = Core(path), session.processes.find(int(path.name.rsplit(".", 1)[1]))
            snapshot = session.processes.capture(leader, with_absent=False).snapshot
            lost, found = {t.tid for t in snapshot.threads_left_out}, {t.tid: t.gregs for t in snapshot.threads}
            assert lost <= {spinning}
            assert lost | found.keys() == core.prstatus.keys()
            start = 112 if core.is_64 else 72
            for tid, gregs in found.items():
                assert gregs == core.prstatus[tid][start : start + len(gregs)], f"thread {tid}"
            left_out |= lost
    return left_out

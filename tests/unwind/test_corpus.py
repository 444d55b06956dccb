"""Backtraces out of the corpus's dumps; the corpus's victim.c says what each thread must show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import rows

pytestmark = pytest.mark.corpus

ROOT = Path(__file__).resolve().parents[2]
MAIN = ["level_c", "level_b", "level_a", "main", "__libc_start_main", "_start"]
BT = ["level_c", "level_b", "level_a", "bt_thread"]
SIG = ["handler", "raise", "sig_thread"]
KNOWN = {*MAIN, *BT, *SIG, "regs_blocked", "cond_thread", "regs_spin", "pthread_cond_wait", "nanosleep", "pause"}


def bt(dump: Path, *arguments: str, status: int = 0) -> str:
    command = [
        sys.executable,
        "-c",
        "from vmcore2core.commands.tasks.app import main; main()",
        "bt",
        str(dump),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def threads(dump: Path, pid: int) -> dict[str, dict[str, Any]]:
    return {thread["comm"]: thread for thread in rows(bt(dump, "--pid", str(pid), "--json"))}


def names(thread: dict[str, Any]) -> list[str]:
    return [frame["function"] for frame in thread["frames"] if frame["function"] in KNOWN]


def check(dump: Path, folder: Path, kind: str, *, spins: bool) -> None:
    """Check all threads of one victim."""
    pid = int((folder / "truth" / f"victim-{kind}.pid").read_text())
    found = threads(dump, pid)
    assert set(found) == {f"victim-{kind}", "v-regs", "v-sig", "v-cond", "v-bt"} | ({"v-spin"} if spins else set())
    assert all(thread["complete"] for thread in found.values())
    assert names(found[f"victim-{kind}"]) == ["nanosleep", *MAIN]
    assert names(found["v-bt"]) == ["nanosleep", *BT]
    assert names(found["v-sig"]) == ["pause", *SIG]
    assert names(found["v-cond"]) == ["pthread_cond_wait", "cond_thread"]
    assert names(found["v-regs"])[-1] == "regs_blocked"
    frames = found["v-sig"]["frames"]
    trampoline = [frame["signal_trampoline"] for frame in frames].index(True)
    assert frames[trampoline - 1]["function"] == "handler"
    assert frames[trampoline + 1]["found_by"].startswith("signal frame")
    if spins:
        assert names(found["v-spin"]) == ["regs_spin"]
    # /proc/PID/task/TID/syscall ends in the stack pointer and the program counter.
    truth = (folder / "truth" / f"victim-{kind}.pid.tasks").read_text().splitlines()
    for line in truth:
        fields = line.split()
        if fields[-1] != "running":
            assert int(found[fields[1]]["frames"][0]["address"], 16) == int(fields[-1], 16)


@pytest.mark.parametrize("kind", ["dyn", "static"])
def test_seed_shows_what_victim_c_does(corpus: Path, kind: str) -> None:
    folder = corpus / "seed-7.2-amd64"
    check(folder / "vmcore.kdump-zlib", folder, kind, spins=kind == "static")


@pytest.mark.parametrize("kind", ["dyn", "static", "32"])
def test_debian_shows_what_victim_c_does(corpus: Path, debian_72: Path, kind: str) -> None:
    check(debian_72, corpus / "debian-7.2-amd64", kind, spins=kind == "static")


@pytest.mark.parametrize("kind", ["dyn", "static"])
def test_a_filtered_kdump_with_user_pages_shows_the_same(corpus: Path, kind: str) -> None:
    folder = corpus / "debian-6.1-amd64-kdump"
    check(folder / "vmcore.zstd-d17", folder, kind, spins=kind == "static")


def test_a_dump_without_user_pages_shows_the_registers_and_says_what_is_missing(corpus: Path) -> None:
    folder = corpus / "debian-6.1-amd64-kdump"
    pid = (folder / "truth" / "victim-dyn.pid").read_text().strip()
    output = bt(folder / "vmcore.lzo-d31", "--pid", pid, status=3)
    assert "libc.so.6, file offset 0x" in output
    assert "[registers]" in output
    assert "is not known" in output


def test_the_text_names_each_frame_and_how_it_was_found(corpus: Path) -> None:
    folder = corpus / "seed-7.2-amd64"
    pid = (folder / "truth" / "victim-static.pid").read_text().strip()
    tid = next(
        line.split()[0].split("/")[-1]
        for line in (folder / "truth" / "victim-static.pid.tasks").read_text().splitlines()
        if "v-sig" in line
    )
    lines = bt(folder / "vmcore.kdump-zlib", "--tid", tid).splitlines()
    assert lines[0].split() == [pid, tid, "v-sig", "S"]
    assert lines[1] == "#0  0x000000000043d5f2 pause+0x32 (/bin/victim-static+0x43d5f2) [registers]"
    assert lines[2].startswith("#1  ")
    assert lines[2].endswith(" [CFI]")
    assert "__restore_rt+0x0" in lines[3]
    assert lines[4].endswith("[signal frame, CFI]")
    assert lines[-1].startswith("complete: ")


def test_the_limit_and_wrong_arguments_are_told(corpus: Path) -> None:
    dump = corpus / "seed-7.2-amd64" / "vmcore.kdump-zlib"
    pid = (corpus / "seed-7.2-amd64" / "truth" / "victim-dyn.pid").read_text().strip()
    output = bt(dump, "--tid", pid, "--limit", "2", status=3)
    assert output.count("\n#") == 2
    assert "there are more than 2 frames" in output
    bt(dump, status=2)
    bt(dump, "--pid", "999999", status=1)
    bt(dump, "--pid", "2", status=1)


def test_a_dump_of_stacks_alone_has_all_frames_with_the_program(corpus: Path, tmp_path: Path) -> None:
    folder = corpus / "debian-6.1-amd64-kdump"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/victim-static").write_bytes((folder / "bin/victim-static").read_bytes())
    options = ("--comm", "victim-static", "--sysroot", str(tmp_path), "--debug-directory", "/nonexistent")
    found = rows(bt(folder / "vmcore.zlib-d31-userstack", *options, "--json"))
    threads = {thread["comm"]: thread for thread in found}
    assert set(threads) == {"victim-static", "v-regs", "v-sig", "v-cond", "v-bt", "v-spin"}
    assert all(thread["complete"] for thread in threads.values())
    assert names(threads["victim-static"]) == ["nanosleep", *MAIN]
    assert names(threads["v-bt"]) == ["nanosleep", *BT]
    assert names(threads["v-sig"]) == ["pause", *SIG]
    assert names(threads["v-spin"]) == ["regs_spin"]
    assert [frame["function"] for frame in threads["v-regs"]["frames"]][-2:] == ["start_thread", "clone3"]

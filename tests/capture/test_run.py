"""Cores within limits, from a bundled dump in the place of /proc/vmcore.

Tests capture/__main__.py, capture/check.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.stacks_only import bundled_stacks_only
from tests.e2e.cores import Core
from tests.e2e.guests import FIXTURES, convert, rows
from vmcore2core.capture import run
from vmcore2core.capture.__main__ import main
from vmcore2core.capture.check import would_capture
from vmcore2core.capture.config import Limits, read_config

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
VICTIMS = '[[process]]\ncomm = ["lab-dynamic"]\n[[process]]\ncomm = ["lab-*", "init"]\n'
"""lab-dynamic, the PID of which is the larger one, is the most important."""


LIMITS, KEEP_FREE = "[limits]\n", 'keep_free = "1 MiB"\n'

ASLEEP = ("since", "wait")
"""What the index says of a thread that sleeps, for which capture does not ask all other processes."""


def captured(folder: Path, text: str, command: list[str] | None = None) -> tuple[int, Path, str]:
    """Run the capture kernel's command; return its status, the directory of cores, and what it said."""
    config = folder / "capture.toml"
    if "keep_free" not in text:  # however full this machine's disk is
        text = text.replace(LIMITS, LIMITS + KEEP_FREE) if LIMITS in text else f"{text}\n{LIMITS}{KEEP_FREE}"
    config.write_text(f'directory = "{folder}/crash"\ncompress = "none"\n{text}')
    command = command or ["-m", "vmcore2core.capture"]
    result = subprocess.run(
        [sys.executable, *command, config, DUMP], capture_output=True, text=True, timeout=300, check=False
    )
    found = list((folder / "crash").glob("*/cores"))
    return result.returncode, found[0] if found else folder / "crash", result.stderr


def index_of(cores: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((cores / "index.json").read_text())
    return index


def kept(cores: Path) -> dict[str, tuple[str, str | None]]:
    """Return what there is of each process by its name, and why no more."""
    return {p["comm"]: (p["capture"]["kept"], p["capture"]["reason"]) for p in index_of(cores)["processes"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    status, cores, said = captured(folder, VICTIMS)
    assert (status, said.count("\n")) == (0, 2), said
    assert "stacks of 3 processes after" in said
    assert "3 whole cores, 0 of stacks alone, 0 processes without a core" in said
    return cores


def test_cores_are_those_of_the_converter(whole: Path, tmp_path: Path) -> None:
    assert convert(DUMP, "--all", "-o", tmp_path, "--no-companions").returncode == 0
    names = {path.name for path in whole.glob("core.*")}
    assert names == {path.name for path in tmp_path.glob("core.*")}
    assert len(names) == 3
    for name in names:
        assert (whole / name).read_bytes() == (tmp_path / name).read_bytes()
        assert (whole / name).stat().st_mode & 0o777 == 0o600
    assert whole.stat().st_mode & 0o777 == 0o700


def test_the_index_has_what_the_converters_has(whole: Path, tmp_path: Path) -> None:
    convert(DUMP, "--all", "-o", tmp_path, "--no-companions")
    ours, theirs = index_of(whole), index_of(tmp_path)
    assert ours["finished"] is not None
    assert kept(whole) == dict.fromkeys(("init", "lab-static", "lab-dynamic"), ("whole", None))
    for one, other in zip(ours["processes"], theirs["processes"], strict=True):
        one.pop("capture")
        other.pop("debug", None)
        assert one["files"] is None, "likewise"
        for entry in (one, other):
            entry["core"].pop("mtime_ns")
            for of, names in ((entry, ("files",)), *((thread, ASLEEP) for thread in entry["threads"])):
                for name in names:
                    del of[name]
        assert one == other


def test_the_log_lies_beside_the_cores(whole: Path) -> None:
    lines = (whole / "capture.log").read_text().splitlines()
    assert [line.partition(" ")[2].split()[-1] for line in lines] == ["s", "core"]


def test_a_core_that_is_too_large_keeps_its_stacks(tmp_path: Path) -> None:
    status, cores, said = captured(tmp_path, f'[limits]\ncore = "1 MiB"\n{VICTIMS}')
    assert status == 3
    assert "0 of stacks alone" not in said
    found = kept(cores)
    assert found["lab-static"][0] == found["lab-dynamic"][0] == "stacks"
    assert "and one core may take 1.0 MiB" in str(found["lab-dynamic"][1])
    # The stacks are what --redact stacks writes; a debugger has the registers of all threads.
    pid = next(p["pid"] for p in index_of(cores)["processes"] if p["comm"] == "lab-dynamic")
    convert(DUMP, "--pid", str(pid), "--redact", "stacks", "-o", tmp_path / "stacks.core")
    ours, theirs = (Core(path) for path in (cores / f"core.lab-dynamic.{pid}", tmp_path / "stacks.core"))
    assert ours.registers == theirs.registers
    assert len(ours.registers) == 6


def test_the_most_important_comes_first_where_room_is_for_one(tmp_path: Path) -> None:
    planned = rows(convert(DUMP, "--all", "--dry-run", "--json").stdout)
    room = next(core["on_disk"] for core in planned if core["comm"] == "lab-dynamic") + (1 << 20)
    status, cores, _ = captured(tmp_path, f'[limits]\ntotal = "{room >> 10} KiB"\n{VICTIMS}')
    assert status == 3
    found = kept(cores)
    assert found["lab-dynamic"] == ("whole", None)
    assert found["lab-static"][0] == "stacks"
    assert "for all cores" in str(found["lab-static"][1])


def test_what_must_stay_free_stays_free(tmp_path: Path) -> None:
    status, cores, said = captured(tmp_path, f'[limits]\nkeep_free = "1000 TiB"\n{VICTIMS}')
    assert status == 3
    index = index_of(cores)
    assert index["processes"] == []
    assert len(index["errors"]) == 3
    assert all("must stay free" in error["error"] for error in index["errors"])
    assert "0 whole cores, 0 of stacks alone, 3 processes without a core" in said
    assert not list(cores.glob("core.*"))


def test_stacks_only_is_no_loss(tmp_path: Path) -> None:
    status, cores, _ = captured(tmp_path, '[[process]]\ncomm = ["lab-*"]\nstacks_only = true\n')
    assert status == 0
    assert set(kept(cores).values()) == {("stacks", "stacks_only is set")}
    assert all(p["threads"][0]["frames"] for p in index_of(cores)["processes"])


def test_what_matches_nothing_is_said(tmp_path: Path) -> None:
    status, cores, said = captured(tmp_path, '[[process]]\ncomm = ["nginx"]\n')
    assert "[[process]] number 1: no process with user memory matches" in said
    assert status == 0
    assert index_of(cores)["processes"] == []


def test_check_says_what_would_be_captured_and_how_large(tmp_path: Path) -> None:
    config = tmp_path / "capture.toml"
    config.write_text(f'directory = "{tmp_path}/crash"\n[limits]\ncore = "1 MiB"\n{KEEP_FREE}{VICTIMS}')
    command: list[str | Path] = [sys.executable, "-m", "vmcore2core", "capture", config, "--check", "--dump"]
    result = subprocess.run([*command, DUMP], capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr, len(lines)) == (0, "", 5)
    assert lines[0].startswith("core.lab-dynamic.")
    assert ": stacks alone of " in lines[0]
    assert lines[-2].endswith(" at most, before compression")
    assert lines[-1] == f"{tmp_path}/crash has room for them"
    assert not (tmp_path / "crash").exists()
    result = subprocess.run([*command, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (
        0,
        f"the configuration is good; {tmp_path / 'none'} cannot be read, so what it would capture is not known\n",
    )


def test_check_says_that_the_target_has_too_little_room(tmp_path: Path) -> None:
    """Of 100 bytes in 100 that must stay free, no file system has any left."""
    path = tmp_path / "capture.toml"
    path.write_text(f'directory = "{tmp_path}/crash"\n[limits]\nkeep_free = "99 %"\n{VICTIMS}')
    config = read_config(path)
    assert config is not None
    lines = list(would_capture(config, DUMP, print))
    assert lines[-1].startswith(f"{tmp_path}/crash may not have room for all, and some would keep their stacks alone: ")
    assert "must stay free" in lines[-1]
    lines = list(would_capture(replace(config, limits=Limits(total=1 << 20)), DUMP, print))
    assert "of the 1.0 MiB for all cores 1.0 MiB are left" in lines[-1]


def test_without_a_configuration_nothing_happens(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vmcore2core.capture", tmp_path / "none.toml", DUMP],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        0,
        f"vmcore2core capture: {tmp_path / 'none.toml'} is not there: nothing is captured\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dump_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "capture.toml"
    config.write_text(f'directory = "{tmp_path}/crash"\n{VICTIMS}')
    (tmp_path / "vmcore").write_bytes(b"no dump" * 1000)
    assert main(config, tmp_path / "vmcore") == 1
    log = next(tmp_path.glob("crash/*/cores/capture.log")).read_text()
    assert "vmcore" in log
    config.write_text("[[process]]\n")
    assert main(config, DUMP) == 2


def test_the_service_takes_no_memory_for_decoding_instructions(tmp_path: Path) -> None:
    """A dump of stacks alone has frames that would be told by instructions; converted, it takes capstone for them."""
    dump = bundled_stacks_only("debian-6.1-amd64", tmp_path)
    config = tmp_path / "capture.toml"
    config.write_text(f'directory = "{tmp_path}/crash"\n{VICTIMS}[limits]\nkeep_free = "1 MiB"\n')
    for module, words in (("vmcore2core.capture", [config, dump]), ("vmcore2core", [dump, "--all", "-o", tmp_path])):
        command = [sys.executable, "-X", "importtime", "-m", module, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode in (0, 3), done.stderr
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert ("capstone.x86" in imported) == (module == "vmcore2core")


KILLED = """
import os, signal, sys
from pathlib import Path
from vmcore2core.capture.__main__ import main
from vmcore2core.session import Session
extract, count = Session.extract, 0
def counted(self, leader, output, options, **how):
    global count
    count += 1
    if count == {at}:
        def kill(done, total): os.kill(os.getpid(), signal.{name})
        how["progress"] = kill
    return extract(self, leader, output, options, **how)
Session.extract = counted
sys.exit(main(*map(Path, sys.argv[1:3])))
"""


@pytest.mark.parametrize("at", [2, 4, 5])
def test_whatever_ends_it_what_is_there_is_whole(tmp_path: Path, at: int) -> None:
    status, cores, _ = captured(tmp_path, VICTIMS, ["-c", KILLED.format(at=at, name="SIGKILL")])
    assert status == -signal.SIGKILL
    index = index_of(cores)
    assert index["finished"] is None
    assert {p["core"]["file"] for p in index["processes"]} <= {path.name for path in cores.glob("core.*")}
    there = {path.name.split(".")[1]: len(Core(path).registers) for path in cores.glob("core.*")}
    assert len(there) == min(at - 1, 3)
    assert set(there.items()) <= {("init", 1), ("lab-static", 6), ("lab-dynamic", 6)}


@pytest.mark.parametrize(("at", "stacks", "none"), [(2, 1, 2), (4, 3, 0), (5, 2, 0)])
def test_when_the_time_is_over_the_index_says_what_is_left_out(tmp_path: Path, at: int, stacks: int, none: int) -> None:
    status, cores, said = captured(tmp_path, VICTIMS, ["-c", KILLED.format(at=at, name="SIGALRM")])
    assert status == 3
    assert "the time is over after" in said
    index = index_of(cores)
    reasons = [p["capture"]["reason"] for p in index["processes"] if p["capture"]["kept"] == "stacks"]
    assert reasons == ["the time is over"] * stacks
    assert [error["error"] for error in index["errors"]] == ["the time is over"] * none
    assert index["finished"] is None
    assert not list(cores.glob(".*.part"))


def test_sigterm_ends_it_likewise(tmp_path: Path) -> None:
    status, _, said = captured(tmp_path, VICTIMS, ["-c", KILLED.format(at=2, name="SIGTERM")])
    assert (status, "SIGTERM came after" in said) == (3, True)


def test_time_counts_from_the_start(tmp_path: Path) -> None:
    slow = "import signal\nfrom vmcore2core import session\nsession.open_container = lambda *_: signal.pause()\n"
    status, cores, said = captured(
        tmp_path, f"[limits]\nseconds = 1\n{VICTIMS}", ["-c", slow + KILLED.format(at=0, name="X")]
    )
    assert (status, said.count("\n")) == (1, 1)
    assert "the time is over, and no core was begun" in said
    assert [path.name for path in cores.iterdir()] == ["capture.log"]


def test_the_time_limit_is_by_the_clock() -> None:
    with pytest.raises(run.TimeUp, match="the time is over"), run.time_limit(1):
        signal.pause()
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_disk_that_fills_up_while_a_core_is_written_keeps_the_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40] * 7)

    class Filling(run.Room):
        def _free(self) -> tuple[int, int]:
            return next(free, 1 << 20), 1 << 30

    monkeypatch.setattr(run, "Room", Filling)
    config = tmp_path / "capture.toml"
    config.write_text(f'directory = "{tmp_path}/crash"\ncompress = "none"\n{VICTIMS}')
    assert main(config, DUMP) == 3
    cores = next(tmp_path.glob("crash/*/cores"))
    reason = kept(cores)["lab-dynamic"][1]
    assert reason == f"{cores} has 1.0 MiB free, and 1.0 GiB must stay free"
    assert (cores / "index.json").is_file()

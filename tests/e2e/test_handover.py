"""A directory of cores as it is handed over: the index has what the guest's /proc had, and a killed run can be resumed.

Tests handover/companions.py, handover/entry.py, run/resume_check.py, run/index_entries.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES, PROGRAMS, Guest, convert, rows
from tests.needs import need
from vmcore2core.handover.scripts import HELPERS

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return found


def without_times(folder: Path) -> dict[str, Any]:
    """Return an index without what tells when it was made."""
    found = index_of(folder)
    assert found.pop("started") <= found.pop("finished")
    for process in found["processes"]:
        del process["core"]["mtime_ns"]
    return found


def contents(folder: Path) -> dict[str, str]:
    """Return the digests of the files, the index's aside."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("index.")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "cores"
    assert convert(DUMP, "--all", "-o", folder).returncode == 0
    return folder


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_index_says_what_proc_said(guest: Guest, program: str) -> None:
    index = index_of(guest.cores)
    process = next(p for p in index["processes"] if p["pid"] == guest.pids[program])
    status = dict(line.split(":\t", 1) for line in guest.truth(f"{program}.status").splitlines())
    assert process["comm"] == status["Name"]
    assert process["state"] == status["State"][0]
    assert process["uid"] == int(status["Uid"].split()[0])
    assert process["nspid"] == [int(number) for number in status["NSpid"].split()]
    assert process["exe"] == f"/bin/{program}"
    assert process["command_line"] == guest.truth(f"{program}.cmdline").rstrip("\0").replace("\0", " ")
    assert {t["tid"]: t["comm"] for t in process["threads"]} == {tid: c for c, tid in guest.threads(program).items()}
    maps = [line.split(maxsplit=5) for line in guest.truth(f"{program}.maps").splitlines()]
    assert [(f"{v['start'][2:]:0>8}-{v['end'][2:]:0>8}", v["permissions"]) for v in process["vmas"]] == [
        (fields[0], fields[1]) for fields in maps
    ]
    for vma in process["vmas"]:
        pages = (int(vma["end"], 16) - int(vma["start"], 16)) // process["page_size"]
        assert sum(vma["pages"].values()) == (0 if vma["name"] == "[vsyscall]" else pages)


def test_the_index_has_backtraces_and_build_ids(undisturbed: Path) -> None:
    processes = {p["comm"]: p for p in index_of(undisturbed)["processes"]}
    (nested,) = (t for t in processes["lab-static"]["threads"] if t["comm"] == "t-nested")
    assert [f["function"] for f in nested["frames"]][:5] == ["poll", "level_c", "victim_relay", "level_b", "level_a"]
    images = {i["name"]: i["build_id"] for i in processes["lab-dynamic"]["images"]}
    assert {Path(name).name for name in images} >= {"lab-dynamic", "libc.so.6", "[vdso]"}
    for name in ("/bin/lab-dynamic",):
        notes = subprocess.run(
            [need("eu-readelf"), "-n", FIXTURES / "sysroot" / name[1:]], capture_output=True, text=True, check=False
        ).stdout
        assert images[name] is not None
        assert images[name] in notes


def test_files_are_for_their_owner_alone(undisturbed: Path) -> None:
    assert undisturbed.stat().st_mode & 0o777 == 0o700
    modes = {(path.is_dir(), path.lstat().st_mode & 0o777) for path in undisturbed.rglob("*") if not path.is_symlink()}
    assert modes == {(True, 0o700), (False, 0o600)}


def test_the_index_names_every_file_beside_the_sysroot(undisturbed: Path) -> None:
    processes = index_of(undisturbed)["processes"]
    named = {p["core"]["file"] for p in processes} | {name for p in processes for name in p["debug"]["scripts"]}
    there = {path.name for path in undisturbed.iterdir() if path.is_file()}
    assert named | {"index.json", "index.html", *HELPERS} == there
    for process in processes:
        debug = process["debug"]
        assert (undisturbed / debug["sysroot"] / debug["program"].lstrip("/")).read_bytes()[:4] == b"\x7fELF"


def test_workers_write_the_same(undisturbed: Path, tmp_path: Path) -> None:
    result = convert(DUMP, "--all", "-o", tmp_path / "cores", "--jobs", "3")
    assert (result.returncode, result.stderr) == (0, "")
    assert without_times(tmp_path / "cores") == without_times(undisturbed)
    assert contents(tmp_path / "cores") == contents(undisturbed)


def test_compressed_cores_unpack_to_the_plain_ones(undisturbed: Path, tmp_path: Path) -> None:
    assert convert(DUMP, "--comm", "lab-*", "-o", tmp_path, "--compress", "zstd").returncode == 0
    for process in index_of(tmp_path)["processes"]:
        packed = tmp_path / process["core"]["file"]
        unpacked = subprocess.run([need("zstd"), "-dc", packed], capture_output=True, check=True).stdout
        assert unpacked == (undisturbed / packed.stem).read_bytes()
        assert (process["core"]["size"], process["core"]["file_size"]) == (len(unpacked), packed.stat().st_size)


@pytest.mark.no_cover
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)])
def test_a_run_that_was_ended_at_any_moment_goes_on(
    undisturbed: Path, tmp_path: Path, number: signal.Signals, jobs: int
) -> None:
    folder = tmp_path / "cores"
    options = [str(DUMP), "--all", "-o", str(folder), "--resume", "--jobs", str(jobs)]
    command = [sys.executable, "-m", "vmcore2core", *options]
    moments = random.Random(int(number) + jobs)
    index = folder / "index.json"
    for _ in range(2):
        before = index.stat().st_mtime_ns if index.exists() else 0
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if index.exists() and index.stat().st_mtime_ns != before:
                break  # a Python that is starting is not ours to tell of interrupts
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5))
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does it
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr
        for path in folder.glob("core.*[0-9]"):
            assert path.read_bytes() == (undisturbed / path.name).read_bytes()
        index_of(folder)
        if number != signal.SIGKILL:
            assert [path.name for path in folder.glob(".*") if path.name != ".vscode"] == []
    time.sleep(1)  # what a killed run's workers had begun
    assert convert(*options).returncode == 0
    assert without_times(folder) == without_times(undisturbed)
    assert contents(folder) == contents(undisturbed)


def test_finished_cores_are_not_written_again(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cores"
    assert convert(DUMP, "--comm", "init", "--comm", "lab-static", "-o", folder).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("core.*[0-9]")}
    result = convert(DUMP, "--all", "-o", folder, "--resume")
    assert result.returncode == 0
    assert result.stderr.count("is kept: it was finished before") == 2
    assert len(result.stdout.splitlines()) == 3
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("core.*[0-9]")}
    assert {name: after[name] for name in before} == before
    assert without_times(folder) == without_times(undisturbed)


def damage(core: Path, at: int) -> None:
    """Change two bytes of a core, and nothing else that stat(2) tells."""
    times, raw = core.stat(), core.read_bytes()[at : at + 2]
    with core.open("r+b") as file:
        file.seek(at)
        file.write(bytes(byte ^ 0x10 for byte in raw))
    os.utime(core, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_cores_that_were_damaged_since_are_noticed_when_asked(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cores"
    shutil.copytree(undisturbed, folder, symlinks=True)
    static, dynamic = (next(folder.glob(f"core.lab-{kind}.*[0-9]")) for kind in ("static", "dynamic"))
    damage(static, int(len(static.read_bytes().rstrip(b"\0")) * 0.6))  # in some page
    damage(dynamic, 64 + 56 * 6 + 32)  # p_filesz of a PT_LOAD
    kept = convert(DUMP, "--all", "-o", folder, "--resume", "--no-companions")
    assert (kept.returncode, kept.stderr.count("is kept")) == (0, 3)  # as README says
    checked = convert(DUMP, "--all", "-o", folder, "--resume", "--check")
    assert (checked.returncode, checked.stderr.count("is kept")) == (0, 1)
    assert all(f"{core} is written again: " in checked.stderr for core in (static, dynamic))
    assert contents(folder) == contents(undisturbed)


def test_another_run_into_the_same_directory_needs_to_say_so(undisturbed: Path) -> None:
    result = convert(DUMP, "--all", "-o", undisturbed)
    assert (result.returncode, "index.json exists already; --resume goes on" in result.stderr) == (1, True)
    result = convert(DUMP, "--all", "-o", undisturbed, "--resume", "--filter", "0x1")
    assert (result.returncode, "is of other options" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("name", "option"), [("index.html", "--json"), ("core.init.1", "--json"), ("core.init.1", "--resume")]
)
def test_what_is_not_of_an_earlier_run_is_never_replaced(tmp_path: Path, name: str, option: str) -> None:
    (tmp_path / name).write_text("precious")
    assert convert(DUMP, "--all", "-o", tmp_path, option).returncode == 1
    assert (tmp_path / name).read_text() == "precious"


def test_a_dry_run_writes_nothing_and_says_how_large(undisturbed: Path, tmp_path: Path) -> None:
    result = convert(DUMP, "--all", "-n", "-o", tmp_path / "cores")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 3
    planned = rows(convert(DUMP, "--all", "-n", "-o", tmp_path / "cores", "--json").stdout)
    sizes = {path.name: path.stat() for path in undisturbed.glob("core.*[0-9]")}
    assert {Path(plan["path"]).name for plan in planned} == sizes.keys()
    for plan in planned:
        size = sizes[Path(plan["path"]).name]
        assert size.st_blocks * 512 <= plan["on_disk"] + (64 << 10)
        assert abs(size.st_size - plan["size"]) < 1 << 20
    assert not (tmp_path / "cores").exists()


def test_no_room_is_known_before_anything_is_written(tmp_path: Path) -> None:
    script = (
        "import os; from types import SimpleNamespace as N\n"
        "os.statvfs = lambda path: N(f_bavail=16, f_bfree=16, f_frsize=4096)\n"
        "from vmcore2core import room; room.is_plain = lambda path: True\n"
        "from vmcore2core.__main__ import vmcore2core; vmcore2core()"
    )
    command = [sys.executable, "-c", script, str(DUMP), "--all", "-o", str(tmp_path / "cores")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "has room for 64.0 KiB, expected" in result.stderr
    assert list((tmp_path / "cores").iterdir()) == []


def test_a_process_that_cannot_be_written_does_not_stop_the_others(undisturbed: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in undisturbed.glob("core.*[0-9]"))
    (tmp_path / names[1]).mkdir()
    result = convert(DUMP, "--all", "-o", tmp_path, "-j", "2")
    assert result.returncode == 1
    assert f"{names[1]} is a directory" in result.stderr
    index = index_of(tmp_path)
    assert len(index["processes"]) == 2
    assert [names[1] in error["error"] for error in index["errors"]] == [True]


def test_conditions_of_several_kinds_must_all_fit(tmp_path: Path) -> None:
    args = ["--exe", "/bin/lab-*", "--uid", "0", "--cgroup", "/", "--exclude", "*-static"]
    assert convert(DUMP, *args, "-o", tmp_path).returncode == 0
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["lab-dynamic"]
    assert "no process with user memory matches" in convert(DUMP, "--uid", "7", "-o", tmp_path).stderr
    assert "matches" in convert(DUMP, "--container", "ab", "-o", tmp_path).stderr


@pytest.mark.parametrize(
    "options",
    [("--resume", "--force"), ("--check",), ("--executor", "dask:tcp://x:1", "-j", "2"), ("--executor", "x:1")],
)
def test_options_that_make_no_sense_together_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    assert convert(DUMP, "--all", "-o", tmp_path, *options).returncode == 2
    assert list(tmp_path.iterdir()) == []

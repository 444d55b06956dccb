"""Dumps that have only stacks and ELF headers of processes: makedumpfile -d 31 with two extensions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders.stacks_only import bundled_stacks_only, stacks_only
from tests.e2e.guests import FIXTURES, PROGRAMS, bundled, rows, tasks, tasks_json, unpacked_sysroot
from vmcore2core.containers import open_container

GUEST = "debian-6.1-amd64"
NO_DEBUG_PACKAGES = ("--debug-directory", "/nonexistent")


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled_stacks_only(GUEST, tmp_path_factory.mktemp("stacks"))


@pytest.fixture(scope="module")
def sysroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_sysroot(tmp_path_factory.mktemp("files"))


def stacks(dump: Path, *options: str | Path, status: int = 0) -> dict[str, dict[str, Any]]:
    """Return what bt says of each thread, by name and PID."""
    result = tasks("bt", dump, *options, "--json")
    assert result.returncode == status, result.stderr
    return {f"{stack['comm']} {stack['pid']}": stack for stack in rows(result.stdout)}


def addresses(stack: dict[str, Any]) -> list[str]:
    return [frame["address"] for frame in stack["frames"]]


def test_the_builder_leaves_stacks_and_headers_and_no_other_page_of_a_process(dump: Path) -> None:
    with open_container([dump]) as container:
        assert container.dump_level == 31
    (row,) = tasks_json("ps", dump, "--comm", "lab-static")
    maps = tasks_json("maps", dump, "--pid", str(row["pid"]))
    pages = {vma["start"]: vma["pages"] for vma in maps}
    assert pages["0x400000"] == {"present": 1}
    assert pages["0x401000"] == {"excluded": 141}  # .text
    stack = next(vma["pages"] for vma in maps if vma["name"] == "[stack]")
    assert stack["present"] >= 1
    heap = next(vma["pages"] for vma in maps if vma["name"] == "[heap]")
    assert "present" not in heap


def test_with_the_files_all_threads_have_the_frames_and_names_that_they_have_in_the_whole_dump(
    dump: Path, sysroot: Path, tmp_path: Path
) -> None:
    options = ("--comm", "lab-static", "--comm", "lab-dynamic")
    whole = stacks(bundled(GUEST, tmp_path), *options)
    ours = stacks(dump, *options, "--sysroot", sysroot, *NO_DEBUG_PACKAGES)
    assert ours.keys() == whole.keys()
    assert len(ours) == 12
    for name, stack in ours.items():
        assert stack["complete"], (name, stack["end"])
        assert addresses(stack) == addresses(whole[name])
        assert [f["function"] for f in stack["frames"]] == [f["function"] for f in whole[name]["frames"]]
        assert stack["wanted"] == []
        rules = {frame["cfi_from"] for frame in stack["frames"] if frame["found_by"] == "CFI"}
        assert rules == {"file"}
        assert {frame["function_from"] for frame in stack["frames"]} <= {"file", None}
        assert {frame["cfi_from"] for frame in whole[name]["frames"]} <= {"memory", None}
    nested = [frame for frame in ours["t-nested 86"]["frames"] if frame["function"] == "level_c"]
    assert nested[0]["original"] == str(sysroot / "bin" / "lab-static")


def test_the_text_says_what_is_from_files(dump: Path, sysroot: Path) -> None:
    shown = tasks("bt", dump, "--comm", "lab-static", "--sysroot", sysroot, *NO_DEBUG_PACKAGES)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert (
        " level_c+0x28 at programs/programs/victim.c:187 (/bin/lab-static+0x401846) [CFI from file; name from file]\n"
        in shown.stdout
    )


def test_without_files_one_sentence_says_which_are_wanted(dump: Path) -> None:
    result = tasks("bt", dump, "--comm", "lab-*[ct]")
    assert result.returncode == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("vmcore-tasks: --sysroot DIR or --debuginfod would tell more, with these files: ")
    for program in PROGRAMS:
        assert f"/bin/{program} (build ID {build_id(FIXTURES / 'sysroot' / 'bin' / program)})" in line
    assert line.count("/lib/libc.so.6 (build ID ") == 1
    # What frame pointers tell is there all the same.
    assert "[return address at the stack pointer]" in result.stdout


def test_a_file_with_another_build_id_is_not_taken(dump: Path, sysroot: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin" / "lab-static"
    other.write_bytes((sysroot / "bin" / "lab-dynamic").read_bytes())
    options = ("bt", dump, "--comm", "lab-static", "--sysroot", tmp_path, *NO_DEBUG_PACKAGES)
    result = tasks(*options)
    assert result.returncode == 3
    assert f"vmcore-tasks: {other} is not used: memory has the build ID {build_id(sysroot / 'bin/lab-static')}" in (
        result.stderr
    )
    assert "level_c" not in result.stdout
    # A tree by build ID below the same folder has the right one.
    digits = build_id(sysroot / "bin/lab-static")
    tree = tmp_path / "more" / ".build-id" / digits[:2]
    tree.mkdir(parents=True)
    (tree / digits[2:]).write_bytes((sysroot / "bin" / "lab-static").read_bytes())
    assert "level_c" in tasks(*options).stdout


def test_a_file_whose_build_id_is_not_in_memory_is_taken_by_path_size_and_segments(
    sysroot: Path, tmp_path: Path
) -> None:
    poor = stacks_only(bundled(GUEST, tmp_path), tmp_path / "poor", headers=lambda path: path != b"/lib/libc.so.6")
    options = ("--comm", "lab-dynamic", "--sysroot", sysroot, *NO_DEBUG_PACKAGES)
    result = tasks("bt", poor, *options)
    assert result.returncode == 0
    assert f"{sysroot / 'lib/libc.so.6'} is taken by its path, size and segments" in result.stderr
    assert "level_c" in result.stdout
    longer = unpacked_sysroot(tmp_path / "longer")
    with (longer / "lib/libc.so.6").open("ab") as file:
        file.write(b"x")
    refused = tasks("bt", poor, "--comm", "lab-dynamic", "--sysroot", longer, *NO_DEBUG_PACKAGES)
    assert refused.returncode == 3
    assert f"{longer / 'lib/libc.so.6'} is not used: its size or segments" in refused.stderr
    assert "/lib/libc.so.6 (build ID not in memory)" in refused.stderr


def test_threads_are_chosen_by_process_name_and_state(dump: Path) -> None:
    everything = stacks(dump, "--all", status=3)
    assert {"init 1", "t-nested 86", "t-nested 92"} <= everything.keys()
    assert stacks(dump, "--pid", "86", "--pid", "92", status=3).keys() == {
        name for name in everything if name.endswith((" 86", " 92"))
    }
    running = stacks(dump, "--comm", "lab-*", "--state", "R", status=3)
    assert {name.split()[0] for name in running} == {"t-spin"}
    assert tasks("bt", dump).returncode == 2


def build_id(path: Path) -> str:
    shown = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True).stdout
    found: list[str] = re.findall(r"Build ID: (\w+)", shown)
    return found[0]

"""gdb by a core's start script, ``bt``, the index and its page show the same stacks, also for a dump of only stacks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser import page_data
from tests.builders.stacks_only import bundled_stacks_only
from tests.e2e.guests import PROGRAMS, bundled, convert_all, rows, tasks, unpacked_sysroot
from tests.needs import need

GUEST = "debian-6.1-amd64"
NO_DEBUG_PACKAGES = ("--debug-directory", "/nonexistent")


@dataclass(frozen=True)
class Case:
    """A dump, the files of its programs, a directory of its cores, two processes, and the gdb for its machine."""

    dump: Path
    sysroot: Path
    cores: Path
    programs: tuple[str, ...] = PROGRAMS
    gdb: str = "gdb"


def of_makedumpfile(corpus: Path, folder: Path) -> Case:
    """Return a dump that makedumpfile itself has written, with stacks and ELF headers alone."""
    guest, files = corpus / "debian-6.1-amd64-kdump", unpacked_sysroot(folder / "unpacked")
    root = folder / "files"
    shutil.copytree(guest / "bin", root / "bin")
    shutil.copytree(files / "lib", root / "lib/x86_64-linux-gnu")  # of the same build IDs
    shutil.copytree(files / "lib64", root / "lib64")
    return Case(guest / "vmcore.zlib-d31-userstack", root, folder / "cores", ("victim-static", "victim-dyn"))


@pytest.fixture(
    scope="module",
    params=[
        "whole",
        "stacks alone",
        "7.2",
        "arm64, stacks alone",
        pytest.param("makedumpfile", marks=pytest.mark.corpus),
    ],
)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("same")
    if request.param == "makedumpfile":
        case = of_makedumpfile(request.getfixturevalue("corpus"), folder)
    elif request.param == "arm64, stacks alone":
        files = unpacked_sysroot(folder / "files", "sysroot-arm64")
        case = Case(bundled_stacks_only("debian-7.2-arm64", folder), files, folder / "cores", gdb="gdb-multiarch")
    else:
        name = "debian-7.2-amd64" if request.param == "7.2" else GUEST
        dump = (bundled_stacks_only if request.param == "stacks alone" else bundled)(name, folder)
        case = Case(dump, unpacked_sysroot(folder / "files"), folder / "cores")
    result = convert_all(case.dump, "--sysroot", case.sysroot, *NO_DEBUG_PACKAGES, "-o", case.cores)
    assert result.returncode in (0, 3), result.stderr
    return case


def places(frames: list[dict[str, Any]], name: str) -> list[tuple[str, str | None, str | None]]:
    """Return address, function and source file's name and line of each frame."""
    found = []
    for frame in frames:
        source = frame["source"]
        at = None if source is None else f"{Path(source['file']).name}:{source['line']}"
        found.append((frame["address"], frame[name], at))
    return found


@pytest.mark.parametrize("number", [0, 1])
def test_bt_index_page_and_gdb_agree(converted: Case, number: int) -> None:
    dump, sysroot, cores = converted.dump, converted.sysroot, converted.cores
    program = converted.programs[number]
    index = json.loads((cores / "index.json").read_text())
    (entry,) = [one for one in index["processes"] if one["comm"] == program]
    shown = rows(
        tasks("bt", dump, "--pid", str(entry["pid"]), "--sysroot", sysroot, *NO_DEBUG_PACKAGES, "--json").stdout
    )
    stacks = {stack["tid"]: stack for stack in shown}
    assert all(stack["complete"] for stack in shown)
    # The index, and the page's data.
    threads = {thread["tid"]: thread for thread in entry["threads"]}
    assert page_data(cores, str(entry["pid"]))["threads"] == entry["threads"]
    assert threads.keys() == stacks.keys()
    for tid, thread in threads.items():
        assert places(thread["frames"], "function") == places(stacks[tid]["frames"], "function")
        assert thread["end"] is None
        assert [frame["cfi_from"] for frame in thread["frames"]] == [f["cfi_from"] for f in stacks[tid]["frames"]]
    # gdb by the core's start script, with the same files.
    script = f"{entry['core']['file']}.gdb"
    command = [
        need(converted.gdb),
        "-nx",
        "-batch",
        "-iex",
        "set debug-file-directory /nonexistent",
        "-x",
        script,
        "-ex",
        "thread apply all bt",
    ]
    environment = {**os.environ, "VMCORE2CORE_SYSROOT": str(sysroot), "LC_ALL": "C.UTF-8"}
    environment.pop("DEBUGINFOD_URLS", None)
    output = subprocess.run(
        command, cwd=cores, env=environment, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    parts = re.split(r"^Thread \d+ \(.*LWP (\d+)\)*:?.*$", output, flags=re.MULTILINE)
    assert {int(tid) for tid in parts[1::2]} == stacks.keys()
    for tid, text in zip(map(int, parts[1::2]), parts[2::2], strict=True):
        ours = [frame["address"] for frame in stacks[tid]["frames"]]
        # Where a line begins, gdb leaves out the address; so it does of the trampoline.
        shown_by_gdb = re.findall(r"^#\d+ +0x([0-9a-f]+) in (\S+)", text, re.M)
        theirs = [f"{int(address, 16):#x}" for address, _ in shown_by_gdb]
        assert len(theirs) >= len(re.findall(r"^#\d+", text, re.M)) - 2
        assert [address for address in ours if address in theirs] == theirs
        functions = {frame["address"]: frame["function"] or "??" for frame in stacks[tid]["frames"]}
        assert [(a, functions[a]) for a in theirs] == [
            (a, name) for a, (_, name) in zip(theirs, shown_by_gdb, strict=True)
        ]

"""gdb by a core's start script, ``bt``, the index and its page show the same stacks, of a dump of stacks alone, too."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders.stacks_only import bundled_stacks_only
from tests.e2e.guests import PROGRAMS, bundled, convert_all, rows, tasks, unpacked_sysroot
from tests.needs import need

GUEST = "debian-6.1-amd64"
NO_DEBUG_PACKAGES = ("--debug-directory", "/nonexistent")


@pytest.fixture(scope="module", params=["whole", "stacks alone"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a dump, the files of its programs, and a directory of its cores."""
    folder = tmp_path_factory.mktemp("same")
    sysroot = unpacked_sysroot(folder / "files")
    alone = request.param == "stacks alone"
    dump = bundled_stacks_only(GUEST, folder) if alone else bundled(GUEST, folder)
    result = convert_all(dump, "--sysroot", sysroot, *NO_DEBUG_PACKAGES, "-o", folder / "cores")
    assert result.returncode in (0, 3), result.stderr
    return dump, sysroot, folder / "cores"


def places(frames: list[dict[str, Any]], name: str) -> list[tuple[str, str | None, str | None]]:
    """Return address, function and source file's name and line of each frame."""
    found = []
    for frame in frames:
        source = frame["source"]
        at = None if source is None else f"{Path(source['file']).name}:{source['line']}"
        found.append((frame["address"], frame[name], at))
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_bt_index_page_and_gdb_agree(converted: tuple[Path, Path, Path], program: str) -> None:
    dump, sysroot, cores = converted
    index = json.loads((cores / "index.json").read_text())
    (entry,) = [one for one in index["processes"] if one["comm"] == program]
    shown = rows(
        tasks("bt", dump, "--pid", str(entry["pid"]), "--sysroot", sysroot, *NO_DEBUG_PACKAGES, "--json").stdout
    )
    stacks = {stack["tid"]: stack for stack in shown}
    assert all(stack["complete"] for stack in shown)
    # The index, and the page, whose data it is.
    threads = {thread["tid"]: thread for thread in entry["threads"]}
    page = (cores / "index.html").read_text()
    block = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["processes"] == index["processes"]
    assert threads.keys() == stacks.keys()
    for tid, thread in threads.items():
        assert places(thread["frames"], "function") == places(stacks[tid]["frames"], "function")
        assert thread["end"] is None
        assert [frame["cfi_from"] for frame in thread["frames"]] == [f["cfi_from"] for f in stacks[tid]["frames"]]
    # gdb by the core's start script, with the same files.
    script = f"{entry['core']['file']}.gdb"
    command = [
        need("gdb"),
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
        theirs = [f"{int(address, 16):#x}" for address in re.findall(r"^#\d+ +0x([0-9a-f]+) in", text, re.M)]
        assert len(theirs) >= len(re.findall(r"^#\d+", text, re.M)) - 2
        assert [address for address in ours if address in theirs] == theirs

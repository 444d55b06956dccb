"""Limits of the system, and sizes that a dump claims: no more is taken than there is; no half-written file stays."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corefile.snapshots import PAGE, Pages, loads, snapshot, vma
from tests.e2e.guests import FIXTURES
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Output, write_core
from vmcore2core.errors import OutputError

pytestmark = pytest.mark.no_cover

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
SIZE_MAX = 1 << 20
USER_END = 0x7FFF_FFFF_F000
"""TASK_SIZE_MAX of x86-64 with four levels."""


def test_files_may_not_be_as_large_as_cores(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vmcore2core", str(DUMP), "--pid", "1", "--pid", "86", "-o", str(tmp_path)]
    result = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE_MAX, SIZE_MAX)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert len(re.findall(r"cannot have a core of \d+\.\d MiB with holes: .*allows no file of", result.stderr)) == 2
    assert [path.name for path in tmp_path.glob(".*")] == [".vscode"]
    assert list(tmp_path.glob("core.*[0-9]")) == []
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["processes"], len(index["errors"])) == ([], 2)


ON_SMALL_DISK = """
mount -t tmpfs -o size="$3" none "$1" && cp -a "$2/." "$1" || exit
disk=$1 left=$2; shift 3
"$@"
status=$?
rm -rf "$left"/* && cp -a "$disk/." "$left"
exit $status
"""


class SmallDisk:
    """A file system of its own that has little room, for one command.

    Where nobody may mount one (a container without that right), no file may be larger than it.

    Attributes:
        left: what is on it before and after.
        has_its_own: whether it is a file system, not a limit of files.
        full: what the system says when there is no more room.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.path, self.left, self.size = folder / "disk", folder / "left", size
        for path in (self.path, self.left):
            path.mkdir()
        self._own = ["unshare", "--map-root-user", "--mount"]
        trial = [*self._own, "mount", "-t", "tmpfs", "none", str(self.path)]
        self.has_its_own = subprocess.run(trial, capture_output=True, check=False).returncode == 0
        if not self.has_its_own:
            self.path.rmdir()
            self.path.symlink_to(self.left)
        self.full = "No space left on device" if self.has_its_own else "File too large"

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vmcore2core", str(DUMP), *options]
        if self.has_its_own:
            command = [
                *self._own,
                "sh",
                "-c",
                ON_SMALL_DISK,
                "sh",
                str(self.path),
                str(self.left),
                str(self.size),
                *command,
            ]
        return subprocess.run(
            command,
            preexec_fn=None
            if self.has_its_own
            else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self.size,) * 2),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_fills_up_leaves_what_was_there(force: bool, tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path, SIZE_MAX)
    if force:
        (disk.left / "core").write_bytes(b"of the day before")
    result = disk.run("--pid", "86", "-o", str(disk.path / "core"), *["--force"] * force)
    assert (result.returncode, result.stdout) == (1, "")
    if disk.has_its_own:
        room = r"has room for 10\d\d\.\d KiB|has room for 1.0 MiB"
        assert re.search(
            rf"/disk ({room}), expected 6\.\d MiB at least for the core; nothing is written", result.stderr
        )
    else:
        assert f"{disk.path} cannot have a core of " in result.stderr
    assert {path.name: path.read_bytes() for path in disk.left.iterdir()} == (
        {"core": b"of the day before"} if force else {}
    )


def test_a_disk_that_fills_up_has_the_cores_that_fitted(tmp_path: Path) -> None:
    """Compressed, as the room that others need is known before; of three cores, one has less than 700 KiB."""
    disk = SmallDisk(tmp_path, 700 << 10)
    options = ["--all", "--compress", "zstd", "-o"]
    result = disk.run(*options, str(disk.path / "cores"))
    cores = disk.left / "cores"
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    refused = [line for line in lines if line.endswith(f".zst cannot be written: {disk.full}")]
    assert [line.rsplit("/", 1)[1].split(" ")[0] for line in sorted(refused)] == [
        "core.init.1.zst",
        "core.lab-dynamic.92.zst",
    ]
    without = f"vmcore2core: {disk.path}/cores has no room for programs"
    others = [line for line in lines if line not in refused]
    assert [line for line in others if not line.startswith(without)] == []
    assert len(others) == disk.has_its_own
    assert list(cores.rglob("*.part")) == []
    assert [path.name for path in cores.glob("core.*.zst")] == ["core.lab-static.86.zst"]
    index = json.loads((cores / "index.json").read_text())
    assert ([entry["pid"] for entry in index["processes"]], len(index["errors"])) == ([86], 2 + disk.has_its_own)
    with_room = [sys.executable, "-m", "vmcore2core", str(DUMP), *options, str(cores), "--resume", "--check"]
    again = subprocess.run(with_room, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0
    assert again.stderr == f"vmcore2core: {cores}/core.lab-static.86.zst is kept: it was finished before\n"
    assert len(list(cores.glob("core.*.zst"))) == 3


def test_a_claim_of_all_address_space_takes_no_disk(tmp_path: Path) -> None:
    core = tmp_path / "core"
    pages = Pages({PAGE: b"first page".ljust(PAGE), USER_END - PAGE: b"last page".ljust(PAGE)})
    refused = None
    try:
        write_core(snapshot(vma(PAGE, USER_END)), pages, Output(core))
    except OutputError as error:
        refused = str(error)
    if refused is None:
        assert loads(core) == [(PAGE, USER_END - PAGE, USER_END - PAGE, 6)]
        assert core.stat().st_blocks * 512 < 1 << 20
    else:  # ext4's files have 16 TiB at most
        assert "File too large" in refused
        assert list(tmp_path.iterdir()) == []


def test_a_claim_of_all_address_space_is_not_compressed(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="0x7fffffffe000 bytes is too large to be compressed, expected at most"):
        write_core(
            snapshot(vma(PAGE, USER_END - PAGE)), Pages({}), Output(tmp_path / "core", CoreOptions(compression="zstd"))
        )
    assert list(tmp_path.iterdir()) == []

"""What the system refuses, and what a dump claims: no more is taken than there is, and nothing half is left."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corefile.snapshots import PAGE, Pages, loads, snapshot, vma
from tests.e2e.guests import FIXTURES
from vmcore2core.corefile.writer import write_core
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
    assert [line.rsplit(": ", 1)[1] for line in result.stderr.splitlines()] == ["File too large"] * 2
    assert list(tmp_path.glob(".*")) == []
    assert list(tmp_path.glob("core.*[0-9]")) == []
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["processes"], len(index["errors"])) == ([], 2)


def test_a_claim_of_all_address_space_takes_no_disk(tmp_path: Path) -> None:
    core = tmp_path / "core"
    pages = Pages({PAGE: b"first page".ljust(PAGE), USER_END - PAGE: b"last page".ljust(PAGE)})
    refused = None
    try:
        write_core(snapshot(vma(PAGE, USER_END)), pages, core)
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
        write_core(snapshot(vma(PAGE, USER_END - PAGE)), Pages({}), tmp_path / "core", compression="zstd")
    assert list(tmp_path.iterdir()) == []

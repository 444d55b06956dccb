"""Incomplete cores: a table of cases, each with its exit status, stdout, ``--json`` and index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES, convert
from tests.e2e.planted import DUMP
from vmcore2core.process.model import AbsentReason

# Written by hand, on purpose: no row is asked of the code.
PAGE_MISSING, COMPLETE, INCOMPLETE = "incomplete, 1 page missing", "complete", "incomplete"
ROWS = {
    "nothing": (0, COMPLETE),
    "EXCLUDED": (3, PAGE_MISSING),
    "NOT_IN_DUMP": (3, PAGE_MISSING),
    "TRUNCATED": (3, PAGE_MISSING),
    "DAMAGED": (3, PAGE_MISSING),
    "SWAPPED": (3, PAGE_MISSING),
    "SWAPPED_TO_DISK": (3, PAGE_MISSING),
    "SWAP_UNREADABLE": (3, PAGE_MISSING),
    "SWAP_CUT_OFF": (3, PAGE_MISSING),
    "NOT_CACHED": (3, PAGE_MISSING),
    "TABLE_MISSING": (3, PAGE_MISSING),
    "TABLE_BROKEN": (3, PAGE_MISSING),
    "HWPOISON": (3, PAGE_MISSING),
    "DEVICE_PRIVATE": (3, PAGE_MISSING),
    "SPECIAL": (3, PAGE_MISSING),
    # The process had no page there.
    "BEYOND_FILE": (0, COMPLETE),
    "GUARD": (0, COMPLETE),
    # Its file has it, and says so in NT_FILE.
    "IN_FILE": (0, COMPLETE),
    # No coredump_filter asks for it.
    "BEYOND_FILTER": (0, COMPLETE),
    # As was asked.
    "REDACTED": (0, COMPLETE),
    "blanked": (0, COMPLETE),
    "thread left out": (3, INCOMPLETE),
    "warning": (3, INCOMPLETE),
    "notice": (0, COMPLETE),
    "unknown register": (0, COMPLETE),
}


def test_the_table_has_every_reason() -> None:
    assert set(AbsentReason.__members__) == {row for row in ROWS if row.isupper()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``tests.e2e.planted`` found, by row."""
    folder = tmp_path_factory.mktemp("planted")
    for what in ROWS:
        (folder / what).mkdir()
    command = [sys.executable, "-m", "tests.e2e.planted", str(folder), *ROWS]
    done = subprocess.run(command, cwd=FIXTURES.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", ROWS)
def test_what_leaves_a_core_incomplete(found: Any, what: str) -> None:
    status, words = ROWS[what]
    said = found[what]
    assert said["statuses"] == [status, status]
    assert said["line"].partition(": ")[2].startswith(f"{words}, 1 thread, ")
    (in_index,), (in_json,) = said["index"]["processes"], said["json"]["cores"]
    missing = 1 if words == PAGE_MISSING else 0
    assert [in_index["core"]["complete"], in_json["complete"]] == [words == COMPLETE] * 2
    assert [in_index["core"]["missing"], in_json["pages"]["missing"]] == [missing] * 2


def test_a_dump_whose_end_is_missing_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(DUMP.read_bytes()[:-4096])
    done = convert(tmp_path / "vmcore", "--pid", "86", "--json", "-o", tmp_path / "core")
    (core,) = json.loads(done.stdout)["cores"]
    assert (done.returncode, core["complete"]) == (3, False)
    assert core["pages"]["absent"].keys() == {"truncated"}

"""A dump that is cut off or overwritten while it is read, or whose disk fails: a sentence, and no core of two dumps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES
from vmcore2core.errors import DumpError
from vmcore2core.session import Session

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


@pytest.mark.parametrize("how", ["cut off", "emptied", "overwritten"])
def test_a_dump_that_changes_while_it_is_read(how: str, tmp_path: Path) -> None:
    dump, core = tmp_path / "vmcore", tmp_path / "core"
    shutil.copyfile(DUMP, dump)
    with Session([dump]) as session:
        leader = session.processes.find(86)
        captured = session.processes.capture(leader)
        if how == "overwritten":
            with dump.open("r+b") as file:
                file.write(b"another dump")
            os.utime(dump, ns=(0, 0))
        else:
            os.truncate(dump, dump.stat().st_size // 3 if how == "cut off" else 0)
        with pytest.raises(DumpError, match=f"{dump} has changed while it was read"):
            session.extract(leader, core, captured=captured)
    assert [path.name for path in tmp_path.iterdir()] == ["vmcore"]


FAILING = """
import errno, os, sys
from vmcore2core.handover import written
from vmcore2core.session import Session

read, extract, copy = os.pread, Session.extract, written._copy
victim, what = False, sys.argv.pop(1)

def failing(fd, size, offset):
    if victim and offset > 1 << 16:
        raise OSError(errno.EIO, "Input/output error")
    return read(fd, size, offset)

def extracting(self, leader, *arguments, **named):
    global victim
    victim = what == "core" and leader.uint("pid", size=4) == 86
    try:
        return extract(self, leader, *arguments, **named)
    finally:
        victim = False

def copying(*arguments, **named):
    global victim
    victim = what == "files"
    try:
        return copy(*arguments, **named)
    finally:
        victim = False

os.pread, Session.extract, written._copy = failing, extracting, copying
from vmcore2core.__main__ import vmcore2core
vmcore2core()
"""
"""The command on a disk with a bad spot, where a process or where programs and libraries have their pages."""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_disk_that_fails_costs_what_was_there_alone(jobs: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILING, "core", str(DUMP), "--all", "-o", str(tmp_path), "--jobs", jobs]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (1, f"vmcore2core: {DUMP} cannot be read: Input/output error\n")
    index = json.loads((tmp_path / "index.json").read_text())
    assert [error["pid"] for error in index["errors"]] == [86]
    assert [process["comm"] for process in index["processes"]] == ["init", "lab-dynamic"]
    assert all((tmp_path / process["core"]["file"]).exists() for process in index["processes"])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_disk_that_fails_under_programs_and_libraries_costs_these_alone(jobs: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILING, "files", str(DUMP), "--all", "-o", str(tmp_path), "--jobs", jobs]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in result.stderr
    index = json.loads((tmp_path / "index.json").read_text())
    assert not index["errors"]
    assert len(index["processes"]) == 3
    said = f"is not recovered: {DUMP} cannot be read: Input/output error"
    assert said in json.dumps(index["processes"])

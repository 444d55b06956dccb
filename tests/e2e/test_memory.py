"""How much memory a command takes at most: a capture kernel has little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.kdump import write_reaching
from tests.e2e.guests import FIXTURES

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
PEAK_MAX = 128 << 20
TIB = 1 << 40


MEASURED = """
import runpy, sys
try:
    runpy.run_module("vmcore2core", run_name="__main__")
finally:
    status = open("/proc/self/status").read()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""
"""Not wait4(): its peak counts the memory of the process that forked."""


def peak_of(*words: str | Path) -> int:
    """Return the most bytes of memory that vmcore2core had; it must end with exit status 0."""
    command = [sys.executable, "-c", MEASURED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stderr.splitlines()[-1]) << 10


@pytest.mark.parametrize("end", [6 * TIB, 128 * TIB])
def test_a_machine_whose_memory_reaches_high(tmp_path: Path, end: int) -> None:
    """The bitmaps of 128 TiB have 8 GiB."""
    high = tmp_path / "vmcore"
    write_reaching(DUMP.read_bytes(), high, end)
    assert peak_of(high, "--pid", "86", "-o", tmp_path / "core") < PEAK_MAX

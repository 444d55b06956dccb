"""What tests need of the machine: programs, and memory to write files to.

A test whose program is not there is skipped, and the end of the run counts such tests by program. ``tests/run.sh``
installs the packages of ``packages.txt``; where CI is "true", no test may be skipped for want of one of them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

SENTENCE = " is not installed"
_LIST = Path(__file__).with_name("packages.txt")


def packages() -> dict[str, str]:
    """Return the Debian package of each program that tests run."""
    rows = [line.split() for line in _LIST.read_text().splitlines() if not line.startswith("#")]
    return {
        program: package.split("|")[0]
        for package, *programs in rows
        for word in programs
        for program in word.split("|")
    }


def need(program: str) -> str:
    """Return where a program is; the test is skipped where it is not."""
    found = shutil.which(program)
    if found is None:
        package = packages().get(program)
        pytest.skip(program + SENTENCE + (f" (Debian: {package})" if package else ""))
    return found


def promised(reason: str) -> bool:
    """Tell whether a test was skipped for want of what ``run.sh`` installs, wherever the archive has it."""
    program, sentence, _ = reason.partition(SENTENCE)
    not_to_be_had = os.environ.get("PACKAGES_NOT_TO_BE_HAD", "").split()
    package = packages().get(program)
    return bool(sentence) and package is not None and package not in not_to_be_had


def memory_folder() -> Path | None:
    """Return a folder of files in memory, or None: ``/dev/shm`` may be there and not be ours to write to."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK | os.X_OK) else None

"""Checksums of every core that the bundled dumps give, to compare before and after a change that must not alter them.

``python -m tests.same_cores > before``, then the change, ``python -m tests.same_cores > after``, and ``diff before
after``. A line has a SHA-256, the dump, and the file or the command whose output it is of. Other dumps can be named,
and ``--cores`` leaves out what the commands print. ``PYTHONPATH`` has the package from another checkout.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CONVERSIONS = {
    "all": ("--all", "--jobs", "2"),
    "stacks": ("--all", "--no-companions", "--redact", "stacks", "--redact", "secrets"),
    "packed": ("--comm", "lab-*", "--compress", "zstd", "--filter", "0x7f"),
    "one": ("--comm", "*static*", "--exclude", "*dynamic*"),
}
"""Options of ``vmcore2core``, by the folder that the cores go to."""
LOOKS = (
    ("ps", "--json"),
    ("ps", "--threads", "--state", "S"),
    ("bt", "--all", "--kernel", "--json"),
    ("files",),
    ("waits",),
    ("info", "--json"),
)
"""Arguments of ``vmcore-tasks``."""
_TIME = re.compile(rb'"(started|finished|clock|mtime_ns)": ("[^"]*"|\d+)')
TASKS = "from vmcore2core.__main__ import vmcore_tasks; vmcore_tasks()"


def main() -> None:
    """Print the checksums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", action="store_true", help="leave out what the commands print")
    parser.add_argument("dumps", nargs="*", type=Path, help="default: all bundled dumps")
    asked = parser.parse_args()
    for dump in asked.dumps or sorted(FIXTURES.glob("*/vmcore*")):
        with tempfile.TemporaryDirectory() as folder:
            for checksum, what in sums(dump.resolve(), Path(folder), looks=not asked.cores):
                print(checksum, f"{dump.parent.name}/{dump.name}", what, flush=True)


def sums(dump: Path, folder: Path, *, looks: bool) -> Iterator[tuple[str, str]]:
    """Yield a checksum, and what it is of, for each file that conversions write, and for all that commands print."""
    for name, options in CONVERSIONS.items():
        said = _run(["-m", "vmcore2core", str(dump), *options, "-o", name], folder)
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file() and not path.is_symlink()):
            if looks or (path.name.startswith("core.") and path.suffix not in (".gdb", ".lldb")):
                yield _checksum(path.read_bytes()), str(path.relative_to(folder))
        if looks:
            yield said, f"vmcore2core {' '.join(options)}"
    for words in LOOKS if looks else ():
        yield _run(["-c", TASKS, words[0], str(dump), *words[1:]], folder), f"vmcore-tasks {' '.join(words)}"


def _run(arguments: list[str], folder: Path) -> str:
    """Return the checksum of what a command prints, and of its exit status."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, stdin=subprocess.DEVNULL
    )
    said = done.stdout + b"\0" + done.stderr + b"\0%d" % done.returncode
    return _checksum(said.replace(os.fsencode(folder), b"."))


def _checksum(content: bytes) -> str:
    return sha256(_TIME.sub(rb'"\1": 0', content)).hexdigest()


if __name__ == "__main__":
    main()

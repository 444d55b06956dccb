"""The bundled guests, converted once, and the commands as a user runs them."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.conftest import unpack
from tests.e2e.cores import Core
from vmcore2core.interfaces import ByteOrder
from vmcore2core.layout.kallsyms_scan import _token_indices

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
GUESTS = sorted(path.parent.name for path in FIXTURES.glob("*-amd64/truth"))
PROGRAMS = ("lab-static", "lab-dynamic")
ADDRESS_SPACE_MAX = 512 << 20
"""Bytes in which each bundled dump is converted; 2026's Python and packages take 170 MB of it."""
TASKS = "from vmcore2core.__main__ import vmcore_tasks; vmcore_tasks()"


def bundled(name: str, folder: Path) -> Path:
    """Return a bundled dump, unpacked into ``folder`` where it is packed as a whole."""
    packed = FIXTURES / name / "vmcore.zst"
    return unpack(packed, folder / name) if packed.exists() else FIXTURES / name / "vmcore"


def spoil_kallsyms(data: bytearray, order: ByteOrder = "little") -> None:
    """Make a dump's kallsyms unreadable, wherever a table of its form is."""
    found = 0
    for shift in range(0, 8, 2):
        for at in _token_indices(bytes(memoryview(data)[shift:]), order):
            data[shift + at : shift + at + 512] = bytes(512)
            found += 1
    assert found


def unpacked_sysroot(target: Path, name: str = "sysroot") -> Path:
    """Return the guests' programs and libraries, unpacked."""
    shutil.copytree(FIXTURES / name, target, dirs_exist_ok=True)
    for packed in target.rglob("*.zst"):
        unpack(packed, packed.with_suffix("")).chmod(0o755)
        packed.unlink()
    return target


def convert(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``vmcore2core``."""
    return _run(["-m", "vmcore2core", *map(str, args)])


def convert_all(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``vmcore2core --all`` in an address space of ``ADDRESS_SPACE_MAX`` bytes."""
    return _run(["-m", "vmcore2core", *map(str, args), "--all"], _bound_address_space)


def tasks(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``vmcore-tasks``."""
    return _run(["-c", TASKS, *map(str, args)])


def tasks_json(*args: str | Path) -> Any:
    """Run ``vmcore-tasks --json`` and return what its document has."""
    result = tasks(*args, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return rows(result.stdout)


def rows(printed: str) -> Any:
    """Return what a document has beside its format and version, and beside the room that cores would need."""
    document = json.loads(printed)
    document.pop("room", None)
    assert document.pop("version") == 1
    assert document.pop("format").startswith("vmcore")
    (found,) = document.values()
    return found


def _run(args: list[str], before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], preexec_fn=before, capture_output=True, text=True, timeout=300, check=False
    )


def _bound_address_space() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MAX, ADDRESS_SPACE_MAX))


@dataclass
class Guest:
    """One bundled dump, converted."""

    folder: Path
    dump: Path
    cores: Path
    sysroot: Path
    result: subprocess.CompletedProcess[str]

    @cached_property
    def pids(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.truth("pids.json"))
        return found

    @cached_property
    def expected(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.truth("expected.json"))
        return found

    def truth(self, name: str) -> str:
        """What the guest said."""
        return (self.folder / "truth" / name).read_text()

    def core(self, program: str) -> Path:
        return self.cores / f"core.{program}.{self.pids[program]}"

    def threads(self, program: str) -> dict[str, int]:
        """Thread name -> TID."""
        return {line.split("\t")[1]: int(line.split("\t")[0]) for line in self.truth(f"{program}.tasks").splitlines()}

    def truth_core(self, program: str, folder: Path) -> Core:
        return Core(unpack(self.folder / "truth" / f"{program}.core.zst", folder / f"{program}.truth"))

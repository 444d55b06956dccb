"""The public interface: its document's examples, and errors about unknown memory.

Tests session.py, dumped_process.py.
"""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import vmcore2core
from tests.e2e.guests import FIXTURES
from vmcore2core import Process, open_dump
from vmcore2core.errors import KernelThread, MemoryFault, TaskNotFound, UsageError
from vmcore2core.memory.user import READ_MAX
from vmcore2core.process.model import AbsentReason, AbsentRun

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
DOCUMENT = Path(vmcore2core.__file__).parent / "docs" / "api.md"


def test_the_documents_examples_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmcore").symlink_to(DUMP)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(DOCUMENT), module_relative=False)
    assert failed == 0
    assert tried >= 15
    assert (tmp_path / "app.core").exists()


def test_there_are_ten_examples() -> None:
    assert DOCUMENT.read_text().count("```pycon") >= 10


def test_all_names_are_there() -> None:
    assert all(hasattr(vmcore2core, name) for name in vmcore2core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'opne_dump'"):
        _ = vmcore2core.opne_dump


def test_the_package_alone_imports_nothing() -> None:
    code = "import sys, vmcore2core; print([name for name in sys.modules if 'numpy' in name or 'session' in name])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_who_is_not_there_or_has_no_memory_is_an_error() -> None:
    with open_dump(DUMP) as dump:
        with pytest.raises(TaskNotFound):
            dump.process(4_000_000)
        with pytest.raises(KernelThread):
            dump.process(2)


def test_memory_that_is_not_known_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_dump(DUMP) as dump:
        process = dump.process(92)
        vma = process.mappings[0]
        with pytest.raises(UsageError, match="expected at most 0x1000000"):
            process.read(vma.start, READ_MAX + 1)
        with pytest.raises(MemoryFault, match=f"{vma.start - 1:#x} cannot be read: the process has nothing there"):
            process.read(vma.start - 1, 2)
        known = process.read(vma.start, 8)
        assert known[:4] == b"\x7fELF"
        # A page that was left out, as a run of the same form that the survey makes.
        second = process.mappings[1]
        run = AbsentRun(second.start, second.end, AbsentReason.EXCLUDED)
        monkeypatch.setattr(process._captured.memory, "read", lambda *_: None)
        monkeypatch.setattr(Process, "mappings", (vma, _with(second, run)))
        with pytest.raises(MemoryFault, match=f"{second.start:#x} cannot be read: excluded when the dump was written"):
            process.read(second.start - 8, 16)


def _with(vma: object, run: AbsentRun) -> object:
    return vma._replace(absent=(run,))  # type: ignore[attr-defined]

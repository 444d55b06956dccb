"""The public interface: its document's examples, and errors about unknown memory.

Tests session.py, dumped_process.py.
"""

from __future__ import annotations

import dataclasses
import doctest
import gzip
import inspect
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
from vmcore2core.session import OpenOptions

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


def test_every_field_of_the_options_is_a_keyword() -> None:
    """A field that open_dump() lacks could be set by the commands alone."""
    names = {field.name for field in dataclasses.fields(OpenOptions)}
    assert names == set(inspect.signature(open_dump).parameters) - {"paths"}


def test_what_the_user_does_not_want_kept_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = tmp_path / "vmcore.gz"
    packed.write_bytes(gzip.compress(DUMP.read_bytes(), 1))
    for cache in (False, True):
        with open_dump(packed, cache=cache, any_size=True) as dump:
            assert dump.release == "6.1.0-56-amd64"
        assert (tmp_path / "cache").exists() == cache


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

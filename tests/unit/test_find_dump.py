"""Which dump is taken when none is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmcore2core import arguments
from vmcore2core.errors import DumpError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is / to what looks for a dump."""
    monkeypatch.setattr(arguments, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    return tmp_path


def put(root: Path, name: str, seconds: int) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))
    return path


def test_the_newest_of_every_distributions_names_is_taken_and_no_dmesg(root: Path) -> None:
    put(root, "var/crash/127.0.0.1-2026-01-01-00:00:00/vmcore", 1)
    newest = put(root, "var/crash/202601020000/dump.202601020000", 3)
    put(root, "var/crash/vmcore.old", 2)
    put(root, "var/crash/202601020000/vmcore-dmesg.txt", 4)
    put(root, "var/crash/202601020000/vmcore.dmesg", 4)
    (root / "var/crash/vmcore").mkdir()
    (root / "var/crash/vmcore.gone").symlink_to("nowhere")
    assert arguments.find_dump(None) == (newest, "the newest below /var/crash")


def test_a_capture_kernels_own_dump_comes_first(root: Path) -> None:
    put(root, "var/crash/vmcore", 1)
    own = put(root, "proc/vmcore", 0)
    assert arguments.find_dump(None) == (own, "this is a capture kernel")


@pytest.mark.usefixtures("root")
def test_without_any_the_error_says_where_it_was_looked_for() -> None:
    with pytest.raises(DumpError, match=r"\$VMCORE is not set, and there is none at /proc/vmcore or below /var/crash"):
        arguments.find_dump(None)


def test_a_directory_that_one_may_not_look_into_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian's /var/crash/DATE, which is root's alone."""
    shut = put(root, "var/crash/202601020000/dump.202601020000", 3).parent
    (shut / "dump.202601020000").unlink()
    monkeypatch.setattr(arguments, "_may_look_into", lambda path: path != shut)
    with pytest.raises(DumpError, match=r"/var/crash; you have no permission to look into .*/var/crash/202601020000$"):
        arguments.find_dump(None)

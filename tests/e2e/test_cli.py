"""The command line on wrong input: one clear sentence and the right exit status, never a traceback.

Tests __main__.py, commands/convert.py, commands/options.py, commands/opening.py, convert.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, convert

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


def sentence(result: subprocess.CompletedProcess[str], status: int) -> str:
    assert result.returncode == status
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("vmcore2core: ")
    return lines[0]


def test_a_wrong_path(tmp_path: Path) -> None:
    assert "No such file or directory" in sentence(convert(tmp_path / "nothing", "--pid", "1"), 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"just some text\n" * 20, "is a text file"),
        (bytes(range(256)) * 8, "is not the signature of a known dump format"),
        (b"PK\x03\x04" + bytes(60), "zip"),
    ],
    ids=["empty", "text", "binary", "zip"],
)
def test_a_file_that_is_no_dump(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert words in sentence(convert(path, "--pid", "1", "-o", tmp_path / "core"), 1)
    assert not (tmp_path / "core").exists()


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in sentence(convert(tmp_path, "--pid", "1"), 1)


def test_a_program_and_an_application_core_are_named(tmp_path: Path) -> None:
    assert "not a core" in sentence(convert(sys.executable, "--pid", "1"), 1)
    assert convert(DUMP, "--pid", "1", "-o", tmp_path / "core").returncode == 0
    assert "application core" in sentence(convert(tmp_path / "core", "--pid", "1"), 1)


def test_a_pid_that_does_not_exist(tmp_path: Path) -> None:
    assert "no task has PID 4000000" in sentence(convert(DUMP, "--pid", "4000000", "-o", tmp_path / "core"), 1)


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    assert "matches" in sentence(convert(DUMP, "--comm", "no-such-*", "-o", tmp_path), 1)


@pytest.mark.parametrize("part", [0.001, 0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_dump(tmp_path: Path, part: float) -> None:
    path = tmp_path / "cut"
    path.write_bytes(DUMP.read_bytes()[: int(DUMP.stat().st_size * part)])
    result = convert(path, "--pid", "1", "-o", tmp_path / "core")
    assert "Traceback" not in result.stderr
    assert "cut off" in result.stderr
    assert result.returncode == (3 if (tmp_path / "core").exists() else 1)


def test_usage_errors_are_status_2() -> None:
    for args in ([str(DUMP)], [str(DUMP), "--pid", "many"], ["--no-such-option"]):
        assert convert(*args).returncode == 2


def test_a_pipe_gets_no_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = convert(DUMP, "--pid", "1", "-o", "-")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--output -:" in result.stderr
    assert "not a regular file" in sentence(convert(DUMP, "--pid", "1", "-o", "/dev/stdout"), 1)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_text("precious")
    assert "exists already" in sentence(convert(DUMP, "--pid", "1", "-o", core), 1)
    assert core.read_text() == "precious"
    assert convert(DUMP, "--pid", "1", "-o", core, "--force").returncode == 0
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert core.stat().st_mode & 0o777 == 0o600


def test_the_dump_itself_is_never_replaced(tmp_path: Path) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(DUMP.read_bytes())
    assert "is the dump itself" in sentence(convert(dump, "--pid", "1", "-o", dump, "--force"), 1)
    assert dump.stat().st_size == DUMP.stat().st_size


def test_without_a_dump_the_environment_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMCORE", str(DUMP))
    result = convert("--pid", "1", "-o", tmp_path / "core")
    assert result.returncode == 0
    assert f"taking {DUMP} ($VMCORE)" in result.stderr


def test_single_pid_into_a_directory_gets_the_name_of_bulk_runs(tmp_path: Path) -> None:
    assert convert(DUMP, "--pid", "1", "-o", tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["core.init.1"]


def test_one_bad_pid_does_not_stop_the_others(tmp_path: Path) -> None:
    result = convert(DUMP, "--pid", "4000000", "--pid", "1", "-o", tmp_path)
    assert result.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["core.init.1"]


@pytest.mark.no_cover
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    for delay in (0.3, 0.8, 1.2, 1.6):
        command = [sys.executable, "-m", "vmcore2core", str(DUMP), "--all", "-o", str(tmp_path / f"{delay}")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        time.sleep(delay)
        os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=60)
        assert str(FIXTURES.parent / "vmcore2core") not in stderr  # on a slow machine, Python itself is still starting
        for path in (tmp_path / f"{delay}").glob("core.*[0-9]"):
            assert path.read_bytes()[:4] == b"\x7fELF"
        assert [path for path in tmp_path.rglob(".*") if path.name != ".vscode"] == []

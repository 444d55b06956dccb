"""A command's output on a terminal, and its end: whatever fails, one sentence and an exit status.

Tests commands/terminal.py, commands/progress.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES, TASKS, convert

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
FULL = Path("/dev/full")
CONVERT = "from vmcore2core.__main__ import vmcore2core; vmcore2core()"


def run(code: str, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("code", "args"), [(TASKS, ["ps", DUMP]), (CONVERT, ["--help"])], ids=["ps", "--help"])
def test_a_full_disk_below_stdout_is_one_sentence(code: str, args: list[str], unbuffered: str) -> None:
    with FULL.open("w") as full:
        result = run(code, *args, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "No space left on device" in result.stderr


def test_a_full_disk_below_stderr_changes_no_exit_status(tmp_path: Path) -> None:
    with FULL.open("w") as full:
        assert run(CONVERT, tmp_path / "nothing", "--pid", "1", stderr=full).returncode == 1


def test_a_reader_that_has_enough_ends_it_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = run(TASKS, "ps", DUMP, stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


def test_closed_standard_streams_are_not_taken_for_the_core(tmp_path: Path) -> None:
    core = tmp_path / "core"
    command = [sys.executable, "-m", "vmcore2core", str(DUMP), "--pid", "1", "-v", "-o", str(core)]
    shell = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command], check=False, timeout=120)
    assert shell.returncode == 0
    assert convert("verify", core).returncode == 0


@pytest.mark.parametrize(
    ("code", "args"),
    [(CONVERT, ["nothing", "--pid", "1"]), (TASKS, ["info", "nothing"]), (CONVERT, ["verify", "nothing"])],
    ids=["vmcore2core", "vmcore-tasks", "verify"],
)
def test_tracebacks_are_for_debug_alone(code: str, args: list[str], tmp_path: Path) -> None:
    plain = run(code, *args, cwd=tmp_path)
    assert (plain.returncode, plain.stderr.count("\n")) == (1, 1)
    debug = run(code, *args, "--debug", cwd=tmp_path)
    assert debug.returncode == 1
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(plain.stderr)


PLANTED = """
from vmcore2core import session
def planted(*args, **kwargs):
    raise {error}
session.{where} = planted
from vmcore2core.__main__ import vmcore2core; vmcore2core()
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("IndexError('planted')", "this is a fault of vmcore2core: IndexError: planted; --debug shows where"),
        ("MemoryError", "there is not enough memory for this"),
        ("OSError(5, 'Input/output error', '/a/file')", "/a/file: Input/output error"),
    ],
)
def test_a_fault_of_ours_or_of_the_machine_is_one_sentence(error: str, words: str, tmp_path: Path) -> None:
    result = run(PLANTED.format(error=error, where="open_container"), DUMP, "--pid", "1", "-o", tmp_path / "core")
    assert (result.returncode, result.stderr) == (1, f"vmcore2core: {words}\n")


def test_a_fault_of_ours_costs_no_other_process_its_core(tmp_path: Path) -> None:
    code = PLANTED.replace("planted(*args, **kwargs):", "planted(snapshot, *args, **kwargs):")
    code = code.replace("    raise", "    if snapshot.tgid != 1: return real(snapshot, *args, **kwargs)\n    raise")
    code = code.replace("def planted", "real = session.write_core\ndef planted")
    options = "--pid", "1", "--pid", "86", "-o", tmp_path
    for jobs in ("1", "2"):
        result = run(code.format(error="IndexError('x')", where="write_core"), DUMP, *options, "--force", "-j", jobs)
        words = "vmcore2core: 1 (init): this is a fault of vmcore2core: IndexError: x; --debug shows where\n"
        assert (result.returncode, result.stderr) == (1, words)
        assert (tmp_path / "core.lab-static.86").exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_debug_shows_where_a_fault_is_that_costs_one_core(jobs: str, tmp_path: Path) -> None:
    code = PLANTED.format(error="IndexError('planted')", where="write_core")
    result = run(code, DUMP, "--pid", "1", "--pid", "86", "-o", tmp_path, "-j", jobs, "--debug")
    assert result.returncode == 1
    assert result.stderr.count("Traceback (most recent call last):") == 2
    assert result.stderr.count(", in planted\n") == 2
    assert result.stderr.count("\nIndexError: planted\n") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_said_and_ends_it_as_the_signal_does(number: signal.Signals, tmp_path: Path) -> None:
    # Midway in writing, so that there is something to remove.
    code = (
        "import os, vmcore2core.corefile.sink as sink\n"
        f"sink.os.ftruncate = lambda *_: os.kill(os.getpid(), {int(number)})\n" + CONVERT
    )
    result = run(code, DUMP, "--pid", "1", "-o", tmp_path / "core")
    assert result.returncode == -number  # 128 + number to a shell, whose loop ends, too
    assert result.stderr == "vmcore2core: interrupted; nothing half-written is left behind\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [CONVERT, TASKS], ids=["vmcore2core", "vmcore-tasks"])
def test_the_name_of_a_file_reaches_no_terminal_as_it_is(code: str, tmp_path: Path) -> None:
    words = ["info"] if code == TASKS else ["--pid", "1"]
    dump = tmp_path / "\x1b]0;owned\x07\udcff\u202e"
    dump.symlink_to(DUMP.resolve() if code == TASKS else "/dev/null")
    result = run(code, *words, dump, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"})
    assert "\\x1b]0;owned\\x07\\xff\\x202e" in result.stdout + result.stderr
    assert (result.stdout + result.stderr).replace("\n", "").isprintable()


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(encoding: str) -> None:
    code = (
        "from vmcore2core.commands import terminal\nterminal.begin(0, debug=False)\n"
        "print('n\\u00e9\\u540d\\x1b[2J\\tx\\nnext')\nterminal.say('\\u540d\\x9b')"
    )
    result = run(code, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    shown = "né名".encode(encoding, "backslashreplace").decode(encoding)
    assert result.stdout == f"{shown}\\x1b[2J\\x09x\nnext\n"
    assert result.stderr.endswith("\\x9b\n")

"""``vmcore2core debug``: the debugger gets the core with its files, and no file stays behind, however it ends.

Tests signals.py, run/for_debugger.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.debuggers import environment, gdb_command, need_lldb
from tests.e2e.guests import FIXTURES
from vmcore2core.commands.debug import command, found_debugger, is_lldb, temporary_folder
from vmcore2core.errors import DebuggerError

DUMP = FIXTURES / "debian-6.1-amd64/vmcore"
TIMEOUT = 120


def command_line(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "vmcore2core", "debug", str(DUMP), *map(str, words)]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where temporary directories are made; none may stay."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def debug(temporary: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    variables = {**environment(), "TMPDIR": str(temporary)}
    line = command_line(*words)
    result = subprocess.run(line, capture_output=True, text=True, env=variables, timeout=TIMEOUT, check=False)
    assert list(temporary.iterdir()) == []
    return result


def stub(folder: Path, text: str) -> Path:
    """Return a debugger that shows what it is given."""
    path = folder / "gdb-stub"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_debugger_gets_script_and_words_and_gives_its_status(temporary: Path, tmp_path: Path) -> None:
    shown = stub(tmp_path, 'printf "%s|" "$@"; stat -c " %a %n" . "$2" core.init.1 sysroot/init; pwd; exit 7')
    result = debug(temporary, "--pid", "1", "--debugger", shown, "-A", "--one 'two words'")
    assert (result.returncode, result.stderr) == (7, "")
    words, folder, script, core, program, where = map(str.strip, result.stdout.replace("| ", "|\n").splitlines())
    assert words == f"-x|{where}/core.init.1.gdb|--one|two words|"
    assert [folder, core, program] == ["700 .", "600 core.init.1", "600 sysroot/init"]
    assert script.startswith("600 ")
    assert Path(where).parent == temporary
    assert Path(where).name.startswith("vmcore2core-debug-")
    killed = debug(temporary, "--pid", "1", "--debugger", stub(tmp_path, "kill -KILL $$"))
    assert killed.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_debugger_and_leaves_nothing(number: signal.Signals, temporary: Path, tmp_path: Path) -> None:
    waits = stub(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    variables = {**os.environ, "TMPDIR": str(temporary)}
    line = command_line("--pid", "1", "--debugger", waits)
    # Under nohup, tests inherit that SIGHUP is ignored, and the command leaves it so.
    with (
        subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        pid, until = tmp_path / "pid", time.monotonic() + TIMEOUT
        while not (pid.exists() and pid.read_text().strip()) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # which is the debugger's
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(number)
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -number
    assert stderr == "vmcore2core debug: interrupted; nothing half-written is left behind\n"
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_gdb_shows_the_stacks(temporary: Path) -> None:
    iex = " ".join(f"'{word}'" for word in gdb_command(sysroot=None)[1:])
    result = debug(temporary, "--comm", "lab-dyn*", "-A", f"{iex} -ex 'thread apply 5 bt' -ex 'quit 3'")
    assert result.returncode == 3
    names = ["level_c", "victim_relay", "level_b", "level_a", "nested_thread"]
    assert [line.split(" in ")[-1].split()[0] for line in result.stdout.splitlines() if line.startswith("#")][
        2:7
    ] == names


def test_lldb_shows_the_stacks(temporary: Path) -> None:
    words = "--no-lldbinit --batch -o 'thread backtrace all'"
    result = debug(temporary, "--pid", "92", "--debugger", need_lldb(), "-A", words)
    assert result.returncode == 0
    assert "level_b" in result.stdout


def test_what_cannot_be_debugged_is_one_sentence(temporary: Path) -> None:
    for words, said in (
        (("--pid", "2", "--debugger", "sh"), "PID 2 (kthreadd) is a kernel thread: it has no user memory"),
        (("--comm", "lab-*", "--debugger", "sh"), "2 processes fit, expected one: --pid takes one of 86, 92"),
        (("--pid", "86", "-p", "92", "--debugger", "sh"), "2 processes fit, expected one: --pid takes one of 86, 92"),
        (("--comm", "init", "--comm", "lab-d*", "--debugger", "sh"), "2 processes fit, expected one: --pid takes one"),
        (("--comm", "none", "--debugger", "sh"), "no process with user memory matches: --comm none fits none"),
    ):
        result = debug(temporary, *words)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith(f"vmcore2core debug: {said}")
    for wrong in ([], ["--pid", "1", "--comm", "init"], ["--pid", "1", "-A", "'"]):
        assert debug(temporary, *wrong).returncode == 2


def test_a_debugger_that_is_not_there_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DebuggerError, match=r"^gdb is not installed, expected a debugger in \$PATH$"):
        found_debugger("gdb")
    (tmp_path / "lldb").write_text("")
    (tmp_path / "lldb").chmod(0o755)
    with pytest.raises(DebuggerError, match=r"; lldb is there \(--debugger lldb\)$"):
        found_debugger("gdb")
    assert found_debugger("lldb") == str(tmp_path / "lldb")
    monkeypatch.chdir(tmp_path)
    assert found_debugger("./lldb") == str(tmp_path / "lldb")


def test_lldb_takes_its_own_script() -> None:
    names = "lldb /usr/bin/lldb-19 gdb /x/gdb-multiarch".split()
    assert [is_lldb(name) for name in names] == [True, True, False, False]
    script = Path("/x/core.a.1.lldb")
    assert command("/x/lldb", script, ("-b",), lldb=True) == ["/x/lldb", "-s", "core.a.1.lldb", "-b"]


def test_the_folder_is_the_users_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with temporary_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "core").touch()
    assert not folder.exists()

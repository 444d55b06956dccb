"""The commands' effects on their machine, by Python's audit hooks: they read the dump, and write only where they were
told to."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guests import FIXTURES

pytestmark = pytest.mark.no_cover

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"
PACKAGE = FIXTURES.parent / "vmcore2core"

HOOKED = """
import json, os, sys
seen = []
def hook(event, args):
    if event == "open":
        path, mode, flags = args
        seen.append([event, os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else path, flags or 0])
    elif event.split(".")[0] in families or event in ("os.system", "os.exec", "os.posix_spawn", "os.fork"):
        seen.append([event, str(args[0]) if args else "", 0])
families = "socket subprocess pickle shutil tempfile ctypes webbrowser ftplib urllib http smtplib".split()
sys.addaudithook(hook)
from vmcore2core.__main__ import vmcore2core, vmcore_tasks
command = vmcore_tasks if sys.argv.pop(1) == "vmcore-tasks" else vmcore2core
try:
    command()
finally:
    found = list(seen)
    threads = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Threads:")]
    with open(sys.argv[0] + os.environ["SEEN"], "w") as file:
        json.dump({"seen": found, "threads": threads}, file)
"""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def audited(folder: Path, program: str, *args: str | Path) -> tuple[list[list[Any]], Path]:
    """Run a command in an empty working directory; return the events and where it may write."""
    (folder / "empty").mkdir()
    (folder / "script").write_text(HOOKED)
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder / "no-temporary-files"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SEEN": ".json",
    }
    result = subprocess.run(
        [sys.executable, folder / "script", program, *args],
        cwd=folder / "empty",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert list((folder / "empty").iterdir()) == []
    found = json.loads((folder / "script.json").read_text())
    assert found["threads"] == ["1"], "numpy's OpenBLAS has made threads: with them, memory for each CPU"
    return found["seen"], folder


def check(seen: list[list[Any]], dump: Path, *may_write: Path) -> None:
    """Check that nothing was written elsewhere, and that no network, program or pickle was used."""
    harmless = {("ctypes.dlopen", "None")}  # numpy imports ctypes, which opens the program itself and no library
    for event, what, _ in seen:
        if event == "tempfile.mkstemp":
            assert any(Path(what).is_relative_to(folder) for folder in may_write), what
        else:
            assert event == "open" or (event, what) in harmless, (event, what)
    opens = [(name, flags) for event, name, flags in seen if event == "open" and isinstance(name, str)]
    of_dump = [flags for name, flags in opens if Path(name).resolve() == dump.resolve()]
    assert of_dump
    assert all(not flags & WRITES for flags in of_dump)
    for name, flags in opens:
        # Below an open directory a name stands alone; that the working directory stayed empty tells that it was one.
        if flags & WRITES and "/" in name and name != os.devnull:
            assert any(Path(name).resolve().is_relative_to(folder.resolve()) for folder in may_write), name


@pytest.mark.parametrize("program", ["vmcore2core", "vmcore-tasks"])
def test_nothing_is_written_elsewhere_and_nobody_is_asked(program: str, tmp_path: Path) -> None:
    cores = tmp_path / "cores"
    args: list[str | Path] = [DUMP, "--all", "-o", cores] if program == "vmcore2core" else ["bt", DUMP, "--pid", "86"]
    seen, _ = audited(tmp_path, program, *args)
    layout = tmp_path / "cache" / "vmcore2core" / "layout"
    check(seen, DUMP, cores, layout)
    assert {path.name for path in tmp_path.iterdir()} <= {"empty", "script", "script.json", "cores", "cache"}
    assert [path.name for path in layout.parent.iterdir()] == ["layout"]


def test_a_compressed_dump_is_unpacked_to_the_cache_alone(tmp_path: Path) -> None:
    packed = tmp_path / "vmcore.gz"
    subprocess.run(["gzip", "-1c", DUMP], stdout=packed.open("wb"), check=True)
    seen, _ = audited(tmp_path, "vmcore-tasks", "info", packed)
    check(seen, packed, tmp_path / "cache" / "vmcore2core")
    assert {path.name for path in tmp_path.iterdir()} <= {"empty", "script", "script.json", "cache", "vmcore.gz"}


FORBIDDEN = {"pickle", "marshal", "shelve", "subprocess", "socket", "urllib", "http", "ctypes", "runpy", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "spawnv", "execv", "execvp", "fork"}
DEBUGGER = (PACKAGE / "commands" / "debug.py", "subprocess")
"""It runs the debugger that the user named, with the user's words and the path of a start script."""
NETWORK = {
    (PACKAGE / "containers" / "remote.py", "http"),
    (PACKAGE / "handover" / "debugger_download.py", "urllib.request"),
    *((PACKAGE / "process" / "debuginfod.py", name) for name in ("http.client", "urllib.error", "urllib.request")),
    (PACKAGE / "capture" / "journal.py", "socket"),
    (PACKAGE / "kernel" / "socket.py", "socket"),
}
"""A dump by URL, files from debuginfod, this machine's journal: a user asks for each. kernel.socket takes constants."""
WORKERS = {PACKAGE / "run" / "workers.py", PACKAGE / "corefile" / "copying.py"}
"""Workers and their parent send each other pickles over a pipe between them: no byte of a dump is ever one."""


@pytest.mark.parametrize(
    "path", [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "formats").glob("*.py")], ids=lambda path: path.stem
)
def test_no_module_can_run_what_a_dump_has(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            harmless = name == "urllib.parse"  # of texts alone
            sent = name == "pickle" and path in WORKERS and "pickle.load" not in path.read_text()
            assert name.split(".")[0] not in FORBIDDEN or harmless or sent or (path, name) in {*NETWORK, DEBUGGER}, name
            assert not name.startswith("multiprocessing") or path in WORKERS
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                assert called.id not in CALLS, called.id
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "os":
                assert called.attr not in CALLS or (called.attr == "fork" and path in WORKERS), called.attr

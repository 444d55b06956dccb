"""Run gdb and lldb on a core, and return their output as plain data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.needs import need as need

TIMEOUT = 120
NOWHERE = Path("/nonexistent")


def gdb_command(name: str = "gdb", *, sysroot: Path | None = NOWHERE) -> list[str]:
    """Return how gdb is started so that it sees no file of this machine that a test did not give it.

    Args:
        name: of gdb's program.
        sysroot: where it looks for libraries; with None, where it does by itself: for programs that it runs.
    """
    command = [need(name), "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"]
    for folder in ("debug-file-directory", "libthread-db-search-path"):
        command += ["-iex", f"set {folder} {NOWHERE}"]
    return command + (["-iex", f"set sysroot {sysroot}"] if sysroot else [])


def lldb_command(*, sysroot: Path = NOWHERE) -> list[str]:
    """Return how lldb is started so that it sees no file of this machine that a test did not give it."""
    command = [need_lldb(), "--no-lldbinit", "--batch", "-O", "settings set symbols.enable-external-lookup false"]
    return [*command, "-O", f"platform select --sysroot {sysroot} remote-linux"]


def environment() -> dict[str, str]:
    """Return the environment that debuggers are started in."""
    # Debian's lldb looks for its Python modules in a place of its own.
    modules = sorted(Path("/usr/lib").glob("llvm-*/lib/python3*/*-packages"))
    kept = {name: value for name, value in os.environ.items() if name != "DEBUGINFOD_URLS"}
    return kept | {"PYTHONPATH": ":".join(map(str, modules)), "LC_ALL": "C.UTF-8"}


def gdb(core: Path, *commands: str, program: Path | None = None, sysroot: Path | None = None) -> str:
    """Return gdb's output."""
    arguments = gdb_command(sysroot=sysroot or NOWHERE)
    for command in commands:
        arguments += ["-ex", command]
    arguments += [str(program)] if program else []
    arguments += ["-c", str(core)] if not program else [str(core)]
    return _run(arguments)


def need_lldb() -> str:
    """Return lldb: Debian 12 has 19 beside its default, which is 14, as tests take it too but for cores of riscv64."""
    return shutil.which("lldb-19") or need("lldb")


def lldb(core: Path, *commands: str, program: Path, sysroot: Path | None = None) -> str:
    """Return lldb's output."""
    arguments = lldb_command(sysroot=sysroot or NOWHERE)
    if sysroot is not None:
        arguments += ["-O", f"settings set target.exec-search-paths {sysroot}/bin {sysroot}/lib {sysroot}/lib64"]
    for command in commands:
        arguments += ["-o", command]
    return _run([*arguments, "-c", str(core), str(program)])


def _run(arguments: list[str]) -> str:
    result = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
        env=environment(),
        check=False,
    )
    return result.stdout + result.stderr


def gdb_backtraces(output: str) -> dict[int, list[str]]:
    """Return function names, innermost first, by thread ID, out of ``thread apply all bt``."""
    parts = re.split(r"^Thread \d+ \(.*LWP (\d+)\)*:?.*$", output, flags=re.MULTILINE)
    return {
        int(tid): re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(<signal handler called>|[^ (]+)", frames, re.MULTILINE)
        for tid, frames in zip(parts[1::2], parts[2::2], strict=True)
    }


def lldb_backtraces(output: str) -> dict[int, list[str]]:
    """Return function names, innermost first, by thread ID, out of ``thread list`` and ``bt all``."""
    tids = {
        int(n): int(tid, 16 if tid.startswith("0x") else 10)
        for n, tid in re.findall(r"thread #(\d+): tid = (\w+)", output)
    }
    parts = re.split(r"^[* ]+ thread #(\d+), .*$", output, flags=re.MULTILINE)
    return {
        tids[int(number)]: re.findall(r"frame #\d+: 0x[0-9a-f]+ [^`\n]*`([\w.:]+)", frames)
        for number, frames in zip(parts[1::2], parts[2::2], strict=True)
    }


def in_order(wanted: list[str], shown: list[str]) -> bool:
    """Tell whether all of ``wanted`` occur in ``shown``, in this order."""
    rest = iter(shown)
    return all(any(name == other for other in rest) for name in wanted)

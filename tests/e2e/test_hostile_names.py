"""A process names itself, its files and its arguments as it likes; no command may pass that on to a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.guests import bundled, convert, tasks

NAME = b"lab-static"
HOSTILE = b"\x1b[2J\x07\n<b>\xff"
assert len(HOSTILE) == len(NAME)
SHOWN = "\\x1b[2J\\x07\\x0a<b>\ufffd"


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump in which whatever was called lab-static has another name: comm, path and arguments."""
    path = bundled("debian-5.10-amd64", tmp_path_factory.mktemp("dump"))
    path.write_bytes(path.read_bytes().replace(NAME, HOSTILE))
    return path


@pytest.fixture(scope="module")
def pid(dump: Path) -> str:
    """Its number."""
    (line,) = (line for line in tasks("ps", dump).stdout.splitlines() if line.endswith(f"{SHOWN} 0"))
    return line.split()[0]


def clean(shown: str) -> bool:
    return shown.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "command",
    [
        "ps --tree",
        "ps -L",
        "ps -o exe,comm,args,cgroup",
        "ps --json",
        "threads",
        "regs",
        "bt",
        "maps -v",
        "info -v",
        "dmesg",
    ],
)
def test_vmcore_tasks(command: str, dump: Path, pid: str) -> None:
    name, *options = command.split()
    process = ["--pid", pid] if name in ("threads", "regs", "bt", "maps") else []
    result = tasks(name, dump, *process, *options)
    assert result.returncode in (0, 3)
    assert clean(result.stdout)
    assert clean(result.stderr)
    if name not in ("info", "dmesg") and options != ["--json"]:
        assert SHOWN in result.stdout.replace("\\012", "\\x0a")  # maps has the kernel's own escape


def test_vmcore2core(dump: Path, pid: str, tmp_path: Path) -> None:
    planned = convert(dump, "--all", "--dry-run", "-o", tmp_path / "cores")
    result = convert(dump, "--all", "-o", tmp_path / "cores", "-vv")
    for shown in (planned, result):
        assert shown.returncode == 0
        assert clean(shown.stdout)
        assert clean(shown.stderr)
    core = tmp_path / "cores" / f"core.__2J___b__.{pid}"
    names = {path.name for path in (tmp_path / "cores").iterdir()}
    assert {core.name, f"{core.name}.gdb", f"{core.name}.lldb", "index.json", "index.html"} <= names
    assert all(name.isascii() and clean(name) for name in names)
    for name in ("index.json", "index.html"):
        text = (tmp_path / "cores" / name).read_text()
        assert clean(text)
        assert "<b>" not in text or name == "index.json"
    for path in (tmp_path / "cores" / "index.data").iterdir():
        assert clean(path.read_text("ascii"))
    verified = convert("verify", core)
    assert verified.returncode == 0
    assert clean(verified.stdout)
    assert clean(verified.stderr)

"""launch.json opens each core in an editor, with the frames that the start scripts show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders.dap import Client, opened
from tests.e2e.debuggers import environment, gdb_command
from tests.e2e.guests import FIXTURES, convert
from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.handover.images import Image
from vmcore2core.handover.vscode import OpenedCore, opened_by, write_launch_json
from vmcore2core.process.secrets import Secrets

DUMP = FIXTURES / "debian-6.1-amd64/vmcore"
CORE = "core.lab-dynamic.92"
KINDS = "cppdbg lldb lldb-dap gdb".split()
LEVELS = ["level_c", "victim_relay", "level_b", "level_a", "nested_thread"]
GDB_WITH_CORES = 18


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose name no shell or debugger splits, with one core and its companions."""
    folder = tmp_path_factory.mktemp("made") / "of one"
    result = convert(DUMP, "--pid", "92", "--companions", "-o", f"{folder}/")
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def configuration(cores: Path, kind: str) -> dict[str, Any]:
    """Return one, as VS Code hands it to the extension."""
    shown = (cores / ".vscode/launch.json").read_text()
    document = json.loads(shown.replace("${workspaceFolder}", str(cores)))
    found: dict[str, Any] = next(one for one in document["configurations"] if one["type"] == kind)
    return found


def test_one_process_can_have_all_companions(cores: Path) -> None:
    names = {path.name for path in cores.iterdir()}
    assert {CORE, f"{CORE}.gdb", f"{CORE}.lldb", "index.json", "index.html", "sysroot", ".vscode"} <= names
    index = json.loads((cores / "index.json").read_text())
    assert [process["debug"]["scripts"] for process in index["processes"]] == [[f"{CORE}.gdb", f"{CORE}.lldb"]]
    assert (cores / ".vscode/launch.json").stat().st_mode & 0o777 == 0o600
    result = convert(DUMP, "--pid", "92", "--companions", "-o", cores.parent / "file")
    assert result.returncode == 2
    assert result.stderr == (
        f"vmcore2core: --companions writes a directory: expected --output {cores.parent / 'file'}/, or one that is "
        "there\n"
    )


def test_a_slash_makes_a_directory(tmp_path: Path) -> None:
    assert convert(DUMP, "--pid", "1", "-o", f"{tmp_path}/a/b/").returncode == 0
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["core.init.1"]


def test_there_is_one_configuration_for_each_extension(cores: Path) -> None:
    shown = (cores / ".vscode/launch.json").read_text()
    assert [one["type"] for one in json.loads(shown)["configurations"]] == KINDS
    assert str(cores) not in shown
    for kind, name in (("cppdbg", "coreDumpPath"), ("gdb", "coreFile")):
        found = configuration(cores, kind)
        assert (Path(found[name]), Path(found["program"])) == (cores / CORE, cores / "sysroot/bin/lab-dynamic")
    assert configuration(cores, "cppdbg")["targetArchitecture"] == "x86_64"


def test_gdb_by_what_the_cpp_extension_sends(cores: Path, tmp_path: Path) -> None:
    """MIEngine gives the commands of customLaunchSetupCommands to gdb's machine interface, one by one."""
    commands = [one["text"] for one in configuration(cores, "cppdbg")["customLaunchSetupCommands"]]
    commands += ["-thread-info", "-stack-list-frames --thread 5", "-gdb-exit"]
    command = [word for word in gdb_command(sysroot=None) if word != "-batch"]
    result = subprocess.run(
        [*command, "--interpreter=mi"],
        input="".join(f"{one}\n" for one in commands),
        capture_output=True,
        text=True,
        errors="replace",  # gdb 18 writes its messages' quotation marks as single bytes
        cwd=tmp_path,
        env=environment(),
        timeout=120,
        check=True,
    )
    frames = re.findall(r'frame=\{level="\d+",addr="0x\w+",func="(\w+)"', result.stdout.splitlines()[-2])
    frames = frames or re.findall(
        r'func="(\w+)"', next(line for line in result.stdout.splitlines() if "stack=[" in line)
    )
    assert frames[1:6] == LEVELS


def adapter() -> str:
    found = next(filter(None, map(shutil.which, ("lldb-dap-19", "lldb-dap"))), None)
    if found is None:
        pytest.skip("no lldb-dap here")
    return found


def functions(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["name"] for frame in frames]


def test_lldb_dap_opens_it(cores: Path, tmp_path: Path) -> None:
    with Client([adapter()], environment(), tmp_path) as client:
        threads = opened(client, configuration(cores, "lldb-dap"))
    assert list(threads) == [92, 93, 94, 95, 96, 97]
    assert functions(threads[96])[1:6] == LEVELS
    assert functions(threads[93])[:2] == ["block_with_registers", "regs_thread"]


def test_gdbs_own_adapter_opens_it(cores: Path, tmp_path: Path) -> None:
    command = [word for word in gdb_command(sysroot=None) if word != "-batch"]
    shown = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"(\d+)\.\d+\n", shown)
    if version is None or int(version[1]) < GDB_WITH_CORES:
        pytest.skip(f"gdb {GDB_WITH_CORES} or later takes coreFile")
    with Client([*command, "-i=dap", "-x", cores / f"{CORE}.gdb"], environment(), tmp_path) as client:
        threads = opened(client, configuration(cores, "gdb"))
    assert len(threads) == 6
    assert LEVELS in [functions(frames)[1:6] for frames in threads.values()]


def image(path: bytes) -> Image:
    return Image(path, 0x1000, 0, program=True)


def test_a_path_that_vscode_would_take_for_more_is_not_there() -> None:
    for path in (b"/bin/${command:workbench.action.quit}", b"/bin/a`b", b"/bin/\xff"):
        assert opened_by(Path("core.app.1"), None, (image(path),)) == OpenedCore("core.app.1", None)
    assert opened_by(Path("x/core.app.1.zst"), None, (image(b"/bin/app (deleted)"),)) == OpenedCore(
        "core.app.1", "/bin/app"
    )
    assert opened_by(Path("core.app.1"), None, ()).program is None


def test_without_a_program_the_cpp_extension_has_none(tmp_path: Path) -> None:
    write_launch_json(tmp_path, [OpenedCore("core.app.1", None)], "s390x")
    document = json.loads((tmp_path / ".vscode/launch.json").read_text())
    assert [one["type"] for one in document["configurations"]] == KINDS[1:]
    write_launch_json(tmp_path, [OpenedCore("core.app.1", "/bin/app")], "s390x", force=True)
    document = json.loads((tmp_path / ".vscode/launch.json").read_text())
    assert "targetArchitecture" not in document["configurations"][0]


def test_what_is_there_stays(tmp_path: Path) -> None:
    mine = tmp_path / ".vscode/launch.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OutputExists, match="--force replaces it"):
        write_launch_json(tmp_path, [], "x86_64")
    with pytest.raises(OutputError, match="it would have a secret"):
        write_launch_json(
            tmp_path, [OpenedCore("core.app.1", None)], "x86_64", force=True, secrets=Secrets((b"core.app",))
        )
    assert mine.read_text() == "mine"
    result = convert(DUMP, "--pid", "1", "--companions", "-o", tmp_path)
    assert result.returncode == 0
    assert result.stderr == f"vmcore2core: {mine} exists already; --force replaces it\n"
    assert (mine.read_text(), (tmp_path / "core.init.1.gdb").exists()) == ("mine", True)

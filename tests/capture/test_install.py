"""The files that --install makes and those that it leaves alone; --uninstall removes only its own.

Tests commands/capture.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import need
from vmcore2core.capture.config import Config, Limits, Wanted
from vmcore2core.capture.install import Installed, files, remove, write
from vmcore2core.choose import Choice
from vmcore2core.commands import capture
from vmcore2core.errors import OutputError, UsageError

CONFIG = Config(Path("/var/crash"), (Wanted(Choice(comm=("*",))),), Limits(seconds=90, memory=80 << 20))
CONFIG_PATH = Path("/etc/vmcore2core/capture.toml")


def debian(root: Path) -> Path:
    unit = root / "usr/lib/systemd/system/kdump-tools-dump.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    return root


def fedora(root: Path) -> Path:
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/kdumpctl").touch()
    return root


def paths(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / "etc").rglob("*") if not path.is_dir())


def test_debian_gets_two_units_and_their_links(tmp_path: Path) -> None:
    for one in files(CONFIG, CONFIG_PATH, debian(tmp_path)):
        write(one)
    units = tmp_path / "etc/systemd/system"
    assert paths(tmp_path) == [
        "etc/systemd/system/kdump-tools-dump.service.wants/vmcore2core-capture.service",
        "etc/systemd/system/multi-user.target.wants/vmcore2core-journal.service",
        "etc/systemd/system/vmcore2core-capture.service",
        "etc/systemd/system/vmcore2core-journal.service",
    ]
    text = (units / "kdump-tools-dump.service.wants/vmcore2core-capture.service").read_text()
    for line in (
        "ConditionPathExists=/proc/vmcore",
        "Before=kdump-tools-dump.service",
        f"ExecStart={sys.executable} -m vmcore2core.capture /etc/vmcore2core/capture.toml",
        "TimeoutStartSec=100",
        "MemoryMax=83886080",
        "SuccessExitStatus=3",
    ):
        assert f"\n{line}\n" in text
    assert "\nConditionPathExists=!/proc/vmcore\n" in (units / "vmcore2core-journal.service").read_text()


def test_systemd_has_nothing_to_say_of_the_units(tmp_path: Path) -> None:
    analyze, root = need("systemd-analyze"), debian(tmp_path)
    for one in files(CONFIG, CONFIG_PATH, root):
        write(one)
    units = sorted((root / "etc/systemd/system").glob("vmcore2core-*.service"))
    # As of a user's own manager: root's wants to make /run/systemd where no systemd runs.
    environment = {
        "SYSTEMD_UNIT_PATH": f"{root}/usr/lib/systemd/system:/usr/lib/systemd/system",
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    result = subprocess.run(
        [analyze, "--user", "verify", "--man=no", "--recursive-errors=no", *units],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


def test_kdump_utils_get_a_script_that_never_stops_the_dump(tmp_path: Path) -> None:
    found = files(CONFIG, CONFIG_PATH, fedora(tmp_path))
    script = next(one for one in found if one.path.suffix == ".sh")
    write(script)
    assert script.path == tmp_path / "etc/kdump/pre.d/vmcore2core.sh"
    assert script.path.stat().st_mode & 0o777 == 0o755
    assert script.text is not None
    assert "timeout -k 10 100 chroot" in script.text
    # Without a root file system at /sysroot, as here, it ends well at once.
    assert subprocess.run(["/bin/sh", script.path], capture_output=True, text=True, check=False).returncode == 0
    assert script.text.rstrip().endswith("exit 0")


def test_without_kdump_there_is_nothing_to_install(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither kdump-tools nor kdump-utils is installed"):
        files(CONFIG, CONFIG_PATH, tmp_path)


def test_installing_again_replaces_what_it_made(tmp_path: Path) -> None:
    for _ in range(2):
        for one in files(CONFIG, CONFIG_PATH, debian(tmp_path) if not (tmp_path / "usr").exists() else tmp_path):
            write(one)
    assert len(paths(tmp_path)) == 4


@pytest.mark.parametrize("link", [False, True])
def test_what_others_made_stays(tmp_path: Path, link: bool) -> None:
    one = Installed(tmp_path / "unit.service", "# Made by: vmcore2core capture --install\n")
    (tmp_path / "other").write_text(one.text or "")
    if link:
        one.path.symlink_to("other")
    else:
        one.path.write_text("[Unit]\n")
    with pytest.raises(OutputError, match="is there already, and vmcore2core did not make it"):
        write(one)
    assert not remove(one)
    assert one.path.exists()


def test_the_command_shows_each_file_and_what_is_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, advice in ((debian, "systemctl daemon-reload"), (fedora, "kdumpctl rebuild && kdumpctl restart")):
        root = kind(tmp_path / kind.__name__)
        found = files(CONFIG, CONFIG_PATH, root)
        capture._install(found, ask=False)
        said = capsys.readouterr().out
        assert all(f"{one.path}" in said and (one.text or "") in said for one in found)
        assert f"now run: {advice}\n" in said
        capture._uninstall(found, ask=False)
        assert capsys.readouterr().out == "".join(f"{one.path}\n" for one in found)
        assert paths(root) == []


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "capture.toml"
    command = [sys.executable, "-m", "vmcore2core", "capture", str(config)]
    for words, status in ((["--check", "--install"], 2), (["--yes"], 2), (["--install"], 2)):
        result = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert result.returncode == status
    assert "is not there: nothing would be captured" in result.stderr


def test_uninstall_removes_all_of_it(tmp_path: Path) -> None:
    found = files(CONFIG, CONFIG_PATH, debian(tmp_path))
    for one in found:
        write(one)
    assert [remove(one) for one in found] == [True] * 4
    assert paths(tmp_path) == []
    assert [remove(one) for one in found] == [False] * 4

"""What the tests need of a machine: named, installed where that can be, and never silently gone without."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import needs

TESTS = Path(needs.__file__).parent
LIST = [line.split()[0] for line in (TESTS / "packages.txt").read_text().splitlines() if not line.startswith("#")]
OTHERS = {name.split("|")[0]: name for name in LIST}
NOTHING_INSTALLED = "Neither root nor sudo: nothing is installed."


def stub(folder: Path, name: str, text: str = "") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A Debian of shell tools, with an apt-get that installs the programs of packages, and a user who is not root."""
    folder, recipes = tmp_path / "bin", tmp_path / "recipes"
    folder.mkdir()
    recipes.mkdir()
    for tool in "bash chmod cp echo env grep paste sed touch xargs".split():
        (folder / tool).symlink_to(shutil.which(tool) or "")
    stub(folder, "dirname", f"echo {TESTS}")
    stub(folder, "id", "echo 1000")
    stub(folder, "python3", f"test $1 = -c && test -e {recipes}/done-python3-venv")
    stub(folder, "dpkg-query", f"test -e {recipes}/done-$4 && echo install ok installed")
    stub(folder, "apt-cache", "echo '  Candidate: 1'")
    for package in OTHERS:
        programs = [program for program, of in needs.packages().items() if of == package]
        copies = [f"cp {folder}/id {folder}/{program}" for program in programs]
        (recipes / package).write_text("\n".join([*copies, f"touch {recipes}/done-{package}"]))
    get = f'echo "$@" >>{tmp_path}/asked; for name; do test ! -e {recipes}/$name || . {recipes}/$name; done'
    stub(folder, "apt-get", get)
    return folder


def run(machine: Path, **variables: str) -> tuple[str, str]:
    """Return what the script says up to where it wants Python, and what was asked of apt-get."""
    command = [machine / "bash", TESTS / "run.sh"]
    done = subprocess.run(command, env={"PATH": str(machine), **variables}, capture_output=True, text=True, check=False)
    asked = machine.parent / "asked"
    return done.stdout + done.stderr, asked.read_text() if asked.exists() else ""


def named(text: str, sentence: str) -> list[str]:
    found = re.search(rf"^{sentence}: (.*)$", text, re.MULTILINE)
    assert found, text
    return found[1].split(", ")


def test_packages_are_named_before_sudo_installs_them_and_nothing_is_installed_twice(machine: Path) -> None:
    stub(machine, "sudo", 'touch "$0".used; exec "$@"')
    said, asked = run(machine)
    assert named(said, "Not installed") == [name.replace("|", " or ") for name in LIST]
    assert said.index("Installing Debian packages: " + " ".join(OTHERS)) > 0
    assert asked.splitlines()[1].endswith(" ".join(OTHERS))
    assert "Not to be had" not in said
    assert (machine / "sudo.used").exists()
    assert run(machine) == ("", asked)


def test_without_a_right_to_install_what_is_missing_is_named(machine: Path) -> None:
    said, asked = run(machine)
    assert asked == ""
    assert NOTHING_INSTALLED in said
    assert named(said, "Not to be had here; tests that need them are skipped") == named(said, "Not installed")


def test_in_ci_that_is_a_failure(machine: Path) -> None:
    said, _ = run(machine, CI="true")
    assert said.endswith(NOTHING_INSTALLED + "\n")


def test_what_the_archive_lacks_is_named_and_another_package_serves(machine: Path) -> None:
    stub(machine, "sudo", 'exec "$@"')
    stub(machine, "apt-cache", "case $2 in lldb-19|chromium) ;; *) echo '  Candidate: 1';; esac")
    said, asked = run(machine, CI="true")
    assert asked.split().count("lldb") == 1
    assert {"lldb-19", "chromium"}.isdisjoint(asked.split())
    assert "chromium" in named(said, "Not to be had here; tests that need them are skipped")


def test_without_apt_get_what_is_missing_is_named(machine: Path) -> None:
    (machine / "apt-get").unlink()
    (machine / "dpkg-query").unlink()
    said, _ = run(machine)
    missing = named(said, "Not to be had here; tests that need them are skipped")
    assert {"gdb", "zstd"} < set(missing)
    assert "libc6-dev" not in missing  # no program of it could be asked for


@pytest.mark.parametrize(
    ("reason", "had", "wanted"),
    [
        ("gdb is not installed (Debian: gdb)", "", True),
        ("lldb is not installed", "", True),
        ("gdb is not installed (Debian: gdb)", "zstd gdb", False),
        ("mkswap is not installed", "", False),
        ("gdb cannot run programs here", "", False),
    ],
)
def test_what_may_not_be_skipped_in_ci(reason: str, had: str, *, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKAGES_NOT_TO_BE_HAD", had)
    assert needs.promised(reason) == wanted


def test_every_debugger_is_started_by_the_one_helper() -> None:
    """No other way shuts out this machine's debug packages and libraries."""
    starts = re.compile(r"""\[[^]()]*["'](gdb|gdb-multiarch|lldb|lldb-\d+)["'][],]""")
    found = {
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("*.py")
        for line in path.read_text().splitlines()
        if "parametrize(" not in line and starts.search(re.sub(r"gdb_command\([^)]*\)", "", line))
    }
    assert found <= {"unit/test_needs.py"}

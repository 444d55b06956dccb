"""What is built is what is in the tree, and runs where PyPI has no wheel of lief, lzallright, isal and capstone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders.kdump import build_kdump
from tests.needs import need

ROOT = Path(__file__).resolve().parents[2]
DUMP = ROOT / "fixtures/debian-6.1-amd64/vmcore"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WITHOUT = ("lief", "lz4", "lzallright", "isal", "capstone")
BUILD = [sys.executable, "-m", "build", "--no-isolation"]
VERIFY = "from vmcore2core.__main__ import vmcore2core; vmcore2core()"


@dataclass(frozen=True)
class Distribution:
    """A wheel and an sdist."""

    wheel: Path
    sdist: Path

    def in_wheel(self) -> list[str]:
        with zipfile.ZipFile(self.wheel) as wheel:
            return wheel.namelist()

    def in_sdist(self) -> list[str]:
        with tarfile.open(self.sdist) as sdist:
            return [name.partition("/")[2] for name in sdist.getnames()]


def build(tree: Path, *options: str) -> None:
    done = subprocess.run([*BUILD, *options, tree], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """Built from a copy of the tree, for the second time: a module was there the first time, and is no more."""
    tree = tmp_path_factory.mktemp("tree") / "vmcore2core"
    tree.mkdir()
    # What a clean clone has: a build of the day before must not help.
    command = [need("git"), "-c", "safe.directory=*", "ls-files"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if not name.startswith(("tests/", "fixtures/")) or name.startswith("fixtures/sysroot/") or ROOT / name == DUMP:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    gone = tree / "vmcore2core" / "gone.py"
    gone.write_text('"""A module."""\n')
    build(tree, "--wheel")
    gone.unlink()
    build(tree)
    (wheel,), (sdist,) = (tree / "dist").glob("*.whl"), (tree / "dist").glob("*.tar.gz")
    return Distribution(wheel, sdist)


def test_the_wheel_has_the_modules_of_the_tree_and_no_others(distribution: Distribution) -> None:
    there = {name for name in distribution.in_wheel() if name.endswith(".py")}
    in_tree = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vmcore2core").rglob("*.py")}
    in_tree |= {f"vmcore2core/formats/{path.name}" for path in (ROOT / "formats").glob("*.py")}
    assert there == in_tree


def test_licence_and_manual_pages_are_packed_once(distribution: Distribution) -> None:
    names = distribution.in_wheel()
    assert len([name for name in names if name.endswith("/LICENSE")]) == 1
    pages = [name for name in names if name.endswith(".1")]
    assert sorted(Path(name).name for name in pages) == sorted(p.name for p in (ROOT / "vmcore2core/man").iterdir())
    assert all("/data/share/man/man1/" in name for name in pages)


def test_the_documents_are_in_both(distribution: Distribution) -> None:
    documents = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vmcore2core/docs").iterdir()}
    assert "vmcore2core/docs/formats.md" in documents
    assert documents <= set(distribution.in_wheel())
    assert documents <= set(distribution.in_sdist())


def test_the_sdist_has_what_readmes_first_command_reads(distribution: Distribution) -> None:
    names = distribution.in_sdist()
    (command,) = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [word for word in command.split() if "/" in word and word in names] == [DUMP.relative_to(ROOT).as_posix()]
    assert {"LICENSE", "README.md", "pyproject.toml", "fixtures/sysroot/bin/lab-static"} <= set(names)
    assert not any(name.startswith("tests/") for name in names)


def test_an_index_would_take_both(distribution: Distribution) -> None:
    wheel, sdist = map(str, (distribution.wheel, distribution.sdist))
    for command in (["twine", "check", "--strict", wheel, sdist], ["check_wheel_contents", wheel]):
        module = [sys.executable, "-m", *command]
        done = subprocess.run(module, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def bare(distribution: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked, and nothing of lief, lz4, lzallright, isal and capstone."""
    folder = tmp_path_factory.mktemp("bare")
    with zipfile.ZipFile(distribution.wheel) as wheel:
        wheel.extractall(folder)
    # None there: an import fails as if the package were not installed.
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({WITHOUT!r})\n")
    return folder


def run(bare: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    check = f"import vmcore2core; assert vmcore2core.__file__.startswith({str(bare)!r}), vmcore2core.__file__; {VERIFY}"
    command = [sys.executable, "-c", check, *map(str, args)]
    # Not measured: this is another copy of the package.
    environment = {**os.environ, "PYTHONPATH": str(bare), "COVERAGE_PROCESS_CONFIG": ""}
    return subprocess.run(command, env=environment, cwd=bare, capture_output=True, text=True, timeout=120, check=False)


def test_a_dump_is_converted_and_the_core_verified_without_what_has_no_wheel(bare: Path) -> None:
    converted = run(bare, DUMP, "--pid", "86", "-o", "app.core")
    assert (converted.returncode, converted.stderr) == (0, "")
    verified = run(bare, "verify", "app.core", "--against", DUMP)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "note: pyelftools alone has read its headers: the Python package lief is not installed" in verified.stdout


def test_a_dump_that_needs_a_package_names_it(bare: Path) -> None:
    (bare / "lzo").write_bytes(build_kdump({number: bytes([number]) * 4096 for number in range(1, 9)}, codec="lzo"))
    refused = run(bare, "lzo", "--pid", "1")
    assert refused.returncode == 1
    assert "the Python package lzallright is not installed: pip install lzallright" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_nothing_names_extras_of_a_package_that_no_index_has() -> None:
    """From a checkout it is '.[remote]'; a message names the packages themselves."""
    texts = [ROOT / "README.md", *(ROOT / "vmcore2core").rglob("*.py"), *(ROOT / "vmcore2core").rglob("*.md")]
    assert [path for path in texts if re.search(r"pip install \S*vmcore2core\b", path.read_text())] == []


def test_the_oldest_versions_are_those_of_pyproject() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["dev"]]
    least = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(wanted), re.MULTILINE))
    rows = (ROOT / "tests/constraints-oldest.txt").read_text().splitlines()
    pinned = dict(row.split("==") for row in rows if not row.startswith("#"))
    assert {
        name: version for name, version in pinned.items() if (version + ".").startswith(least[name] + ".")
    } == pinned
    only_check = {"build", "check-wheel-contents", "construct-typing", "hatchling", "mypy", "ruff", "twine"}
    assert pinned.keys() == least.keys() - only_check

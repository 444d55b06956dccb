"""Files that another user has put in the way of a run: one sentence, and no harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.guests import FIXTURES, convert

DUMP = FIXTURES / "debian-6.1-amd64" / "vmcore"


@pytest.mark.parametrize("name", ["sysroot", "sysroot.incomplete", "sysroot.2"])
@pytest.mark.parametrize("option", [[], ["--force"]], ids=["", "force"])
def test_a_link_in_the_place_of_the_sysroot_ends_the_run(name: str, option: list[str], tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "victim")
    result = convert(DUMP, "--all", "-o", tmp_path / "out", *option)
    assert result.returncode == 1
    assert result.stderr == (
        f"vmcore2core: {tmp_path}/out/{name} is not used: it is a link or a file, expected a directory\n"
    )
    assert not list((tmp_path / "victim").iterdir())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("options", [["--all"], ["--pid", "86"]])
def test_a_directory_that_anybody_can_write_to_is_not_used(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    result = convert(DUMP, *options, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith(f"vmcore2core: {tmp_path}/out is not used: others can write to it (drwxrwxrwx)")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
@pytest.mark.parametrize("options", [["--all"], ["--pid", "86"], ["--all", "--resume"], ["--all", "--force"]])
def test_a_directory_of_somebody_else_is_not_used(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", 4711, 4711)
    result = convert(DUMP, *options, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert "out is not used: it belongs to user 4711" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_link_of_ones_own_to_the_output_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert convert(DUMP, "--pid", "86", "-o", tmp_path / "link" / "app.core").returncode == 0
    assert (tmp_path / "real" / "app.core").is_file()


def test_an_index_that_is_a_link_to_endless_zeros_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "index.json").symlink_to("/dev/zero")
    result = convert(DUMP, "--all", "--resume", "-o", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (f"vmcore2core: {tmp_path}/index.json is not used: it is a link, expected a regular file\n")
